"""Which query-key pairs count, and what rank does each distance have among them? Known before the first pair is seen.

Conventions that bite: distance = query_pos - key_pos >= 0, in tokens; a window of W lets a query see distances 0 to
W - 1; `skip_keys` drops the first keys of each sequence; `min_distance` and `max_distance` are both inclusive.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

RANK_SCALE = 2.0**31
"""A distance's mid-rank, as a fraction of all pairs, is kept in steps of 2^-31; a bin holds up to 2^32 pairs."""


@dataclass(frozen=True)
class PairPlan:
    """Which query-key pairs of one layer count, known before the first is seen.

    Attributes:
        lengths: Real tokens of each sequence, in order.
        window: Distances the layer's mask lets through, 0 to window - 1; None where only causality masks.
        skip_keys: Leading keys of each sequence that do not count, e.g. 1 for an attention sink.
        min_distance: Smallest distance that counts, in tokens.
        max_distance: Largest distance that counts, in tokens; None for no limit.
        n_groups: Number of groups of neighbouring sequences that are resampled together.
    """

    lengths: tuple[int, ...]
    window: int | None = None
    skip_keys: int = 0
    min_distance: int = 0
    max_distance: int | None = None
    n_groups: int = 1

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

    def counts_pair(
        self, distance: Int[Tensor, "query_pos key_pos"], key_pos: Int[Tensor, " key_pos"]
    ) -> Bool[Tensor, "query_pos key_pos"]:
        """Whether each query-key pair counts; positions are those of the real tokens, from zero."""
        return (distance >= self.min_distance) & (distance <= self.furthest) & (key_pos >= self.skip_keys)

    @cached_property
    def pair_counts(self) -> Int[Tensor, " distance"]:
        """Number of pairs that count at each distance, over all sequences."""
        return self._pair_counts(self.lengths)

    @cached_property
    def group_pair_counts(self) -> Int[Tensor, "group distance"]:
        """The same for each group of sequences."""
        members: list[list[int]] = [[] for _ in range(self.n_groups)]
        for sequence, length in enumerate(self.lengths):
            members[self.group(sequence)].append(length)
        return torch.stack([self._pair_counts(lengths) for lengths in members])

    @cached_property
    def rank_grid(self) -> Int[Tensor, " distance"]:
        """Mid-rank of each distance among all pairs that count, as a fraction of them, in steps of 2^-31."""
        counts = self.pair_counts.double()
        below = counts.cumsum(0) - counts
        return ((below + counts / 2) / counts.sum().clamp(min=1) * RANK_SCALE).round().long()

    def _pair_counts(self, lengths: Iterable[int]) -> Int[Tensor, " distance"]:
        distance = torch.arange(self.distances)
        counts = torch.zeros(self.distances, dtype=torch.long)
        for length, sequences in Counter(lengths).items():
            counts += sequences * (length - self.skip_keys - distance).clamp(min=0)
        return counts * ((distance >= self.min_distance) & (distance <= self.furthest))
