"""The record of a head profile: values, intervals, names, key heads, tables and files."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import positional_heads as ph
from positional_heads.core.heads import Head
from positional_heads.results.head_names import head_labels
from positional_heads.results.head_profile import HeadProfile
from tests.support.synthetic_profile import synthetic_profile


def test_a_measure_is_the_ratio_of_its_sums_over_all_groups() -> None:
    profile = synthetic_profile()
    expected = profile.sums["reach"].numpy().sum(0) / profile.weights["reach"].numpy().sum(0)
    np.testing.assert_allclose(profile.values("reach").numpy(), expected)
    assert torch.equal(profile.values("rho").nan_to_num(9), profile.scores.rho.double().nan_to_num(9))
    with pytest.raises(ValueError, match="'lenght' is no measure of this profile: choose one of rho, rho_curve"):
        profile.values("lenght")
    with pytest.raises(ValueError, match="for the excess, profile with null_repeats=20"):
        synthetic_profile(null=False).values("excess")


def test_with_equal_weights_the_interval_is_that_of_the_mean_over_groups() -> None:
    profile = synthetic_profile(groups=40)
    groups = profile.sums["sink_mass"][:, 0, 1].numpy()
    expected = stats.t.interval(0.95, 39, groups.mean(), groups.std(ddof=1) / np.sqrt(40))
    np.testing.assert_allclose(profile.interval("sink_mass")[0, 1].numpy(), expected, rtol=0.1)
    assert bool(synthetic_profile(groups=3).interval("sink_mass").isnan().all())
    assert bool(profile.interval("massive_key").isnan().all())


def test_a_key_head_has_the_largest_value_of_its_readers() -> None:
    profile = synthetic_profile()
    values, found = profile.values("reach"), profile.by_key_head("reach")
    assert found.shape == (3, 2)
    assert float(found[1, 1]) == max(float(values[1, 2]), float(values[1, 3]))
    assert bool(found[2].isnan().all())


def test_heads_are_named_by_every_rule_that_holds() -> None:
    heads = [Head(0, head) for head in range(5)]
    measures = {
        "sink_mass": torch.tensor([[0.5, 0.1, 0.2, 0.49, torch.nan]], dtype=torch.float64),
        "previous_token": torch.tensor([[0.0, 0.4, 0.0, 0.0, torch.nan]], dtype=torch.float64),
        "induction": torch.tensor([[0.2, 0.0, 0.0, 0.0, torch.nan]], dtype=torch.float64),
        "distant_mass": torch.tensor([[0.0, 0.2, 0.05, 0.1, torch.nan]], dtype=torch.float64),
    }
    assert head_labels(heads, measures) == {
        heads[0]: ["induction", "sink"],
        heads[1]: ["previous token", "far"],
        heads[2]: ["local"],
        heads[3]: [],
        heads[4]: [],
    }


def test_rank_correlations_are_scipys() -> None:
    profile = synthetic_profile()
    table = profile.correlations()
    both = profile.values("reach")[:2].flatten(), profile.values("induction")[:2].flatten()
    assert table.loc["reach", "induction"] == pytest.approx(stats.spearmanr(*both).statistic)
    assert list(table.index) == profile.names == list(table.columns)


def test_a_saved_profile_is_the_same(tmp_path) -> None:
    profile = synthetic_profile()
    loaded = HeadProfile.load(profile.save(tmp_path))
    assert loaded.names == profile.names
    for name, tensor in profile._tensors().items():
        assert torch.equal(loaded._tensors()[name].nan_to_num(-9), tensor.nan_to_num(-9)), name
    assert loaded.to_frame().equals(profile.to_frame())
    assert loaded.pair_frame().equals(profile.pair_frame())
    assert len(profile.pair_frame()) == 2 * 4 * 4


def bootstrapped(sums, weights, resamples=20_000):
    """Interval of sum over weight in plain Python: sequences without weight are no sequences."""
    pairs = [(s, w) for s, w in zip(sums, weights, strict=True) if w > 0]
    rng, n = random.Random(0), len(pairs)
    drawn = [[pairs[rng.randrange(n)] for _ in range(n)] for _ in range(resamples)]
    ratios = [sum(s for s, _ in one) / sum(w for _, w in one) for one in drawn]
    mean = sum(ratios) / resamples
    variance = sum((ratio - mean) ** 2 for ratio in ratios) / (resamples - 1) * n / (n - 1)
    middle, half = sum(s for s, _ in pairs) / sum(w for _, w in pairs), stats.t.ppf(0.975, n - 1) * variance**0.5
    return middle, half


def middle_and_half(interval):
    low, high = interval.tolist()
    return (low + high) / 2, (high - low) / 2


def test_an_interval_rests_on_the_sequences_that_count_for_the_head() -> None:
    made = synthetic_profile(groups=8)
    weights = {name: values.clone() for name, values in made.weights.items()}
    sums = {name: values.clone() for name, values in made.sums.items()}
    weights["reach"] *= torch.arange(1, 9).double()[:, None, None]
    for (layer, head), silent in {(0, 1): [2, 5], (1, 0): [0], (1, 2): [0, 1, 2, 3, 4]}.items():
        weights["reach"][silent, layer, head] = sums["reach"][silent, layer, head] = 0
    profile = replace(made, sums=sums, weights=weights)
    intervals, groups = profile.interval("reach"), profile.groups("reach")
    for layer, head, number in ((0, 0, 8), (0, 1, 6), (1, 0, 7)):
        given = (values["reach"][:, layer, head].tolist() for values in (sums, weights))
        np.testing.assert_allclose(middle_and_half(intervals[layer, head]), bootstrapped(*given), rtol=0.04)
        assert int(groups[layer, head]) == number
    assert int(groups[1, 2]) == 3
    assert bool(intervals[1, 2].isnan().all())  # too few
    frame = profile.to_frame()
    assert frame["reach_groups"].tolist() == groups.flatten().tolist()
    assert "induction_groups" not in frame
    with pytest.raises(ValueError, match="'kernel' is no mean over groups of sequences: choose one of mean_distance"):
        profile.groups("kernel")


def test_values_that_are_all_alike_have_no_interval() -> None:
    made = synthetic_profile(groups=5)
    sums = {**made.sums, "retrieval": torch.full_like(made.sums["retrieval"], 3)}
    sums["retrieval"][0, 0, 1] = 2
    weights = {**made.weights, "retrieval": torch.full_like(made.weights["retrieval"], 4)}
    intervals = replace(made, sums=sums, weights=weights).interval("retrieval")
    assert bool(intervals[0, 1].isfinite().all())
    assert bool(intervals[0, 0].isnan().all())


def test_a_sequence_too_short_for_the_window_leaves_the_interval_known(tiny) -> None:
    rng = torch.Generator().manual_seed(0)
    texts = [torch.randint(97, 122, (length,), generator=rng) for length in (12, 40, 38, 36, 34)]
    tokens, mask = torch.full((5, 40), 257), torch.zeros(5, 40, dtype=torch.long)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = text, 1
    profile = ph.profile_heads(tiny("llama"), tokens, attention_mask=mask, window=16, sinks=2, retrieval=None)
    assert bool((profile.groups("distant_mass") == 4).all())
    given = (values["distant_mass"][:, 1, 1].tolist() for values in (profile.sums, profile.weights))
    np.testing.assert_allclose(middle_and_half(profile.interval("distant_mass")[1, 1]), bootstrapped(*given), rtol=0.05)


def test_one_head_has_its_measures_intervals_and_ranks() -> None:
    profile = synthetic_profile()
    frame = profile.head_frame("L1H2")
    for name in profile.names:
        values = profile.values(name).flatten().numpy()
        own = values[6]
        assert frame.loc[name, "value"] == pytest.approx(own, rel=1e-5)
        ranks = stats.rankdata(-values[~np.isnan(values)], method="min")
        assert frame.loc[name, "rank"] == ranks[values[~np.isnan(values)] == own][0]
        assert frame.loc[name, "of"] == 8
        ends = frame.loc[name, ["low", "high"]].to_numpy(float)
        np.testing.assert_allclose(ends, profile.interval(name)[1, 2], rtol=1e-5)
    assert list(profile.head_frame((2, 1)).columns) == list(frame.columns)
    assert len(profile.head_frame((2, 1))) == 0  # its layer was not profiled
    assert profile.head_frame((2, 1)).dtypes.equals(frame.dtypes)
    with pytest.raises(ValueError, match="L9H9 does not exist: layers go from 0 to 2, heads to 3"):
        profile.head_frame("L9H9")


def test_every_name_null_and_p_are_in_the_table_and_contributions_among_the_pairs() -> None:
    profile = synthetic_profile()
    frame, pairs = profile.to_frame(), profile.pair_frame()
    several = [head for head in profile.heads if len(profile.labels[head]) > 1]
    assert several
    for head in several:
        row = frame[frame["name"] == str(head)].iloc[0]
        assert row["names"].split(", ") == profile.labels[head]
        assert row["is"] == row["names"].split(", ")[0]
    for name, values in (("null_mean", profile.scores.null.mean), ("p_value", profile.scores.p_values)):
        np.testing.assert_array_equal(frame[name], values.double().flatten())
    assert "null_mean" not in synthetic_profile(null=False).to_frame()
    assert [name for name in pairs if name.startswith("contribution_")] == [
        *("contribution_0_0", "contribution_1_3", "contribution_4_8"),
    ]
    row = pairs[(pairs["name"] == "L1H2") & (pairs["pair"] == 3)].iloc[0]
    assert row["contribution_4_8"] == float(profile.pairs.contribution[1, 2, 3, 2])


def test_pairs_print_in_a_line() -> None:
    shown = repr(synthetic_profile().pairs)
    assert shown.startswith("PairStatistics(2 of 3 layers of 4 heads, 4 pairs: frequencies, query_norm, ")
    assert len(shown) < 200
