"""Which query-key pairs of a layer count with positions shuffled: all, or a sample drawn in runs along diagonals.

A null asks for a mean and a spread, and one shuffle's rho differs from the next one's by far more than a sample of it
does. A sample takes *runs*: 16 neighbouring queries with 16 neighbouring keys at one distance. Neighbours at their own
positions have like content, but after a random permutation they are as good as any others: a run is worth 16 entries
drawn one by one, and a processor reads both sides as whole vectors.

Each block of 16 queries takes evenly spaced distances, floor((start + k) * step) for k = 0, 1, ..., from a start that
is uniform between 0 and 1. So each of its distances is drawn with chance 1 / step, and so is each entry. Starts of
successive blocks differ by the golden ratio, which spreads the runs over distances and keys as evenly as over queries:
how D depends on each of the three alone hardly adds an error. Half of a sample is drawn apart from the other, and the
difference of the halves shows the sampling error.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.core.bands import Unrotated
from positional_heads.core.plan import FEWEST_SAMPLED, EntryPlan, Positions

RUN = 16
"""Entries of a run."""
HALVES = 2
"""Independent halves of a sample."""
GOLDEN = (5**0.5 - 1) / 2


class Runs(NamedTuple):
    """Runs of the shuffles of one sequence, first half of the first shuffle first.

    Attributes:
        query_pos: Position of the query of each run's first entry, a multiple of 16.
        key_pos: Position of its key, negative where the first entries of a run lie before the sequence.
        sizes: Number of runs of each half of each shuffle.
    """

    query_pos: Int[Tensor, " run"]
    key_pos: Int[Tensor, " run"]
    sizes: Int[Tensor, "shuffle half"]

    def within(self, plan: EntryPlan) -> "Runs":
        """The runs at distances that the plan counts."""
        distance = self.query_pos - self.key_pos
        inside = (distance >= plan.min_distance) & (distance <= plan.furthest)
        if bool(inside.all()):
            return self
        ends = torch.nn.functional.pad(inside.cumsum(0), (1, 0))[self.sizes.flatten().cumsum(0)]
        sizes = ends.diff(prepend=ends.new_zeros(1)).view_as(self.sizes)
        return Runs(self.query_pos[inside], self.key_pos[inside], sizes)

    def entry_counts(self, plan: EntryPlan, length: int) -> Int[Tensor, "shuffle half distance"]:
        """Entries of each half of each shuffle at each distance.

        Args:
            plan: Which entries count; runs at other distances are left out before, see `within`.
            length: Tokens of the sequence.
        """
        first, last = (plan.skip_keys - self.key_pos).clamp(min=0), (length - self.query_pos).clamp(max=RUN)
        part = torch.arange(self.sizes.numel()).repeat_interleave(self.sizes.flatten())
        cell = part * plan.distances + self.query_pos - self.key_pos
        shape = (*self.sizes.shape, plan.distances)
        counts = torch.bincount(cell, (last - first).double(), self.sizes.numel() * plan.distances)
        return counts.long().view(shape)

    def positions(self, plan: EntryPlan, length: int) -> list[list[Positions]]:
        """Positions of the entries that count, of each half of each shuffle; arguments as in `entry_counts`."""
        lane = torch.arange(RUN)
        query_pos, key_pos = (start[:, None] + lane for start in (self.query_pos, self.key_pos))
        counts = (query_pos < length) & (key_pos >= plan.skip_keys)
        sizes = self.sizes.flatten().tolist()
        lists = (torch.split(values, sizes) for values in (query_pos, key_pos, counts))
        parts = [(queries[inside], keys[inside]) for queries, keys, inside in zip(*lists, strict=True)]
        return [parts[at : at + HALVES] for at in range(0, len(parts), HALVES)]


class Shuffled(NamedTuple):
    """Content of one sequence at shuffled positions.

    Attributes:
        content: Queries and keys before rotation.
        orders: Position whose content each position gets, per shuffle.
        runs: Entries of each shuffle to count.
    """

    content: Unrotated
    orders: Int[Tensor, "shuffle pos"]
    runs: Runs


@dataclass(frozen=True)
class ShufflePlan:
    """Which query-key pairs of one layer count in each shuffle, decided before the first is computed.

    Attributes:
        entries: All that could count; its seed is that of shuffles and samples.
        repeats: Shuffles.
        most_entries: Entries to sample from the longest sequence, from shorter ones in proportion; None for all.
    """

    entries: EntryPlan
    repeats: int
    most_entries: int | None = None

    def __post_init__(self) -> None:
        if self.most_entries is not None and self.most_entries < FEWEST_SAMPLED:
            msg = (
                f"{self.most_entries} query-key pairs are too few for a shuffle: {FEWEST_SAMPLED} at least, or None "
                "for 32 times the tokens of the longest sequence"
            )
            raise ValueError(msg)

    @cached_property
    def step(self) -> float | None:
        """A shuffle draws one entry in this many; None where all count."""
        most = int(self.entries.entries_at(self.entries.distances).sum())
        return None if self.most_entries is None or most <= self.most_entries else most / self.most_entries

    def orders(self, sequence: int) -> Int[Tensor, "shuffle pos"]:
        """Position whose content each position gets, per shuffle; skipped keys keep their own.

        Args:
            sequence: Number of the sequence: its shuffles depend on it, and not on its batch.
        """
        length = self.entries.lengths[sequence]
        fixed = min(self.entries.skip_keys, length)
        orders = np.tile(np.arange(length), (self.repeats, 1))
        for repeat, order in enumerate(orders):
            order[fixed:] = fixed + np.random.default_rng([self.entries.seed, sequence, repeat]).permutation(
                length - fixed
            )
        return torch.from_numpy(orders)

    def runs(self, sequence: int) -> Runs | None:
        """The sampled runs of every shuffle of a sequence; None where all entries count."""
        if self.step is None:
            return None
        plan, step = self.entries, HALVES * self.step
        length = plan.lengths[sequence]
        first = RUN * np.arange(-(-length // RUN))
        furthest = np.minimum(np.minimum(first + RUN, length) - 1 - plan.skip_keys, plan.furthest)
        parts = [
            _run_distances(plan.seed, sequence, repeat, half, furthest, step)
            for repeat in range(self.repeats)
            for half in range(HALVES)
        ]
        blocks, distances = (torch.from_numpy(np.concatenate(some)) for some in zip(*parts, strict=True))
        sizes = torch.tensor([len(block) for block, _ in parts]).view(self.repeats, HALVES)
        runs = Runs(RUN * blocks, RUN * blocks - distances, sizes)
        return runs.within(plan)

    @property
    def entry_counts(self) -> Int[Tensor, "shuffle distance"]:
        """Number of entries of each shuffle at each distance over all sequences."""
        if self.step is None:
            return self.entries.entry_counts.expand(self.repeats, -1)
        return self.half_entry_counts.sum(1)

    @cached_property
    def half_entry_counts(self) -> Int[Tensor, "shuffle half distance"]:
        """The same for each half of a sample; no halves where all count."""
        counts = torch.zeros(self.repeats, HALVES if self.step else 0, self.entries.distances, dtype=torch.long)
        for sequence, length in enumerate(self.entries.lengths):
            runs = self.runs(sequence)
            if runs is not None:
                counts += runs.entry_counts(self.entries, length)
        return counts


def _run_distances(
    seed: int, sequence: int, repeat: int, half: int, furthest: "np.ndarray", step: float
) -> tuple["np.ndarray", "np.ndarray"]:
    """Block of queries, and distance, of each run of one half of a shuffle.

    Args:
        seed: Seed of the run.
        sequence: Number of the sequence.
        repeat: Number of the shuffle.
        half: Which half.
        furthest: Largest distance of each block.
        step: One run in this many is drawn.
    """
    shift = np.random.default_rng([seed, sequence, repeat, 2 + half]).random()
    start = (shift + GOLDEN * np.arange(len(furthest))) % 1
    drawn = np.maximum(np.ceil((furthest + 1) / step - start), 0).astype(np.int64)
    block = np.repeat(np.arange(len(furthest)), drawn)
    number = np.arange(len(block)) - np.repeat(drawn.cumsum() - drawn, drawn)
    distance = np.floor((start[block] + number) * step).astype(np.int64)
    inside = distance <= furthest[block]  # the last may round up
    block, distance = block[inside], distance[inside]
    by_key = np.argsort(block - distance // RUN, kind="stable")  # neighbours in memory
    return block[by_key], distance[by_key]
