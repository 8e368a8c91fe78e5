"""A block for config.json makes Hugging Face's model rotate as the method did, and a wrong one is never handed out."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.bridge.rope_scaling.config_block import (
    WRITTEN,
    config_block,
    in_its_place,
    prove_block,
    why_not_written,
)
from positional_heads.results.choosing import SIMPLEST
from positional_heads.studies.rotary_kinds import rotations

TARGET = 400
"""Tokens; the tiny models have a context of 256."""


def block_and_tables(model, name, **settings):
    found = rotations(model)
    method = ph.rope_method(name, settings.pop("factor", 3.0), **settings)
    with ph.extended_rope(model, method, layers=found.extended) as extension:
        tables = {layer: extension.table(layer, TARGET) for layer in found.extended}
    block = in_its_place(model, config_block(method, found.ropes[found.extended[0]], TARGET))
    return method, found, block, {**found.tables, **tables}


def edited_copy(folder, target, block, *, old):
    """The checkpoint with a block in its config.json, which has the form of transformers 4 if `old`."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    if old:
        config.pop("rope_parameters")
    (target / "config.json").write_text(json.dumps({**config, **json.loads(json.dumps(block))}))
    return AutoModelForCausalLM.from_pretrained(target, attn_implementation="eager").eval()


LOADED = [
    *(("llama", name) for name in WRITTEN),
    *(("neox", "ntk"), ("neox", "yarn"), ("gemma3", "linear"), ("gemma3", "dynamic"), ("gemma3", "ntk")),
    *(("qwen3", "llama3"), ("stablelm", "dynamic")),
]


@pytest.mark.parametrize(("family", "name"), LOADED)
@torch.no_grad()
def test_a_checkpoint_with_the_block_computes_what_the_extended_model_did(family, name, tiny, tiny_folder, tmp_path):
    """Logits of Hugging Face's own model, loaded from the edited config.json, in a run of the target length."""
    model = tiny(family)
    method, found, block, tables = block_and_tables(model, name)
    assert prove_block(model, block, tables, TARGET) is None
    tokens = torch.randint(256, (1, TARGET), generator=torch.Generator().manual_seed(0))
    with ph.extended_rope(model, method, layers=found.extended):
        ours = model(tokens)
    theirs = edited_copy(tiny_folder(family), tmp_path / "new", block, old=False)(tokens).logits
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder(family), attn_implementation="eager").eval()(tokens).logits
    assert torch.allclose(ours, theirs, atol=2e-3), float((ours - theirs).abs().max())
    assert float((plain - theirs).abs().max()) > 10 * float((ours - theirs).abs().max())  # the block does something
    if family in {"llama", "qwen3"}:  # other families' own names of version 4 are not in this file
        old = edited_copy(tiny_folder(family), tmp_path / "old", block, old=True)(tokens).logits
        assert torch.equal(old, theirs)


def test_settings_of_a_method_are_in_the_block(tiny):
    _, _, block, tables = block_and_tables(tiny("llama"), "yarn", beta_fast=16.0, attention_factor=1.5, truncate=False)
    rope = block["rope_scaling"]
    assert (rope["beta_fast"], rope["attention_factor"], rope["truncate"]) == (16.0, 1.5, False)
    assert rope["original_max_position_embeddings"] == 256
    assert prove_block(tiny("llama"), block, tables, TARGET) is None


STATED = {"ntk": TARGET, "linear": TARGET, "llama3": TARGET, "yarn": 768, "dynamic": 256}
"""The target, but three times 256 of YaRN, which versions divide by 256, and 256 of dynamic NTK, as its own length."""


@pytest.mark.parametrize("name", STATED)
def test_the_longest_context_is_the_target_where_a_method_does_not_read_it_otherwise(name, tiny):
    block = block_and_tables(tiny("llama"), name)[2]
    assert block["max_position_embeddings"] == STATED[name]
    trained = block.get(
        "original_max_position_embeddings", block["rope_scaling"].get("original_max_position_embeddings")
    )
    assert trained == (None if name == "dynamic" else 256)
    short = block_and_tables(tiny("llama"), name, factor=1.25)[2]
    assert short["max_position_embeddings"] == (256 if name == "dynamic" else TARGET)


def yarn_of_4_51(block, rotary_dim):
    """Versions 4.51 to 4.55 of transformers, whose factor is a ratio of lengths: frequencies, and factor on cos."""
    original = block["rope_scaling"]["original_max_position_embeddings"]
    factor, base = block["max_position_embeddings"] / original, block["rope_theta"]

    def bound(turns):
        return rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(bound(32)), 0), min(math.ceil(bound(1)), rotary_dim - 1)
    frequencies = []
    for pair in range(rotary_dim // 2):
        slowed = min(max((pair - low) / (high - low), 0.0), 1.0)
        own = base ** (-2 * pair / rotary_dim)
        frequencies.append(own * (1 - slowed) + own / factor * slowed)
    return frequencies, 0.1 * math.log(factor) + 1


@pytest.mark.parametrize("factor", [2.0, 3.3])
def test_versions_that_compute_the_factor_of_yarn_from_its_lengths_find_the_same(factor, tiny):
    _, _, block, tables = block_and_tables(tiny("llama"), "yarn", factor=factor)
    frequencies, amplitude = yarn_of_4_51(block, 2 * len(tables[0].inv_freq))
    assert tables[0].inv_freq.tolist() == pytest.approx(frequencies, rel=1e-3)
    assert tables[0].amplitude == pytest.approx(amplitude, rel=1e-3)


@pytest.mark.parametrize("name", ["ntk", "linear"])
def test_a_checkpoint_with_the_block_runs_to_the_target_here_and_is_not_extended_twice(
    name, tiny, tiny_folder, tmp_path
):
    method, found, block, _ = block_and_tables(tiny("llama"), name)
    edited_copy(tiny_folder("llama"), tmp_path / "new", block, old=False)
    again = ph.load_model(tmp_path / "new")
    assert again.cfg.n_ctx == TARGET
    tokens = torch.randint(256, (1, TARGET), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), ph.extended_rope(tiny("llama"), method, layers=found.extended):
        ours = tiny("llama")(tokens)
    with torch.no_grad():
        assert torch.allclose(again(tokens), ours, atol=1e-4)
    assert ph.plain_rope(again).training_length == 256
    with pytest.raises(ph.UnsupportedModelError, match=r"the model is extended already.*256"):
        ph.recommend_extension(again, "a text", 600)


def test_two_bases_keep_the_layers_with_a_window_as_they_were(tiny):
    model = tiny("gemma3")
    found = rotations(model)
    assert found.extended == [1]
    kinds, frequencies = found.kinds()
    assert [(kind.layers, kind.window, kind.extended) for kind in kinds] == [([0], 12, False), ([1], None, True)]
    bases = [plain.base for plain in found.ropes.values()]
    assert bases == [10_000.0, 1_000_000.0]
    expected = torch.tensor([[base ** (-2 * pair / 16) for pair in range(8)] for base in bases], dtype=torch.float64)
    assert torch.allclose(frequencies, expected, rtol=1e-6)


WRONG = {
    "factor": ("yarn", lambda block: block["rope_scaling"].update(factor=4.0)),
    "base inside": ("linear", lambda block: block["rope_scaling"].update(rope_theta=9_000.0)),
    "training length": ("dynamic", lambda block: block.update(max_position_embeddings=TARGET)),
    "original length": ("llama3", lambda block: block["rope_scaling"].update(original_max_position_embeddings=64)),
    "factor on cos and sin": ("yarn", lambda block: block["rope_scaling"].update(attention_factor=1.0)),
    "type": ("linear", lambda block: block["rope_scaling"].update(rope_type="dynamic")),
    "base of NTK": ("ntk", lambda block: block["rope_scaling"].pop("rope_theta") and block.pop("rope_theta")),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_block_that_rotates_otherwise_is_never_handed_out(case, tiny):
    name, spoil = WRONG[case]
    model = tiny("llama")
    _, _, block, tables = block_and_tables(model, name)
    spoil(block)
    with pytest.raises(ph.UnsupportedModelError, match=r"would rotate layer 0 by 8 frequencies .* no block is given"):
        prove_block(model, block, tables, TARGET)


def test_a_family_that_transformers_lets_have_no_such_block_has_none(tiny):
    model = tiny("phi3")
    _, _, block, tables = block_and_tables(model, "linear")
    assert "must be one of ['longrope']" in prove_block(model, block, tables, TARGET)


def test_methods_that_no_block_expresses_say_why():
    assert set(SIMPLEST) == set(WRITTEN)
    assert all(why_not_written(ph.rope_method(name, 4.0)) is None for name in WRITTEN)
    lists = {"short_factor": [1.0], "long_factor": [2.0]}
    for method, message in (
        (ph.rope_method("self_extend", group=4, window=64), "needs code, not a config: it rewrites attention scores"),
        (ph.rope_method("rerope", window=64), "it rewrites attention scores"),
        (ph.rope_method("p_rope", keep=0.5), "no rope_scaling expresses it"),
        (ph.rope_method("longrope", 4.0, **lists), "versions 4 and 5"),
    ):
        assert message in why_not_written(method)


def test_a_checkpoint_with_an_extension_of_its_own_is_refused_with_the_way_out(tiny):
    for rope in (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
        | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ):
        model = tiny("llama", rope_parameters={**rope, "rope_theta": 10_000.0})
        with pytest.raises(
            ph.UnsupportedModelError, match=f"extended already.*type {rope['rope_type']}.*without rope_"
        ):
            rotations(model)
