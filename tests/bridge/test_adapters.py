"""LoRA adapters: merged or not they score alike, as PEFT's own model does; what would be ignored or run is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.bridge.adapters import _last_name
from positional_heads.bridge.provenance import weights_fingerprint
from positional_heads.views.report.commands import score_command
from positional_heads.views.report.lines import score_lines
from tests.bridge.test_loaded_models import TOKENS, agrees
from tests.support.tiny_models import save_tiny_model

peft = pytest.importorskip("peft", reason="the extra [peft] is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model and an adapter beside it, which names it by a relative path."""
    home = tmp_path_factory.mktemp("adapted")
    base = save_tiny_model("llama", home / "base")
    torch.manual_seed(1)
    save_adapter(base, home / "lora", init_lora_weights=False)
    return base, home / "lora"


def save_adapter(base, folder, **settings):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "o_proj"], **settings)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    rewritten(folder, base_model_name_or_path="base")
    return folder


def rewritten(folder, **change):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return folder


def copied(folder, tmp_path, **change):
    return rewritten(shutil.copytree(folder, tmp_path / "copy"), **change)


def own(base, adapter):
    """PEFT's own model, with the adapter beside the weights."""
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)


def test_merged_and_unmerged_adapters_score_as_pefts_own_model(folders):
    base, adapter = folders
    plain = ph.score_heads(ph.load_model(base), TOKENS)
    merged, unmerged = ph.load_model(adapter), ph.load_model(own(base, adapter))
    assert any(hasattr(module, "lora_A") for module in unmerged.original_model.modules())
    assert not any(hasattr(module, "lora_A") for module in merged.original_model.modules())
    scores = [agrees(model, own(base, adapter).get_base_model()) for model in (merged, unmerged)]
    assert float((scores[0].rho - scores[1].rho).abs().max()) < 1e-4
    assert all(float((one.rho - plain.rho).abs().max()) > 0.01 for one in scores)
    with torch.no_grad():
        expected = own(base, adapter).eval()(TOKENS).logits
        assert all(torch.allclose(model(TOKENS), expected, atol=1e-4) for model in (merged, unmerged))
    assert unmerged.cfg.model_name == f"{base} with adapter default"


def test_an_adapter_of_zeros_changes_nothing(folders, tmp_path):
    base, _ = folders
    adapter = save_adapter(base, tmp_path / "zero")
    scores = ph.score_heads(ph.load_model(base, adapter=adapter), TOKENS)
    expected = ph.score_heads(ph.load_model(base), TOKENS)
    assert torch.equal(scores.rho, expected.rho)
    assert scores.provenance["model"] == expected.provenance["model"] | {"adapter": str(adapter)}


def test_the_fingerprint_tells_bases_adapters_and_their_scales_apart(folders):
    base, adapter = folders
    doubled = own(base, adapter)
    for module in doubled.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 2
    models = [ph.load_model(given) for given in (base, adapter, own(base, adapter), doubled)]
    assert len({weights_fingerprint(model) for model in models}) == len(models)
    assert weights_fingerprint(ph.load_model(own(base, adapter))) == weights_fingerprint(models[2])


def test_an_adapter_that_is_switched_off_is_another_model(folders):
    base, adapter = folders
    adapted = own(base, adapter)
    model = ph.load_model(adapted)
    before, logits = weights_fingerprint(model), model(TOKENS)
    with adapted.disable_adapter():
        assert weights_fingerprint(model) != before
        assert not torch.allclose(model(TOKENS), logits, atol=1e-3)
    assert weights_fingerprint(model) == before


def test_only_heads_of_adapted_layers_are_said_to_change(folders, tmp_path):
    base, _ = folders
    torch.manual_seed(2)
    adapter = save_adapter(base, tmp_path / "last", init_lora_weights=False, layers_to_transform=[1])
    rewritten(adapter, base_model_name_or_path=str(base))
    tokens = torch.randint(256, (6, 40), generator=torch.Generator().manual_seed(0))

    def profile(model):
        return ph.profile_heads(model, tokens, retrieval=None, resamples=50)

    adapted = own(base, adapter)
    model = ph.load_model(adapted)
    on, merged = profile(model), profile(ph.load_model(adapter))
    with adapted.disable_adapter():
        off = profile(model)
    for after in (on, merged):
        found = ph.compare(off, after, names=["off", "on"])
        assert found.paired
        assert found.pairs.changed.tolist() == [[False] * 4, [True] * 4]
        assert not found.changed[0].any()
        assert float(found.rho_change.value[0].abs().max()) < 1e-4
        assert float(found.rho_change.value[1].abs().min()) > 1e-4
        assert float(found.curve_distance[0].max()) < 1e-4
        assert float(found.curve_distance[1].min()) > 0.01
    assert not ph.compare(on, merged).changed.any()


def test_a_report_says_how_to_load_the_adapter(folders):
    base, adapter = folders
    given = ph.score_heads(ph.load_model(adapter), TOKENS).provenance
    assert f"--adapter {adapter}" in score_command(given)
    assert f"ph.load_model({str(base)!r}, adapter={str(adapter)!r})" in score_lines(given)


def test_the_base_is_found_beside_the_adapter_or_refused_with_what_to_do(folders, tmp_path):
    base, adapter = folders
    for name, told in (
        ("nobody/nothing", "not on this machine; download it first, hf download nobody/nothing, or give it yourself"),
        ("/nowhere/base", "not on this machine; give it yourself: load_model"),
        (None, "does not name the base model"),
    ):
        lost = copied(adapter, tmp_path / str(name).replace("/", "_"), base_model_name_or_path=name)
        with pytest.raises(FileNotFoundError, match=told):
            ph.load_model(lost)
        assert ph.load_model(base, adapter=lost).cfg.model_name == str(base)


def test_pickles_are_not_read(folders, tmp_path):
    base, adapter = folders
    pickled = copied(adapter, tmp_path)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ValueError, match="a pickle, which runs code"):
        ph.load_model(base, adapter=pickled)
    (pickled / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="the adapter is incomplete"):
        ph.load_model(pickled)


@pytest.mark.parametrize("change", [lambda name: "", lambda name: name.replace("layers.0", "layers.7")])
def test_an_adapter_that_does_not_fit_is_refused(change, folders, tmp_path):
    base, adapter = folders
    other = copied(adapter, tmp_path)
    file = other / "adapter_model.safetensors"
    named = {(change(name) if "layers.0.self_attn.q" in name else name): one for name, one in load_file(file).items()}
    save_file({name: one for name, one in named.items() if name}, file)
    with pytest.raises(ValueError, match=r"does not fit: 2 of its tensors are missing, [02] belong nowhere"):
        ph.load_model(base, adapter=other)


def test_an_adapter_of_another_shape_is_refused_in_a_sentence(folders, tmp_path):
    _, adapter = folders
    wide = save_tiny_model("llama", tmp_path / "wide", hidden_size=96)
    with pytest.raises(ValueError, match="is of a model of another shape") as refused:
        ph.load_model(wide, adapter=adapter)
    assert str(refused.value) == (
        f"the model {str(wide)!r} cannot be loaded: the adapter {adapter} is of a model of another shape "
        "(model.layers.0.self_attn.k_proj has 96 in features, the adapter's 64): give the model that it was trained "
        "on, 'base' as it says"
    )


def test_an_adapter_of_another_base_is_loaded_with_a_warning(folders, tmp_path, caplog):
    base, adapter = folders

    def told(base, stated):
        caplog.clear()
        with caplog.at_level("WARNING", "positional_heads"):
            ph.load_model(base, adapter=copied(adapter, tmp_path / str(len(made)), base_model_name_or_path=stated))
        made.append(stated)
        return [record.getMessage() for record in caplog.records if "as it says" in record.getMessage()]

    made: list[str | None] = []
    other = shutil.copytree(base, tmp_path / "other")
    assert not told(base, str(base))
    assert not told(base, "org/Base")  # the folder's own name
    assert not told(base, None)
    (warning,) = told(other, str(base))
    assert f"was trained on {str(base)!r}, as it says, and is put onto {str(other)!r}" in warning
    rewritten_base = json.loads((other / "config.json").read_text()) | {"_name_or_path": "org/Known-1B"}
    (other / "config.json").write_text(json.dumps(rewritten_base))
    assert not told(other, "org/Known-1B")
    assert told(other, "org/Known-2B")


@pytest.mark.parametrize(
    ("file", "base", "same"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M", False),
        ("llama-3.2-1b-q4_k_m.gguf", "meta-llama/Llama-3.2-1B/", True),
        ("model-F16.gguf", "org/model", True),
    ],
)
def test_a_gguf_file_is_known_by_its_models_name(file, base, same):
    assert (_last_name(file) == _last_name(base)) == same


def test_other_kinds_of_adapters_are_refused(folders, tmp_path):
    base, adapter = folders
    with pytest.raises(ValueError, match="kind 'IA3', and only LoRA is supported"):
        ph.load_model(base, adapter=copied(adapter, tmp_path, peft_type="IA3"))
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    prompted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with pytest.raises(ValueError, match="adds virtual tokens"):
        ph.load_model(prompted)
    with pytest.raises(FileNotFoundError, match=r"no folder with an adapter_config\.json"):
        ph.load_model(base, adapter=base)
    (tmp_path / "copy" / "config.json").write_text((base / "config.json").read_text())
    with pytest.raises(ValueError, match="would load another model and that adapter"):
        ph.load_model(tmp_path / "copy", adapter=adapter)


def test_without_the_package_the_extra_is_named(folders, monkeypatch):
    monkeypatch.setattr("positional_heads.bridge.adapters.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'positional-heads\[peft\]'"):
        ph.load_model(folders[1])
