"""A sample of a shuffle is fair, spread evenly, and counted in advance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from positional_heads.core.plan import EntryPlan
from positional_heads.core.shuffles import HALVES, ShufflePlan
from tests.support import oracles

LENGTH = 90
LIMITS = [{}, {"window": 50}, {"skip_keys": 5, "min_distance": 3, "max_distance": 60}]


def drawn(plan, sequence=0):
    """The entries of each half of each shuffle, as pairs of positions."""
    length = plan.entries.lengths[sequence]
    halves = plan.runs(sequence).positions(plan.entries, length)
    return [[list(zip(query.tolist(), key.tolist(), strict=True)) for query, key in half] for half in halves]


@pytest.mark.parametrize("limits", LIMITS)
def test_every_entry_is_equally_likely_to_be_drawn(limits):
    repeats = 300
    plan = ShufflePlan(EntryPlan((LENGTH,), **limits), repeats, 1024)
    counts = dict.fromkeys(oracles.counted_pairs(LENGTH, **limits), 0)
    for halves in drawn(plan):
        for half in halves:
            assert len(set(half)) == len(half)
            for entry in half:
                counts[entry] += 1  # an entry that does not count raises KeyError
    tries, chance = repeats * HALVES, 1 / (HALVES * plan.step)
    error = np.array(list(counts.values())) - tries * chance
    assert np.abs(error).max() < 5 * (tries * chance * (1 - chance)) ** 0.5  # of 4095 entries at most


@given(st.integers(1, 90), st.sampled_from(LIMITS), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_entries_are_counted_before_they_are_drawn(length, limits, seed):
    plan = ShufflePlan(EntryPlan((LENGTH, length), **limits, seed=seed), 3, 1024)
    expected = torch.zeros(3, HALVES, LENGTH, dtype=torch.long)
    allowed = [set(oracles.counted_pairs(length, **limits)) for length in (LENGTH, length)]
    for sequence in range(2):
        for shuffle, halves in enumerate(drawn(plan, sequence)):
            for half, entries in enumerate(halves):
                assert set(entries) <= allowed[sequence]
                for query_pos, key_pos in entries:
                    expected[shuffle, half, query_pos - key_pos] += 1
    assert torch.equal(plan.half_entry_counts, expected)
    assert torch.equal(plan.entry_counts, expected.sum(1))


def test_each_half_is_spread_evenly_over_queries_distances_and_keys():
    plan = ShufflePlan(EntryPlan((640,)), 4, 6400)
    for entries in (half for halves in drawn(plan) for half in halves):
        query_pos, key_pos = np.array(entries).T
        # each query takes one distance in so many; distances and keys are taken by blocks of 16
        expected = (np.arange(640) + 1) / (HALVES * plan.step)
        assert (np.abs(np.bincount(query_pos, minlength=640) - expected) <= 1).all()
        for values in (query_pos - key_pos, key_pos):
            found, fair = (
                counts.reshape(-1, 80).sum(1) for counts in (np.bincount(values, minlength=640), expected[::-1])
            )
            assert (np.abs(found - fair) < 2.5 * fair**0.5).all()  # drawn one by one, some would differ by more
            assert np.abs(found - fair).mean() < 0.6 * np.mean(fair**0.5)


def test_halves_and_shuffles_and_sequences_differ():
    plan = ShufflePlan(EntryPlan((200, 200)), 3, 2048)
    samples = [tuple(half) for sequence in range(2) for halves in drawn(plan, sequence) for half in halves]
    assert len(set(samples)) == 2 * 3 * HALVES


def test_runs_within_a_part_of_the_plan_are_those_at_its_distances():
    plan = ShufflePlan(EntryPlan((200,)), 3, 2048)
    part = EntryPlan((200,), min_distance=20, max_distance=90)
    runs = plan.runs(0).within(part)
    for halves, inside in zip(drawn(plan), runs.positions(part, 200), strict=True):
        for half, (query_pos, key_pos) in zip(halves, inside, strict=True):
            expected = [entry for entry in half if 20 <= entry[0] - entry[1] <= 90]
            assert sorted(expected) == sorted(zip(query_pos.tolist(), key_pos.tolist(), strict=True))


def test_a_sample_as_large_as_all_entries_is_all_of_them():
    plan = ShufflePlan(EntryPlan((LENGTH,)), 2, LENGTH * (LENGTH + 1) // 2)
    assert plan.step is None
    assert plan.runs(0) is None
    assert torch.equal(plan.entry_counts, plan.entries.entry_counts.expand(2, -1))
    with pytest.raises(ValueError, match="1000 query-key pairs are too few for a shuffle"):
        ShufflePlan(EntryPlan((LENGTH,)), 2, 1000)
