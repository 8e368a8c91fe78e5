"""Into which bin does a value fall? Bins of equal mass per head, found without a search for most values.

Bin j of a head holds `edges[j - 1] < value <= edges[j]`. Where values are told apart to a resolution only, edges lie
halfway between its multiples, so that a bin holds whole cells: cell c holds what is nearest to c times the resolution.
"""

from collections.abc import Collection
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int, UInt16
from torch import Tensor

CELLS = 2**16


def equal_mass_edges(
    sample: Float[Tensor, "head sample"], bins: int, resolution: float = 0.0
) -> Float[Tensor, "head edge"]:
    """Bin edges that share a sample out evenly; a cell that fills a bin of its own gets one that holds it alone.

    Edges lie midway between neighbouring values of the sample, so that a value rounded otherwise stays in its bin.

    Args:
        sample: A pilot sample of values per head.
        bins: Number of bins.
        resolution: Width of the cells in which values are equal; 0 tells all apart.

    Raises:
        ValueError: If a value is not finite.
    """
    refuse_not_finite(sample)
    ordered = sample.sort(dim=-1).values
    if resolution:
        ordered = (ordered.double() / resolution - 0.5).ceil()  # halfway is the lower cell: edges belong to the left
    positions = (torch.arange(1, bins, device=sample.device) * sample.shape[-1]) // bins
    value = ordered[:, positions]
    following = ordered[:, (positions + 1).clamp(max=sample.shape[-1] - 1)]
    starts_run = value == following
    starts_run[:, :-1] &= value[:, :-1] == value[:, 1:]
    starts_run[:, 1:] &= value[:, 1:] != value[:, :-1]
    if resolution:
        last = torch.where(starts_run, value - 1, ((value + following - 1) / 2).floor().maximum(value))
        return ((last + 0.5) * resolution).to(sample.dtype).contiguous()
    middle = (value + following) / 2
    below = torch.nextafter(value, torch.full_like(value, -torch.inf))
    return torch.where(starts_run, below, torch.where(middle < following, middle, value)).contiguous()


def refuse_not_finite(dominant: Float[Tensor, "head sample"]) -> None:
    """Refuse dominant dimensions that have no bin.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    if dominant.sum().isfinite():  # a twentieth of the time that looking at every value takes
        return
    refuse_heads((~dominant.isfinite()).any(1).nonzero().flatten().tolist())


def refuse_heads(heads: Collection[int]) -> None:
    """Refuse heads whose dominant dimension is not finite.

    Raises:
        ValueError: If there are any.
    """
    if heads:
        msg = (
            f"the dominant dimension D of head {', '.join(map(str, sorted(heads)))} is not finite: the model's queries "
            "or keys hold NaN or infinity, or their products overflow; check the checkpoint, or load it in float32"
        )
        raise ValueError(msg)


def single_valued(edges: Float[Tensor, "head edge"], resolution: float = 0.0) -> Bool[Tensor, "head bin"]:
    """Which bins hold one cell only, so that pairs in them are true ties.

    Args:
        edges: Bin edges.
        resolution: That they were placed by.
    """
    alone = torch.zeros(edges.shape[0], edges.shape[1] + 1, dtype=torch.bool, device=edges.device)
    if resolution:
        last = (edges.double() / resolution - 0.5).round()
        alone[:, 0] = last[:, 0] <= 0  # D is not negative
        alone[:, 1:-1] = last.diff(dim=1) <= 1
    else:
        alone[:, 1:-1] = torch.nextafter(edges[:, :-1], torch.full_like(edges[:, 1:], torch.inf)) >= edges[:, 1:]
    return alone


class BinLookup:
    """`torch.searchsorted` for many values and the same edges, an order of magnitude faster.

    A table over equal cells of each head's range knows the bin of every cell that no edge falls into; only values in
    the other cells are searched. Cells of values and of edges come from the same monotone arithmetic, so that the
    answer is the search's own.

    Attributes:
        edges: The sorted bin edges of each head.
        low: Where each head's first cell begins.
        scale: Table cells per unit; that of a value is `(value - low) * scale`, cut off at both ends.
        resolution: Width of the cells in which values are equal, by which edges were placed.
        displaced: How far rounding moves ranks in the mean, as a fraction of all pairs.
    """

    def __init__(
        self,
        edges: Float[Tensor, "head edge"],
        resolution: float = 0.0,
        displaced: Float64[Tensor, " head"] | None = None,
    ) -> None:
        """Build the table.

        Args:
            edges: Sorted bin edges of each head, fewer than 2^15.
            resolution: Width of the cells in which values are equal; 0 tells all apart.
            displaced: How far rounding moves ranks, see `pilot.mean_displacement`; None for not at all.

        Raises:
            ValueError: If there are more edges than the table can tell apart.
        """
        if edges.shape[1] >= 2**15:
            msg = f"{edges.shape[1] + 1} bins are too many: 2^15 at most"
            raise ValueError(msg)
        self.edges = edges
        self.resolution = resolution
        self.displaced = torch.zeros(len(edges), dtype=torch.float64) if displaced is None else displaced
        self.low = edges[:, :1]
        widest = torch.finfo(edges.dtype).max  # where all edges agree, or nearly: infinity times zero is no cell
        self.scale = ((CELLS - 1) / (edges[:, -1:] - self.low)).clamp(max=widest)
        heads = edges.shape[0]
        self._row = torch.arange(heads, device=edges.device)[:, None] * CELLS
        held = torch.bincount((self._cell(edges) + self._row).flatten(), minlength=heads * CELLS).view(heads, CELLS)
        below = held.cumsum(-1) - held
        self._table = torch.where(held > 0, -1, below).flatten().to(torch.int16)  # small, to stay in cache

    @cached_property
    def starts(self) -> UInt16[Tensor, "head cell"]:
        """Edges below each cell, and their number at the end: what a search within the cell alone needs."""
        heads = len(self.edges)
        held = torch.bincount((self._cell(self.edges) + self._row).flatten(), minlength=heads * CELLS)
        starts = torch.zeros((heads, CELLS + 1), dtype=torch.long, device=self.edges.device)
        starts[:, 1:] = held.view(heads, CELLS).cumsum(1)
        return starts.to(torch.uint16)

    def __call__(self, values: Float[Tensor, "head sample"]) -> Int[Tensor, "head sample"]:
        """The bin of every value."""
        bins = self._table[self._cell(values) + self._row].long()
        for head, unknown in enumerate(bins < 0):
            bins[head, unknown] = torch.searchsorted(self.edges[head], values[head, unknown])
        return bins

    def _cell(self, values: Float[Tensor, "head sample"]) -> Int[Tensor, "head sample"]:
        return ((values - self.low) * self.scale).clamp(0, CELLS - 1).long()
