"""Which query-key pairs count, and what rank does each distance have among them? Known before the first pair is seen.

Conventions that bite: distance = query_pos - key_pos >= 0, in tokens; a window of W lets a query see distances 0 to
W - 1; `skip_keys` drops the first keys of each sequence; `min_distance` and `max_distance` are both inclusive.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from positional_heads.core.sampling import FEWEST_SAMPLED, REPLICATES, sampled_distances, sampled_keys

RANK_SCALE = 2.0**31
"""A distance's mid-rank, as a fraction of all pairs, is kept in steps of 2^-31; a bin holds up to 2^32 pairs."""

Places = tuple[Int[Tensor, " _"], Int[Tensor, " _"]]
"""Positions of queries, and of the keys that go with them."""


@dataclass(frozen=True)
class EntryPlan:
    """Which query-key pairs of one layer count, known before the first is seen.

    Attributes:
        lengths: Real tokens of each sequence, in order.
        window: Distances the layer's mask lets through, 0 to window - 1; None where only causality masks.
        skip_keys: Leading keys of each sequence that do not count, e.g. 1 for an attention sink.
        min_distance: Smallest distance that counts, in tokens.
        max_distance: Largest distance that counts, in tokens; None for no limit.
        n_groups: Number of groups of neighbouring sequences that are resampled together.
        most_entries: Pairs to sample of the longest sequence, of shorter ones proportionally fewer; None for all.
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
            msg = f"a sequence of {min(self.lengths)} tokens has no pairs: leave out those without a token"
            raise ValueError(msg)
        if self.skip_keys < 0 or self.min_distance < 0:
            msg = f"skip_keys {self.skip_keys} and min_distance {self.min_distance} must not be negative: 0 counts all"
            raise ValueError(msg)
        if self.most_entries is not None and self.most_entries < FEWEST_SAMPLED:
            msg = f"{self.most_entries} pairs are too few to sample: {FEWEST_SAMPLED} at least, 65536 is usual"
            raise ValueError(msg)
        if self.max_distance is not None and self.max_distance < self.min_distance:
            msg = f"max_distance {self.max_distance} must be at least min_distance {self.min_distance}"
            raise ValueError(msg)

    @property
    def distances(self) -> int:
        """One more than the largest distance there can be."""
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
        """Whether each query-key pair counts; positions are those of the real tokens, from zero."""
        return (distance >= self.min_distance) & (distance <= self.furthest) & (key_pos >= self.skip_keys)

    @cached_property
    def step(self) -> float | None:
        """One in so many pairs is drawn by a replicate; None where all pairs count."""
        most = int(self._pairs_at(self.distances).sum())
        return None if self.most_entries is None or most <= self.most_entries else most * REPLICATES / self.most_entries

    def listed(self, sequence: int) -> list[Places]:
        """Query and key positions of a sequence's pairs: those of each replicate, or one list of all that count."""
        pairs_at, places = self._pairs_at(self.lengths[sequence]), []
        if self.step is None:
            distance = torch.repeat_interleave(pairs_at)
            key_pos = self.skip_keys + torch.arange(len(distance)) - (pairs_at.cumsum(0) - pairs_at)[distance]
            return [(key_pos + distance, key_pos)]
        for replicate in range(REPLICATES):
            key = (self.seed, sequence, replicate)
            distance = sampled_distances(pairs_at, self.step, key)
            key_pos = sampled_keys(pairs_at, distance, self.skip_keys, key)
            places.append((key_pos + distance, key_pos))
        return places

    @cached_property
    def all_pairs(self) -> Int[Tensor, " distance"]:
        """Number of pairs at each distance that count or are sampled from, over all sequences."""
        counts = torch.zeros(self.distances, dtype=torch.long)
        for length, sequences in Counter(self.lengths).items():
            counts += sequences * self._pairs_at(length)
        return counts

    @cached_property
    def pair_counts(self) -> Int[Tensor, " distance"]:
        """Number of pairs that are counted at each distance, over all sequences: all, or those sampled."""
        return self.group_pair_counts.sum(0)

    @property
    def group_pair_counts(self) -> Int[Tensor, "group distance"]:
        """The same for each group of sequences."""
        return self._counts[0]

    @property
    def replicate_pair_counts(self) -> Int[Tensor, "replicate distance"]:
        """The same for each replicate of the sample; of no replicate where all pairs count."""
        return self._counts[1]

    @cached_property
    def rank_grid(self) -> Int[Tensor, " distance"]:
        """Mid-rank of each distance among all pairs, sampled or not, as a fraction of them, in steps of 2^-31."""
        counts = self.all_pairs.double()
        below = counts.cumsum(0) - counts
        return ((below + counts / 2) / counts.sum().clamp(min=1) * RANK_SCALE).round().long()

    @cached_property
    def _counts(self) -> tuple[Int[Tensor, "group distance"], Int[Tensor, "replicate distance"]]:
        in_group = torch.zeros(self.n_groups, self.distances, dtype=torch.long)
        if self.step is None:
            for (group, length), sequences in Counter(self._groups_and_lengths()).items():
                in_group[group] += sequences * self._pairs_at(length)
            return in_group, torch.zeros(0, self.distances, dtype=torch.long)
        in_replicate = torch.zeros(REPLICATES, self.distances, dtype=torch.long)
        for sequence, (group, length) in enumerate(self._groups_and_lengths()):
            for replicate, counts in enumerate(in_replicate):
                distance = sampled_distances(self._pairs_at(length), self.step, (self.seed, sequence, replicate))
                drawn = torch.bincount(distance, minlength=self.distances)
                counts.add_(drawn)
                in_group[group] += drawn
        return in_group, in_replicate

    def _groups_and_lengths(self) -> list[tuple[int, int]]:
        return [(self.group(sequence), length) for sequence, length in enumerate(self.lengths)]

    def _pairs_at(self, length: int) -> Int[Tensor, " distance"]:
        """Number of pairs of one sequence at each distance that the plan looks at."""
        distance = torch.arange(self.distances)
        counts = (length - self.skip_keys - distance).clamp(min=0)
        return counts * ((distance >= self.min_distance) & (distance <= self.furthest))
