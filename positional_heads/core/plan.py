"""Which query-key pairs of a layer count, all or a sample, and the rank of each distance among them.

A query-key pair is an *entry* here; *pair* is a rotary pair. Conventions: distance = query_pos - key_pos >= 0, in
tokens; a window of W lets a query see distances 0 to W - 1; `skip_keys` drops the first keys of each sequence;
`min_distance` and `max_distance` are both inclusive.

A sample gives every entry of every sequence the same chance, 1 / step, to be drawn by a replicate, so sums over it are
unbiased up to that factor. Entries are put in order of distance and every step-th is drawn from a random start, which
spreads each replicate over the distances as evenly as whole numbers allow; the key at that distance is random.
Replicates are independent: their spread is the sampling error.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

RANK_SCALE = 2.0**31
"""A distance's mid-rank, as a fraction of all entries, is kept in steps of 2^-31; a bin holds up to 2^32 entries."""
REPLICATES = 8
"""Independent replicates of a sample."""
FEWEST_SAMPLED = 1024
MOST_EXACT = 2**25
"""Query-key pairs of a sequence up to which all are counted when nothing is asked for: sequences of 8192 tokens."""
SAMPLED = 2**20
"""Query-key pairs sampled of longer ones; this adds an error of about 0.001 to rho."""

Positions = tuple[Int[Tensor, " _"], Int[Tensor, " _"]]
"""Position of the query, and of the key, of each entry in a list."""


@dataclass(frozen=True)
class EntryPlan:
    """Which query-key pairs of one layer count, decided before the first is computed.

    Attributes:
        lengths: Real tokens of each sequence, in order.
        window: Distances the layer's mask lets through, 0 to window - 1; None where only causality masks.
        skip_keys: Leading keys of each sequence that do not count, e.g. 1 for an attention sink.
        min_distance: Smallest distance that counts, in tokens.
        max_distance: Largest distance that counts, in tokens; None for no limit.
        n_groups: Number of groups of neighbouring sequences that are resampled together.
        most_entries: Entries to sample from the longest sequence, from shorter ones in proportion; None for all.
        seed: Seed of the sample.
    """

    lengths: tuple[int, ...]
    window: int | None = None
    skip_keys: int = 0
    min_distance: int = 0
    max_distance: int | None = None
    n_groups: int = 1
    most_entries: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths:
            msg = "a plan needs at least one sequence"
            raise ValueError(msg)
        if min(self.lengths) < 1:
            msg = f"a sequence of {min(self.lengths)} tokens has no query-key pairs: leave out empty sequences"
            raise ValueError(msg)
        if self.skip_keys < 0 or self.min_distance < 0:
            msg = f"skip_keys {self.skip_keys} and min_distance {self.min_distance} must not be negative: 0 counts all"
            raise ValueError(msg)
        if self.most_entries is not None and self.most_entries < FEWEST_SAMPLED:
            msg = (
                f"{self.most_entries} query-key pairs are too few to sample: {FEWEST_SAMPLED} at least, 65536 is usual"
            )
            raise ValueError(msg)
        if self.max_distance is not None and self.max_distance < self.min_distance:
            msg = f"max_distance {self.max_distance} must be at least min_distance {self.min_distance}"
            raise ValueError(msg)

    @property
    def distances(self) -> int:
        """One more than the largest possible distance."""
        return max(self.lengths)

    def group(self, sequence: int) -> int:
        """The group that a sequence is resampled with."""
        return sequence * self.n_groups // len(self.lengths)

    @cached_property
    def furthest(self) -> int:
        """The largest distance that counts, in tokens."""
        limits = [self.distances - 1, self.max_distance, None if self.window is None else self.window - 1]
        return min(limit for limit in limits if limit is not None)

    def counts_entry(
        self, distance: Int[Tensor, "query_pos key_pos"], key_pos: Int[Tensor, " key_pos"]
    ) -> Bool[Tensor, "query_pos key_pos"]:
        """Whether each entry counts; positions are those of the real tokens, from zero."""
        return (distance >= self.min_distance) & (distance <= self.furthest) & (key_pos >= self.skip_keys)

    def entries_at(self, length: int) -> Int[Tensor, " distance"]:
        """Number of entries at each distance in one sequence of this length, before sampling."""
        distance = torch.arange(self.distances)
        counts = (length - self.skip_keys - distance).clamp(min=0)
        return counts * ((distance >= self.min_distance) & (distance <= self.furthest))

    @cached_property
    def step(self) -> float | None:
        """A replicate draws one entry in this many; None where all count."""
        most = int(self.entries_at(self.distances).sum())
        return None if self.most_entries is None or most <= self.most_entries else most * REPLICATES / self.most_entries

    def entry_positions(self, sequence: int) -> list[Positions]:
        """Positions of a sequence's entries: one list for each replicate, or a single list of all that count."""
        counts = self.entries_at(self.lengths[sequence])
        if self.step is None:
            distance = torch.repeat_interleave(counts)
            key_pos = self.skip_keys + torch.arange(len(distance)) - (counts.cumsum(0) - counts)[distance]
            return [(key_pos + distance, key_pos)]
        positions = []
        for replicate in range(REPLICATES):
            key = (self.seed, sequence, replicate)
            distance = sampled_distances(counts, self.step, key)
            key_pos = sampled_keys(counts, distance, self.skip_keys, key)
            positions.append((key_pos + distance, key_pos))
        return positions

    @cached_property
    def all_entry_counts(self) -> Int[Tensor, " distance"]:
        """Number of entries at each distance over all sequences, before sampling."""
        counts = torch.zeros(self.distances, dtype=torch.long)
        for length, sequences in Counter(self.lengths).items():
            counts += sequences * self.entries_at(length)
        return counts

    @cached_property
    def entry_counts(self) -> Int[Tensor, " distance"]:
        """Number of entries counted at each distance over all sequences: all of them, or those sampled."""
        return self.group_entry_counts.sum(0)

    @property
    def group_entry_counts(self) -> Int[Tensor, "group distance"]:
        """The same for each group of sequences."""
        return self._counts[0]

    @property
    def replicate_entry_counts(self) -> Int[Tensor, "replicate distance"]:
        """The same for each replicate; no rows where all entries count."""
        return self._counts[1]

    @cached_property
    def rank_grid(self) -> Int[Tensor, " distance"]:
        """Mid-rank of each distance among all entries before sampling, as a fraction of them, in steps of 2^-31."""
        counts = self.all_entry_counts.double()
        below = counts.cumsum(0) - counts
        return ((below + counts / 2) / counts.sum().clamp(min=1) * RANK_SCALE).round().long()

    @cached_property
    def _counts(self) -> tuple[Int[Tensor, "group distance"], Int[Tensor, "replicate distance"]]:
        """Entries of each group and of each replicate by distance; a sample is drawn to be counted."""
        in_group = torch.zeros(self.n_groups, self.distances, dtype=torch.long)
        groups_and_lengths = [(self.group(sequence), length) for sequence, length in enumerate(self.lengths)]
        if self.step is None:
            for (group, length), sequences in Counter(groups_and_lengths).items():
                in_group[group] += sequences * self.entries_at(length)
            return in_group, torch.zeros(0, self.distances, dtype=torch.long)
        in_replicate = torch.zeros(REPLICATES, self.distances, dtype=torch.long)
        for sequence, (group, length) in enumerate(groups_and_lengths):
            for replicate, counts in enumerate(in_replicate):
                distance = sampled_distances(self.entries_at(length), self.step, (self.seed, sequence, replicate))
                drawn = torch.bincount(distance, minlength=self.distances)
                counts.add_(drawn)
                in_group[group] += drawn
        return in_group, in_replicate


def sampled_distances(counts: Int[Tensor, " distance"], step: float, key: tuple[int, int, int]) -> Int[Tensor, " n"]:
    """The distance of each sampled entry of one replicate, ascending.

    Args:
        counts: Number of entries of the sequence at each distance.
        step: One entry in this many is drawn.
        key: Seed, sequence and replicate.
    """
    ends = counts.cumsum(0).double()
    start = np.random.default_rng([*key, 0]).random()
    drawn = torch.arange(start * step, float(ends[-1]), step, dtype=torch.float64)
    return torch.searchsorted(ends, drawn, right=True).clamp(max=len(ends) - 1)


def sampled_keys(
    counts: Int[Tensor, " distance"], distances: Int[Tensor, " n"], first: int, key: tuple[int, int, int]
) -> Int[Tensor, " n"]:
    """The key position of each sampled entry: uniform among the entries at its distance.

    Args:
        counts: Number of entries of the sequence at each distance.
        distances: Distance of each sampled entry, in tokens.
        first: Position of the first key that counts.
        key: Seed, sequence and replicate.
    """
    draws = np.random.default_rng([*key, 1]).random(len(distances))
    return first + (torch.from_numpy(draws) * counts[distances]).long()
