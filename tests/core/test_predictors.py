"""Which measure predicts harm is judged as SciPy, all orders of heads, and a plain double bootstrap judge it."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy import stats

from positional_heads.core import predictors
from positional_heads.core.predictors import harm_predictions


def planted(heads, units, noise, seed):
    """Two measures, of which the first predicts harm better, and harm that varies over units."""
    rng = np.random.default_rng(seed)
    better, worse = rng.normal(size=(2, heads))
    harm = 0.5 * better + 0.25 * worse + 0.8 * rng.normal(size=heads)
    return better, worse, harm[:, None] + noise * rng.normal(size=(heads, units))


def predicted(better, worse, harm, **settings):
    layers = settings.pop("layers", np.arange(len(harm)) // 8)
    measures = {"better": torch.tensor(better), "worse": torch.tensor(worse)}
    return harm_predictions(measures, torch.tensor(harm), torch.tensor(layers), **settings)


def test_correlations_are_scipys_with_ties():
    better, worse, harm = planted(40, 6, 1.0, 0)
    worse = worse.round()
    found = predicted(better, worse, harm)
    for name, measure in (("better", better), ("worse", worse)):
        expected = stats.spearmanr(measure, harm.mean(1)).statistic
        assert found[name].correlation == pytest.approx(expected, abs=1e-12)
    apart = found["worse"].correlation - found["better"].correlation
    assert found["worse"].difference == pytest.approx(apart, abs=1e-12)
    assert found["better"].difference == found["better"].difference_low == found["better"].difference_high == 0


def test_p_values_are_shares_of_all_orders():
    better, worse, harm = planted(6, 4, 0.5, 3)
    layers = np.array([1, 0, 1, 0, 0, 1])
    found = predicted(better, worse, harm, layers=layers)
    mean = harm.mean(1)
    own = {layer: np.flatnonzero(layers == layer) for layer in (0, 1)}
    within = []
    for first, second in product(permutations(own[0]), permutations(own[1])):
        order = np.arange(6)
        order[own[0]], order[own[1]] = first, second
        within.append(order)
    for name, measure in (("better", better), ("worse", worse)):
        observed = stats.spearmanr(measure, mean).statistic
        for orders, p_value in ((within, found[name].p_within), (permutations(range(6)), found[name].p_all)):
            by_chance = [stats.spearmanr(measure, mean[list(order)]).statistic for order in orders]
            share = np.mean(np.array(by_chance) >= observed - 1e-9)
            assert p_value == pytest.approx(share, abs=0.02)  # 9999 permutations: 4 standard errors


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_intervals_have_the_spread_of_a_double_bootstrap(noise):
    better, worse, harm = planted(30, 8, noise, 1)
    found = predicted(better, worse, harm, level=0.9)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(1000):
        heads, units = rng.integers(30, size=30), rng.integers(8, size=8)
        mean = harm[heads][:, units].mean(1)
        drawn.append([stats.spearmanr(one[heads], mean).statistic for one in (better, worse)])
    drawn = np.array(drawn)
    reach = stats.norm.ppf(0.95)
    for index, name in enumerate(("better", "worse")):
        half = reach * np.arctanh(drawn[:, index]).std()
        low, high = np.tanh(np.arctanh(found[name].correlation) + np.array([-half, half]))
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=0.04)
    half = reach * (drawn[:, 1] - drawn[:, 0]).std()
    found_half = (found["worse"].difference_high - found["worse"].difference_low) / 2
    assert found_half == pytest.approx(half, rel=0.1)  # 1000 resamples: 4 standard errors


def test_intervals_cover_what_was_planted(monkeypatch):
    monkeypatch.setattr(predictors, "RESAMPLES", 200)
    monkeypatch.setattr(predictors, "PERMUTATIONS", 9)
    better, worse, harm = planted(100_000, 12, 2.0, 0)  # so many heads that this is the truth
    truth = [stats.spearmanr(one, harm.mean(1)).statistic for one in (better, worse)]
    covered = []
    for seed in range(1, 101):
        found = predicted(*planted(40, 12, 2.0, seed))
        one, other = found["better"], found["worse"]
        covered.append(
            [one.low <= truth[0] <= one.high, other.difference_low <= truth[1] - truth[0] <= other.difference_high]
        )
    shares = np.mean(covered, axis=0)
    assert (shares >= 0.88).all(), shares  # 95 % less 3 standard errors


def test_few_heads_or_units_give_no_interval_and_constant_measures_no_correlation():
    assert np.isnan(predicted(*planted(7, 9, 1.0, 0))["worse"].difference_low)
    assert np.isnan(predicted(*planted(9, 3, 1.0, 0))["better"].low)
    better, worse, harm = planted(9, 4, 1.0, 0)
    assert np.isfinite(predicted(better, worse, harm)["better"].low)
    constant = predicted(better, np.ones(9), harm)["worse"]
    assert np.isnan([constant.correlation, constant.p_all, constant.p_within, constant.difference]).all()
    exact = predicted(better, worse, np.repeat(better[:, None], 4, 1))["better"]
    assert exact.correlation == pytest.approx(1)
    assert 0.99 < exact.low <= exact.high <= 1
