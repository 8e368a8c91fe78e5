"""Bins hold equal shares, and the table finds the bin that a search would."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from positional_heads.core import binning
from positional_heads.core.binning import BinLookup, equal_mass_edges, single_valued

KINDS = ["smooth", "spiky", "tied", "constant", "zero", "tiny", "denormal", "outside"]


def values_of(kind: str, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    noise = torch.randn(3, 4000)
    return {
        "smooth": noise,
        "spiky": torch.where(noise > 0, 7 + 1e-6 * noise, 2 + 1e-3 * noise),
        "tied": noise.round(),
        "constant": torch.full_like(noise, 3.5),
        "zero": torch.zeros_like(noise),
        "tiny": noise * 1e-30,
        "denormal": noise * 1e-40,
        "outside": noise * 10,
    }[kind]


@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.sampled_from([64, 512, 2048]), st.integers(0, 1000))
@example("zero", "zero", 64, 0)  # a head whose fastest pair always dominates: D is 0 wherever it looks
@settings(deadline=None, max_examples=60)
def test_the_table_finds_what_a_search_finds(placed_by, looked_up, bins, seed):
    edges = equal_mass_edges(values_of(placed_by, seed), bins)
    values = torch.cat([values_of(looked_up, seed + 1), edges, edges[:, :1] - 1, edges[:, -1:] + 1], dim=1)
    assert torch.equal(BinLookup(edges)(values), torch.searchsorted(edges, values))


def test_bins_hold_equal_shares():
    sample = values_of("smooth", 0)
    bins = torch.searchsorted(equal_mass_edges(sample, 64), sample)
    shares = torch.stack([torch.bincount(row, minlength=64) for row in bins]) / sample.shape[1]
    assert (shares - 1 / 64).abs().max() < 1 / 4000  # one value, by where the quantile falls


def test_a_repeated_value_gets_a_bin_of_its_own():
    sample = torch.cat([torch.randn(1, 900), torch.full((1, 300), 0.25)], dim=1)
    edges = equal_mass_edges(sample, 64)
    bins = torch.searchsorted(edges, sample)[0]
    (own,) = bins[900:].unique()
    assert single_valued(edges)[0, own]
    assert (bins[:900] != own).all()
    others = single_valued(edges)[0].nonzero().flatten()
    assert not torch.isin(bins, others[others != own]).any()  # the run's other edges leave empty bins only


def test_smooth_values_are_not_taken_for_ties():
    assert not single_valued(equal_mass_edges(values_of("smooth", 0), 64)).any()


@pytest.mark.parametrize("edges", [torch.arange(32767.0), torch.rand(32767).sort().values, torch.zeros(32767)])
def test_as_many_bins_as_the_table_can_tell_apart_are_all_found(edges):
    values = torch.cat([edges, edges + 0.25, edges[:1] - 1, edges[-1:] + 1])[None]
    assert torch.equal(BinLookup(edges[None])(values), torch.searchsorted(edges[None], values))


def test_one_bin_more_than_the_table_can_tell_apart_is_refused():
    with pytest.raises(ValueError, match=r"32769 bins are too many: 2\^15 at most"):
        BinLookup(torch.arange(32768.0)[None])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_get_no_edges(value):
    sample = values_of("smooth", 0)
    sample[0, 7] = sample[2, 7] = value
    with pytest.raises(ValueError, match=r"D of head 0, 2 is not finite: .* load it in float32"):
        equal_mass_edges(sample, 64)


@given(st.sampled_from(KINDS), st.sampled_from([1 / 256, 0.25, 1.0]), st.sampled_from([64, 512]), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_bins_hold_whole_cells_of_the_resolution_and_frequent_ones_alone(kind, resolution, bins, seed):
    values = values_of(kind, seed).abs()  # as D is
    edges = equal_mass_edges(values, bins, resolution)
    cells = torch.ceil(values.double() / resolution - 0.5)
    found, alone = torch.searchsorted(edges, values), single_valued(edges, resolution)
    for head in range(len(values)):
        members = {}
        for cell, place in set(zip(cells[head].tolist(), found[head].tolist(), strict=True)):
            members.setdefault(place, set()).add(cell)
        assert sum(map(len, members.values())) == len(set().union(*members.values()))  # no cell in two bins
        assert all(len(members[place]) == 1 for place in members if alone[head, place])
        cell, count = cells[head].unique(return_counts=True)
        for frequent in cell[count > 2 * values.shape[1] / bins].tolist():
            (place,) = [place for place, held in members.items() if frequent in held]
            assert alone[head, place]


@pytest.mark.parametrize("resolution", [0.0, 1 / 256, 0.25])
def test_edges_lie_between_values_so_that_rounding_makes_no_ties(resolution):
    """Fewer values than bins, as of two tokens: each keeps a bin of its own, however the last bits fall."""
    sample = torch.tensor([[1.0, 2.0, 3.3, 5.0]])
    edges = equal_mass_edges(sample, 64, resolution)
    for shift in ([0, 0, 0, 0], [1, -1, 1, -1], [-1, 1, -1, 1]):
        bins = torch.searchsorted(edges, sample + 1e-6 * torch.tensor(shift))[0]
        assert bins.diff().min() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0, 100, -100])
def test_counting_cells_gives_the_edges_of_sorting_them(kind, shift, monkeypatch):
    values = values_of(kind, 0) + shift
    counted = equal_mass_edges(values, 64, 1 / 256)
    monkeypatch.setattr(binning, "CELLS", 0)
    assert torch.equal(equal_mass_edges(values, 64, 1 / 256), counted)
