"""Ablations go by positions in the text, not by columns of caches or padding: one plain run is the oracle."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache, StaticCache

import positional_heads as ph
from positional_heads.bridge.positions import numbered_rows
from positional_heads.studies.tasks.task import AnswerTask, Example
from tests.bridge.test_ablation import HEADS, attended

LENGTH = 26
TOKENS = torch.randint(256, (2, LENGTH), generator=torch.Generator().manual_seed(3))
OTHERS = torch.randint(256, (3, 40), generator=torch.Generator().manual_seed(4))
SETTINGS = {
    "mean": {"reference": OTHERS},
    "resample": {"reference": OTHERS},
    "uniform": {},
    "far": {"distance": 4},
    "near": {"distance": 4},
}
FAMILIES = ("llama", "mistral", "codegen", "gptj")
"""One with a sliding window of 12 tokens, two without a rotary module."""


def cases():
    return [
        (family, mode)
        for family in FAMILIES
        for mode in SETTINGS
        if family != "gptj" or mode in {"mean", "resample"}  # its scores cannot be edited
    ]


@pytest.mark.parametrize(("family", "mode"), cases())
@torch.no_grad()
def test_caches_and_padding_change_nothing(family, mode, tiny):
    model = tiny(family)
    with ph.ablated_heads(model, HEADS, mode, **SETTINGS[mode]):
        whole = model(TOKENS)
        config = model.original_model.config
        for cache in (DynamicCache(config=config), StaticCache(config=config, max_cache_len=48)):
            continued = in_parts(model, cache)
            assert torch.allclose(continued, whole, atol=1e-4), type(cache)
        for side in ("left", "right"):
            assert torch.allclose(padded(model, side), whole, atol=1e-4), side


def in_parts(model, cache):
    """Logits of a prompt, then of several tokens, of one, and of more than the window has."""
    parts = []
    for start, stop in ((0, 9), (9, 12), (12, 13), (13, LENGTH)):
        logits, cache = model(
            TOKENS[:, start:stop], past_key_values=cache, use_cache=True, return_type="logits_and_cache"
        )
        parts.append(logits)
    return torch.cat(parts, dim=1)


def padded(model, side):
    tokens, mask = torch.full((2, LENGTH + 7), 5), torch.zeros(2, LENGTH + 7, dtype=torch.long)
    spans = [slice(gap, gap + LENGTH) if side == "left" else slice(0, LENGTH) for gap in (3, 7)]
    for row, span in enumerate(spans):
        tokens[row, span], mask[row, span] = TOKENS[row], 1
    logits = model(tokens, attention_mask=mask)
    return torch.stack([logits[row, span] for row, span in enumerate(spans)])


@pytest.mark.parametrize("mode", ["uniform", "far", "near"])
@torch.no_grad()
def test_no_ablation_shows_a_masked_key(mode, tiny):
    model, other = tiny("mistral"), TOKENS.clone()
    other[:, 20:] = 65
    settings = {} if mode == "uniform" else {"distance": 3}
    with ph.ablated_heads(model, HEADS, mode, **settings):
        assert torch.equal(model(TOKENS)[:, :20], model(other)[:, :20])
        _, cache = model.run_with_cache(TOKENS, names_filter="blocks.0.attn.hook_pattern")
    back = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    seen = back >= 3 if mode == "near" else back >= 0  # rows in which something is left to attend to
    masked = ((back < 0) | (back >= 12)) & (seen & (back < 12)).any(dim=1, keepdim=True)
    assert masked.any()
    assert not cache["blocks.0.attn.hook_pattern"][:, 1, masked].any()


@pytest.mark.parametrize("order", [("near", "far"), ("far", "near")])
@torch.no_grad()
def test_near_and_far_together_leave_a_band_of_distances(order, tiny):
    """Also where the first ablation masks all heads' own entries, so that scores no longer show the model's mask."""
    model, distances = tiny("llama"), {"near": 2, "far": 5}
    heads = [ph.Head(0, head) for head in range(4)]
    names = [f"blocks.0.attn.hook_{name}" for name in ("rot_q", "rot_k", "v")]
    _, cache = model.run_with_cache(TOKENS, names_filter=names)
    q, k, v = (cache[name][0].double().numpy() for name in names)
    with (
        ph.ablated_heads(model, heads, order[0], distance=distances[order[0]]),
        ph.ablated_heads(model, heads, order[1], distance=distances[order[1]]),
    ):
        _, cache = model.run_with_cache(TOKENS, names_filter="blocks.0.attn.hook_z")
    scale = ph.resolve_layers(model).layers[0].scale
    for head in range(4):
        # a band is what `far` shows of keys and values two tokens earlier; the first two queries see nothing
        expected = attended(q[2:, head], k[:-2, head // 2], v[:-2, head // 2], scale, "far", 3)
        found = cache["blocks.0.attn.hook_z"][0, :, head].numpy()
        np.testing.assert_allclose(found[2:], expected, atol=1e-5)
        assert not found[:2].any()


@torch.no_grad()
def test_each_example_takes_its_own_reference_in_batches_of_any_size(tiny):
    model = tiny("llama")
    tokens = torch.randint(256, (5, LENGTH), generator=torch.Generator().manual_seed(5))
    examples = tuple(Example(row, ((20, 24),), unit=unit) for unit, row in enumerate(tokens))
    task = AnswerTask("spans", examples, (), {})
    found = [
        ph.evaluate(model, task, heads=HEADS, mode="resample", reference=OTHERS, batch_size=size) for size in (1, 2, 4)
    ]
    for number, row in enumerate(tokens):
        with ph.ablated_heads(model, HEADS, "resample", reference=OTHERS[number % 3][None]):
            log_probs = model(row[None])[0].double().log_softmax(-1)
        expected = float(log_probs[19:23].gather(-1, row[20:24, None]).mean())
        for result in found:
            assert float(result.measures["log_prob"][number]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mode", ["resample", "far"])
@torch.no_grad()
def test_beam_search_with_a_cache_is_beam_search_without(mode, tiny):
    model = tiny("llama")
    arguments = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "eos_token_id": None, "pad_token_id": 257}
    plain = model.original_model.generate(TOKENS, **arguments)
    with ph.ablated_heads(model, HEADS, mode, **SETTINGS[mode]), numbered_rows(model, [0, 1]):
        by_cache, without = (model.original_model.generate(TOKENS, use_cache=use, **arguments) for use in (True, False))
    assert torch.equal(by_cache, without)
    assert not torch.equal(by_cache, plain)


def test_rows_that_do_not_fit_the_numbered_examples_are_refused(tiny):
    model = tiny("llama")
    with (
        ph.ablated_heads(model, HEADS, "resample", reference=OTHERS),
        numbered_rows(model, [0, 1, 2]),
        pytest.raises(ValueError, match="2 rows are run for 3 numbered examples"),
    ):
        model(TOKENS)


@torch.no_grad()
def test_one_reference_serves_any_row(tiny):
    model = tiny("llama")
    with ph.ablated_heads(model, HEADS, "resample", reference=OTHERS[1][None]):
        one = model(TOKENS[1][None])
        assert torch.allclose(model(TOKENS)[1], one[0], atol=1e-5)
    with ph.ablated_heads(model, HEADS, "resample", reference=OTHERS):
        assert torch.allclose(model(TOKENS)[1], one[0], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*")  # compatibility mode warns about what it cannot fold; not ours to judge
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.no_grad()
def test_compatibility_mode_changes_no_ablation_but_that_of_a_value_bias(family, tiny):
    """Logits are centred there, and a value bias is no longer part of z, so z = 0 leaves it."""
    plain, folded = tiny(family), tiny(family, compatible=True)
    for mode, settings in {"zero": {}, **SETTINGS}.items():
        found = []
        for model in (plain, folded):
            with ph.ablated_heads(model, HEADS, mode, **settings):
                found.append(model(TOKENS).log_softmax(-1))
        same = family == "llama" or mode not in {"zero", "near"}
        assert torch.allclose(*found, atol=1e-4) == same, mode
