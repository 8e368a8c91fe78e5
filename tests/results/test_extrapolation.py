"""The link of allocation and task, recomputed with scipy one resample at a time."""

import numpy as np
import pytest
from scipy import stats

from positional_heads.results.extrapolation import RESAMPLES
from tests.support.synthetic_studies import planted_extrapolation


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_intervals_are_quantiles_of_the_correlation_over_resampled_points(level):
    study = planted_extrapolation(methods=("none", "linear", "ntk", "yarn"))  # eight points, the fewest
    table, link = study.to_frame(), study.link(level, seed=3).set_index("measure")
    draws = np.random.default_rng(3).integers(len(table), size=(RESAMPLES, len(table)))
    for measure in ("rho_beyond", "jump", "stretch"):
        values, efficiency = table[measure].to_numpy(), table["efficiency"].to_numpy()
        vary = [draw for draw in draws if len(set(values[draw])) > 1 and len(set(efficiency[draw])) > 1]
        found = [stats.spearmanr(values[draw], efficiency[draw]).statistic for draw in vary]
        row = link.loc[measure]
        assert row["correlation"] == pytest.approx(stats.spearmanr(values, efficiency).statistic)
        assert (row["low"], row["high"]) == pytest.approx(np.quantile(found, [(1 - level) / 2, (1 + level) / 2]))


def test_points_that_do_not_vary_have_no_correlation():
    link = planted_extrapolation(methods=("linear",), lengths=(64,)).link()
    assert link[["correlation", "low", "high"]].isna().all(axis=None)


def test_fewer_than_eight_points_have_a_correlation_and_no_interval():
    study = planted_extrapolation()
    link = study.link()
    assert link["correlation"].notna().all()
    assert link[["low", "high"]].isna().all(axis=None)
    assert "no interval below 8" in study.verdict
    assert "nan" not in study.verdict
