"""The link of allocation and task, recomputed with scipy one resample at a time."""

import numpy as np
import pytest
import torch
from scipy import stats

from positional_heads.results.extrapolation import RESAMPLES, ExtrapolationStudy
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


def test_averaged_curves_are_small_and_say_the_same(tmp_path):
    study = planted_extrapolation(lengths=(2048, 4096), trained=1024)
    small = ExtrapolationStudy.load(study.averaged(16).save(tmp_path / "small"))
    assert (tmp_path / "small").stat().st_size < study.save(tmp_path / "whole").stat().st_size / 15
    whole, kept = study.to_frame(), small.to_frame()
    assert kept.drop(columns=["jump", "stretch", "explained"]).equals(
        whole.drop(columns=["jump", "stretch", "explained"])
    )
    for run, length in enumerate(study.lengths):
        _, means = small.running_means(run)
        windows = study.curves[run, :, :length].unfold(-1, 64, 16).mean(-1)  # those that begin where a step does
        assert np.abs(means[:, ::16] - windows.numpy()).max() < 1e-3  # half of float16's step between 2 and 4
    assert np.allclose(kept["jump"], whole["jump"], rtol=0.1)


def test_curves_are_averaged_once_and_in_whole_steps():
    study = planted_extrapolation()
    with pytest.raises(ValueError, match="step 5 must divide the training length and every other, not leave a rest"):
        study.averaged(5)
    with pytest.raises(ValueError, match="means over 8 distances already"):
        study.averaged(8).averaged(2)
    with pytest.raises(ValueError, match="step 0 must be at least 1"):
        study.averaged(0)


def test_a_table_by_head_is_averaged_and_finds_a_planted_stretch_in_one_of_two():
    study = planted_extrapolation(methods=("linear",), lengths=(64,))
    wave = np.sin(np.arange(32) / 3)
    study.plain_curves[1] = torch.tensor(wave)
    study.curves[0, 1, :64] = torch.tensor(np.interp(np.arange(64) / 2, np.arange(32), wave))
    by_head, (row,) = study.by_head(), study.to_frame().to_dict("records")
    assert by_head["head"].tolist() == [str(head) for head in study.heads]
    assert by_head["stretch"][1] == pytest.approx(2, rel=0.05)
    assert by_head["explained"][1] > 0.95
    assert by_head["rho_beyond"].tolist() == study.rho_beyond[0].tolist()
    for name in ("rho_within", "rho_beyond", "stretch", "explained"):
        assert row[name] == pytest.approx(np.mean(by_head[name]))
    assert row["jump"] == pytest.approx(np.mean(np.abs(by_head["jump"])))
