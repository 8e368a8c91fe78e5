"""P-values are uniform under the null, and intervals cover."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from positional_heads.core.statistics import (
    FEWEST_UNITS,
    benjamini_hochberg,
    bootstrap_weights,
    excess_p_values,
)
from positional_heads.results.scores import NullScores
from tests.support.synthetic import synthetic_scores


def step_up(p):
    """Benjamini-Hochberg as it is written down: smallest n p_(j) / j over j from its rank up."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    for rank, index in enumerate(order):
        adjusted[index] = min(1.0, *(len(p) * p[order[j]] / (j + 1) for j in range(rank, len(p))), 1.0)
    return adjusted


def test_adjusted_p_values_follow_the_definition():
    p = np.random.default_rng(0).uniform(size=30) ** 2
    with_gap = torch.tensor([*p, np.nan])
    adjusted = benjamini_hochberg(with_gap)
    np.testing.assert_allclose(adjusted[:-1].numpy(), step_up(p), rtol=1e-12)
    assert adjusted[-1].isnan()


@pytest.mark.parametrize("repeats", [5, 20])
def test_p_values_are_uniform_under_the_null(repeats):
    rng = torch.Generator().manual_seed(repeats)
    draws = 0.3 + 0.01 * torch.randn(repeats + 1, 200, 200, generator=rng)
    p = excess_p_values(draws[0], draws[1:], None, 1).flatten()
    assert stats.kstest(p.numpy(), "uniform").pvalue > 0.01


def test_p_values_stay_uniform_with_sampling_noise_of_known_size():
    rng = torch.Generator().manual_seed(0)
    groups, repeats = 16, 10
    per_group = 0.2 + 0.04 * torch.randn(groups, 50, 40, generator=rng)
    null = 0.2 + 0.01 * torch.randn(repeats, 50, 40, generator=rng)
    rho = per_group.mean(0) + 0.01 * torch.randn(50, 40, generator=rng)
    p = excess_p_values(rho, null, per_group.var(0) / groups, groups).flatten()
    assert stats.kstest(p.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("groups", [3, 16])
def test_p_values_are_not_too_small_with_few_groups(groups):
    """Sequences are drawn, shuffles hardly vary: the bootstrap of few groups understates how much rho varies."""
    rng = torch.Generator().manual_seed(groups)
    per_group = 0.2 + 0.04 * torch.randn(groups, 1, 400_000, generator=rng, dtype=torch.float64)
    rho = per_group.mean(0)
    shuffled = 0.2 + 1e-5 * torch.randn(5, *rho.shape, generator=rng, dtype=torch.float64)
    half = (per_group.var(0, correction=0) / groups / 2).sqrt()  # of two resamples with the variance of all
    curve = rho[..., None]
    scores = replace(
        synthetic_scores(),
        rho=rho,
        rho_curve=rho,
        curve=curve,
        pair_counts=torch.ones(1, 1).long(),
        bound=rho,
        saturation=rho.abs(),
        frequencies=rho,
        null=NullScores(shuffled, curve, curve),
        bootstrap_rho=torch.stack([rho - half, rho + half]),
        provenance={"data": {"groups": groups}},
    )
    smaller = stats.kstest(scores.p_values.flatten().numpy(), "uniform", alternative="greater")
    assert smaller.pvalue > 0.01


def test_an_excess_makes_the_p_value_small():
    null = torch.tensor([[[0.10, 0.10]], [[0.12, 0.12]], [[0.11, 0.11]], [[0.09, 0.09]]])
    p = excess_p_values(torch.tensor([[0.30, 0.0]]), null, None, 1)[0]
    assert p[0] < 0.001
    assert p[1] > 0.99


@pytest.mark.parametrize("groups", [FEWEST_UNITS, 8, 24])
@pytest.mark.parametrize("draw", ["normal", "skewed"])
def test_intervals_of_rho_cover_at_their_nominal_rate(draw, groups):
    rng = np.random.default_rng(groups)
    noise = rng.normal(size=(2000, groups)) if draw == "normal" else (rng.gamma(4, size=(2000, groups)) - 4) / 2
    values = torch.tensor(0.2 + 0.04 * noise)
    rho, curve = values.mean(1)[None], values.mean(1)[None, :, None]
    scores = replace(
        synthetic_scores(null=False),
        rho=rho,
        rho_curve=rho,
        curve=curve,
        pair_counts=torch.ones(1, 1).long(),
        bound=rho,
        saturation=rho.abs(),
        frequencies=rho,
        bootstrap_rho=(bootstrap_weights(groups, 500, 0) / groups @ values.T)[:, None],
        provenance={"data": {"groups": groups}},
    )
    low, high = scores.interval()[0].T
    assert 0.92 < float(((low <= 0.2) & (high >= 0.2)).double().mean()) < 0.965  # the standard error is 0.005


def test_resamples_draw_as_many_groups_as_there_are():
    weights = bootstrap_weights(7, 50, 3)
    assert (weights.sum(1) == 7).all()
    assert torch.equal(weights, bootstrap_weights(7, 50, 3))
    assert not torch.equal(weights, bootstrap_weights(7, 50, 4))
