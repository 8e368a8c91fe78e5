"""Pairs that are kept, frozen or dropped by key head, against Hugging Face's own forward with its rotation replaced."""

import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.bridge.answer_run import answer_run, runs_plainly
from positional_heads.bridge.rope_scaling.kept_pairs import KeptPairs
from tests.support.extended import contributions_by_distance, dominant_dimension
from tests.support.tiny_models import ADJACENT, WRONG_BRIDGES

TOKENS = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(3))
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
FAMILIES = {
    "llama": ("llama", {}),
    "neox": ("neox", {}),
    "glm": ("glm", {}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3", {}),
    "cohere": ("cohere", {}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}),
}


def drawn(model, seed=0):
    """Random pairs of every key head, as a mask [layer kv_head pair] and as `kept`."""
    layers = ph.resolve_layers(model).layers
    heads = layers[0].n_heads // 2 if "NeoX" not in str(model.cfg.original_architecture) else layers[0].n_heads
    mask = np.random.default_rng(seed).random((len(layers), heads, layers[0].n_pairs)) < 0.5
    return mask, [["".join("01"[int(one)] for one in row) for row in layer] for layer in mask]


def hugging_face(family, folder, mask, how, tokens, monkeypatch):
    """Logits of Hugging Face's model, whose rotary function is called and then overruled, head by head."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    module = sys.modules[type(model).__module__]
    original, called = module.apply_rotary_pos_emb, []

    def by_head(q, k, cos, sin, *rest, **more):
        layer = len(called)
        called.append(layer)
        n_pairs, factor = mask.shape[-1], float(cos[0, 0, 0])  # at position 0
        first = np.arange(n_pairs)
        channels = (2 * first, 2 * first + 1) if family in ADJACENT else (first, first + n_pairs)
        turned = [x.clone() for x in original(q, k, cos, sin, *rest, **more)]
        for x, new in zip((q, k), turned, strict=True):
            for head in range(x.shape[1]):
                for pair in np.flatnonzero(~mask[layer, head * mask.shape[1] // x.shape[1]]):
                    for channel in (channels[0][pair], channels[1][pair]):
                        new[:, head, :, channel] = x[:, head, :, channel] * factor if how == "freeze" else 0
        return tuple(turned)

    with monkeypatch.context() as patch:  # a bridge calls the same function
        patch.setattr(module, "apply_rotary_pos_emb", by_head)
        logits = model(tokens).logits
    assert called == [0, 1]
    return logits


@pytest.mark.parametrize("how", ["freeze", "drop"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WRONG_BRIDGES])
@torch.no_grad()
def test_logits_are_those_of_a_model_that_rotates_so(name, how, tiny, tiny_folder, monkeypatch):
    family, overrides = FAMILIES[name]
    model = tiny(family, **overrides)
    mask, kept = drawn(model)
    before = model(TOKENS)
    expected = hugging_face(family, tiny_folder(family, **overrides), mask, how, TOKENS, monkeypatch)
    with ph.extended_rope(model, "kept_pairs", kept=kept, how=how):
        found = model(TOKENS)
        with answer_run(model) as run:
            answers = run(TOKENS, [7, 28])
        assert runs_plainly(model)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(answers, expected[:, [7, 28]], atol=2e-5, rtol=0)
    assert float((found - before).abs().max()) > 1e-2
    assert torch.equal(model(TOKENS), before)


@pytest.mark.parametrize("how", ["freeze", "drop"])
@torch.no_grad()
def test_heads_are_scored_by_what_their_pairs_contribute(how, tiny):
    model, tokens = tiny("llama"), TOKENS[:1]
    mask, kept = drawn(model)
    by_query_head = mask[0].repeat(2, axis=0)[:, None, None]
    own, still = (contributions_by_distance(model, tokens, 0, distance) for distance in (np.subtract, lambda *_: 0))
    expected = dominant_dimension(np.where(by_query_head, own, still if how == "freeze" else 0))
    rows, columns = np.tril_indices(30)
    with ph.extended_rope(model, "kept_pairs", kept=kept, how=how):
        cache = ph.dominant_dimension_cache(model, tokens, layers=[0])
        scores = ph.score_heads(model, tokens, layers=[0], null_repeats=2)
    found = cache["dominant_dim", 0, "attn"][0].numpy()
    np.testing.assert_allclose(found[:, rows, columns], expected[:, rows, columns], atol=1e-4)
    for head in range(4):
        rho = spearmanr(rows - columns, expected[head, rows, columns]).statistic
        assert float(scores.rho[0, head]) == pytest.approx(rho, abs=2e-3)
    assert scores.provenance["extension"]["how"] == how
    assert [list(layer) for layer in scores.provenance["extension"]["kept"]] == kept


@torch.no_grad()
def test_yarns_factor_stays_out_of_scores(tiny):
    model = tiny("llama", rope_parameters=YARN)
    _, kept = drawn(model)
    kept[0][1] = "0" * 8  # a head without pairs has no factor to divide by
    with ph.extended_rope(model, "kept_pairs", kept=kept, how="drop") as extension:
        dropped = ph.score_heads(model, TOKENS, null_repeats=0)
        factors = {float(band.query_phase.abs().max()) for layer in (0, 1) for band in extension.bands(layer, 30)}
    assert [*factors] == [pytest.approx(0.1 * np.log(4) + 1, abs=1e-5)] * len(factors)
    assert dropped.rho[0, 2:].isnan().all()  # every pair contributes nothing: D is the same everywhere
    assert dropped.rho[0, :2].isfinite().all()
    with ph.extended_rope(model, "kept_pairs", kept=[["1" * 8] * 2] * 2):
        same = ph.score_heads(model, TOKENS, null_repeats=0)
    torch.testing.assert_close(same.rho, ph.score_heads(model, TOKENS, null_repeats=0).rho, atol=1e-5, rtol=0)


@torch.no_grad()
def test_layers_without_an_edited_pair_are_left_alone(tiny):
    model = tiny("llama")
    plain, whole = model(TOKENS), ["1" * 8] * 2
    with ph.extended_rope(model, "kept_pairs", kept=[whole, whole]) as extension:
        assert set(extension.chosen) == {0, 1}
        torch.testing.assert_close(model(TOKENS), plain, atol=1e-5, rtol=0)
    names = ["blocks.0.attn.hook_attn_scores", "blocks.1.attn.hook_attn_scores"]
    _, before = model.run_with_cache(TOKENS, names_filter=names)
    for first in ([], whole):
        with ph.extended_rope(model, "kept_pairs", kept=[first, ["01" * 4, "1" * 8]]) as extension:
            assert set(extension.chosen) == {1}
            _, after = model.run_with_cache(TOKENS, names_filter=names)
        assert torch.equal(after[names[0]], before[names[0]])
        assert not torch.allclose(after[names[1]][:, :2], before[names[1]][:, :2], atol=1e-2)
        torch.testing.assert_close(after[names[1]][:, 2:], before[names[1]][:, 2:], atol=1e-4, rtol=1e-5)
    assert torch.equal(model(TOKENS), plain)


@torch.no_grad()
def test_a_cache_and_single_heads_work_as_whole_runs_do(tiny):
    model = tiny("llama")
    _, kept = drawn(model)
    with ph.extended_rope(model, "kept_pairs", kept=kept):
        whole = model.generate(TOKENS[:1], max_new_tokens=4, do_sample=False, return_type="tokens", verbose=False)
        slow = model.generate(
            TOKENS[:1], max_new_tokens=4, do_sample=False, return_type="tokens", verbose=False, use_past_kv_cache=False
        )
        every = model(TOKENS)
    assert torch.equal(whole, slow)
    with ph.extended_rope(model, "kept_pairs", kept=kept, heads=[(0, head) for head in range(4)]):
        some = model(TOKENS)
    with ph.extended_rope(model, "kept_pairs", kept=[kept[0], []]):
        torch.testing.assert_close(model(TOKENS), some, atol=1e-5, rtol=0)
    assert not torch.allclose(some, every, atol=1e-3)


BAD = {
    "letters": ({"kept": [["11a00000", "11110000"]] * 2}, ValueError, "kept has other characters than 0 and 1"),
    "how": ({"kept": [["11110000"] * 2] * 2, "how": "zero"}, ValueError, "how"),
    "layers": ({"kept": [["11110000"] * 2]}, ValueError, "kept has 1 layers, and the model's layer 1 is not one"),
    "pairs": ({"kept": [["1100"] * 2] * 2}, ValueError, "8 pairs, and kept has 2 key heads of 4 pairs there: it is of"),
    "heads": ({"kept": [["11110000"] * 3] * 2}, ValueError, "4 query heads and 8 pairs, and kept has 3 key heads"),
    "text": ({"kept": 5}, TypeError, "kept must be"),
    "none": ({}, ValueError, "method 'kept_pairs' needs kept=, see pair_plan"),
}


@pytest.mark.parametrize("case", BAD)
def test_choices_that_do_not_fit_are_refused(case, tiny):
    settings, error, message = BAD[case]
    model = tiny("llama")
    with pytest.raises(error, match=message), ph.extended_rope(model, "kept_pairs", **settings):
        pass


def test_another_extension_and_rotations_out_of_reach_are_refused(tiny):
    kept = [["11110000"] * 2] * 2
    refused = pytest.raises(RuntimeError, match="extended already")
    with ph.extended_rope(tiny("llama"), "yarn", 2), refused, ph.extended_rope(tiny("llama"), KeptPairs(kept)):
        pass
    refused = pytest.raises(ph.UnsupportedModelError, match="cannot be extended")
    with refused, ph.extended_rope(tiny("gptj"), KeptPairs([["1100"] * 4] * 2)):
        pass
