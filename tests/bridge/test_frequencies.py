"""Frequencies that are not the configuration's are refused by layer and pair, and every right table is accepted."""

import json
import logging
import math

import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.frequencies import frequency_hash
from tests.support.tiny_models import boot, save_tiny_model

TOKENS = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(0))
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = YARN | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHORT, LONG = [1 + pair / 10 for pair in range(8)], [2.0 + pair for pair in range(8)]
LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": SHORT, "long_factor": LONG}


def buffers(model, name="inv_freq"):
    return [buffer for full, buffer in model.original_model.named_buffers() if full.endswith(name)]


def scaled(family, folder, **settings):
    """A tiny model of the family with a built-in extension, in every layer type."""
    save_tiny_model(family, folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    rope = config["rope_parameters"]
    nested = any(isinstance(value, dict) for value in rope.values())
    config["rope_parameters"] = {kind: own | settings for kind, own in rope.items()} if nested else rope | settings
    file.write_text(json.dumps(config))
    return boot(folder)


def geometric(base, width, factor=1.0):
    return [base ** (-2 * pair / width) / factor for pair in range(width // 2)]


def yarn_by_hand(base, width, trained, factor):
    """YaRN's paper: ramp between 32 and 1 rotations over the training length, whole pair indices."""

    def pair_of(rotations):
        return width * math.log(trained / (2 * math.pi * rotations)) / (2 * math.log(base))

    low, high = max(math.floor(pair_of(32)), 0), min(math.ceil(pair_of(1)), width - 1)
    ramp = [min(max((pair - low) / (high - low), 0), 1) for pair in range(width // 2)]
    plain = geometric(base, width)
    return [f * (1 - r) + f / factor * r for f, r in zip(plain, ramp, strict=True)]


def llama3_by_hand(base, width, trained, factor, low, high):
    """Llama 3.1's own code, in floats."""
    found = []
    for frequency in geometric(base, width):
        turns = trained * frequency / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0), 1)
        found.append((1 - smooth) * frequency / factor + smooth * frequency)
    return found


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("llama", {}, geometric(1e4, 16)),
        ("llama", {"rope_theta": 5e5}, geometric(5e5, 16)),
        ("llama", {"rope_type": "linear", "factor": 4.0}, geometric(1e4, 16, 4)),
        ("llama", {"rope_type": "dynamic", "factor": 4.0}, geometric(1e4, 16)),
        ("llama", YARN, yarn_by_hand(1e4, 16, 64, 4)),
        ("llama", LLAMA3, llama3_by_hand(1e4, 16, 64, 8, 1, 4)),
        (
            "phi3",
            LONGROPE,
            [f / factor for factors in (SHORT, LONG) for f, factor in zip(geometric(1e4, 16), factors, strict=True)],
        ),
        ("stablelm", {}, geometric(1e4, 4)),
        ("glm", {"rope_type": "linear", "factor": 2.0}, geometric(1e4, 8, 2)),
        ("phi", YARN, yarn_by_hand(1e4, 8, 64, 4)),
        ("gemma3", {"rope_type": "linear", "factor": 2.0}, geometric(1e4, 16, 2)),
        ("gptj", {}, geometric(1e4, 8)),
    ],
)
def test_a_right_table_is_accepted_and_hashed(family, settings, expected, tmp_path):
    model = scaled(family, tmp_path, **settings) if settings else boot(save_tiny_model(family, tmp_path))
    rotary = ph.score_heads(model, TOKENS).provenance["rotary"]
    assert rotary[0]["frequencies"] == frequency_hash(torch.tensor(expected, dtype=torch.float64))


def test_layers_of_two_kinds_are_each_compared_with_their_own(tmp_path):
    model = boot(save_tiny_model("gemma3", tmp_path))
    bases = [model.original_model.config.rope_parameters[kind]["rope_theta"] for kind in model.cfg.layer_types]
    assert bases == [1e4, 1e6]
    hashes = [rotary.frequencies for rotary in ph.resolve_layers(model).layers.values()]
    assert hashes == [frequency_hash(torch.tensor(geometric(base, 16), dtype=torch.float64)) for base in bases]
    for buffer in buffers(model, "full_attention_inv_freq"):
        buffer[3:5] = buffer[3:5].flip(0)
    with pytest.raises(ph.UnsupportedModelError, match=r"layer 1: pair 3 turns by .* \(2 of 8 pairs differ\)"):
        ph.resolve_layers(model)


@pytest.mark.parametrize(
    ("fault", "found", "expected"),
    [
        (lambda table: table[torch.tensor([0, 1, 3, 2, 4, 5, 6, 7])], "pair 2 turns by 0.031623", "expected 0.1 "),
        (lambda table: table.flip(0), "pair 0 turns by 0.00031623", "expected 1 "),
        (lambda table: torch.full_like(table, 7e-18), "pair 0 turns by 7e-18", "expected 1 "),
        (lambda table: table.new_tensor([float("nan"), *table[1:].tolist()]), "cos and sin are not", "finite"),
        (torch.zeros_like, "pair 0 turns by 0 ", "expected 1 "),
        (lambda table: table / 1.001, "pair 0 turns by 0.999", "8 of 8 pairs differ"),
        (lambda table: torch.cat([table[:7], table[7:] * 0.9]), "pair 7 turns by 0.0002846", "expected 0.00031623 "),
        (lambda table: torch.cat([table[:6], 0 * table[6:7], table[7:]]), "pair 6 turns by 0 ", "1 of 8"),
    ],
)
def test_a_wrong_table_is_refused_by_layer_and_pair(fault, found, expected, tiny_folder):
    model = boot(tiny_folder("llama"))
    for buffer in buffers(model):
        buffer.copy_(fault(buffer.clone()))
    with pytest.raises(ph.UnsupportedModelError) as refusal:
        ph.score_heads(model, TOKENS)
    message = str(refusal.value)
    assert message.startswith("layer 0: ")
    assert found in message
    assert expected in message
    assert "Load the model again" in message


@pytest.mark.parametrize("fault", [lambda table: table.flip(0), lambda table: torch.full_like(table, 7e-18)])
def test_a_wrong_table_for_long_runs_is_refused(fault, tmp_path):
    model = scaled("phi3", tmp_path, **LONGROPE)
    rotary = next(one for one in model.original_model.modules() if hasattr(one, "original_inv_freq"))
    model(torch.cat([TOKENS, TOKENS], dim=1))  # 80 tokens, more than 64: the long table is made
    ph.resolve_layers(model)
    rotary.long_inv_freq = fault(rotary.long_inv_freq.clone())
    with pytest.raises(ph.UnsupportedModelError, match=r"layer 0: pair 0 turns by .*, expected 0\.5 "):
        ph.resolve_layers(model)


def test_factors_that_make_long_runs_turn_faster_from_pair_to_pair_are_refused(tmp_path):
    rising = [2.0 / 20**pair for pair in range(8)]
    model = scaled("phi3", tmp_path, **LONGROPE | {"long_factor": rising})
    with pytest.raises(ph.UnsupportedModelError, match=r"layer 0: its frequencies do not decrease .*\(0\.5, 3\.162, "):
        ph.resolve_layers(model)


def test_a_wrong_attention_factor_is_refused(tmp_path):
    model = scaled("llama", tmp_path, **YARN)
    rotary = next(m for m in model.original_model.modules() if hasattr(m, "attention_scaling"))
    assert rotary.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)
    ph.resolve_layers(model)
    rotary.attention_scaling = 1.0
    with pytest.raises(ph.UnsupportedModelError, match=r"cos and sin are multiplied by 1, expected 1\.1386"):
        ph.resolve_layers(model)


def test_a_table_without_a_base_must_descend(tiny_folder):
    model = boot(tiny_folder("gptj"))
    ph.resolve_layers(model)
    sin, cos = model.blocks[1].attn.original_component.embed_positions.chunk(2, dim=-1)
    swapped = torch.tensor([0, 2, 1, 3])
    model.blocks[1].attn.original_component.embed_positions = torch.cat([sin[:, swapped], cos[:, swapped]], dim=-1)
    with pytest.raises(
        ph.UnsupportedModelError, match=r"layer 1: its frequencies do not decrease .*1, 0.01, 0.1, 0.001"
    ):
        ph.resolve_layers(model)


def test_slowest_pairs_that_do_not_rotate_are_accepted_with_one_warning(tiny_folder, caplog):
    """p-RoPE: what a user makes of a model by hand, or a checkpoint was trained with."""
    model = boot(tiny_folder("llama"))
    plain = ph.resolve_layers(model).layers[0].frequencies
    for buffer in buffers(model):
        buffer[6:] = 0
    with caplog.at_level(logging.WARNING, "positional_heads"):
        scores = ph.score_heads(model, TOKENS)
        ph.resolve_layers(model)
    assert caplog.text.count("pairs from 6 on") == 1
    assert scores.frequencies[0, 5:].tolist() == pytest.approx([10000 ** (-10 / 16), 0, 0])
    assert scores.provenance["rotary"][0]["frequencies"] != plain


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_frequencies_rounded_by_a_cast_are_refused_and_those_loaded_so_are_not(precision, tiny_folder):
    model = boot(tiny_folder("llama"), dtype=precision)
    ph.resolve_layers(model)
    model.to(precision)
    with pytest.raises(ph.UnsupportedModelError, match=r"inv_freq\) are rounded to .*load it in that precision"):
        ph.resolve_layers(model)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("linear", {"factor": 3}), ("dynamic", {"factor": 4}), ("yarn", {"factor": 4}), ("p_rope", {"keep": 0.5})],
)
def test_an_extension_is_compared_with_its_own_table(method, settings, tiny_folder):
    model = boot(tiny_folder("llama"))
    with ph.extended_rope(model, method, **settings) as extension:
        found = ph.resolve_layers(model).layers[1].frequencies
        table = extension.table(1, 16)
        assert found == frequency_hash(table.inv_freq.double())
        wrong = model.hooks(fwd_hooks=[("blocks.1.attn.hook_sin", lambda sin, hook: 1.01 * sin)])
        with wrong, pytest.raises(ph.UnsupportedModelError, match=r"layer 1: pair \d turns by"):
            ph.resolve_layers(model)
