"""Rank agreement is Spearman's, its ceiling is what independent scorings reach, and chance is counted exactly."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from positional_heads.core.rank_agreement import rank_agreement, reliability, row_correlations, shared_top
from positional_heads.core.statistics import bootstrap_weights
from tests.support.synthetic_comparison import normal


def test_each_row_is_spearmans_with_the_same_row():
    some, others = normal(4, 30, seed=0).round(decimals=1), normal(4, 30, seed=1)  # with ties
    expected = [stats.spearmanr(one, other).statistic for one, other in zip(some.numpy(), others.numpy(), strict=True)]
    np.testing.assert_allclose(row_correlations(some, others), expected, rtol=1e-12)
    assert row_correlations(torch.ones(1, 5).double(), normal(1, 5, seed=0)).isnan().all()


@pytest.mark.parametrize(("n", "k"), [(7, 3), (6, 1), (5, 5)])
def test_chance_is_counted_over_every_pair_of_rankings(n, k):
    scores = torch.arange(n).double()
    top = set(range(n - k, n))
    every = [len(top & set(chosen)) for chosen in combinations(range(n), k)]  # k heads of a random ranking
    for shared in set(every):
        other = torch.zeros(n).double()
        chosen = [*sorted(top)[:shared], *range(k - shared)]
        other[chosen] = 1.0
        found = shared_top(scores, other, k)
        assert (found.k, found.shared) == (k, shared)
        assert found.p_value == pytest.approx(np.mean([one >= shared for one in every]))
        assert found.expected == pytest.approx(np.mean(every))
        assert found.jaccard == shared / (2 * k - shared)


@pytest.mark.parametrize("noise", [0.3, 3.0, 50.0])
def test_the_ceiling_is_what_two_independent_scorings_reach(noise):
    """And the interval holds their mean correlation at least as often as it says."""
    heads, groups, runs = 150, 8, 30
    truth, weights = normal(heads, seed=9), bootstrap_weights(groups, 100, 0) / groups
    found = []
    for run in range(runs):
        some, others = (truth + noise * normal(groups, heads, seed=1000 * side + run) for side in (1, 2))
        scores, resamples = (some.mean(0), others.mean(0)), (weights @ some, weights @ others)
        found.append(rank_agreement(scores, resamples, (groups, groups), paired=False))
    mean = float(np.mean([one.correlation for one in found]))
    assert np.mean([one.ceiling for one in found]) == pytest.approx(mean, abs=0.1)  # it is never below 0
    assert np.mean([one.low <= mean <= one.high for one in found]) > 0.88


def test_resamples_of_one_seed_on_other_sequences_are_not_paired():
    """Row r draws groups with the same numbers in both; read as pairs, equal noise would look like agreement."""
    groups, heads = 8, 100
    weights = bootstrap_weights(groups, 100, 0) / groups
    noise = normal(groups, heads, seed=0)
    scores, resamples = (noise.mean(0),) * 2, (weights @ noise,) * 2
    apart = rank_agreement(scores, resamples, (groups, groups), paired=False)
    together = rank_agreement(scores, resamples, (groups, groups), paired=True)
    assert together.low == together.high == pytest.approx(1.0)
    assert apart.low < 0.9
    assert np.isnan(together.ceiling)


def test_without_enough_groups_there_is_no_interval():
    scores = normal(2, 20, seed=0)
    found = rank_agreement((scores[0], scores[1]), (scores, scores), (3, 9), paired=False)
    assert np.isfinite(found.correlation)
    assert np.isnan([found.low, found.high, found.ceiling]).all()


def test_pure_noise_has_no_reliability():
    weights = bootstrap_weights(16, 100, 0) / 16
    assert reliability(weights @ normal(16, 1000, seed=0), 16) < 0.1
