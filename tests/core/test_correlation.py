"""Streamed rank correlation equals scipy's, and any split of the pairs gives the same integers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr

from positional_heads.core.binning import BinLookup, equal_mass_edges
from positional_heads.core.correlation import CorrelationSums, curve_correlation
from positional_heads.core.kernels.sums import tile_sums
from positional_heads.core.pilot import PilotSample
from positional_heads.core.plan import EntryPlan
from tests.support import oracles


def pairs_of(length, **limits):
    return torch.tensor([m - n for m, n in oracles.counted_pairs(length, **limits)])


def dominant_of(kind, distance, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, len(distance), generator=generator)
    trend = torch.stack([distance.float() * 0.004, -distance.float() * 0.001])
    return {
        "smooth": noise + trend,
        "tied": (noise + trend).round(),
        "concentrated": torch.where(noise + trend > 0.3, 7 + 1e-6 * noise, noise.sigmoid()),
        "heavy tailed": (3 * noise + trend).exp(),
    }[kind]


def add_tile(sums, dominant, distance, sequence, replicate=None):
    saturated = torch.zeros_like(dominant, dtype=torch.bool)
    sums.add(tile_sums(dominant, distance, sums.bins, sums.ranks, saturated), sequence, replicate)


def counted(plan, bins, tiles):
    sums = CorrelationSums(plan, bins)
    for dominant, distance, sequence in tiles:
        add_tile(sums, dominant, distance, sequence)
    return sums


def study(kind="smooth", lengths=(120, 90), bins=2048, seed=0, **limits):
    plan = EntryPlan(lengths, n_groups=len(lengths), **limits)
    tiles = []
    for sequence, length in enumerate(lengths):
        distance = pairs_of(length, **limits)
        tiles.append((dominant_of(kind, distance, seed + sequence), distance, sequence))
    return plan, BinLookup(equal_mass_edges(tiles[0][0], bins)), tiles


@pytest.mark.parametrize("kind", ["smooth", "tied", "concentrated", "heavy tailed"])
@pytest.mark.parametrize("limits", [{}, {"window": 40}, {"skip_keys": 3, "min_distance": 2, "max_distance": 60}])
def test_rho_is_scipys_to_within_the_stated_bound(kind, limits):
    plan, bins, tiles = study(kind, **limits)
    correlation = counted(plan, bins, tiles).correlation()
    distance = torch.cat([tile[1] for tile in tiles])
    dominant = torch.cat([tile[0] for tile in tiles], dim=1)
    expected = [spearmanr(distance, row).statistic for row in dominant]
    error = np.abs(correlation.rho.numpy() - expected)
    assert (error <= correlation.bound.numpy() + 1e-9).all()
    assert (error < 1e-4).all()  # far better than the bound, because bins hold ranks, not values
    assert (correlation.bound < 1e-3).all()


@given(st.integers(0, 10_000), st.sampled_from(["smooth", "tied", "concentrated", "heavy tailed"]))
@settings(deadline=None, max_examples=40)
def test_the_bound_holds_also_for_coarse_bins(seed, kind):
    plan, bins, tiles = study(kind, lengths=(25, 31), bins=64, seed=seed)
    correlation = counted(plan, bins, tiles).correlation()
    distance = torch.cat([tile[1] for tile in tiles])
    dominant = torch.cat([tile[0] for tile in tiles], dim=1)
    expected = torch.tensor([spearmanr(distance, row).statistic for row in dominant])
    assert ((correlation.rho - expected).abs() <= correlation.bound + 1e-9).all()


@pytest.mark.parametrize(("bins", "direction"), [("unrelated", 1), ("unrelated", -1), ("following", -1)])
def test_the_bound_is_no_larger_than_the_worst_case(bins, direction):
    """Distance hides in the order within bins, or two bins follow it and the order within them does the reverse."""
    plan, distance = EntryPlan((90,)), pairs_of(90)
    torch.manual_seed(0)
    jitter = 1e-4 * torch.rand(1, len(distance))  # breaks ties, and stays below 1e-3, a step of distance
    chosen = torch.randint(64, distance.shape) if bins == "unrelated" else 63 * (distance > distance.median())
    dominant = chosen + direction * (distance / 1000 + jitter)
    correlation = counted(plan, BinLookup(torch.arange(63)[None] + 0.5), [(dominant, distance, 0)]).correlation()
    error = abs(float(correlation.rho) - spearmanr(distance, dominant[0]).statistic)
    assert 0.97 * float(correlation.bound) < error <= float(correlation.bound)  # not all: distances have ties


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("step", [1, 2])
def test_the_bound_covers_values_that_rounding_puts_into_other_cells(direction, step):
    """Rounding that follows distance, or runs against it, seen on all pairs of a pilot or on every second."""
    plan, distance = EntryPlan((90,)), pairs_of(90)
    torch.manual_seed(0)
    exact = 5 + 0.5 * torch.randn(1, len(distance), dtype=torch.float64)
    rounded = (exact + direction * 0.02 * torch.sign(distance - distance.double().median())).float()
    bins = PilotSample(rounded, rounded[:, ::step], exact[:, ::step]).bins(64, 0.25, len(distance))
    correlation = counted(plan, bins, [(rounded, distance, 0)]).correlation()
    error = abs(float(correlation.rho) - oracles.rho(distance.numpy(), exact[0].numpy(), 0.25))
    binning_alone = counted(plan, BinLookup(bins.edges, 0.25), [(rounded, distance, 0)]).correlation().bound
    assert float(binning_alone) < error <= float(correlation.bound) < 10 * error


@given(st.lists(st.integers(1, 7000), max_size=4), st.randoms())
@settings(deadline=None, max_examples=20)
def test_any_split_in_any_order_gives_the_same_integers(cuts, random):
    plan, bins, tiles = study("smooth")
    whole = counted(plan, bins, tiles)
    pieces = []
    for dominant, distance, sequence in tiles:
        marks = sorted({0, len(distance), *(cut for cut in cuts if cut < len(distance))})
        pieces += [(dominant[:, a:b].contiguous(), distance[a:b], sequence) for a, b in pairwise(marks)]
    random.shuffle(pieces)
    half = len(pieces) // 2
    merged = counted(plan, bins, pieces[half:])
    merged.absorb(counted(plan, bins, pieces[:half]))
    assert merged.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert tensor.dtype == torch.long
        assert torch.equal(merged.tensors[name], tensor), name


def test_sums_stay_exact_at_the_largest_tile():
    entries, value = 2**20, 255 - 2**-8
    plan = EntryPlan((2,) * (entries // 3 + 1), min_distance=1)
    sums = CorrelationSums(plan, BinLookup(torch.linspace(0, 255, 2047)[None]))
    add_tile(sums, torch.full((1, entries), value), torch.ones(entries, dtype=torch.long), 0)
    assert int(sums.tensors["dimension_sums"][0, 1]) == entries * int(value * 2**24)
    assert int(sums.tensors["rank_sums"].sum()) == entries * int(plan.rank_grid[1])
    with pytest.raises(ValueError, match="1048577 query-key pairs is too large"):
        add_tile(sums, torch.zeros(1, entries + 1), torch.ones(entries + 1, dtype=torch.long), 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_dominant_dimensions_that_are_not_finite_are_refused_and_leave_no_trace(value):
    plan, bins, [(dominant, distance, sequence), _] = study()
    sums = CorrelationSums(plan, bins)
    spoilt = dominant.clone()
    spoilt[1, 5] = value
    with pytest.raises(ValueError, match="D of head 1 is not finite: the model's queries or keys hold NaN or infinity"):
        add_tile(sums, spoilt, distance, sequence)
    assert not any(tensor.any() for tensor in sums.tensors.values())


def test_different_plans_are_not_added():
    plan, bins, tiles = study()
    other = counted(EntryPlan((120, 91), n_groups=2), bins, tiles[:1])
    with pytest.raises(ValueError, match="different plans or bins"):
        counted(plan, bins, tiles).absorb(other)


def test_different_bins_are_not_added():
    plan, bins, tiles = study()
    with pytest.raises(ValueError, match="different plans or bins"):
        counted(plan, bins, tiles[:1]).absorb(counted(plan, BinLookup(bins.edges + 1), tiles[1:]))


def test_bins_that_do_not_make_coarse_ones_are_refused():
    with pytest.raises(ValueError, match="100 bins must be a multiple of 64"):
        CorrelationSums(EntryPlan((4,)), BinLookup(torch.arange(99.0)[None]))


@pytest.mark.parametrize(("times", "found"), [(0, 120), (2, 300)])
def test_pairs_missing_or_counted_twice_are_noticed(times, found):
    plan, bins, tiles = study()
    statistics = counted(plan, bins, [*tiles[:1], *[tiles[1]] * times])
    with pytest.raises(RuntimeError, match=f"210 query-key pairs at distance 0, {found} were counted"):
        statistics.correlation()


def test_an_increasing_transform_leaves_rho_alone():
    plan, bins, tiles = study()
    transformed = [((dominant / 4).exp(), distance, sequence) for dominant, distance, sequence in tiles]
    original = counted(plan, bins, tiles).correlation().rho
    assert torch.allclose(
        counted(plan, BinLookup((bins.edges / 4).exp()), transformed).correlation().rho, original, atol=1e-6
    )


@pytest.mark.parametrize("value", [4.0, 0.0])
def test_rho_is_undefined_where_dominant_dimension_does_not_vary(value):
    plan, _, tiles = study(lengths=(20,))
    _, distance, sequence = tiles[0]
    constant = torch.full((2, len(distance)), value)
    correlation = counted(
        plan, BinLookup(equal_mass_edges(constant, 64)), [(constant, distance, sequence)]
    ).correlation()
    assert correlation.rho.isnan().all()
    assert correlation.rho_curve.isnan().all()
    assert (correlation.curve == value).all()


@pytest.mark.parametrize(("lengths", "limits"), [((20,), {"min_distance": 3, "max_distance": 3}), ((1, 1), {})])
def test_rho_is_undefined_where_distance_does_not_vary(lengths, limits):
    plan, bins, tiles = study(lengths=lengths, **limits)
    assert counted(plan, bins, tiles).correlation().rho.isnan().all()


def test_resampling_counts_groups_again():
    plan, bins, tiles = study(lengths=(60, 60, 60))
    correlation = counted(plan, bins, tiles).correlation()
    weights = torch.tensor([[1.0, 1, 1], [2, 0, 1], [0, 0, 3]])
    found = correlation.resampled_rho(weights)
    for row, drawn in zip(found, ([0, 1, 2], [0, 0, 2], [2, 2, 2]), strict=True):
        distance = torch.cat([tiles[sequence][1] for sequence in drawn])
        dominant = torch.cat([tiles[sequence][0] for sequence in drawn], dim=1)
        expected = [spearmanr(distance, values).statistic for values in dominant]
        np.testing.assert_allclose(row.numpy(), expected, atol=2e-3)  # 64 coarse bins lose a share of 1 / 64^2


@pytest.mark.parametrize("drawn", [[0, 1, 2, 3], [0, 0, 2, 3], [1, 1, 1, 1], [3, 2, 3, 3]])
def test_resampling_sequences_of_unequal_lengths_keeps_the_ranks_of_distances(drawn):
    """D is ranked anew among the pairs drawn, distances are not; as many values of D as coarse bins, so no loss."""
    lengths = (60, 12, 35, 21)
    plan, distance = EntryPlan(lengths, n_groups=4), [pairs_of(length) for length in lengths]
    torch.manual_seed(0)
    dominant = [(8 * torch.randn(1, len(t)) + t / 4 + 32).round().clamp(0, 63) for t in distance]
    correlation = counted(plan, BinLookup(torch.arange(63)[None] + 0.5), zip(dominant, distance, range(4), strict=True))
    weights = torch.bincount(torch.tensor(drawn), minlength=4).float()[None]
    fixed = np.split(rankdata(torch.cat(distance)), np.cumsum([len(t) for t in distance])[:-1])
    ranks = rankdata(torch.cat([dominant[sequence][0] for sequence in drawn]))
    expected = pearsonr(np.concatenate([fixed[sequence] for sequence in drawn]), ranks).statistic
    assert float(correlation.correlation().resampled_rho(weights)) == pytest.approx(expected, abs=1e-7)  # 2^-31 steps


def test_curves_are_means_at_each_distance():
    plan, bins, tiles = study("smooth", skip_keys=1, window=50)
    correlation = counted(plan, bins, tiles).correlation()
    distance = torch.cat([tile[1] for tile in tiles])
    dominant = torch.cat([tile[0] for tile in tiles], dim=1).double()
    for t in range(plan.distances):
        at = dominant[:, distance == t].mean(1)
        assert torch.allclose(correlation.curve[:, t], at, atol=1e-6, equal_nan=True)
    defined = ~correlation.curve[0].isnan()
    expected = spearmanr(torch.arange(plan.distances)[defined], correlation.curve[0][defined]).statistic
    assert float(correlation.rho_curve[0]) == pytest.approx(expected, abs=1e-12)


def test_a_flat_or_unknown_curve_has_no_correlation():
    nan = torch.nan
    curves = torch.tensor([[1.0, 1.0, 1.0], [nan, nan, nan], [nan, 1.0, nan], [1.0, 2.0, nan]])
    assert curve_correlation(curves).isnan().tolist() == [True, True, True, False]


def test_sampled_rho_is_unbiased_and_its_spread_is_the_stated_one():
    """Against scipy on every pair, over many samples of the same made-up D."""
    length, rng = 150, np.random.default_rng(0)
    dominant = torch.from_numpy(rng.standard_normal((2, length, length))).float()
    distance = torch.arange(length)[:, None] - torch.arange(length)
    dominant[0] += distance / 60
    below = distance >= 0
    exact = [spearmanr(distance[below], one[below]).statistic for one in dominant]
    bins = BinLookup(equal_mass_edges(dominant[:, below], 2048))
    found, stated = [], []
    for seed in range(200):
        plan = EntryPlan((length,), most_entries=2048, seed=seed)
        sums = CorrelationSums(plan, bins)
        for replicate, (query_pos, key_pos) in enumerate(plan.entry_positions(0)):
            add_tile(sums, dominant[:, query_pos, key_pos], query_pos - key_pos, 0, replicate)
        correlation = sums.correlation()
        found.append(correlation.rho)
        stated.append(correlation.sampling_sd)
    found, stated = torch.stack(found), torch.stack(stated)
    sd = found.std(0)
    assert (abs(found.mean(0) - torch.tensor(exact)) < 4 * sd / 200**0.5).all()
    assert (stated.square().mean(0).sqrt() / sd).sub(1).abs().max() < 0.25
