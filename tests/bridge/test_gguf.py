"""GGUF files load as the models they were made from, or are refused by name; the result is kept, whole, and once."""

import json
import logging
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.bridge import gguf as reading
from positional_heads.bridge import kept_models
from positional_heads.bridge.gguf_header import read_header
from positional_heads.results.tables import scores_line
from positional_heads.views.report.caveats import caveats
from positional_heads.zoo.bundled import load_configuration

gguf = pytest.importorskip("gguf", reason="NO GGUF: the package gguf is not installed (extra gguf)")
from tests.support.gguf_files import q8_0, saved_llama, write_gguf  # noqa: E402

Q8_0 = gguf.GGMLQuantizationType.Q8_0
TOKENS = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(0))
TEXT = "And there was war in heaven:\n  Michael"
FREQUENCIES = 10000.0 ** (-np.arange(8) / 8)


def llama3_factors(factor, low=1.0, high=4.0, trained=8192):
    """llama.cpp's own loop, over wavelengths."""
    found = []
    for frequency in FREQUENCIES:
        wavelength = 2 * math.pi / frequency
        smooth = (trained / wavelength - low) / (high - low)
        inside = trained / high <= wavelength <= trained / low
        found.append(1 / ((1 - smooth) / factor + smooth) if inside else 1.0 if wavelength < trained / high else factor)
    return np.array(found, dtype=np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSITIONAL_HEADS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_models, "_UNKEPT", {})
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return saved_llama(tmp_path_factory.mktemp("qwen2"), "qwen2")


def never(*args):
    raise AssertionError


def weights(model):
    return {name.replace("_original_component.", ""): one for name, one in model.original_model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_file_loads_as_the_model_it_was_made_from(family, folder, qwen, tmp_path, cache, monkeypatch):
    made_from = {"llama": folder, "qwen2": qwen}[family]
    file = write_gguf(made_from, tmp_path / "tiny.gguf", family)
    found, expected = ph.load_model(str(file)), ph.load_model(made_from)
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(ph.cut_text(found, TEXT, 20)[0], ph.cut_text(expected, TEXT, 20)[0])
    scores = ph.score_heads(found, TOKENS)
    assert torch.equal(scores.rho, ph.score_heads(expected, TOKENS).rho)
    assert scores.provenance["model"]["name"] == str(file)
    assert [one.parent for one in cache.glob("*/model.safetensors")] == [kept_models.kept_folder(hash_of(file))]
    monkeypatch.setattr(reading, "write_plain", never)  # from here on, the kept model is used
    shutil.copy(file, tmp_path / "elsewhere")
    moved = (tmp_path / "elsewhere").rename(tmp_path / "other.gguf")
    assert torch.equal(ph.score_heads(ph.load_model(moved), TOKENS).rho, scores.rho)


def hash_of(file):
    return kept_models.file_hash(Path(file))


@pytest.mark.parametrize(
    ("settings", "factors", "scaling"),
    [
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            None,
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"rope.scale_linear": 2.0}, None, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 64,
            },
            None,
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        (
            {},
            llama3_factors(32.0),
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        ({"rope.scaling.type": "none"}, np.ones(8, dtype=np.float32), {"rope_type": "default"}),
        ({"rope.freq_base": 500000.0}, None, {"rope_type": "default", "rope_theta": 500000.0}),
    ],
    ids=["linear", "older linear", "yarn", "llama3", "factors of one", "base"],
)
def test_the_rotation_is_that_of_the_file(settings, factors, scaling, folder, tmp_path):
    tensors = {} if factors is None else {"rope_freqs.weight": factors}
    file = write_gguf(folder, tmp_path / "tiny.gguf", settings=settings, tensors=tensors)
    meant = shutil.copytree(folder, tmp_path / "meant")
    config = json.loads((meant / "config.json").read_text())
    config["rope_parameters"] |= scaling
    (meant / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(meant, attn_implementation="eager")(TOKENS).logits
        found = ph.load_model(file)(TOKENS)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    read, tokenizer = load_configuration(file)
    assert read.rope_parameters["rope_type"] == scaling["rope_type"]
    assert tokenizer(TEXT).input_ids == ph.load_model(folder).tokenizer(TEXT).input_ids


@pytest.mark.parametrize(
    ("settings", "tensors", "reason"),
    [
        ({"rope.scaling.type": "longrope"}, {}, "extended by longrope, which is not translated"),
        ({}, {"rope_factors_long.weight": np.ones(8, dtype=np.float32)}, "extended by longrope"),
        ({"rope.scaling.type": "yarn", "rope.scaling.yarn_beta_fast": 8.0}, {}, r"yarn_beta_fast cannot be translated"),
        ({}, {"rope_freqs.weight": llama3_factors(8.0)[::-1].copy()}, "rope_freqs.weight are not those of a Llama 3"),
        ({"attention.key_length": 8, "rope.dimension_count": None}, {}, r"rotates 8 channels of a head, .*\[16\]"),
        ({"attention.sliding_window": 12}, {}, "sliding window is 12, and transformers reads None"),
        ({"attn_logit_softcapping": 30.0}, {}, "capped at 30, and transformers reads None"),
        ({"attention.scale": 0.5}, {}, "scale of its own"),
        ({}, {"blk.0.attn_q.bias": np.ones(64, dtype=np.float32)}, r"holds 94,848 numbers, .* would be dropped"),
        ({}, {"blk.1.ffn_up.weight": None}, r"lacks 1 of the model's tensors \(model.layers.1.mlp.up_proj.weight\)"),
    ],
)
def test_what_transformers_would_drop_is_refused_by_name(settings, tensors, reason, folder, tmp_path, cache):
    file = write_gguf(folder, tmp_path / "tiny.gguf", settings=settings, tensors=tensors)
    with pytest.raises(ValueError, match=f"tiny.gguf: .*{reason}"):
        ph.load_model(file)
    assert not list(cache.glob("*")) or not [one for one in cache.iterdir() if one.is_dir()]


def test_files_that_are_none_are_refused(folder, tmp_path):
    file = write_gguf(folder, tmp_path / "tiny.gguf")
    content = file.read_bytes()
    with pytest.raises(FileNotFoundError, match=r"no such GGUF file; .* holds tiny.gguf"):
        ph.load_model(tmp_path / "tinny.gguf")
    for name, damaged, reason in (
        ("cut.gguf", content[: len(content) // 2], "is cut off or damaged|cannot read this GGUF file"),
        ("early.gguf", content[:300], "cut off or damaged"),
        ("short.gguf", content[:6], "version 0"),
        ("none.gguf", b"PK" + content, "does not begin with 'GGUF'"),
        ("old.gguf", content[:4] + b"\1" + content[5:], "GGUF of version 1; versions 2 and 3"),
        ("tiny-00001-of-00002.gguf", content, "one part of a split model: join"),
    ):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}: .*({reason})"):
            ph.load_model(tmp_path / name)


def test_a_folder_means_its_only_gguf_file(folder, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    file = write_gguf(folder, alone / "tiny.gguf")
    (alone / "folder.gguf").mkdir()
    assert reading.gguf_file(alone) == file
    assert reading.gguf_file(file.rename(alone / "TINY.GGUF").parent) == alone / "TINY.GGUF"
    (alone / "TINY.GGUF").rename(file)
    shutil.copy(file, alone / "more.gguf")
    with pytest.raises(ValueError, match=r"holds 2 GGUF files, choose one: \S*alone/more.gguf, \S*alone/tiny.gguf"):
        ph.load_model(alone)
    both = shutil.copytree(folder, tmp_path / "both")
    shutil.copy(file, both)
    assert reading.gguf_file(both) is None  # a model in transformers format, with a file beside it


def test_quantised_weights_are_what_their_blocks_say_and_results_say_so(folder, tmp_path):
    file = write_gguf(folder, tmp_path / "tiny.gguf", stored={"ffn_up.weight": Q8_0, "ffn_down.weight": Q8_0})
    model = ph.load_model(file)
    found, original = weights(model), load_file(folder / "model.safetensors")
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        assert torch.allclose(found[name], q8_0(original[name]), rtol=1e-3, atol=1e-7)
        assert not torch.allclose(found[name], original[name], rtol=1e-3, atol=1e-7)
    assert torch.equal(found["model.layers.0.mlp.gate_proj.weight"], original["model.layers.0.mlp.gate_proj.weight"])
    scores = ph.score_heads(model, TOKENS, null_repeats=2)
    origin = {"storage": "dequantised from Q8_0", "file": "tiny.gguf", "sha256": hash_of(file)}
    assert scores.provenance["model"]["origin"] == origin
    for line in (scores.description, scores_line(scores.provenance)):
        assert line.startswith(f"{file} (dequantised from Q8_0): 2 layers of 4 heads")
    assert "The weights were dequantised from Q8_0: they are not the original's to the bit." in caveats(scores, [], [])
    header = read_header(file)
    assert (header.shapes["blk.0.ffn_up.weight"], header.types["blk.0.ffn_up.weight"]) == ((96, 64), "Q8_0")


def test_a_damaged_or_unfinished_kept_model_is_noticed_and_made_again(folder, tmp_path, cache, caplog):
    file = write_gguf(folder, tmp_path / "tiny.gguf")
    kept = reading.plain_folder(file)
    whole = {one.name: one.read_bytes() for one in kept.iterdir()}
    weights_file = whole["model.safetensors"]
    flipped = weights_file[:-5] + bytes([weights_file[-5] ^ 1]) + weights_file[-4:]
    for name, content, reason in (
        ("model.safetensors", flipped, "model.safetensors has another content"),
        ("model.safetensors", weights_file[:-8], "model.safetensors has another size"),
        ("kept.json", b"{", "JSONDecodeError"),
        ("tokenizer.json", None, "FileNotFoundError"),
    ):
        caplog.clear()
        (kept / name).unlink()
        if content is not None:
            (kept / name).write_bytes(content)
        (cache / f".{kept.name}.partial").mkdir()  # as a killed process leaves it
        with caplog.at_level(logging.WARNING, "positional_heads"):
            assert reading.plain_folder(file) == kept
        assert f"the kept model is damaged ({reason}" in caplog.text
        assert {one.name: one.read_bytes() for one in kept.iterdir()} == whole
        assert [one.name for one in cache.iterdir() if one.is_dir()] == [kept.name]


def test_without_a_writable_cache_it_loads_and_says_so(folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("POSITIONAL_HEADS_CACHE", str(tmp_path / "file" / "cache"))
    file = write_gguf(folder, tmp_path / "tiny.gguf")
    with caplog.at_level(logging.WARNING, "positional_heads"):
        place = reading.plain_folder(file)
    assert "converted for this process only, because it cannot be kept in" in caplog.text
    assert (place / "model.safetensors").is_file()
    assert reading.plain_folder(file) == place
    monkeypatch.setattr(kept_models, "_UNKEPT", {})
    monkeypatch.setattr(kept_models.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(
        OSError, match=r"takes 0.0 GB as a plain model, .* POSITIONAL_HEADS_CACHE to a folder with room"
    ):
        reading.plain_folder(file)


def test_a_missing_package_is_named_and_not_needed_for_what_is_kept(folder, tmp_path, monkeypatch):
    file, other = (write_gguf(folder, tmp_path / f"{name}.gguf", settings={"note": name}) for name in ("one", "two"))
    kept = reading.plain_folder(file)
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: None)
    assert reading.plain_folder(file) == kept
    for read in (ph.load_model, load_configuration):
        with pytest.raises(ImportError, match=r"two.gguf: .* needs the package gguf: pip install .*\[gguf\]"):
            read(other)


def test_processes_at_the_same_time_convert_once(tmp_path):
    made = []

    def write(folder):
        made.append(folder)
        (folder / "model.safetensors").write_bytes(b"weights")

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: kept_models.made_once("a" * 64, "x", 7, write), range(8)))
    assert len(made) == 1
    assert found == {kept_models.kept_folder("a" * 64)}

    def fail(folder):
        (folder / "half").write_bytes(b"")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_models.made_once("b" * 64, "x", 7, fail)
    assert not kept_models.kept_folder("b" * 64).exists()
    assert not list(kept_models.kept_folder("b" * 64).parent.glob("*.partial"))
