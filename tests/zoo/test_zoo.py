"""The bundled model recalls as its README says, and its training can be repeated and resumed."""

import hashlib
import random
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.zoo import bundled as zoo
from positional_heads.zoo import train as training
from positional_heads.zoo.architecture import ENCODINGS, byte_tokenizer, model_of_encoding
from positional_heads.zoo.curriculum import make_example
from positional_heads.zoo.recall_check import passkey_recall, repeat_gain
from positional_heads.zoo.training_checkpoints import load_checkpoint, save_checkpoint


@torch.no_grad()
def measured(model, examples=24):
    text = ph.bundled_text().encode()
    recall = passkey_recall(model, text, examples=examples)
    return recall, *repeat_gain(model, text, examples=examples)


def test_the_bundled_model_recalls_a_planted_key_and_a_repeated_passage(bundled):
    recall, first, second = measured(bundled)
    assert recall >= 0.9
    assert second < first - 0.03


def test_the_untrained_model_recalls_nothing():
    recall, first, second = measured(ph.load_bundled_model(step=0), examples=8)
    assert recall <= 0.3  # 40 digits at a chance of 0.1
    assert second > first - 0.03


def test_checkpoints_learn_to_recall():
    assert ph.bundled_steps()[0] == 0
    assert len(ph.bundled_steps()) >= 4
    early, late = (measured(ph.load_bundled_model(step=step), 8)[0] for step in (500, 6000))
    assert early < 0.4
    assert late > 0.9
    with pytest.raises(ValueError, match=r"step 7 .*choose one of 0, 500"):
        ph.load_bundled_model(step=7)


def test_the_bundled_model_is_small_and_holds_tensors_only():
    assert (zoo.MODEL_FOLDER / "model.safetensors").stat().st_size < 8e6
    assert sum(file.stat().st_size for file in zoo.CHECKPOINT_FOLDER.iterdir()) <= 5e6
    assert {file.suffix for file in zoo.MODEL_FOLDER.iterdir()} == {".json", ".safetensors"}


def test_the_texts_match_their_stated_hashes_and_are_small():
    stated = zoo.text_provenance()
    assert tuple(stated) == zoo.TEXT_KINDS
    for kind, said in stated.items():
        content = ph.bundled_text(kind).encode()
        assert hashlib.sha256(content).hexdigest() == said["sha256"]
        assert len(content) == said["bytes"]
        assert {"title", "source", "licence"} <= said.keys()
    assert ph.bundled_text() == ph.bundled_text("revelation")
    files = {file.name: file.stat().st_size for file in zoo.TEXT_FOLDER.iterdir()}
    assert files.keys() == {"provenance.json", "LICENCES.txt", *(said["file"] for said in stated.values())}
    assert sum(files.values()) < 2e6
    with pytest.raises(ValueError, match=r"kind must be 'revelation' or 'prose' or .*'technical', got 'poetry'"):
        ph.bundled_text("poetry")


def test_a_text_is_tokenized_to_its_bytes():
    text = "Ich bin\tder Weg; 道 🙂\r\n"
    assert byte_tokenizer()(text)["input_ids"] == [256, *text.encode()]


def test_checkpoints_keep_weights_to_half_a_step(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {"matrix": torch.randn(5, 30, generator=generator), "vector": torch.randn(7, generator=generator)}
    save_checkpoint(weights, tmp_path / "step.safetensors")
    loaded = load_checkpoint(tmp_path / "step.safetensors")
    half_a_step = weights["matrix"].abs().amax(1, keepdim=True) / 127 / 2
    assert ((loaded["matrix"] - weights["matrix"]).abs() <= half_a_step + 1e-7).all()
    assert torch.equal(loaded["vector"], weights["vector"])


@pytest.mark.parametrize("length", [64, 256])
def test_examples_have_their_length_and_weigh_their_answers(length):
    text = ph.bundled_text().encode()
    kinds = set()
    for seed in range(60):
        example = make_example(text, length, random.Random(seed))
        assert len(example.tokens) == len(example.weights) == length
        assert example.tokens[0] == 256
        answers = bytes(example.tokens[example.weights > 1].astype("uint8"))
        assert answers.isdigit() or not answers
        body = bytes(example.tokens[1:].astype("uint8"))
        kinds.add("passkey" if body.count(b"pass key is") == 2 else "facts" if answers else "other")
    assert kinds == {"passkey", "facts", "other"}


@pytest.fixture
def short(tmp_path, monkeypatch):
    """Arguments of a short training; its evaluations have few examples, as nothing depends on what they find."""
    for evaluation in (passkey_recall, repeat_gain):
        monkeypatch.setattr(training, evaluation.__name__, partial(evaluation, examples=2))
    text = tmp_path / "text.txt"
    text.write_text(ph.bundled_text()[:30000])
    return ["--text", str(text), "--tokens-per-step", "512", "--evaluate-every", "100"]


def test_training_resumes(tmp_path, short):
    training.main([*short, "--out", str(tmp_path / "whole"), "--tokens", "4096"])
    training.main([*short, "--out", str(tmp_path / "halves"), "--tokens", "4096", "--stop-at", "3"])
    assert not (tmp_path / "halves" / "model").exists()
    training.main([*short, "--out", str(tmp_path / "halves"), "--tokens", "4096"])
    whole, halves = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(halves[name], tensor) for name, tensor in whole.items())
    checkpoint = load_checkpoint(tmp_path / "whole" / "checkpoints" / "step-000008.safetensors")
    assert checkpoint.keys() == whole.keys()
    assert all(torch.allclose(checkpoint[name], tensor, atol=2e-3) for name, tensor in whole.items())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_models_of_each_encoding_are_trained_and_differ_in_positions_alone(encoding, tmp_path, short):
    torch.manual_seed(0)
    untrained = model_of_encoding(encoding)
    sizes = {name: parameter.numel() for name, parameter in untrained.named_parameters() if "wpe" not in name}
    assert sum(sizes.values()) == pytest.approx(0.66e6, rel=0.01)
    training.main([*short, "--encoding", encoding, "--out", str(tmp_path / "run"), "--tokens", "1024"])
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", attn_implementation="eager").eval()
    before, after = untrained.state_dict(), trained.state_dict()
    moved = {name: not torch.equal(before[name], after[name]) for name in before}
    positions = "transformer.wpe.weight"
    assert {name for name in moved if not moved[name]} <= ({positions} if encoding in {"sinusoidal", "none"} else set())
    words = torch.tensor([[256, *b"in the beginning"]])
    attention = trained(words, output_attentions=True).attentions[0] if encoding == "none" else None
    if encoding == "none":  # layer 0 sees tokens alone: equal tokens are attended to alike
        same = [i for i, token in enumerate(words[0].tolist()) if token == ord("n")]
        assert attention[0, :, -1, same].std(dim=-1).max() < 1e-6
    if encoding == "sinusoidal":
        rows, columns = np.arange(512)[:, None], np.arange(128)
        angle = rows / 10000 ** (columns // 2 * 2 / 128)
        expected = 0.05 * np.sqrt(2) * np.where(columns % 2, np.cos(angle), np.sin(angle))
        np.testing.assert_allclose(after[positions].numpy(), expected, atol=1e-5)
