"""Checkpoints load as their authors meant them or are refused in one sentence, and loading installs nothing."""

import ast
import json
import logging
import math
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlavaConfig, LlavaForConditionalGeneration, PretrainedConfig

import positional_heads as ph
from positional_heads.bridge.checkpoints import is_quantized
from positional_heads.bridge.configuration import translated_configuration
from positional_heads.bridge.provenance import weights_fingerprint
from positional_heads.views.report.lines import score_lines
from positional_heads.zoo.architecture import byte_tokenizer
from tests.support.tiny_models import COMMON, GROUPED, WRONG_BRIDGES, boot, save_tiny_model

TOKENS = torch.randint(256, (1, 60), generator=torch.Generator().manual_seed(0))
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LISTS = {"short_factor": [1.0 + pair / 8 for pair in range(8)], "long_factor": [2.0] * 8}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
ATTENTION = 0.1 * math.log(4) + 1


def saved(folder, change, family="llama"):
    """A tiny model whose config.json is in the old form, and changed."""
    save_tiny_model(family, folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    file.write_text(json.dumps(config | {"rope_theta": rope["rope_theta"]} | change))
    return folder


def logits(folder, family, change):
    """Hugging Face's own, of the same weights under another configuration."""
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(saved(folder, change, family), attn_implementation="eager")
        return model(TOKENS).logits


def amplitude(model):
    """The factor on cos and sin, which is cos at position 0."""
    _, cache = model.run_with_cache(TOKENS, names_filter="blocks.0.attn.hook_cos")
    return float(cache["blocks.0.attn.hook_cos"][0, 0, 0])


@pytest.mark.parametrize(
    ("family", "change", "meant", "told"),
    [
        (
            "phi3",
            {"rope_scaling": {"type": "su", **LISTS}, "original_max_position_embeddings": 48},
            {"rope_scaling": {"type": "longrope", **LISTS}, "original_max_position_embeddings": 48},
            "",
        ),
        ("llama", {"rope_scaling": {**YARN, "factor": "4.0"}}, {"rope_scaling": YARN}, "written as text, '4.0'"),
        (
            "phi3",
            {
                "rope_scaling": {"type": "longrope", **LISTS, "long_factor": ["2.0"] * 8},
                "original_max_position_embeddings": 48,
            },
            {"rope_scaling": {"type": "longrope", **LISTS}, "original_max_position_embeddings": 48},
            "long_factor is written as text",
        ),
        ("llama", {"rope_theta": "500000"}, {"rope_theta": 500000.0}, "rope_theta is written as text"),
        (
            "llama",
            {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 64}},
            {"rope_scaling": YARN},
            "no factor: 4, from 64 to 256 tokens",
        ),
        (
            "llama",
            {"rope_scaling": {**YARN, "attn_factor": 1.5}},
            {"rope_scaling": {**YARN, "attention_factor": 1.5 * ATTENTION}},
            "attn_factor 1.5 gives an attention factor of 1.70794",
        ),
        ("llama", {"_attn_implementation": "flash_attention_2"}, {}, ""),
        ("llama", {"attn_implementation": "flash_attention_2"}, {}, ""),
        (
            "llama",
            {"quantization_config": FP8},
            {},
            "quantization_config (fp8) is ignored",
        ),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, {}, "quantization_config (gptq)"),
        (
            "llama",
            {"rope_scaling": {**YARN, "extrapolation_factor": 0.5}},
            {"rope_scaling": YARN},
            "extrapolation_factor",
        ),
        (
            "mixtral",
            {"rope_scaling": YARN, "head_dim": None},
            {"rope_scaling": YARN, "head_dim": 16},
            "",
        ),
    ],
)
def test_checkpoints_load_as_they_are_meant(family, change, meant, told, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "positional_heads"):
        model = ph.load_model(str(saved(tmp_path / "given", change, family)))
    assert told in caplog.text
    assert bool(told) == bool(caplog.text)
    expected = logits(tmp_path / "meant", family, meant)
    with torch.no_grad():
        found = model(TOKENS)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert ph.score_heads(model, TOKENS).rho.isfinite().all()


def test_the_attention_factor_of_deepseeks_distilled_qwen3_is_one(tmp_path):
    """Its attn_factor, 1 / (0.1 ln 4 + 1), undoes YaRN's own; transformers does not read it."""
    model = ph.load_model(saved(tmp_path, {"rope_scaling": {**YARN, "attn_factor": 0.8782488562869419}}, "qwen3"))
    assert amplitude(model) == pytest.approx(1)
    plain = boot(saved(tmp_path / "plain", {"rope_scaling": YARN}, "qwen3"))
    assert amplitude(plain) == pytest.approx(ATTENTION)


@pytest.mark.parametrize(
    ("scaling", "reason"),
    [
        ({"type": "longrope", **LISTS, "short_factor": [1.0] * 7}, "short_factor is a list of 7, .* of the 8 pairs"),
        ({"type": "longrope", **LISTS, "long_factor": [1.0] * 9}, "long_factor is a list of 9, .* of the 8 pairs"),
        ({"type": "longrope", **LISTS, "long_factor": 2.0}, "long_factor is 2.0, and must be one number for each"),
        ({"type": "longrope"}, "of type 'longrope' and lacks short_factor and long_factor"),
        ({"type": "yarn"}, "of type 'yarn' and lacks factor"),
        ({"type": "yarn", "original_max_position_embeddings": 256}, "of type 'yarn' and lacks factor"),
        ({"type": "linear"}, "of type 'linear' and lacks factor"),
        ({"type": "linear", "factor": "four"}, "factor is 'four', and must be a positive number"),
        ({"type": "linear", "factor": -2.0}, "factor is -2.0, and must be a positive number"),
        ({"type": "linear", "factor": True}, "factor is True, and must be a positive number"),
        ({"type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}, "of type 'llama3' and lacks low_freq_factor"),
        ({"type": "linear", "factor": [4.0]}, "factor is \\[4.0\\], and must be a positive number"),
        ({"type": "linear", "factor": 0.5}, "factor is 0.5, and must be at least 1"),
        ({**YARN, "factor": 0.5}, "factor is 0.5, and must be at least 1"),
        ({**YARN, "beta_fast": 1, "beta_slow": 32}, "beta_slow is 32, and must be below beta_fast, 1"),
        ({**YARN, "beta_slow": 32.0}, "beta_slow is 32.0, and must be below beta_fast, 32.0"),
        (
            {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
            "low_freq_factor is 4.0, and must be below high_freq_factor, 4.0",
        ),
        ({"type": "longrope", **LISTS, "long_factor": [1.0] * 7 + [0.0]}, "long_factor holds 0.0, and must hold pos"),
        ({"type": "longrope", **LISTS, "short_factor": ["x"] * 8}, "short_factor holds 'x', and must hold positive"),
        ({"type": "longrope", **LISTS, "short_factor": [-1] * 8}, "short_factor holds -1, and must hold positive"),
        ({"factor": 2.0}, "a factor of 2.0 and no rope_type"),
        (["linear", 4.0], "rope_scaling is \\['linear', 4.0\\], and must be a table"),
    ],
)
def test_impossible_rotations_are_refused_in_one_sentence(scaling, reason, tiny_folder, tmp_path):
    config = json.loads((tiny_folder("llama") / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling}))
    with pytest.raises(ValueError, match=f"cannot be loaded: its .*{reason}") as refusal:
        ph.load_model(str(tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rope_theta": None}, "rope_theta is None, and must be a positive number"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "rope_theta is None, and must be"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, and must be a positive number"),
        ({"head_dim": 0}, "head_dim is 0, and must be a positive number"),
    ],
)
def test_impossible_sizes_are_refused_in_one_sentence(change, reason, tiny_folder, tmp_path):
    config = json.loads((tiny_folder("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f"cannot be loaded: its {reason}"):
        ph.load_model(str(tmp_path))


def test_every_layer_types_rotation_is_translated():
    kinds = {"full_attention": {"type": "linear", "factor": "8"}, "sliding_attention": {"rope_type": "default"}}
    raw = {"model_type": "gemma3", "text_config": {"rope_parameters": kinds, "rope_theta": 1e6}}
    config, told = translated_configuration(raw, quantized=False)
    assert config["text_config"]["rope_parameters"]["full_attention"] == {"rope_type": "linear", "factor": 8}
    assert len(told) == 1
    assert raw["text_config"]["rope_parameters"]["full_attention"]["factor"] == "8"  # what was given is left alone


def test_quantised_weights_stay_quantised(tmp_path):
    config, _ = translated_configuration({"quantization_config": FP8}, quantized=True)
    assert config["quantization_config"] == FP8
    plain = {"lm_head.weight": torch.ones(2, 2)}
    for name, tensors, expected in (
        ("plain", plain, False),
        ("fp8", plain | {"q.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}, True),
        ("int", plain | {"q.weight": torch.ones(2, 2).to(torch.uint8)}, True),
    ):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        assert is_quantized(str(tmp_path / name)) is expected
    for name, weight, expected in (("a", "q.weight", False), ("b", "q.weight_scale_inv", True)):
        (tmp_path / name).mkdir()
        index = {"weight_map": {weight: "model-1.safetensors"}}
        (tmp_path / name / "model.safetensors.index.json").write_text(json.dumps(index))
        assert is_quantized(str(tmp_path / name)) is expected
    (tmp_path / "unknown").mkdir()
    assert is_quantized(str(tmp_path / "unknown"))


@pytest.fixture
def llava(tmp_path):
    """A tiny vision-language checkpoint without a processor: TransformerLens blames torchvision, and installs it."""
    text = {**COMMON, **GROUPED, "model_type": "llama"}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=257)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:Hook alias")  # TransformerLens' own, about the vision tower
def test_loading_installs_nothing(llava, monkeypatch, caplog):
    started = []

    def recording(self, args, *rest, **kwargs):
        started.append(args)
        raise FileNotFoundError

    monkeypatch.setattr(subprocess.Popen, "__init__", recording)
    with caplog.at_level(logging.WARNING, "positional_heads"):
        model = ph.load_model(str(llava))
    assert started == []
    assert "without its image processor, which text does not need: it asks for torchvision" in caplog.text
    assert subprocess.Popen.__init__ is recording  # as it was
    assert ph.score_heads(model, TOKENS).rho.isfinite().all()
    boot(llava)
    assert "torchvision" in started[0]  # what would have been run


def test_no_other_code_boots_models():
    """So the command line, Ray workers and studies install nothing either."""
    root = Path(ph.__file__).parent
    calls = {
        (node.attr, file.name)
        for file in root.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"boot_transformers", "from_pretrained"}
    }
    booting = {name for attribute, name in calls if attribute == "boot_transformers"}
    assert booting == {"loading.py", "loaded_models.py"}  # both inside `installing_refused`
    assert {name for _, name in calls} - booting == {"adapters.py", "checkpoints.py", "gguf.py"}


def test_a_reports_lines_load_the_model_as_it_was_loaded(tiny_folder):
    folder = str(tiny_folder("llama"))
    scores = ph.score_heads(ph.load_model(folder, dtype="bfloat16"), TOKENS)
    assert f"model = ph.load_model({folder!r}, dtype='bfloat16')\n" in score_lines(scores.provenance)


def test_other_programs_start_while_models_load_in_several_threads(tiny_folder):
    own, reading = subprocess.Popen.__init__, PretrainedConfig.get_config_dict
    outputs, threads = [], []
    for family in ("llama", "qwen2"):
        threads.append(threading.Thread(target=ph.load_model, args=(str(tiny_folder(family)),)))
        threads[-1].start()
    while any(thread.is_alive() for thread in threads):
        outputs.append(subprocess.run(["echo", "here"], capture_output=True, text=True, check=True).stdout)
    assert set(outputs) == {"here\n"}
    assert subprocess.Popen.__init__ is own
    assert PretrainedConfig.get_config_dict == reading


def test_paths_with_spaces_slashes_and_home(tmp_path, monkeypatch):
    folder = save_tiny_model("llama", tmp_path / "my model")
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {ph.load_model(path).cfg.model_name for path in (folder, f"{folder}/", "~/my model")}
    assert names == {str(folder)}


def test_a_folder_without_a_tokenizer_takes_token_ids(tmp_path, caplog):
    folder = save_tiny_model("llama", tmp_path)
    expected = ph.score_heads(boot(folder), TOKENS)
    for file in folder.glob("*token*"):
        file.unlink()
    with caplog.at_level(logging.WARNING, "positional_heads"):
        model = ph.load_model(folder)
    assert "takes token ids and no text" in caplog.text
    scores = ph.score_heads(model, TOKENS)
    assert torch.equal(scores.rho, expected.rho)
    assert scores.provenance["model"] == expected.provenance["model"]
    with pytest.raises(ValueError, match="no tokenizer: give token ids"):
        ph.score_heads(model, "text " * 50)


def test_reasons_of_several_lines_become_one_sentence(tmp_path):
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": "many"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cannot be loaded: .*num_attention_heads.*many") as refusal:
        ph.load_model(str(tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(bool(WRONG_BRIDGES), reason="this TransformerLens refuses weights on disk itself")
def test_a_model_with_weights_on_disk_is_scored_as_another(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    places = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "lm_head", "model.layers.0"), "cpu")
    places |= {"model.norm": "disk", "model.layers.1": "disk"}
    model = boot_on(folder, places, tmp_path / "kept")
    assert {str(parameter.device) for parameter in model.original_model.parameters()} == {"cpu", "meta"}
    expected = ph.score_heads(boot(folder), TOKENS)
    scores = ph.score_heads(model, TOKENS)
    assert torch.equal(scores.rho, expected.rho)
    assert scores.provenance["model"] == expected.provenance["model"]
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    other = save_tiny_model("llama", tmp_path / "other")
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    changed = boot_on(other, places, tmp_path / "others")
    assert weights_fingerprint(changed) != weights_fingerprint(model)
    with pytest.raises(ph.UnsupportedModelError, match="embeddings of this model are offloaded"):
        ph.resolve_layers(boot_on(folder, {"": "disk"}, tmp_path / "all"))


def boot_on(folder, places, kept):
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(folder), device_map=places, offload_folder=str(kept)).eval()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_checkpoint_that_lacks_tensors_is_refused(sharded, tmp_path):
    folder = save_tiny_model("llama", tmp_path)
    if sharded:
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
        (folder / "model.safetensors").unlink(missing_ok=True)
    ph.load_model(str(folder))
    lost = {f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkvo"}
    for file in folder.glob("*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(file).items() if name not in lost}
        save_file(kept, file, {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lack 4 of .* \(model\.layers\.1\.self_attn\.k_proj\.weight, .*o_proj.*q_proj"
    ):
        ph.load_model(str(folder))


@pytest.mark.parametrize("family", ["gemma4", "olmo_hybrid", "neox", "codegen", "gpt_oss", "falcon_h1"])
def test_checkpoints_of_families_with_other_names_lack_nothing(family, tiny_folder):
    assert ph.load_model(str(tiny_folder(family))).cfg.n_layers > 0


def test_tied_embeddings_that_are_stored_once_are_not_missed(tmp_path):
    folder = save_tiny_model("llama", tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    bridge = ph.load_model(str(folder))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder)(TOKENS).logits
        assert torch.allclose(bridge(TOKENS), expected, atol=1e-5)


def test_weights_that_were_never_loaded_are_refused(tiny_folder):
    model = boot(tiny_folder("llama"))
    model.original_model.model.layers[1].to("meta")
    with pytest.raises(ph.UnsupportedModelError, match=r"not loaded \(model\.layers\.1\..* is on the meta device\)"):
        ph.score_heads(model, TOKENS)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        ph.load_model(str(tmp_path / "nowhere"))


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        ph.load_model(str(tmp_path))


def test_an_unknown_precision_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="dtype 'int3'"):
        ph.load_model(str(tiny_folder("llama")), dtype="int3")


def test_a_model_that_no_hub_has_is_refused():
    with pytest.raises(ValueError, match="nobody/nothing"):
        ph.load_model("nobody/nothing")
