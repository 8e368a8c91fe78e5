"""The five sums over entries (query-key pairs) that every kernel returns: integers, which add up in any order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from positional_heads.core.binning import BinLookup, refuse_not_finite
from positional_heads.core.plan import EntryPlan, Positions
from positional_heads.core.rotary import Planes
from positional_heads.core.shuffles import Shuffled

TileValues = tuple[Float[Tensor, "head n"], Bool[Tensor, "head n"], Int[Tensor, " n"]]
"""D of every entry of a tile, whether one rotary pair holds its softmax, and its distance in tokens."""
DIMENSION_SCALE = 2.0**24
"""D is summed in steps of 2^-24, a float32's own precision at 1."""
COARSE_BINS = 64
"""Bins kept of parts of the entries, for resampling and sampling errors: enough for a spread, not for rho itself."""


@dataclass(frozen=True)
class EntrySums:
    """Sums over some entries of one layer.

    Attributes:
        entries: Entries in each bin of D.
        rank_sums: Sum of the ranks of their distances.
        distance_counts: Entries at each distance.
        dimension_sums: Sum of their D, in steps of 2^-24.
        saturated: Entries in which one rotary pair holds more than `tiled.SATURATED` of the softmax.
    """

    entries: Int[Tensor, "head bin"]
    rank_sums: Int[Tensor, "head bin"]
    distance_counts: Int[Tensor, " distance"]
    dimension_sums: Int[Tensor, "head distance"]
    saturated: Int[Tensor, " head"]

    def __add__(self, other: "EntrySums") -> "EntrySums":
        """The sums over both sets of entries."""
        return EntrySums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class ShuffleSums:
    """Sums over entries with positions shuffled, each as in `EntrySums`, of every shuffle.

    Attributes:
        entries: Entries in each bin of D.
        rank_sums: Sum of the ranks of their distances.
        distance_counts: Entries at each distance.
        dimension_sums: Sum of their D, in steps of 2^-24.
        half_entries: `entries` of each half of a sample, in coarse bins; no halves where all entries count.
        half_rank_sums: `rank_sums` of each half of a sample, in coarse bins.
    """

    entries: Int[Tensor, "shuffle head bin"]
    rank_sums: Int[Tensor, "shuffle head bin"]
    distance_counts: Int[Tensor, "shuffle distance"]
    dimension_sums: Int[Tensor, "shuffle head distance"]
    half_entries: Int[Tensor, "shuffle half head coarse"]
    half_rank_sums: Int[Tensor, "shuffle half head coarse"]

    @classmethod
    def zeros(cls, shuffles: int, halves: int, distances: int, bins: BinLookup) -> "ShuffleSums":
        """The sums over no entries.

        Args:
            shuffles: How many.
            halves: Independent halves of a sample; 0 where all entries count.
            distances: One more than the largest distance.
            bins: Bins of D.
        """
        heads, edges = bins.edges.shape
        shapes = [(shuffles, heads, edges + 1)] * 2 + [(shuffles, distances), (shuffles, heads, distances)]
        shapes += [(shuffles, halves, heads, COARSE_BINS)] * 2
        return cls(*(torch.zeros(shape, dtype=torch.long, device=bins.edges.device) for shape in shapes))

    def add(self, sums: EntrySums, shuffle: int, half: int | None = None) -> None:
        """Add a kernel's sums over some entries of one shuffle, in place.

        Args:
            sums: Over the same distances and bins.
            shuffle: Number of the shuffle.
            half: Number of the half of a sample that they belong to; None where all entries count.
        """
        for name in ("entries", "rank_sums", "distance_counts", "dimension_sums"):
            getattr(self, name)[shuffle] += getattr(sums, name)
        if half is not None:
            for name in ("entries", "rank_sums"):
                coarse = getattr(sums, name).view(len(sums.entries), COARSE_BINS, -1).sum(-1)
                getattr(self, f"half_{name}")[shuffle, half] += coarse

    def absorb(self, other: "ShuffleSums") -> None:
        """Add the sums over other entries, in place."""
        for field in fields(self):
            mine = getattr(self, field.name)
            mine.add_(getattr(other, field.name).to(mine.device))


@runtime_checkable
class Kernel(Protocol):
    """A back end: rotated queries and keys of one sequence in, sums out.

    `temperature` divides contributions before the softmax over rotary pairs, `bins` are the bins of D, and `ranks` has
    the rank of each distance, as many as the sums have distances.
    """

    name: str

    def every_entry(
        self, query: Planes, key: Planes, plan: EntryPlan, temperature: float, bins: BinLookup, ranks: Int[Tensor, " _"]
    ) -> EntrySums:
        """Sums over all entries of the sequence that the plan counts."""
        ...

    def listed_entries(
        self,
        query: Planes,
        key: Planes,
        positions: Positions,
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
    ) -> EntrySums:
        """Sums over the entries at these query and key positions."""
        ...

    def sampled_entries(
        self,
        query: Planes,
        key: Planes,
        replicates: Sequence[Positions],
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
    ) -> list[EntrySums]:
        """The same over each of several lists."""
        return [self.listed_entries(query, key, positions, temperature, bins, ranks) for positions in replicates]

    def add_runs(
        self,
        shuffled: Shuffled,
        plan: EntryPlan,
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
        sums: ShuffleSums,
    ) -> None:
        """Add the sampled runs of every shuffle, at distances that the plan counts, in place.

        Args:
            shuffled: Content, orders and runs of one sequence.
            plan: Which of their entries count.
            temperature: As in the other methods, like `bins` and `ranks`.
            bins: Bins of D.
            ranks: Rank of each distance.
            sums: Sums of all shuffles; invalid if this raises.
        """
        ...

    def listed_dominant(
        self, query: Planes, key: Planes, positions: Positions, temperature: float
    ) -> Float[Tensor, "head n"]:
        """The dominant dimension of each of these entries."""
        ...


def no_sums(bins: BinLookup, ranks: Int[Tensor, " distance"]) -> EntrySums:
    """The sums over no entries."""
    heads, edges = bins.edges.shape
    zeros = torch.zeros((heads, edges + 1), dtype=torch.long, device=ranks.device)
    return EntrySums(zeros, zeros, torch.zeros_like(ranks), torch.zeros_like(ranks).repeat(heads, 1), zeros[:, 0])


def summed(tiles: Iterable[TileValues], bins: BinLookup, ranks: Int[Tensor, " distance"]) -> EntrySums:
    """The sums over all entries of these tiles."""
    total = no_sums(bins, ranks)
    for dominant, saturated, distance in tiles:
        total = total + tile_sums(dominant, distance, bins, ranks, saturated)
    return total


def tile_sums(
    dominant: Float[Tensor, "head n"],
    distance: Int[Tensor, " n"],
    bins: BinLookup,
    ranks: Int[Tensor, " distance"],
    saturated: Bool[Tensor, "head n"],
) -> EntrySums:
    """Count entries and add their distance ranks, per bin of D.

    `torch.bincount` adds weights in float64. At most 2^20 entries with ranks and D below 2^32 in fixed point keep every
    sum below 2^53, where float64 is exact.

    Args:
        dominant: Dominant dimension of every entry, per head.
        distance: Distance of every entry in tokens.
        bins: Bins of D.
        ranks: Rank of each distance.
        saturated: Whether one rotary pair holds the softmax of an entry.

    Raises:
        ValueError: If the tile is too large, or D is not finite.
    """
    if distance.numel() > 2**20:
        msg = f"a tile of {distance.numel()} query-key pairs is too large: 2^20 at most"
        raise ValueError(msg)
    refuse_not_finite(dominant)
    heads, n_bins, distances = len(dominant), bins.edges.shape[1] + 1, len(ranks)
    row = torch.arange(heads, device=dominant.device)[:, None]
    bin_of = (bins(dominant) + row * n_bins).flatten()
    weights = ranks[distance].double().expand(heads, -1).flatten()
    cell = (distance + row * distances).flatten()
    fixed = (dominant.double() * DIMENSION_SCALE).round().flatten()
    return EntrySums(
        torch.bincount(bin_of, minlength=heads * n_bins).view(heads, n_bins),
        torch.bincount(bin_of, weights=weights, minlength=heads * n_bins).long().view(heads, n_bins),
        torch.bincount(distance, minlength=distances),
        torch.bincount(cell, weights=fixed, minlength=heads * distances).long().view(heads, distances),
        saturated.sum(1),
    )


def refuse_misfits(query: Planes, key: Planes, bins: BinLookup, distances: int) -> None:
    """Refuse what a kernel would read past its end, or misread.

    Raises:
        ValueError: If planes, bins and ranks do not fit, or bins are not of float32.
    """
    if bins.edges.dtype != torch.float32:
        msg = f"this kernel bins float32, these edges are {bins.edges.dtype}: choose the eager kernel"
        raise ValueError(msg)
    if query.shape != key.shape or len(query) != len(bins.edges) or query.shape[1] > distances:
        msg = (
            f"queries {tuple(query.shape)}, keys {tuple(key.shape)}, bins of {len(bins.edges)} heads and ranks of "
            f"{distances} distances must fit: the same shape, as many heads, at least as many distances as positions"
        )
        raise ValueError(msg)
