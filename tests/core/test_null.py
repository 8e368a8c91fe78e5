"""Sums over sampled shuffles give an unbiased rho and state its error."""

import pytest
import torch

from positional_heads.core.bands import Unrotated
from positional_heads.core.binning import BinLookup, equal_mass_edges
from positional_heads.core.kernels.choosing import named_kernel
from positional_heads.core.kernels.sums import ShuffleSums
from positional_heads.core.null import NullSums
from positional_heads.core.plan import EntryPlan
from positional_heads.core.shuffles import Shuffled, ShufflePlan

LENGTH, HEADS, DRAWS = 300, 4, 128


@pytest.fixture(scope="module")
def draws():
    """Many samples of one permutation, and its sums over all entries."""
    torch.manual_seed(0)
    query, key = (torch.randn(heads, LENGTH, 8, dtype=torch.complex64) + 1 for heads in (HEADS, 2))
    angles = torch.arange(LENGTH)[:, None] * 10000.0 ** (-torch.arange(8) / 8)
    phase = torch.polar(torch.ones(LENGTH, 8), angles)[None]
    content = Unrotated(query, key, phase, phase)
    kernel, entries = named_kernel("eager"), EntryPlan((LENGTH,))
    order = torch.randperm(LENGTH)
    planes = content.rotated(order)
    positions = torch.randint(150, LENGTH, (4000,)), torch.randint(150, (4000,))
    bins = BinLookup(equal_mass_edges(kernel.listed_dominant(*planes, positions, 1.0), 256))
    exact = NullSums.empty(ShufflePlan(entries, 2), bins)
    for shuffle in range(2):
        exact.sums.add(kernel.every_entry(*planes, entries, 1.0, bins, entries.rank_grid), shuffle)
    plan = ShufflePlan(entries, DRAWS, 4096)
    sampled = NullSums.empty(plan, bins)
    shuffled = Shuffled(content, order.expand(DRAWS, -1), plan.runs(0))
    named_kernel("native").add_runs(shuffled, entries, 1.0, bins, entries.rank_grid, sampled.sums)
    return exact, sampled


def test_a_sample_is_unbiased(draws):
    exact, sampled = draws
    sampled.refuse_incomplete()
    error = sampled.rho - exact.rho[:1]
    assert (error.mean(0).abs() < 4 * error.std(0) / DRAWS**0.5).all()
    assert exact.sampling_sd is None


def test_the_stated_error_is_that_of_many_samples(draws):
    exact, sampled = draws
    # with 128 draws each standard deviation is known to 6 %, and half bins are coarse
    assert (sampled.sampling_sd / (sampled.rho - exact.rho[:1]).std(0)).sub(1).abs().max() < 0.3


def test_runs_err_less_than_entries_drawn_one_by_one(draws):
    _, sampled = draws
    assert (sampled.sampling_sd < 1 / 4096**0.5).all()  # that of n draws where rho is small


def test_curves_are_close_to_those_over_all_entries(draws):
    exact, sampled = draws
    pooled = (sampled.curve.nan_to_num() * sampled.plan.entry_counts[:, None]).sum(0) / sampled.plan.entry_counts.sum(0)
    assert torch.allclose(sampled.pooled_curve, pooled, equal_nan=True)
    assert torch.allclose(exact.pooled_curve, exact.curve[0])
    assert (sampled.pooled_curve - exact.curve[0])[:, :200].abs().max() < 0.2
    assert exact.curve[0].std() > 0.3


def test_missing_entries_are_refused(draws):
    _, sampled = draws
    halves = ShuffleSums.zeros(DRAWS, 2, LENGTH, sampled.bins)
    empty = NullSums(sampled.plan, sampled.bins, halves)
    with pytest.raises(RuntimeError, match=r"shuffle \d+ has \d+ query-key pairs at distance .*: add the missing"):
        empty.refuse_incomplete()
    halves.absorb(sampled.sums)
    empty.refuse_incomplete()
    assert torch.equal(empty.rho, sampled.rho)
