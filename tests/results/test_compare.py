"""Changes are judged as scipy's t tests judge them, intervals cover, and what was not shown is not claimed."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import positional_heads as ph
from positional_heads.core.statistics import bootstrap_weights
from positional_heads.results.compare import same_sequences
from positional_heads.results.comparison_tables import stable_table
from positional_heads.results.differing import differing
from tests.support.synthetic_comparison import every_resample, normal, planted_nulls, scores_of_groups


def all_resamples(samples, **options):
    return scores_of_groups(samples, weights=every_resample(len(samples)), **options)


def test_other_sequences_are_compared_by_welchs_t_test():
    some, others = normal(4, 2, 3, seed=0), 0.5 * normal(5, 2, 3, seed=1) + 0.7
    comparison = ph.compare(all_resamples(some, text="x"), all_resamples(others, text="y"))
    expected = stats.ttest_ind(others.numpy(), some.numpy(), equal_var=False)
    interval = expected.confidence_interval(0.9)
    assert not comparison.paired
    np.testing.assert_allclose(comparison.rho_change.value, others.mean(0) - some.mean(0))
    np.testing.assert_allclose(comparison.rho_change.p_values, expected.pvalue, rtol=0.01)  # 256 resamples, not all
    np.testing.assert_allclose(comparison.rho_change.interval(0.9)[..., 0], interval.low, rtol=0.01, atol=0.003)
    np.testing.assert_allclose(comparison.rho_change.interval(0.9)[..., 1], interval.high, rtol=0.01, atol=0.003)
    adjusted = stats.false_discovery_control(comparison.rho_change.p_values.flatten()).reshape(2, 3)
    np.testing.assert_allclose(comparison.rho_change.q_values, adjusted)


def test_the_same_sequences_are_compared_by_the_paired_t_test():
    some = normal(5, 2, 3, seed=0)
    others = some + 0.2 * normal(5, 2, 3, seed=1) + 0.1
    comparison = ph.compare(all_resamples(some), all_resamples(others, temperature=2.0))
    expected = stats.ttest_rel(others.numpy(), some.numpy())
    interval = expected.confidence_interval()
    assert comparison.paired
    np.testing.assert_allclose(comparison.rho_change.p_values, expected.pvalue, rtol=0.01)
    np.testing.assert_allclose(comparison.rho_change.interval()[..., 0], interval.low, rtol=0.01, atol=0.003)
    np.testing.assert_allclose(comparison.rho_change.interval()[..., 1], interval.high, rtol=0.01, atol=0.003)
    apart = ph.compare(all_resamples(some), all_resamples(others, text="y"))
    assert bool((apart.rho_change.variance > 3 * comparison.rho_change.variance).all())


def test_the_excess_has_the_chance_of_sequences_and_of_the_nulls_means():
    samples = normal(4, 1, 3, seed=0), normal(4, 1, 3, seed=1)
    nulls = normal(6, 1, 3, seed=2), 2 * normal(9, 1, 3, seed=3)
    a, b = (all_resamples(one, null=null, text=text) for one, null, text in zip(samples, nulls, "xy", strict=True))
    change = ph.compare(a, b).excess_change
    parts = [(one.numpy().var(0, ddof=1) / len(one), len(one) - 1) for one in (*samples, *nulls)]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    np.testing.assert_allclose(change.variance, variance, rtol=0.01)
    np.testing.assert_allclose(change.freedom, freedom, rtol=0.02)
    np.testing.assert_allclose(change.value, b.excess - a.excess)
    paired = ph.compare(a, replace(b, provenance=a.provenance)).excess_change
    unshared = [samples[1] - samples[0], *nulls]  # 6 and 9 shuffles
    expected = sum(one.numpy().var(0, ddof=1) / len(one) for one in unshared)
    np.testing.assert_allclose(paired.variance, expected, rtol=0.01)
    b = all_resamples(samples[1], null=nulls[1][:6], text="x")
    paired = ph.compare(a, b).excess_change
    differences = [samples[1] - samples[0], nulls[1][:6] - nulls[0]]
    expected = sum(one.numpy().var(0, ddof=1) / len(one) for one in differences)
    np.testing.assert_allclose(paired.variance, expected, rtol=0.01)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("groups", [5, 12])
def test_intervals_cover_and_p_values_are_uniform_where_nothing_changed(paired, groups):
    """4000 heads, whose sequences have much in common where the comparison is paired."""
    shared = 2 * normal(groups, 40, 100, seed=0)
    some, others = shared + normal(groups, 40, 100, seed=1), normal(groups, 40, 100, seed=2)
    others += shared if paired else 2 * normal(groups, 40, 100, seed=3)
    kind = {"text": "x" if paired else "y", "temperature": 2.0}
    change = ph.compare(scores_of_groups(some), scores_of_groups(others, **kind)).rho_change
    low, high = change.interval().unbind(-1)
    assert float(((low <= 0) & (high >= 0)).double().mean()) == pytest.approx(0.95, abs=0.015)
    for level in (0.5, 0.05, 0.01):
        assert float((change.p_values <= level).double().mean()) == pytest.approx(level, abs=4 * (level / 4000) ** 0.5)


def test_changes_within_rounding_and_of_unshared_shuffles_are_no_differences(bundled):
    """The same queries and keys, at a temperature that is equal but for rounding, with more shuffles."""
    tokens = ph.cut_text(bundled, ph.bundled_text(), 64, sequences=8, seed=1)
    few = ph.score_heads(bundled, tokens, null_repeats=4)
    many = ph.score_heads(bundled, tokens, null_repeats=12, temperature=1 + 1e-6)
    found = ph.compare(few, many)
    assert found.paired
    assert 0 < float(found.rho_change.value.abs().max()) < 1e-3  # smaller than the bounds
    assert not found.changed.any()
    assert found.excess_change is not None
    assert not (found.excess_change.q_values <= 0.05).any()
    twice = ph.compare(few, replace(few, rho_curve=few.rho_curve + 0.01))
    torch.testing.assert_close(twice.rho_change.p_values, torch.ones(4, 8, dtype=torch.float64))


def test_the_excess_is_covered_where_the_null_varies_with_the_sequences():
    """rho is the null of its own sequences plus noise, and shuffles have the same noise: no head has an excess."""
    groups, repeats, shape = 8, 10, (10, 100)
    sides = []
    for side, text in ((1, "x"), (2, "y")):
        geometry = normal(groups, *shape, seed=side)
        samples = geometry + normal(groups, *shape, seed=10 + side)
        null = geometry.mean(0) + normal(repeats, *shape, seed=20 + side) / groups**0.5
        sides.append(scores_of_groups(samples, null, text=text, resamples=200))
    comparison = ph.compare(*sides)
    assert float((comparison.excess_change.p_values <= 0.05).double().mean()) < 0.05
    assert int(comparison.excess_changed.sum()) == 0


def test_one_seed_resamples_the_same_sequences_of_two_runs(tiny):
    """Brute force: a row of both bootstraps is the score of the text in which the sequences are drawn that often."""
    model, n = tiny("llama"), 5
    tokens = torch.randint(250, (n, 32), generator=torch.Generator().manual_seed(0))
    cold, warm = ({"resamples": 40}, {"resamples": 40, "temperature": "attention"})
    a, b = (ph.score_heads(model, tokens, **options) for options in (cold, warm))
    comparison = ph.compare(a, b)
    assert comparison.paired
    assert "temperature (1 against attention)" in comparison.verdict
    weights = bootstrap_weights(n, 40, 0).long()
    differences = b.bootstrap_rho - a.bootstrap_rho
    drawn = tokens.repeat_interleave(weights[7], dim=0)
    rescored = [ph.score_heads(model, drawn, **options).rho for options in (cold, warm)]
    errors = (differences[7] - (rescored[1] - rescored[0])).abs()
    moved = (differences[7] - (b.rho - a.rho)).abs()
    assert float(errors.max()) < 0.01
    assert float(errors.mean()) < float(moved.mean()) / 4
    expected = differences.numpy().var(0, ddof=1) * n / (n - 1)
    np.testing.assert_allclose(comparison.rho_change.variance, expected)


def test_significant_in_one_only_is_not_a_difference():
    comparison = ph.compare(*planted_nulls(), names=["prose", "code"])
    assert list(comparison.beats.values()) == ["both", "a only", "a only", "b only", "neither"]
    assert comparison.excess_changed.tolist() == [[False, True, False, True, False]]
    assert (
        "1 heads beat their null with a positive rho in both, 2 in prose only and 1 in code only" in comparison.verdict
    )
    assert "Of these 3, 2 differ significantly in excess (L0H1, L0H3); 1 is not shown to differ" in comparison.verdict
    assert "is no evidence that it differs" in comparison.verdict
    frame = comparison.to_frame()
    assert frame["beats"].tolist() == list(comparison.beats.values())
    np.testing.assert_allclose(frame["change"], comparison.rho[1].flatten() - comparison.rho[0].flatten())


def test_a_head_whose_rho_is_negative_does_not_count_as_one_that_beats_its_null():
    a, b = planted_nulls()
    below = replace(a, rho=a.rho - 0.5, null=replace(a.null, rho=a.null.rho - 0.5))
    assert list(ph.compare(below, b).beats.values()) == ["b only", "neither", "neither", "b only", "neither"]


def test_without_nulls_in_both_no_head_is_said_to_be_more_than_geometry():
    a, b = planted_nulls()
    comparison = ph.compare(a, replace(b, null=None))
    assert comparison.excess is None
    assert {*comparison.beats.values()} == {"unknown"}
    assert "both need a null" in comparison.verdict
    assert not {"excess_a", "beats"} & {*comparison.to_frame()}
    assert "excess" not in comparison.agreement


@pytest.mark.parametrize("groups", [None, 3])
def test_with_too_few_groups_in_either_nothing_is_judged(groups):
    a, b = planted_nulls()
    few = replace(b, bootstrap_rho=None)
    if groups is not None:
        few = scores_of_groups(normal(groups, 1, 5, seed=0), b.null.rho, text="y")
    for pair in ((a, few), (few, a)):
        comparison = ph.compare(*pair)
        assert comparison.rho_change.p_values.isnan().all()
        assert comparison.excess_change.interval().isnan().all()
        assert not comparison.changed.any()
        assert "undecided: an interval needs at least 4 groups of sequences in both, there are " in comparison.verdict
        assert math.isnan(comparison.agreement["rho"].low)


@pytest.mark.parametrize(("groups", "rough"), [((4, 12), 4), ((12, 7), 7), ((8, 9), None)])
def test_intervals_over_few_groups_are_called_rough(groups, rough):
    a, b = (scores_of_groups(normal(count, 1, 5, seed=count), text=str(count)) for count in groups)
    assert (f"Intervals over {rough} groups of sequences are rough: give 8" in ph.compare(a, b).verdict) == bool(rough)
    assert ("are rough" in ph.compare(a, b).verdict) == bool(rough)


def test_what_cannot_be_compared_is_refused_with_the_way_out():
    a, b = planted_nulls()
    wide = scores_of_groups(normal(8, 2, 5, seed=0))
    refused = [
        ((a, wide), {}, "a has 1 layers of 5 heads and b 2 layers of 5 heads: only models of one shape"),
        ((a, a), {}, "a and b are the same result, every number is equal"),
        ((a, replace(a)), {}, "the same result"),
        ((a, replace(b, rho=b.rho * torch.nan)), {}, "no head has a score in both a and b: score the same layers"),
        ((a, b), {"names": ["x", "x"]}, r"names \['x', 'x'\]: give two different ones"),
        ((a, b), {"names": ["x"]}, "give two different ones"),
    ]
    for sides, options, message in refused:
        with pytest.raises(ValueError, match=message):
            ph.compare(*sides, **options)
    with pytest.raises(ValueError, match="level 95 must be between 0 and 1"):
        ph.compare(a, b).rho_change.interval(95)


@pytest.mark.parametrize("other", [{"seed": 1}, {"resamples": 401}])
def test_the_same_sequences_drawn_in_another_order_are_refused(other):
    samples = normal(8, 1, 5, seed=0)
    a, b = scores_of_groups(samples), scores_of_groups(samples + 1, **other)
    assert same_sequences(a, b)
    with pytest.raises(
        ValueError, match=r"of the same sequences, resampled differently.*score one again with the seed"
    ):
        ph.compare(a, b)
    assert not ph.compare(a, scores_of_groups(samples + 1, text="y", **other)).paired


def test_heads_that_one_has_not_scored_are_left_out():
    a, b = planted_nulls()
    hole = torch.zeros_like(b.rho).index_fill(1, torch.tensor([1]), torch.nan)
    part = replace(b, rho=b.rho + hole, rho_curve=b.rho_curve + hole, bootstrap_rho=b.bootstrap_rho + hole)
    part = replace(part, null=replace(b.null, rho=b.null.rho + hole), reasons={ph.Head(0, 1): "constant"})
    comparison = ph.compare(a, part, names=["prose", "code"])
    assert comparison.n_scored == 4
    assert comparison.beats[ph.Head(0, 1)] == "unknown"
    assert comparison.reasons == {ph.Head(0, 1): "code: constant"}
    assert comparison.shared_top[0.2].k == 1
    assert math.isfinite(comparison.agreement["excess"].high)


def test_everything_recorded_that_differs_is_named():
    a = scores_of_groups(normal(8, 1, 5, seed=0), temperature=1.0, skip_keys=0, pairs="all").provenance
    b = scores_of_groups(normal(4, 1, 5, seed=0), text="y", name="other", temperature="attention", skip_keys=64)
    b = b.provenance | {"extension": {"method": "yarn"}, "versions": {"positional-heads": "2"}}
    named = [str(one) for one in differing(a, b)]
    assert named == [
        *("model (planted against other)", "model weights", "text", "number of sequences (8 against 4)"),
        *("pairs (all against None)", "skip_keys (0 against 64)", "temperature (1 against attention)"),
        *("extension (none against the extension yarn)", "version of positional-heads (1 against 2)"),
    ]
    older = {**a, "settings": {key: value for key, value in a["settings"].items() if key != "skip_keys"}}
    assert differing(a, older) == []  # an earlier version, which skipped none


def test_the_verdict_says_what_other_settings_and_models_mean():
    samples = normal(8, 1, 5, seed=0)
    a = scores_of_groups(samples)
    hotter = ph.compare(a, scores_of_groups(samples + 1, temperature=2.0)).verdict
    assert "With other settings rho is another quantity" in hotter
    assert "share content" not in hotter
    exact = ph.compare(a, scores_of_groups(samples + 1, pairs="all")).verdict
    assert "another quantity" not in exact
    assert "Heads are matched by layer and number" in ph.compare(a, scores_of_groups(samples + 1, name="b")).verdict
    fewer = ph.compare(a, scores_of_groups(normal(5, 1, 5, seed=1), text="y"), names=["x", "y"]).verdict
    assert fewer.startswith("y against x: they differ in text and number of sequences (8 against 5). ")
    assert ph.compare(a, scores_of_groups(samples + 1, text="y")).verdict.startswith(
        "b against a: they differ in text only"
    )
    assert "nothing that is recorded differs" in ph.compare(a, scores_of_groups(samples + 1)).verdict


@pytest.mark.parametrize(
    ("texts", "differing", "caveat"),
    [
        ((["prose"], ["code"]), "text (prose against code) only", None),
        ((["prose"], ["prose"]), "sequences of prose only", "Both read prose: where they read the same parts of it"),
        ((["a", "b"], ["b", "c"]), "text (a, b against b, c) only", "Both read b: where"),
        ((["prose"], ["prose", None]), "text (prose against prose, another text) only", "Both read prose"),
        ((None, ["code"]), "text only", "If both texts have parts in common, which is not recorded"),
        ((None, None), "text only", "If both texts have parts in common, which is not recorded"),
    ],
)
def test_texts_are_named_and_only_shared_ones_are_a_caveat(texts, differing, caveat):
    sides = []
    for side, (sha256, names) in enumerate(zip("xy", texts, strict=True)):
        one = scores_of_groups(normal(8, 1, 5, seed=side), text=sha256)
        data = one.provenance["data"] | ({} if names is None else {"texts": names})
        sides.append(replace(one, provenance=one.provenance | {"data": data}))
    verdict = ph.compare(*sides).verdict
    assert verdict.startswith(f"b against a: they differ in {differing}. ")
    assert verdict.endswith("intervals are too wide.") == (caveat is not None)
    assert caveat is None or caveat in verdict


def controlled_nulls(left_out=64):
    """`planted_nulls` with controls: without the first keys L0H0 stays in both, L0H1 in a, L0H3 in none."""
    sides = []
    for one in planted_nulls():
        lost = torch.zeros_like(one.rho)
        lost[0, 3] = 0.3
        control = replace(one, rho=one.rho - lost, bootstrap_rho=one.bootstrap_rho - lost)
        settings = one.provenance["settings"] | {"control_keys": left_out}
        sides.append(replace(one, control=control, provenance=one.provenance | {"settings": settings}))
    return sides


def test_what_stays_is_compared_where_both_have_a_control(tmp_path):
    a, b = controlled_nulls()
    comparison = ph.compare(a, b, names=["prose", "code"])
    assert list(comparison.remains.values()) == ["both", "a only", "a only", "neither", "neither"]
    expected = ph.compare(a.control, b.control).excess_change
    torch.testing.assert_close(comparison.control_change.q_values, expected.q_values)
    assert (
        "When the first 64 keys are left out, 1 stays in both (L0H0), 2 in prose only and 0 in code only; of these 2, "
        "1 differs significantly in the excess without these keys (L0H1)." in comparison.verdict
    )
    frame = comparison.to_frame()
    assert frame["stays_in"].tolist() == list(comparison.remains.values())
    back = ph.Comparison.load(comparison.save(tmp_path))
    assert back.verdict == comparison.verdict
    assert back.to_frame().equals(frame)
    alone = ph.compare(a, replace(b, control=None, provenance=planted_nulls()[1].provenance))
    assert "Only a has a control without its first keys, so it is not compared." in alone.verdict
    assert "stays_in" not in alone.to_frame()
    assert "control" not in ph.compare(*planted_nulls()).verdict


def test_several_results_show_which_heads_beat_their_null_in_all():
    a, b = planted_nulls()
    third = replace(a, rho=a.rho + 0.01)
    stability = ph.compare_all({"prose": a, "code": b, "dialogue": third})
    assert [str(head) for head in stability.stable_heads()] == ["L0H0"]
    assert stability.times == {ph.Head(0, head): times for head, times in enumerate([3, 2, 2, 1, 0])}
    assert stability.verdict.startswith("1 of 5 heads beat their null with a positive rho in all 3 results")
    assert "By chance it would be 0.72" in stability.verdict  # 5 (3/5)(2/5)(3/5)
    pairs = stability.pairs()
    expected = stats.spearmanr(a.rho.flatten(), b.rho.flatten()).statistic
    assert pairs["correlation_rho"][0] == pytest.approx(expected)
    assert len(pairs) == 3
    frame = stability.to_frame()
    np.testing.assert_allclose(frame["lowest_rho"], torch.stack([a.rho, b.rho]).amin(0).flatten())
    np.testing.assert_allclose(frame["rho on code"], b.rho.flatten())
    assert "every result needs a null" in ph.compare_all({"a": a, "b": replace(b, null=None)}).verdict


def test_heads_that_are_stable_by_the_first_keys_alone_are_told_apart(tmp_path):
    a, b = controlled_nulls()
    stability = ph.compare_all({"prose": a, "code": b})
    assert stability.to_frame()["times_stays"].tolist() == [2, 1, 1, 0, 0]
    assert stability.to_frame()["stays on code"].tolist() == b.stays().flatten().tolist()
    assert "1 of these 1 stays in all 2 results when the first 64 keys are left out: L0H0." in stability.verdict
    table = stable_table(stability._content()["table"], 5)
    assert table.columns[:3] == ["name", "times", "times_stays"]
    assert [row["name"] for row in table.lines] == ["L0H0", "L0H2", "L0H1", "L0H3", "L0H4"]
    back = ph.Stability.load(stability.save(tmp_path))
    assert back.verdict == stability.verdict
    assert torch.equal(back.stays, stability.stays)
    lost = torch.zeros_like(b.rho)
    lost[0, 0] = 0.3
    gone = replace(b, control=replace(b.control, rho=b.control.rho - lost))
    stability = ph.compare_all({"prose": a, "code": gone})
    assert [str(head) for head in stability.stable_heads()] == ["L0H0"]
    assert stability.stable_heads(stays=True) == []
    assert "0 of these 1 stay in all 2 results when the first 64 keys are left out. " in stability.verdict
    without = ph.compare_all({"prose": a, "code": planted_nulls()[1]})
    assert without.stays is None
    assert "is not known: score every text with control_keys=64." in without.verdict
    with pytest.raises(ValueError, match="not every result has a control"):
        without.stable_heads(stays=True)
    assert "times_stays" not in without.to_frame()


def test_stability_of_the_kept_results_is_what_the_findings_count():
    """The tables of docs/findings.md count the heads that stay on all four texts with `HeadScores.stays`."""
    kept = Path(__file__).parents[2] / "experiments" / "scores"
    results = {kind: ph.HeadScores.load(kept / f"{kind}-2048") for kind in ("prose", "code", "dialogue", "technical")}
    stable = ph.compare_all(results).stable_heads(stays=True)
    assert {ph.Head(*head) for head in stable} == {
        ph.Head(*head) for head in torch.stack([one.stays() for one in results.values()]).all(0).nonzero().tolist()
    }
    assert {"L4H1", "L7H1", "L7H5", "L8H0"} < {str(head) for head in stable}


def test_several_results_of_other_shapes_or_twice_the_same_are_refused():
    a, b = planted_nulls()
    with pytest.raises(ValueError, match="1 of them given: give two results or more"):
        ph.compare_all({"a": a})
    with pytest.raises(ValueError, match="layers x heads are a: 1 x 5, b: 2 x 5"):
        ph.compare_all({"a": a, "b": scores_of_groups(normal(8, 2, 5, seed=0))})
    with pytest.raises(ValueError, match="x and z are the same result"):
        ph.compare_all({"x": a, "y": b, "z": replace(a)})
