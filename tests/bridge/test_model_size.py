"""Sizes from a configuration are those of the loaded model, and of models that no machine here can load."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import positional_heads as ph
from positional_heads.bridge.loading import load_configuration
from positional_heads.bridge.model_size import model_size
from tests.support.tiny_models import COMMON, FAMILIES, NOT_ROTARY, TEXT_CONFIGS

LLAMA_3 = {"vocab_size": 128256, "max_position_embeddings": 131072, "num_key_value_heads": 8}
LLAMA_3_8B = LLAMA_3 | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
LLAMA_3_70B = LLAMA_3 | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
RESOLVED = ("llama", "mistral", "gemma2", "gemma3", "neox", "gptj", "smollm3", "gpt_oss", "qwen3", "mixtral", "gemma4")


@pytest.mark.parametrize(
    ("config", "heads", "parameters", "embedding"),
    [(LLAMA_3_8B, 32, 8_030_261_248, 128256 * 4096), (LLAMA_3_70B, 64, 70_553_706_496, 128256 * 8192)],
)
def test_published_sizes_are_read_from_a_configuration(config, heads, parameters, embedding):
    size = model_size(LlamaConfig(num_attention_heads=heads, **config))
    assert (size.parameters, size.heads, size.kv_heads, size.d_head, size.pairs) == (parameters, heads, 8, 128, 64)
    assert size.used == parameters - 2 * embedding
    assert size.windows == (None,) * config["num_hidden_layers"]
    assert size.head_count == config["num_hidden_layers"] * heads


@pytest.mark.parametrize("family", RESOLVED)
def test_sizes_are_those_of_the_loaded_model(family, tiny, tiny_folder):
    size, layers = model_size(AutoConfig.from_pretrained(tiny_folder(family))), ph.resolve_layers(tiny(family)).layers
    loaded = AutoModelForCausalLM.from_pretrained(tiny_folder(family))
    assert size.parameters == sum(one.numel() for one in loaded.parameters())
    assert {size.heads} == {rotary.n_heads for rotary in layers.values()}
    assert size.pairs == max(rotary.n_pairs for rotary in layers.values())
    assert size.d_head == max(rotary.d_head for rotary in layers.values())
    assert size.layers == len(layers)


def test_windows_are_those_of_the_masks(tiny, tiny_folder):
    for family in ("mistral", "gemma2", "gemma3", "llama"):
        tokens = torch.arange(40)[None] % 256
        found = [layer["window"] for layer in ph.score_heads(tiny(family), tokens).provenance["rotary"]]
        assert list(model_size(AutoConfig.from_pretrained(tiny_folder(family))).windows) == found


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma2"])
def test_used_parameters_are_those_that_a_run_multiplies_by(family, tiny_folder):
    model, tokens = AutoModelForCausalLM.from_pretrained(tiny_folder(family)), 8
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(tokens)[None], logits_to_keep=1, use_cache=False)
    counted = counter.get_flop_counts()["Global"]
    products = sum(flop for name, flop in counted.items() if str(name) in {"aten.mm", "aten.addmm"})
    unembedding = 2 * model.get_output_embeddings().weight.numel()
    vectors = sum(one.numel() for one in model.parameters() if one.ndim == 1)  # norms: no matrix products
    assert 2 * tokens * (model_size(model.config).used - vectors) == products - unembedding


def test_experts_count_as_far_as_a_token_uses_them():
    sizes = [
        model_size(transformers.MixtralConfig(**COMMON, num_local_experts=experts, num_experts_per_tok=2))
        for experts in (2, 8)
    ]
    assert sizes[1].parameters > 2 * sizes[0].parameters
    router = 6 * COMMON["hidden_size"] * COMMON["num_hidden_layers"]  # of six more experts
    assert sizes[1].used == sizes[0].used + router


def test_models_that_cannot_be_scored_are_refused():
    for family in NOT_ROTARY:
        with pytest.raises(ph.UnsupportedModelError, match="no rotary embedding"):
            model_size(getattr(transformers, f"{FAMILIES[family][0]}Config")(**COMMON | FAMILIES[family][1]))
    with pytest.raises(ph.UnsupportedModelError, match="one attention module in several layers"):
        model_size(transformers.Zamba2Config(**COMMON | FAMILIES["zamba2"][1]))
    with pytest.raises(ValueError, match="cannot be read from its configuration"):
        model_size(transformers.CLIPTextConfig())


def test_every_family_has_a_size_or_a_reason():
    for family, (prefix, settings) in FAMILIES.items():
        config = getattr(transformers, TEXT_CONFIGS.get(family, f"{prefix}Config"))(**COMMON | settings)
        try:
            size = model_size(config)
        except ph.UnsupportedModelError:
            continue
        assert 0 < size.used < size.parameters
        assert 0 < 2 * size.pairs <= size.d_head
        assert 0 < size.layers <= config.num_hidden_layers


def test_a_configuration_needs_no_weights_and_no_network(tiny_folder, tmp_path):
    for file in tiny_folder("llama").iterdir():
        if "safetensors" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config, tokenizer = load_configuration(tmp_path)
    assert model_size(config).layers == COMMON["num_hidden_layers"]
    assert tokenizer("text")["input_ids"]
    with pytest.raises(ValueError, match=r"of 'nobody/nothing' cannot be read from this machine .*hf download"):
        load_configuration("nobody/nothing")
