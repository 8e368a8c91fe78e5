"""Bins of equal mass for D, one set per head, and a look-up that avoids a search for most values.

Bin j of a head holds `edges[j - 1] < value <= edges[j]`. With a resolution, cell c holds the values nearest to c times
the resolution; edges lie halfway between its multiples, so a bin holds whole cells.
"""

from collections.abc import Collection
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int, Int16, UInt16
from torch import Tensor
from torch.nn.functional import pad

CELLS = 2**16
"""Cells of the look-up table of a head: many times the number of bins, so that few cells hold an edge."""


def equal_mass_edges(
    sample: Float[Tensor, "head sample"], bins: int, resolution: float = 0.0
) -> Float[Tensor, "head edge"]:
    """Bin edges at the quantiles of a sample; a value that fills a whole bin gets one of its own.

    Edges lie midway between neighbouring values of the sample, so that a value rounded differently stays in its bin.

    Args:
        sample: A pilot sample of values per head.
        bins: Number of bins.
        resolution: Width of the cells in which values count as equal; 0 for none.

    Raises:
        ValueError: If a value is not finite.
    """
    refuse_not_finite(sample)
    positions = (torch.arange(1, bins, device=sample.device) * sample.shape[-1]) // bins
    wanted = torch.stack([positions, (positions + 1).clamp(max=sample.shape[-1] - 1)])
    if resolution:
        value, following = _ordered_cells(sample, resolution, wanted.flatten()).view(-1, *wanted.shape).unbind(1)
    else:
        value, following = sample.sort(dim=-1).values[:, wanted].unbind(1)
    # A run of equal values that reaches the next quantile fills a bin: its first edge goes just below the run, later
    # ones to its end. A shorter run stays in the bin in which it ends.
    starts_run = value == following
    starts_run[:, :-1] &= value[:, :-1] == value[:, 1:]
    starts_run[:, 1:] &= value[:, 1:] != value[:, :-1]
    if resolution:
        last = torch.where(starts_run, value - 1, ((value + following - 1) / 2).floor().maximum(value))
        return ((last + 0.5) * resolution).to(sample.dtype).contiguous()
    middle = (value + following) / 2
    below = torch.nextafter(value, torch.full_like(value, -torch.inf))
    # between neighbouring floats, the middle is rounded to one of them: it must not be the value above
    return torch.where(starts_run, below, torch.where(middle < following, middle, value)).contiguous()


def _ordered_cells(
    sample: Float[Tensor, "head sample"], resolution: float, positions: Int[Tensor, " position"]
) -> Float64[Tensor, "head position"]:
    """The cells at some positions of each head's sample in ascending order, by counting them: there are few.

    Args:
        sample: Finite values.
        resolution: Width of a cell.
        positions: Which places in the order.
    """
    cells = (sample.double() / resolution - 0.5).ceil_()  # rounds halves down: an edge belongs to its left bin
    lowest = cells.min()
    n_cells = int(cells.max() - lowest) + 1
    if n_cells > CELLS:
        return cells.sort(dim=-1).values[:, positions]
    heads = len(sample)
    row = torch.arange(heads, device=sample.device)[:, None] * n_cells
    counts = torch.bincount(((cells - lowest).long() + row).flatten(), minlength=heads * n_cells)
    ordered = torch.arange(n_cells, device=sample.device).repeat(heads).repeat_interleave(counts)
    return ordered.view(heads, -1)[:, positions] + lowest


def refuse_not_finite(dominant: Float[Tensor, "head sample"]) -> None:
    """Refuse dominant dimensions that are NaN or infinite.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    if dominant.sum().isfinite():  # 20 times faster than testing every value
        return
    refuse_heads((~dominant.isfinite()).any(1).nonzero().flatten().tolist())


def refuse_heads(heads: Collection[int]) -> None:
    """Refuse heads whose dominant dimension is not finite.

    Raises:
        ValueError: If there is one.
    """
    if heads:
        msg = (
            f"the dominant dimension D of head {', '.join(map(str, sorted(heads)))} is not finite: the model's queries "
            "or keys hold NaN or infinity, or their products overflow; check the checkpoint, or load it in float32"
        )
        raise ValueError(msg)


def single_valued(edges: Float[Tensor, "head edge"], resolution: float = 0.0) -> Bool[Tensor, "head bin"]:
    """Which bins hold a single cell, so that all entries in them are true ties.

    Args:
        edges: Bin edges.
        resolution: Resolution by which they were placed.
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

    The range of a head's edges is divided into `CELLS` equal cells. A cell that no edge falls into lies in one bin, and
    a table has it; a cell with edges has -1 in the table, and only values there are searched for. That agrees with the
    search exactly, because the cell of a value and of an edge come from the same float32 arithmetic, which is monotone:
    a value in a later cell than an edge is above it, and one in an earlier cell is not.

    There are two tables. `_table` has the bin of each cell, or -1, in 16 bits to stay in cache, and serves PyTorch.
    `starts` has the number of edges below each cell, and serves native.cpp, which searches within the cell itself.

    Attributes:
        edges: The sorted bin edges of each head.
        low: Lower end of each head's first cell.
        scale: Cells per unit; the cell of a value is `(value - low) * scale`, clamped to the first and last.
        resolution: Width of the cells of D by which edges were placed.
        displaced: Mean displacement of ranks by rounding, as a fraction of all entries.
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
            resolution: Width of the cells in which values count as equal; 0 for none.
            displaced: See `pilot.mean_displacement`; zero when None.

        Raises:
            ValueError: If there are more edges than 16 bits can number.
        """
        if edges.shape[1] >= 2**15:
            msg = f"{edges.shape[1] + 1} bins are too many: 2^15 at most"
            raise ValueError(msg)
        self.edges = edges
        self.resolution = resolution
        self.displaced = torch.zeros(len(edges), dtype=torch.float64) if displaced is None else displaced
        self.low = edges[:, :1]
        widest = torch.finfo(edges.dtype).max  # if all edges agree the scale is infinite, and infinity times zero NaN
        self.scale = ((CELLS - 1) / (edges[:, -1:] - self.low)).clamp(max=widest)
        self._row = torch.arange(len(edges), device=edges.device)[:, None] * CELLS
        below = torch.bincount((self._cell(edges) + self._row).flatten(), minlength=len(edges) * CELLS)
        self._below = pad(below.view(-1, CELLS).to(torch.int16).cumsum(1, dtype=torch.int16), (1, 0))

    @property
    def starts(self) -> UInt16[Tensor, "head cell"]:
        """Number of edges below each cell, and of all edges at the end."""
        return self._below.view(torch.uint16)

    @cached_property
    def halvings(self) -> int:
        """Steps of a binary search among the edges of the cell that has most."""
        return int(self._below.diff(dim=1).max()).bit_length()

    @cached_property
    def _table(self) -> Int16[Tensor, " head_cell"]:
        first, last = self._below[:, :-1], self._below[:, 1:]
        return torch.where(first < last, -1, first).flatten()

    def __call__(self, values: Float[Tensor, "head sample"]) -> Int[Tensor, "head sample"]:
        """The bin of every value."""
        if values.device.type != "cpu":  # on a GPU the table would wait for the device once per head
            return torch.searchsorted(self.edges, values.contiguous())
        bins = self._table[self._cell(values) + self._row].long()
        for head, undecided in enumerate(bins < 0):
            bins[head, undecided] = torch.searchsorted(self.edges[head], values[head, undecided])
        return bins

    def _cell(self, values: Float[Tensor, "head sample"]) -> Int[Tensor, "head sample"]:
        return ((values - self.low) * self.scale).clamp(0, CELLS - 1).long()
