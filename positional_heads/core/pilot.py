"""Bins of D placed on a sample, and a measurement of how far rounding moves values between them.

The bins must be known before the first entry is counted, so D is computed twice for a few entries of a few batches: by
the kernel, whose quantiles become the edges, and in float64, which shows how often the kernel's D falls into the bin of
another value. That displacement of ranks is part of the bound on rho.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from positional_heads.core.binning import BinLookup, equal_mass_edges
from positional_heads.core.kernels.eager import EagerKernel
from positional_heads.core.kernels.sums import Kernel
from positional_heads.core.plan import Positions
from positional_heads.core.rotary import Planes

SEEN = 256
"""Entries of a run up to which all of them are in the pilot, so its displacement has no sampling error."""


@dataclass(frozen=True)
class PilotSample:
    """D of some entries of a layer, as the kernel computes it, and in float64.

    Attributes:
        sample: D as the kernel computes it.
        rounded: A subset of it.
        exact: D of the same subset in float64.
    """

    sample: Float[Tensor, "head n"]
    rounded: Float[Tensor, "head checked"]
    exact: Float64[Tensor, "head checked"]

    @classmethod
    def of(
        cls, kernel: Kernel, planes: tuple[Planes, Planes], positions: Positions, temperature: float, checked: int
    ) -> "PilotSample":
        """Compute D of listed entries of one sequence.

        Args:
            kernel: The kernel of the run.
            planes: Rotated queries and keys of the sequence; in float64, D has no rounding to measure.
            positions: Positions of the entries.
            temperature: Softmax temperature of D.
            checked: For how many entries, spread over the list, D is also computed in float64.
        """
        sample = kernel.listed_dominant(*planes, positions, temperature)
        if sample.dtype == torch.float64:
            return cls(sample, sample, sample)
        step = -(-len(positions[0]) // checked) or 1
        query, key = (plane.double() for plane in planes)
        exact = EagerKernel().listed_dominant(query, key, (positions[0][::step], positions[1][::step]), temperature)
        return cls(sample, sample[:, ::step], exact)

    def bins(self, n_bins: int, resolution: float, entries: int) -> BinLookup:
        """Bins of equal mass, with the displacement of ranks by rounding.

        Args:
            n_bins: Number of bins.
            resolution: Width of the cells in which values of D are equal.
            entries: Entries of the whole run.
        """
        edges = equal_mass_edges(self.sample, n_bins, resolution)
        if self.sample.dtype == torch.float64:
            return BinLookup(edges, resolution)
        moved, unknown = mean_displacement(self.exact, self.rounded, edges)
        # where the pilot has every entry there is nothing left to estimate; otherwise an unseen entry may be rounded
        # differently, as by another tile shape
        complete = entries <= SEEN and self.exact.shape[1] == entries
        return BinLookup(edges, resolution, moved if complete else moved + unknown)

    @classmethod
    def joined(cls, parts: list["PilotSample"]) -> "PilotSample":
        """One sample of all parts."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts], dim=1) for field in fields(cls)))


def mean_displacement(
    exact: Float64[Tensor, "head n"], rounded: Float[Tensor, "head n"], edges: Float[Tensor, "head edge"]
) -> tuple[Float64[Tensor, " head"], Float64[Tensor, " head"]]:
    """How far rounding moves ranks, as a fraction of all entries: the mean, and an upper limit of its sampling error.

    Args:
        exact: Values in float64.
        rounded: The same values as a kernel computes them.
        edges: Bin edges.
    """
    right, counted = (torch.searchsorted(edges.double(), values.double().contiguous()) for values in (exact, rounded))
    n = exact.shape[1]
    share = torch.stack([torch.bincount(row, minlength=edges.shape[1] + 1) for row in right]).double() / n
    mid_rank = share.cumsum(1) - share / 2
    moved = (mid_rank.gather(1, right) - mid_rank.gather(1, counted)).abs()
    unseen = 3 / n * share.amax(1)  # the rule of three: what no one of n entries did, at most 3 in n do (95 %)
    return moved.mean(1), 2 * moved.std(1, correction=0) / n**0.5 + unseen
