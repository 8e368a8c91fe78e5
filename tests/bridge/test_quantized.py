"""Quantised weights: scored as transformers computes with them, within the rounding of that arithmetic."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPTQConfig, QuantoConfig, TorchAoConfig

import positional_heads as ph
from positional_heads.bridge.answer_run import runs_plainly
from positional_heads.bridge.provenance import weights_fingerprint
from tests.bridge.test_loaded_models import TOKENS, agrees
from tests.support.tiny_models import save_tiny_model

torchao = pytest.importorskip("torchao", reason="the extra [quantized] is not installed")


def int8():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def int4():
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


KINDS = {"int8": (int8, 0.02), "int4": (int4, 0.2)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model, and the same with quantised weights, as transformers saves it."""
    base = save_tiny_model("llama", tmp_path_factory.mktemp("float"))
    made = {"float": base}
    for kind, (config, _) in KINDS.items():
        for dtype in (torch.float32, torch.bfloat16):
            made[kind, dtype] = base.with_name(f"{kind}-{dtype}")
            own = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=config())
            own.save_pretrained(made[kind, dtype])
            for file in base.glob("tokenizer*"):
                (made[kind, dtype] / file.name).write_bytes(file.read_bytes())
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_hugging_faces_quantised_model(kind, folders):
    folder = folders[kind, torch.float32]
    model = ph.load_model(folder)
    scores = agrees(model, AutoModelForCausalLM.from_pretrained(folder))  # within what float32 weights are held to
    resolved = ph.resolve_layers(model)
    assert all(rotary.plain and rotary.error < 1e-6 for rotary in resolved.layers.values())
    assert scores.provenance["model"]["quantization"] == "torchao"
    apart = float((scores.rho - ph.score_heads(ph.load_model(folders["float"]), TOKENS).rho).abs().max())
    assert 0 < apart < KINDS[kind][1]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_compute_in_the_precision_that_they_were_saved_for(kind, folders):
    folder = folders[kind, torch.bfloat16]
    model = ph.load_model(folder)
    assert model.cfg.dtype == torch.bfloat16
    agrees(model, AutoModelForCausalLM.from_pretrained(folder), limit=0.05)
    assert all(1e-4 < rotary.error < 3e-2 for rotary in ph.resolve_layers(model).layers.values())
    with pytest.raises(ValueError, match="quantised to compute in bfloat16, not in float32: leave dtype out"):
        ph.load_model(folder, dtype="float32")


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_while_loading_before_and_in_memory_are_one_model(kind, folders):
    folder = folders[kind, torch.float32]
    models = [
        ph.load_model(folder),
        ph.load_model(folders["float"], quantization_config=KINDS[kind][0]()),
        ph.load_model(AutoModelForCausalLM.from_pretrained(folder)),
    ]
    found = [ph.score_heads(model, TOKENS) for model in models]
    assert all(torch.equal(one.rho, found[0].rho) for one in found)
    stated = [one.provenance["model"].get("quantization_config", {}).get("quant_method") for one in found]
    assert stated == [None, "torchao", None]
    assert len({one.provenance["model"]["weights"] for one in found}) == 1


def test_the_fingerprint_is_that_of_codes_and_scales(folders):
    models = {key: ph.load_model(folder) for key, folder in folders.items()}
    assert len({weights_fingerprint(model) for model in models.values()}) == len(models)
    model = models["int8", torch.float32]
    before = weights_fingerprint(model)
    weight = model.original_model.model.layers[1].mlp.up_proj.weight
    for part in (weight.qdata, weight.scale):
        part.view(-1)[0] += 1
        changed, before = before, weights_fingerprint(model)
        assert changed != before


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_heads_of_quantised_models_are_ablated(mode, folders):
    model = ph.load_model(folders["int8", torch.float32])
    own = AutoModelForCausalLM.from_pretrained(folders["int8", torch.float32]).eval()
    means = {}

    def keep(module, args):
        means.setdefault("z", args[0][..., 16:32].mean((0, 1)))

    def replace(module, args):
        z = args[0].clone()
        z[..., 16:32] = 0 if mode == "zero" else means["z"]
        return (z,)

    projection = own.model.layers[0].self_attn.o_proj
    with torch.no_grad():
        handle = projection.register_forward_pre_hook(keep)
        own(TOKENS)
        handle.remove()
        projection.register_forward_pre_hook(replace)
        expected = own(TOKENS).logits
        with ph.ablated_heads(model, ["L0H1"], mode=mode, reference=TOKENS if mode == "mean" else None):
            assert torch.allclose(model(TOKENS), expected, atol=1e-4)
            assert runs_plainly(model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_stays_beside_quantised_weights(folders, tmp_path):
    peft = pytest.importorskip("peft", reason="the extra [peft] is not installed")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folders["float"]), config).save_pretrained(tmp_path)
    folder = folders["int8", torch.float32]
    before = weights_fingerprint(ph.load_model(folder))
    model = ph.load_model(folder, adapter=tmp_path)
    own = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path).get_base_model()
    scores = agrees(model, own)
    assert scores.provenance["model"]["weights"] != before
    assert any(hasattr(module, "lora_A") for module in model.original_model.modules())


def test_missing_packages_and_other_values_are_refused_in_a_sentence(folders, monkeypatch):
    with pytest.raises(TypeError, match=r"one of transformers' configurations, .* got a str"):
        ph.load_model(folders["float"], quantization_config="int8")
    for config, told in (
        (GPTQConfig(bits=4), "GPTQ .* requires"),
        (BitsAndBytesConfig(load_in_8bit=True), "bitsandbytes"),
    ):
        with pytest.raises(ValueError, match=f"cannot be loaded: .*{told}") as refusal:
            ph.load_model(folders["float"], quantization_config=config)
        assert "\n" not in str(refusal.value)
    monkeypatch.setattr("positional_heads.bridge.checkpoints.find_spec", lambda name: None)
    for given in ({"quantization_config": QuantoConfig(weights="int8")}, {"quantization_config": int8()}):
        with pytest.raises(ImportError, match=r"pip install 'positional-heads\[quantized\]'"):
            ph.load_model(folders["float"], **given)
    with pytest.raises(ValueError, match=r"pip install 'positional-heads\[quantized\]'"):
        ph.load_model(folders["int8", torch.float32])
