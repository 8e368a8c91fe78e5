"""P-values are uniform when nothing is there, and intervals cover."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from positional_heads.core.heads import Head
from positional_heads.core.statistics import (
    FEWEST_UNITS,
    LARGEST_KEPT,
    _last_draws,
    benjamini_hochberg,
    bootstrap_weights,
    excess_p_values,
    jaccard,
    mean_interval,
    permutation_p,
    rank_correlation,
    unit_means,
)
from positional_heads.results import effects as unit_effects
from positional_heads.results.scores import NullScores
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_studies import HEADS, LAYERS, all_heads, planted_study


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
    drawn = np.random.default_rng([3, 7]).multinomial(7, np.full(7, 1 / 7), size=50)
    np.testing.assert_array_equal(weights, drawn)
    assert not torch.equal(weights, bootstrap_weights(7, 50, 4))


@pytest.mark.parametrize("bounds", [None, (-9.0, 9.0)])
def test_draws_are_the_callers_own(bounds):
    """What one caller does to its draw, or in which mode it was drawn, is nothing to the next."""
    values = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        first = mean_interval(values, bounds=bounds)
        bootstrap_weights(6, 2000, 0).zero_()
    assert torch.equal(first, mean_interval(values, bounds=bounds))
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (bootstrap_weights(6, 2000, 0) * scale).sum().backward()
    assert scale.grad == 6 * 2000


def test_large_draws_are_not_kept():
    bootstrap_weights(5, 60, 9)
    kept = _last_draws.cache_info().currsize
    assert bootstrap_weights(LARGEST_KEPT // 10 + 1, 10, 0).shape == (10, LARGEST_KEPT // 10 + 1)
    assert _last_draws.cache_info().currsize == kept


def test_units_are_averaged_as_pandas_does():
    rng = np.random.default_rng(0)
    units = rng.integers(5, size=40).tolist()
    values = rng.normal(size=(3, 40))
    expected = pd.DataFrame(values.T).groupby(units).mean().to_numpy().T
    np.testing.assert_allclose(unit_means(torch.tensor(values), units).numpy(), expected)


DRAWS = {
    # how to draw, the true mean, and the least coverage: known to be less for means of few skewed values
    "normal": (lambda rng, shape: rng.normal(size=shape), 0, 0.935),
    "heavy": (lambda rng, shape: rng.standard_t(5, size=shape), 0, 0.92),
    "skewed": (lambda rng, shape: rng.gamma(4, size=shape), 4, 0.92),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 1, 0.905),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("units", [FEWEST_UNITS, 8, 20])
def test_intervals_cover_the_truth_at_their_nominal_rate(draw, units):
    sample, truth, least = DRAWS[draw]
    data = torch.tensor(sample(np.random.default_rng(1), (2000, units)))
    low, high = mean_interval(data, resamples=1000).T
    covered = float(((low <= truth) & (truth <= high)).double().mean())
    assert least < covered < 0.975  # 2000 runs: the standard error is 0.005


@pytest.mark.parametrize("units", [FEWEST_UNITS, 8, 20])
@pytest.mark.parametrize(("without", "ablated"), [(0.02, None), (0.5, None), (0.98, None), (0.95, 0.98), (0.9, 0.3)])
def test_intervals_of_right_and_wrong_answers_cover_also_where_nearly_all_agree(without, ablated, units):
    rng = np.random.default_rng(2)
    data = (rng.random((1500, units)) < without).astype(float)
    truth, bounds = without, (0, 1)
    if ablated is not None:
        data, truth, bounds = (rng.random(data.shape) < ablated) - data, ablated - without, (-1, 1)
    low, high = mean_interval(torch.tensor(data), resamples=1000, bounds=bounds).T
    assert float(((low <= truth) & (truth <= high)).double().mean()) > 0.94


@pytest.mark.parametrize(("right", "units"), [(0, 8), (3, 8), (8, 8), (1, 20)])
def test_the_interval_of_zeros_and_ones_is_clopper_and_pearsons(right, units):
    data = torch.tensor([1.0] * right + [0.0] * (units - right), dtype=torch.float64)
    expected = stats.binomtest(right, units).proportion_ci(0.95, method="exact")
    found = mean_interval(data, resamples=100_000, bounds=(0, 1)).tolist()
    assert found == pytest.approx([expected.low, expected.high], abs=0.004)


def test_intervals_are_the_bootstrap_t_one_resample_at_a_time():
    rng = np.random.default_rng(3)
    data = rng.gamma(2, size=9)
    drawn = data[rng.integers(9, size=(40_000, 9))]
    t = (drawn.mean(1) - data.mean()) / stats.sem(drawn, axis=1)
    expected = data.mean() - np.quantile(t, [0.975, 0.025]) * stats.sem(data)
    found = mean_interval(torch.tensor(data), resamples=40_000).numpy()
    np.testing.assert_allclose(found, expected, atol=0.04 * (expected[1] - expected[0]))


def test_too_few_units_have_no_interval_and_one_that_differs_has_none_on_its_side():
    for units in range(1, FEWEST_UNITS):
        assert mean_interval(torch.ones(3, units, dtype=torch.float64)).isnan().all()
        assert mean_interval(torch.ones(3, units, dtype=torch.float64), bounds=(0, 1)).isnan().all()
    low, high = mean_interval(torch.tensor([0.0] * 7 + [-1.0], dtype=torch.float64))
    assert low == -torch.inf
    assert -1 < high < 1
    assert mean_interval(torch.full((6,), 0.3, dtype=torch.float64)).tolist() == pytest.approx([0.3, 0.3])


def test_levels_and_bounds_are_checked():
    with pytest.raises(ValueError, match=r"level 95 must be between 0 and 1"):
        mean_interval(torch.ones(4, dtype=torch.float64), 95)
    with pytest.raises(ValueError, match=r"a unit lies outside of 0 to 1"):
        mean_interval(torch.full((4,), 1.5, dtype=torch.float64), bounds=(0, 1))


def test_intervals_of_right_answers_stay_within_their_bounds():
    """Ten units, all right without the heads and wrong far away with them ablated: closed forms of all ends."""
    ranking = all_heads()
    zeros = np.zeros((LAYERS, HEADS))
    study = planted_study(zeros, zeros, ranking, sizes=(2,), units=10, n_random=1)
    top = study.sets.index(next(cell.heads for cell in study.cells if cell.kind == "top"))
    values = torch.ones_like(study.values["log_prob"])
    values[top, ::2] = 0  # the rows of reach long
    study = replace(study, values={"exact": values})
    table = study.effects().set_index(["kind", "reach"])
    most = 0.025 ** (1 / 10)  # of ten of ten right, by Clopper and Pearson
    expected = {
        ("none", "long"): (most, 1),
        ("top", "long"): (-1, 1 - 2 * most),
        ("top", "short"): (most - 1, 1 - most),
        ("top", "long - short"): (-1 - (1 - most), -1 + 3 * (1 - most)),
        ("none", "long - short"): (most - 1, 1 - most),
    }
    for key, ends in expected.items():
        assert (table.loc[key, "low"], table.loc[key, "high"]) == pytest.approx(ends, abs=0.03), key
    contrast = study.contrasts().set_index(["k", "reach"]).loc[(2, "long")]
    assert (contrast["low"], contrast["high"]) == pytest.approx((-1, 1 - 2 * most), abs=0.03)
    assert study.by_head()["long high"].tolist() == pytest.approx([1 - most] * len(ranking), abs=0.03)


def test_a_study_of_too_few_units_has_a_note_instead_of_intervals():
    effects = np.full((LAYERS, HEADS), -1.0)
    table = planted_study(effects, effects / 9, all_heads(), units=FEWEST_UNITS - 1)
    assert table.effects()[["low", "high"]].isna().all(axis=None)
    assert table.contrasts()[["low", "high"]].isna().all(axis=None)
    assert f"no interval below {FEWEST_UNITS} units" in table.verdict


def test_a_permutation_p_value_counts_by_hand():
    permuted = torch.tensor([-3.0, -2.0, -2.0, 0.0, 1.0], dtype=torch.float64)
    assert permutation_p(-2.0, permuted) == 4 / 6
    assert permutation_p(-9.0, permuted) == 1 / 6
    assert permutation_p(2.0, permuted) == 1


def test_p_values_are_uniform_when_the_ranking_means_nothing(monkeypatch):
    monkeypatch.setattr(unit_effects, "mean_interval", lambda *_, **__: torch.tensor([0.0, 0.0]))  # takes most time
    rng, heads = np.random.default_rng(3), all_heads()
    found = []
    for run in range(300):
        effects = -rng.gamma(0.5, size=(LAYERS, HEADS))  # some heads matter much, most do not
        ranking = [heads[index] for index in rng.permutation(LAYERS * HEADS)]
        study = planted_study(effects, effects, ranking, sizes=(2, 6), units=8, n_random=39, seed=run)
        table = study.contrasts()
        found.append(table[(table["k"] == "all") & (table["reach"] == "long")]["p_value"].iloc[0])
    assert np.mean(np.array(found) <= 0.05) < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    # discrete p-values of 40 steps; ties only make them larger
    assert stats.kstest(found, "uniform").statistic < 1.63 / 300**0.5 + 1 / 40


def test_a_planted_effect_is_found_and_its_interval_holds_it():
    effects = np.zeros((LAYERS, HEADS))
    planted = [Head(1, 2), Head(3, 4)]
    for head in planted:
        effects[head] = -0.5
    ranking = planted + [head for head in all_heads() if head not in planted]
    held = 0
    for seed in range(20):
        table = planted_study(effects, effects / 5, ranking, sizes=(2,), seed=seed).contrasts()
        table = table[table["k"] == "all"].set_index("reach")
        assert table.loc["long", "p_value"] == 1 / 21
        held += sum(
            table.loc[reach, "low"] <= truth <= table.loc[reach, "high"]
            for reach, truth in (("long", -1.0), ("short", -0.2), ("long - short", -0.8))
        )
    assert held >= 51  # of 60 at 0.95 each


def test_overlap_and_rank_correlation():
    heads = all_heads()
    assert jaccard(heads[:3], heads[1:4]) == 0.5
    assert np.isnan(jaccard([], []))
    rng = np.random.default_rng(4)
    some, others = torch.tensor(rng.normal(size=20)), torch.tensor(rng.normal(size=20))
    some[3] = torch.nan
    expected = stats.spearmanr(np.delete(some.numpy(), 3), np.delete(others.numpy(), 3)).statistic
    assert rank_correlation(some, others) == pytest.approx(expected)
    assert np.isnan(rank_correlation(some, torch.ones(20, dtype=torch.float64)))
