"""The mean score by distance in closed form is what a model computes where queries and keys do not vary."""

import math

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.views.explorer.series import common_base, series_part
from tests.support.synthetic_profile import synthetic_profile


def mean_scores(part, own, head, distances):
    """The series in plain Python."""
    frequency = part["frequency"][ph.Head.parse(head).layer]
    terms = list(zip(own["amplitude"], frequency, own["phase"], strict=True))
    return [sum(size * math.cos(rate * t + phase) for size, rate, phase in terms) for t in distances]


@pytest.mark.parametrize("method", ["none", "yarn"])
def test_of_one_token_repeated_it_is_the_score_itself(bundled, method):
    """Every query and key is then the same before rotation, so the law holds exactly, attention factor included."""
    tokens = torch.full((1, 40), 65)
    with ph.extended_rope(bundled, method, factor=4):
        profile = ph.profile_heads(bundled, tokens, retrieval=None, null_repeats=0)
        _, cache = bundled.run_with_cache(tokens)
    part, by_head = series_part(profile, "run-1", 512)
    assert len(by_head) == 32
    for head in ("L0H3", "L3H7"):
        layer, number = ph.Head.parse(head)
        scores = cache["attn_scores", layer][0, number, 39, :].flip(-1).numpy()
        expected = mean_scores(part, by_head[head], head, range(40))
        np.testing.assert_allclose(expected, scores, atol=2e-3 * np.abs(scores).max())
    assert part["base"] == (10000 if method == "none" else None)
    assert part["scaling"] == ("default" if method == "none" else "yarn")
    assert (part["run"], part["training_length"], part["factor_known"]) == ("run-1", 512, True)
    factors = profile.pairs.attention_factor
    assert factors.unique().tolist() == pytest.approx([1.0 if method == "none" else 0.1 * math.log(4) + 1])


def test_pairs_that_turn_backwards_are_shown_as_they_turn(tiny):
    tokens, model = torch.full((1, 16), 5), tiny("nanochat")
    profile = ph.profile_heads(model, tokens, retrieval=None, null_repeats=0)
    assert {one["sense"] for one in profile.provenance["rotary"]} == {-1}
    part, by_head = series_part(profile, "run-1")
    pattern = model.run_with_cache(tokens)[1]["pattern", 1][0, 0, 15].flip(-1).numpy()
    weights = np.exp(mean_scores(part, by_head["L1H0"], "L1H0", range(16)))
    np.testing.assert_allclose(weights / weights.sum(), pattern, atol=1e-4)
    assert np.ptp(pattern) > 0.02  # it depends on distance


def test_heads_that_were_not_profiled_have_none():
    profile = synthetic_profile()
    part, by_head = series_part(profile, "run-2")
    assert set(by_head) <= {str(head) for head in profile.heads if head.layer < 2}
    assert part["frequency"][2] == []


@pytest.mark.parametrize(
    ("frequencies", "base"),
    [
        ([500_000 ** (-i / 32) for i in range(32)], 500_000),
        ([500_000 ** (-i / 32) * (1 + 1e-7 * (-1) ** i) for i in range(32)], 500_000),
        ([500_000 ** (-i / 32) / 2 for i in range(32)], None),  # linear scaling
        ([500_000 ** (-i / 32) / (8 if i > 20 else 1) for i in range(32)], None),
        ([1.0, 0.1, 0.0], None),  # a pair that does not turn
        ([1.0], None),  # any base
    ],
)
def test_a_base_is_found_where_frequencies_are_its_powers(frequencies, base):
    rows = torch.tensor([frequencies, [math.nan] * len(frequencies)], dtype=torch.float64)
    assert common_base(rows) == (None if base is None else pytest.approx(base, rel=1e-5))
    other = torch.stack([rows[0], rows[0] ** 1.01])
    assert common_base(other) is None
