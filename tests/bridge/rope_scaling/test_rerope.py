"""ReRoPE is what its definition says: complex arithmetic in float64, entry by entry, is the oracle."""

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.rope_scaling.methods import rope_method
from tests.support.extended import contributions_by_distance, dominant_dimension, scores_by_distance

TOKENS = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(4))
WINDOW = 8


def rectified(leak):
    """The distance of a key at n from a query at m."""
    return lambda m, n: m - n if m - n < WINDOW else WINDOW + leak * (m - n - WINDOW)


@pytest.mark.parametrize("leak", [0.0, 0.25, 0.3])
@pytest.mark.parametrize("family", ["llama", "neox"])
@torch.no_grad()
def test_scores_are_those_of_the_definition(family, leak, tiny):
    model, tokens = tiny(family), TOKENS[:1]
    expected = scores_by_distance(model, tokens, 0, rectified(leak))
    with ph.extended_rope(model, "rerope", window=WINDOW, leak=leak):
        _, cache = model.run_with_cache(tokens)
    found = cache["blocks.0.attn.hook_attn_scores"][0].numpy()
    rows, columns = np.tril_indices(tokens.shape[1])
    np.testing.assert_allclose(found[:, rows, columns], expected[:, rows, columns], atol=1e-4)
    upper = np.triu_indices(tokens.shape[1], 1)
    assert (found[:, upper[0], upper[1]] < -1e30).all()


@torch.no_grad()
def test_the_dominant_dimension_is_that_of_the_definitions_distances(tiny):
    model, tokens = tiny("llama"), TOKENS[:1]
    dominant = dominant_dimension(contributions_by_distance(model, tokens, 0, rectified(0.25)))
    with ph.extended_rope(model, "rerope", window=WINDOW, leak=0.25):
        cache = ph.dominant_dimension_cache(model, tokens, layers=[0])
        scores = ph.score_heads(model, tokens, null_repeats=0)
    rows, columns = np.tril_indices(tokens.shape[1])
    found = cache["dominant_dim", 0, "attn"][0].numpy()
    np.testing.assert_allclose(found[:, rows, columns], dominant[:, rows, columns], atol=1e-4)
    assert scores.provenance["extension"]["method"] == "rerope"
    assert (scores.provenance["extension"]["window"], scores.provenance["extension"]["leak"]) == (WINDOW, 0.25)


@torch.no_grad()
def test_a_leak_of_1_is_plain_rope(tiny):
    model = tiny("llama")
    plain = model(TOKENS)
    with ph.extended_rope(model, "rerope", window=WINDOW, leak=1.0):
        assert torch.allclose(model(TOKENS), plain, atol=1e-5)
    with ph.extended_rope(model, "rerope", window=WINDOW):
        assert not torch.allclose(model(TOKENS), plain, atol=1e-3)


@torch.no_grad()
def test_no_window_inside_the_sequence_is_plain_rope_to_the_last_bit(tiny):
    model = tiny("llama")
    plain = model(TOKENS)
    with ph.extended_rope(model, "rerope", window=TOKENS.shape[1]):
        assert torch.equal(model(TOKENS), plain)


@torch.no_grad()
def test_a_key_value_cache_changes_nothing(tiny):
    model = tiny("llama")
    with ph.extended_rope(model, "rerope", window=WINDOW, leak=0.25):
        whole = model(TOKENS)
        first, cache = model(TOKENS[:, :25], return_type="logits_and_cache", use_cache=True)
        last = model(TOKENS[:, 25:], past_key_values=cache, use_cache=True)
    assert torch.allclose(torch.cat([first, last], dim=1), whole, atol=1e-5)


def test_its_reach_is_where_a_distance_would_exceed_the_training_length():
    def furthest(length, leak):
        return max(rectified(leak)(back, 0) for back in range(length))

    assert rope_method("rerope", window=WINDOW).reach(64) is None
    for leak in (0.25, 0.3, 0.5, 1.0):
        reach = rope_method("rerope", window=WINDOW, leak=leak).reach(64)
        assert furthest(reach, leak) < 64 <= furthest(reach + 1, leak)
    assert rope_method("rerope", window=64).reach(64) == 64


def test_the_window_is_a_quarter_of_the_training_length_unless_given():
    assert rope_method("ReRoPE", training_length=64).settings == {"window": 16, "leak": 0.0}
    assert rope_method("Leaky-ReRoPE", training_length=64, leak=0.5).settings == {"window": 16, "leak": 0.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 4}, "'rerope' takes no factor"),
        ({}, "needs window="),
        ({"window": 0}, "window 0 must be at least 1"),
        ({"window": 8, "leak": 1.5}, "leak 1.5 must be at most 1"),
        ({"window": "x"}, "window must be a whole number or None, got 'x'"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        rope_method("rerope", **arguments)


def test_a_study_takes_it_by_name(bundled):
    study = ph.extrapolation_study(
        bundled,
        ph.bundled_text(),
        ["rerope"],
        [2],
        heads=["L0H0"],
        training_length=64,
        depths=1,
        examples=1,
        sequences=1,
    )
    assert study.methods[0] | {"method": "rerope", "window": 16, "leak": 0.0} == study.methods[0]
