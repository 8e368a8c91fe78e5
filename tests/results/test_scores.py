"""Scores rank heads, test them against their null, and tabulate every number under its name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import positional_heads as ph
from positional_heads.core.heads import Head
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_comparison import normal, scores_of_groups


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("bootstrap", [True, False])
def test_what_is_saved_is_what_is_loaded(tmp_path, null, bootstrap):
    scores = synthetic_scores(null=null, bootstrap=bootstrap)
    assert scores.save(tmp_path) == tmp_path / "scores.safetensors"
    loaded = ph.HeadScores.load(tmp_path)
    for name, tensor in scores._tensors().items():
        assert torch.equal(loaded._tensors()[name].nan_to_num(9), tensor.nan_to_num(9)), name
    assert loaded._tensors().keys() == scores._tensors().keys()
    assert loaded.reasons == scores.reasons
    assert loaded.provenance == scores.provenance
    assert loaded.verdict == scores.verdict


def test_fields_that_share_memory_are_saved_apart(tmp_path):
    scores = synthetic_scores()
    shared = replace(scores, rho_curve=scores.rho, bound=scores.bound[:1].expand(3, 4), null=None)
    loaded = ph.HeadScores.load(replace(shared, bootstrap_rho=scores.rho[None].expand(2, 3, 4)).save(tmp_path))
    for found in (loaded.rho, loaded.rho_curve, *loaded.bootstrap_rho):
        assert torch.equal(found.nan_to_num(9), scores.rho.nan_to_num(9))


def test_heads_are_ranked_by_signed_rho():
    scores = synthetic_scores()
    assert [str(head) for head in scores.top(3)] == ["L0H3", "L0H2", "L1H3"]
    assert scores.positional_heads() == scores.top(1)
    assert scores.positional_heads(0.25) == scores.top(2)
    assert scores.positional_heads(threshold=0.25) == [Head(0, 3)]
    assert scores.positional_heads(alpha=0.05) == [Head(0, 3)]
    assert all(not scores.rho[head].isnan() for head in scores.top(8))
    assert scores.top(8)[-1] == Head(0, 0)
    strongly_negative = replace(scores, rho=torch.where(scores.rho == -0.1, -0.9, scores.rho))
    assert strongly_negative.top(8) == scores.top(8)


def test_a_threshold_includes_itself():
    assert synthetic_scores().positional_heads(threshold=0.2) == [Head(0, 3), Head(0, 2)]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"fraction": 0.0}, "fraction 0.0 must be above 0"),
        ({"fraction": 1.5}, "fraction 1.5 must be above 0 and at most 1"),
        ({"fraction": 0.5, "alpha": 0.1}, "give one of fraction, threshold and alpha"),
    ],
)
def test_impossible_rules_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        synthetic_scores().positional_heads(**rule)


@pytest.mark.parametrize("k", [9, -1])
def test_more_heads_than_there_are_or_fewer_than_none_are_refused(k):
    with pytest.raises(ValueError, match=f"^{k} heads asked for, 8 have a score: ask for 0 to 8$"):
        synthetic_scores().top(k)


def test_without_a_null_there_is_no_excess():
    scores = synthetic_scores(null=False)
    with pytest.raises(ValueError, match="no null was computed: score again with null_repeats=20"):
        scores.excess  # noqa: B018
    assert "without a null model" in scores.verdict


def test_excess_is_what_the_null_does_not_explain():
    scores = synthetic_scores()
    mean, sd = scores.null.rho.numpy().mean(0), scores.null.rho.numpy().std(0, ddof=1)
    assert torch.allclose(scores.excess[:2], torch.from_numpy(scores.rho.numpy() - mean)[:2])
    assert torch.allclose(scores.z[:2], torch.from_numpy((scores.rho.numpy() - mean) / sd)[:2])


@pytest.mark.parametrize("bootstrap", [True, False])
def test_p_values_weigh_shuffles_and_sequences(bootstrap):
    """Welch's t test written out, then Benjamini-Hochberg over the 8 heads that have a score, not over all 12."""
    scores = synthetic_scores(bootstrap=bootstrap)
    null = scores.null.rho.numpy()
    shuffles = null.var(0, ddof=1) * (1 + 1 / 6)
    sequences = scores.bootstrap_rho.numpy().var(0, ddof=1) * 5 / 4 if bootstrap else 0 * shuffles
    freedom = (shuffles + sequences) ** 2 / (shuffles**2 / 5 + sequences**2 / 4)  # 6 shuffles, 5 groups
    expected = stats.t.sf((scores.rho.numpy() - null.mean(0)) / np.sqrt(shuffles + sequences), freedom)
    np.testing.assert_allclose(scores.p_values.numpy(), expected, rtol=1e-9)
    adjusted = stats.false_discovery_control(expected[:2].flatten()).reshape(2, 4)
    np.testing.assert_allclose(scores.q_values[:2].numpy(), adjusted, rtol=1e-9)
    assert scores.q_values[2].isnan().all()


def test_a_head_far_below_its_null_is_not_significant():
    scores = synthetic_scores()
    below = replace(scores, rho=torch.where(scores.rho == 0.4, -0.9, scores.rho))
    assert not below.significant().any()
    assert not below.significant(alpha=1.0)[0, 3]


@pytest.mark.parametrize("alpha", [2, 0, -0.1, 1.0001])
def test_a_false_discovery_rate_that_cannot_be_is_refused(alpha):
    scores = synthetic_scores()
    for by_rate in (scores.significant, lambda rate: scores.positional_heads(alpha=rate)):
        with pytest.raises(ValueError, match=f"alpha {alpha} must be above 0 and at most 1"):
            by_rate(alpha)


def test_the_verdict_names_the_number_of_groups():
    assert "over 5 groups of sequences" in synthetic_scores().verdict
    assert "over a single sequence" in synthetic_scores(bootstrap=False).verdict


def test_a_run_of_two_shuffles_without_a_significant_head_is_undecided():
    scores = synthetic_scores()
    null = replace(scores.null, rho=scores.rho + torch.tensor([0.5, -0.5])[:, None, None])
    assert replace(scores, null=null).verdict.startswith("Undecided: none of 8 heads")


def test_intervals_are_students_on_the_bootstraps_variance():
    scores = synthetic_scores()
    for head in ((0, 0), (1, 3)):
        scale = np.std(scores.bootstrap_rho[:, head[0], head[1]].numpy(), ddof=1) * (5 / 4) ** 0.5  # 5 groups
        expected = stats.t.interval(0.9, 4, float(scores.rho[head]), scale)
        np.testing.assert_allclose(scores.interval(0.9)[head], expected)
    assert synthetic_scores(bootstrap=False).interval().isnan().all()
    few = replace(scores, provenance={**scores.provenance, "data": {"groups": 3}})
    assert few.interval().isnan().all()
    certain = replace(scores, rho=torch.full_like(scores.rho, 0.999))
    assert float(certain.interval()[0, 0, 1]) == 1  # rho ends there
    same = scores.bootstrap_rho.clone()
    same[:, 0, 1] = scores.rho[0, 1]  # as of copies of one sequence
    assert replace(scores, bootstrap_rho=same).interval().isnan()[0, :2].tolist() == [[False, False], [True, True]]
    with pytest.raises(ValueError, match="level 95 must be between 0 and 1"):
        scores.interval(95)


def test_the_table_has_a_row_per_head_and_reasons_where_there_is_no_score():
    frame = synthetic_scores().to_frame()
    assert frame["name"].tolist() == [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
    assert frame.loc[frame["layer"] == 2, "reason"].tolist() == ["it has no rotary embedding"] * 4
    assert frame["rho"].isna().tolist() == [False] * 8 + [True] * 4
    score, null = (
        ["rho", "low", "high", "rho_curve", "bound"],
        ["null_mean", "null_sd", "excess", "z", "p_value", "q_value"],
    )
    assert frame.columns.tolist() == ["name", "layer", "head", *score, *null, "reason"]
    without = synthetic_scores(null=False).to_frame()
    assert without.columns.tolist() == ["name", "layer", "head", *score, "reason"]


def test_the_table_holds_each_number_under_its_own_name():
    scores = synthetic_scores()
    row = scores.to_frame().set_index("name").loc["L1H3"]
    head = Head(1, 3)
    low, high = scores.interval()[head]
    assert (row["low"], row["high"]) == (low, high)
    assert row["low"] < row["rho"] < row["high"]
    for name in ("rho", "rho_curve", "bound", "excess", "z"):
        assert row[name] == getattr(scores, name)[head], name
    assert (row["null_mean"], row["null_sd"]) == (scores.null.mean[head], scores.null.sd[head])
    assert (row["p_value"], row["q_value"]) == (scores.p_values[head], scores.q_values[head])


def test_by_significance_heads_come_by_excess_and_never_with_negative_rho():
    """L0H0 falls with distance, but less than its null does: significant, and no Positional Head."""
    scores = synthetic_scores()
    rho, null = scores.rho.clone(), scores.null.rho.clone()
    null[:, 0, 0] = -0.5 + 0.01 * torch.arange(6)
    null[:, 1, 3] = rho[1, 3] - 0.45 + 0.01 * torch.arange(6)
    found = replace(scores, null=replace(scores.null, rho=null))
    assert found.significant(0.05)[0].tolist() == [True, False, False, True]
    assert rho[1, 3] < rho[0, 3]
    assert found.excess[1, 3] > found.excess[0, 3]
    assert found.positional_heads(alpha=0.05) == [Head(1, 3), Head(0, 3)]
    assert found.verdict.startswith("2 of 8 heads beat their null with a positive rho")
    assert "; 1 more has a significant excess but rho of 0 or less: no Positional Heads" in found.verdict


def test_files_of_earlier_versions_have_no_saturation(tmp_path):
    scores = replace(synthetic_scores(), saturation=None)
    loaded = ph.HeadScores.load(scores.save(tmp_path))
    assert loaded.saturation is None
    assert "saturation" not in loaded.to_frame()


def controlled(control_rho):
    """Scores whose control has other scores and settings of its own; L0H3 alone beats its null without it."""
    scores = synthetic_scores()
    settings = scores.provenance["settings"]
    provenance = {**scores.provenance, "settings": settings | {"skip_keys": 4}, "kernels": ["eager"]}
    null = replace(scores.null, rho=scores.null.rho - 0.002)
    control = replace(scores, rho=torch.tensor(control_rho).double(), null=null, provenance=provenance)
    provenance = {**scores.provenance, "settings": settings | {"control_keys": 4}}
    return replace(scores, control=control, provenance=provenance)


@pytest.mark.parametrize(
    ("control_rho", "stays"),
    [
        ([[-0.1, 0.0, 0.2, 0.35], [0.01, 0.02, 0.03, 0.9], [torch.nan] * 4], True),  # L1H3 beats its null in it alone
        ([[-0.1, 0.0, 0.2, 0.1], [0.01, 0.02, 0.03, 0.15], [torch.nan] * 4], False),
    ],
)
def test_heads_stay_that_beat_their_null_in_both(control_rho, stays, tmp_path):
    scores = controlled(control_rho)
    assert [str(head) for head in scores.positional_heads(alpha=0.05)] == ["L0H3"]
    assert scores.stays().nonzero().tolist() == ([[0, 3]] if stays else [])
    named = " (L0H3)" if stays else ""
    assert f"; {int(stays)} of the 1 stay{'s' * stays} when the first 4 keys are left out{named}; " in scores.verdict
    assert [str(head) for head in scores.positional_heads(alpha=0.05, stays=True)] == ["L0H3"] * stays
    assert "control_keys" not in scores.verdict
    frame = scores.to_frame().set_index("name")
    assert frame["stays"].dropna().to_dict() == {"L0H3": stays}
    for column, values in (
        ("control_rho", scores.control.rho),
        ("control_excess", scores.control.excess),
        ("control_q_value", scores.control.q_values),
    ):
        np.testing.assert_array_equal(frame[column], values.flatten())
    loaded = ph.HeadScores.load(scores.save(tmp_path))
    assert loaded.control.provenance == scores.control.provenance
    assert loaded.to_frame().equals(scores.to_frame())


def test_a_head_without_rho_of_its_own_cannot_stay_and_without_a_control_none_is_judged():
    falling = controlled([[-0.1, 0.0, 0.2, -0.35], [0.01, 0.02, 0.03, 0.15], [torch.nan] * 4])
    null = replace(falling.control.null, rho=falling.control.null.rho - 0.9)
    falling = replace(falling, control=replace(falling.control, null=null))
    assert falling.control.significant()[0, 3]  # less below zero than its null
    assert not falling.stays().any()
    scores = synthetic_scores()
    assert "stays" not in scores.to_frame()
    assert "score with control_keys=64" in scores.verdict
    with pytest.raises(ValueError, match="no control was computed: score again with control_keys=64"):
        scores.stays()
    with pytest.raises(ValueError, match="no control was computed"):
        scores.positional_heads(alpha=0.05, stays=True)
    with pytest.raises(ValueError, match="stays=True goes with alpha"):
        scores.positional_heads(0.1, stays=True)


def test_the_heads_to_look_at_are_those_that_stay_then_those_that_beat_their_null():
    rho = torch.tensor([[0.5, 0.4, 0.3, 0.2, 0.1, -0.1]]).double()
    noise = [0.01 * normal(groups, 1, 6, seed=groups) for groups in (8, 20)]
    samples, shuffles = (rho + one - one.mean(0) for one in noise)
    scores = scores_of_groups(samples, shuffles - torch.tensor([0.0, 0.1, 0.2, 0.15, 0.0, 0.3]))
    beating = ["L0H2", "L0H3", "L0H1"]  # by excess; L0H5 has the largest, and a negative rho
    assert [str(head) for head in scores.notable()] == beating
    assert [str(head) for head in scores.notable(2)] == beating[:2]
    lost = torch.tensor([[0.0, 0.0, 0.2, 0.0, 0.0, 0.0]])
    control = replace(scores, rho=rho - lost)
    assert [str(head) for head in replace(scores, control=control).notable()] == ["L0H3", "L0H1", "L0H2"]
    for without in (replace(scores, null=None), replace(scores, null=replace(scores.null, rho=scores.null.rho + 1))):
        assert [str(head) for head in without.notable()] == ["L0H0", "L0H1", "L0H2", "L0H3"]
    with pytest.raises(ValueError, match="most -1 must be at least 0"):
        scores.notable(-1)


def large(control=None):
    """Scores of 12 layers of 9 heads at 2048 tokens, with as many resamples as are kept."""
    generator = torch.Generator().manual_seed(1)
    rho = 0.1 * torch.randn(12, 9, generator=generator, dtype=torch.float64)
    apart = rho + 0.01 * torch.randn(220, 12, 9, generator=generator, dtype=torch.float64)
    curve = torch.rand(12, 9, 2048, generator=generator, dtype=torch.float64)
    null = replace(synthetic_scores().null, rho=apart[:20] - 0.03, curve_mean=curve, curve_sd=curve, sampling_sd=rho**2)
    per_head = {"rho": rho, "rho_curve": rho, "bound": rho**2, "saturation": rho**2, "sampling_sd": rho**2}
    counts = torch.ones(12, 2048, dtype=torch.long)
    frequencies = torch.rand(12, 32, generator=generator, dtype=torch.float64)
    parts = {
        "null": null,
        "bootstrap_rho": apart[20:],
        "curve": curve,
        "pair_counts": counts,
        "frequencies": frequencies,
    }
    return replace(synthetic_scores(), **per_head, **parts, reasons={}, control=control)


def test_scores_without_curves_are_small_and_say_the_same(tmp_path):
    scores = large(control=large())
    small = ph.HeadScores.load(scores.without_curves().save(tmp_path))
    assert (tmp_path / "scores.safetensors").stat().st_size < 108 * 1600  # 432 kB for 270 heads
    assert small.verdict == scores.verdict
    assert torch.equal(small.stays(), scores.stays())
    assert small.top(108) == scores.top(108)
    for ours, theirs in ((small, scores), (small.control, scores.control)):
        torch.testing.assert_close(ours.p_values, theirs.p_values, rtol=0.01, atol=1e-6)
        torch.testing.assert_close(ours.interval(), theirs.interval(), rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.null.mean_error, theirs.null.mean_error.float())
        assert ours.curve is ours.pair_counts is ours.null.curve_mean is ours.null.curve_sd is None
    assert "sequences of up to 9 tokens" in small.description
    columns = [name for name in scores.to_frame().select_dtypes("number") if name not in {"p_value", "q_value", "z"}]
    np.testing.assert_allclose(small.to_frame()[columns], scores.to_frame()[columns], atol=2e-4)
    assert small.control.to_frame().shape == scores.control.to_frame().shape
