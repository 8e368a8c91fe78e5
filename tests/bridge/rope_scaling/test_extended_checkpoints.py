"""Checkpoints with an extension of their own are recognised, and rotated and scored as their authors do."""

import json
import logging
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.bridge.loading import load_model
from tests.support.tiny_models import save_tiny_model

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "finetuned": True}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
FORMS = {
    # family, change to config.json, its extension and training length
    "yarn-llama, old form": ("llama", {"rope_scaling": YARN}, "yarn", 64),
    "yarn-llama, new form": (
        "llama",
        {"rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 1e4}},
        "yarn",
        64,
    ),
    "yarn-mistral": ("mistral", {"rope_scaling": YARN}, "yarn", 64),
    "llama-3.1": ("llama", {"rope_scaling": LLAMA3}, "llama3", 32),
    "phi-3": ("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 48}, "longrope", 48),
    "dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic", 256),
    "linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0, "finetuned": True}}, "linear", 64),
    "plain": ("llama", {}, "default", 256),
}
TOKENS = torch.randint(256, (1, 100), generator=torch.Generator().manual_seed(0))


def extended_folder(tmp_path, family, change):
    folder = save_tiny_model(family, tmp_path, max_position_embeddings=256)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope["rope_theta"]
    config |= {"partial_rotary_factor": rope["partial_rotary_factor"]} if "partial_rotary_factor" in rope else {}
    file.write_text(json.dumps(config | change))
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_extended_checkpoints_are_recognised_and_scored_as_they_are(form, tmp_path, caplog):
    family, change, extension, trained = FORMS[form]
    folder = extended_folder(tmp_path, family, change)
    with caplog.at_level(logging.WARNING, "positional_heads"):
        model = load_model(str(folder))
    assert ("beta_fast 128" in caplog.text) == (form == "yarn-mistral")
    rope = ph.plain_rope(model)
    assert (rope.extension, rope.training_length) == (extension, trained)
    scores = ph.score_heads(model, TOKENS)
    reference = AutoModelForCausalLM.from_pretrained(folder)
    rotary = next(module for module in reference.modules() if type(module).__name__.endswith("RotaryEmbedding"))
    rotary(torch.zeros(1, 1, 8), torch.arange(100)[None])
    expected = rotary.inv_freq
    if form == "yarn-mistral":  # what its authors' code computes, by hand
        width = 2 * len(expected)

        def place(rotations):
            return width * math.log(64 / (2 * math.pi * rotations)) / (2 * math.log(10000))

        low, high = max(math.floor(place(128)), 0), min(math.ceil(place(2)), width - 1)
        ramp = [min(max((pair - low) / (high - low), 0), 1) for pair in range(width // 2)]
        plain = [10000 ** (-2 * pair / width) for pair in range(width // 2)]
        by_hand = [f * (1 - r) + f / 4 * r for f, r in zip(plain, ramp, strict=True)]
        assert not torch.allclose(torch.tensor(by_hand), expected, rtol=1e-3)  # Hugging Face's defaults differ
        expected = torch.tensor(by_hand)
    assert torch.allclose(scores.frequencies[0].float(), expected.float(), rtol=1e-4)


def test_an_extended_checkpoint_can_be_put_back_and_extended_otherwise(tmp_path):
    folder = extended_folder(tmp_path, "llama", {"rope_scaling": YARN})
    model = load_model(str(folder))
    with ph.extended_rope(model, "none"):
        scores = ph.score_heads(model, TOKENS)
    plain = torch.tensor([10000 ** (-2 * pair / 16) for pair in range(8)])
    assert torch.allclose(scores.frequencies[0].float(), plain, rtol=1e-4)


def test_a_clex_checkpoint_loads_plain_with_a_warning(tmp_path, caplog):
    scaling = {"type": "clex", "max_factor": 16, "param_factor": 1, "act": "silu", "factor": 1, "time_dt": 0.01}
    folder = extended_folder(tmp_path, "llama", {"rope_scaling": scaling})
    with caplog.at_level(logging.WARNING, "positional_heads"):
        model = load_model(str(folder))
    assert "apply extended_rope(model, 'clex'" in caplog.text
    assert ph.plain_rope(model).extension == "default"


def test_an_unknown_rotation_is_refused_by_name(tmp_path):
    folder = extended_folder(tmp_path, "llama", {"rope_scaling": {"type": "dynamic-yarn", "factor": 2.0}})
    with pytest.raises(ValueError, match="rope type 'dynamic-yarn' is not known"):
        load_model(str(folder))
