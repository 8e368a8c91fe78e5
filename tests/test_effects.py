"""Intervals cover as often as they say, p-values are uniform where nothing is to be found."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from positional_heads.effects import jaccard, mean_interval, permutation_p, rank_correlation, unit_means
from positional_heads.heads import Head
from tests.synthetic_studies import HEADS, LAYERS, all_heads, planted_study


def test_units_are_averaged_as_pandas_does():
    rng = np.random.default_rng(0)
    units = rng.integers(5, size=40).tolist()
    values = rng.normal(size=(3, 40))
    expected = pd.DataFrame(values.T).groupby(units).mean().to_numpy().T
    np.testing.assert_allclose(unit_means(torch.tensor(values), units).numpy(), expected)


@pytest.mark.parametrize("draw", ["normal", "skewed", "heavy"])
@pytest.mark.parametrize("units", [10, 30])
def test_intervals_cover_the_truth_at_their_nominal_rate(draw, units):
    rng = np.random.default_rng(1)
    sample = {"normal": rng.normal, "skewed": rng.gamma, "heavy": rng.standard_t}[draw]
    arguments = {"normal": (0, 1), "skewed": (4.0,), "heavy": (5,)}[draw]
    truth = {"normal": 0, "skewed": 4, "heavy": 0}[draw]
    data = torch.tensor(sample(*arguments, size=(4000, units)))
    low, high = mean_interval(data, resamples=1000).T
    covered = float(((low <= truth) & (truth <= high)).double().mean())
    # 4000 runs: the standard error is 0.0035; a mean of few skewed values is known to be covered less often
    assert 0.92 if draw == "skewed" else 0.937 < covered < 0.965


def test_intervals_agree_with_the_t_interval_on_normal_values():
    data = np.random.default_rng(2).normal(size=15)
    expected = stats.t.interval(0.95, 14, data.mean(), stats.sem(data))
    found = mean_interval(torch.tensor(data), resamples=100_000).numpy()
    np.testing.assert_allclose(found, expected, atol=0.08 * (expected[1] - expected[0]))


def test_the_interval_of_one_unit_is_unknown_and_levels_are_checked():
    assert mean_interval(torch.ones(3, 1, dtype=torch.float64)).isnan().all()
    with pytest.raises(ValueError, match=r"level 95 must be between 0 and 1"):
        mean_interval(torch.ones(4, dtype=torch.float64), 95)


def test_a_permutation_p_value_counts_by_hand():
    permuted = torch.tensor([-3.0, -2.0, -2.0, 0.0, 1.0], dtype=torch.float64)
    assert permutation_p(-2.0, permuted) == 4 / 6
    assert permutation_p(-9.0, permuted) == 1 / 6
    assert permutation_p(2.0, permuted) == 1


def test_p_values_are_uniform_when_the_ranking_means_nothing():
    rng = np.random.default_rng(3)
    found = []
    for run in range(300):
        effects = -rng.gamma(0.5, size=(LAYERS, HEADS))  # some heads matter much, most do not
        ranking = [all_heads()[index] for index in rng.permutation(LAYERS * HEADS)]
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
