"""A plan knows its entries in closed form, and a sample of them is fair."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from positional_heads.core.plan import REPLICATES, EntryPlan
from tests.support import oracles

LIMITS = [{}, {"window": 30}, {"skip_keys": 5, "min_distance": 3, "max_distance": 50}]
LENGTH = 60


@pytest.mark.parametrize("limits", [{}, {"window": 5}, {"skip_keys": 4}, {"min_distance": 2, "max_distance": 8}])
def test_entry_counts_are_those_of_a_loop_over_all_entries(limits):
    lengths = (12, 3, 12, 7)
    expected = np.zeros(12, dtype=int)
    for length in lengths:
        for m, n in oracles.counted_pairs(length, **limits):
            expected[m - n] += 1
    plan = EntryPlan(lengths, **limits, n_groups=2)
    assert plan.entry_counts.tolist() == expected.tolist()
    assert plan.group_entry_counts.sum(0).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"lengths": ()}, "at least one sequence"),
        ({"lengths": (4, 0)}, "a sequence of 0 tokens .*: leave out empty"),
        ({"lengths": (4,), "skip_keys": -1}, "skip_keys -1 and min_distance 0 must not be negative"),
        ({"lengths": (4,), "min_distance": -1}, "skip_keys 0 and min_distance -1 must not be negative"),
        ({"lengths": (4,), "min_distance": 3, "max_distance": 2}, "max_distance 2 must be at least min_distance 3"),
    ],
)
def test_impossible_plans_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        EntryPlan(**settings_)


@pytest.mark.parametrize("limits", LIMITS)
def test_without_a_sample_every_entry_is_listed_once(limits):
    ((query_pos, key_pos),) = EntryPlan((LENGTH,), **limits).entry_positions(0)
    assert sorted(zip(query_pos.tolist(), key_pos.tolist(), strict=True)) == sorted(
        oracles.counted_pairs(LENGTH, **limits)
    )


@pytest.mark.parametrize("limits", LIMITS)
def test_every_entry_is_equally_likely_to_be_sampled(limits):
    drawn = dict.fromkeys(oracles.counted_pairs(LENGTH, **limits), 0)
    for seed in range(60):
        plan = EntryPlan((LENGTH,) * 2, **limits, most_entries=1024, seed=seed)
        for query_pos, key_pos in (replicate for sequence in range(2) for replicate in plan.entry_positions(sequence)):
            for entry in zip(query_pos.tolist(), key_pos.tolist(), strict=True):
                drawn[entry] += 1  # an entry that does not count raises KeyError
    assert chisquare(list(drawn.values())).pvalue > 1e-4


@pytest.mark.parametrize("limits", LIMITS)
def test_each_replicate_is_spread_evenly_over_distances(limits):
    plan = EntryPlan((LENGTH, 47), **limits, most_entries=1024)
    for sequence, length in enumerate(plan.lengths):
        entries_at = np.bincount([m - n for m, n in oracles.counted_pairs(length, **limits)], minlength=LENGTH)
        replicates = plan.entry_positions(sequence)
        assert len(replicates) == REPLICATES
        for query_pos, key_pos in replicates:
            counts = np.bincount((query_pos - key_pos).numpy(), minlength=LENGTH)
            assert (np.abs(counts - entries_at / plan.step) < 1).all()  # shorter sequences at the same rate
        assert len({tuple(key_pos.tolist()) for _, key_pos in replicates}) == REPLICATES


def test_entry_counts_of_a_sample_are_those_of_its_positions():
    plan = EntryPlan((LENGTH, 50, LENGTH), skip_keys=2, n_groups=2, most_entries=1024, seed=3)
    counts = torch.zeros(REPLICATES, 2, LENGTH, dtype=torch.long)
    for sequence in range(3):
        for replicate, (query_pos, key_pos) in enumerate(plan.entry_positions(sequence)):
            counts[replicate, plan.group(sequence)] += torch.bincount(query_pos - key_pos, minlength=LENGTH)
    assert torch.equal(plan.replicate_entry_counts, counts.sum(1))
    assert torch.equal(plan.group_entry_counts, counts.sum(0))
    assert torch.equal(plan.entry_counts, counts.sum((0, 1)))
    assert torch.equal(plan.rank_grid, EntryPlan((LENGTH, 50, LENGTH), skip_keys=2).rank_grid)


def test_a_sample_as_large_as_all_entries_is_all_of_them():
    assert EntryPlan((LENGTH,), most_entries=LENGTH * (LENGTH + 1) // 2).step is None
    with pytest.raises(ValueError, match="1000 query-key pairs are too few"):
        EntryPlan((LENGTH,), most_entries=1000)
