"""Into which bin does a value fall? Bins of equal mass per head, found without a search for most values.

Bin j of a head holds `edges[j - 1] < value <= edges[j]`.
"""

from collections.abc import Collection
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, UInt16
from torch import Tensor

CELLS = 2**16


def equal_mass_edges(sample: Float[Tensor, "head sample"], bins: int) -> Float[Tensor, "head edge"]:
    """Bin edges that share a sample out evenly; a value that fills a bin of its own gets one that holds it alone.

    Args:
        sample: A pilot sample of values per head.
        bins: Number of bins.

    Raises:
        ValueError: If a value is not finite.
    """
    refuse_not_finite(sample)
    ordered = sample.sort(dim=-1).values
    positions = (torch.arange(1, bins, device=sample.device) * sample.shape[-1]) // bins
    edges = ordered[:, positions.clamp(max=sample.shape[-1] - 1)]
    starts_run = torch.zeros_like(edges, dtype=torch.bool)
    starts_run[:, :-1] = edges[:, :-1] == edges[:, 1:]
    starts_run[:, 1:] &= edges[:, 1:] != edges[:, :-1]
    below = torch.nextafter(edges, torch.full_like(edges, -torch.inf))
    return torch.where(starts_run, below, edges).contiguous()


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


def single_valued(edges: Float[Tensor, "head edge"]) -> Bool[Tensor, "head bin"]:
    """Which bins hold one value only, so that pairs in them are true ties."""
    alone = torch.zeros(edges.shape[0], edges.shape[1] + 1, dtype=torch.bool, device=edges.device)
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
        scale: Cells per unit; the cell of a value is `(value - low) * scale`, cut off at both ends.
    """

    def __init__(self, edges: Float[Tensor, "head edge"]) -> None:
        """Build the table.

        Args:
            edges: Sorted bin edges of each head, fewer than 2^15.

        Raises:
            ValueError: If there are more edges than the table can tell apart.
        """
        if edges.shape[1] >= 2**15:
            msg = f"{edges.shape[1] + 1} bins are too many: 2^15 at most"
            raise ValueError(msg)
        self.edges = edges
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
