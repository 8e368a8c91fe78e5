"""Place the bins of D on a pilot sample, and measure how often rounding moves a value to another bin.

Entries are counted into bins as they are computed, so the bins must be fixed before the first one. D of a few entries
of a few batches is therefore computed in advance, and twice: by the kernel, whose quantiles become the edges, and in
float64, which shows how often the kernel's D falls into another bin than the exact one. The mean displacement of ranks
that this causes is part of the bound on rho.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import pad

from positional_heads.core.binning import BinLookup, equal_mass_edges
from positional_heads.core.kernels.exact import exact_dominant
from positional_heads.core.kernels.sums import Kernel
from positional_heads.core.plan import Positions
from positional_heads.core.rotary import Planes

COMPLETE = 256
"""Largest number of entries of a run of which the pilot has all, so that their displacement is measured exactly."""


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
    def measured(
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
        planes = planes[0].contiguous(), planes[1].contiguous()  # once, not in each of the two computations
        sample = kernel.listed_dominant(*planes, positions, temperature)
        if sample.dtype == torch.float64:
            return cls(sample, sample, sample)
        step = -(-len(positions[0]) // checked) or 1
        some = positions[0][::step], positions[1][::step]
        exact = exact_dominant(*planes, some, temperature, compiled=kernel.name == "native")
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
        bins = BinLookup(edges, resolution)
        moved, unknown = mean_displacement(self.exact, self.rounded, bins)
        # A pilot with every entry of a short run measures the displacement itself. In a longer run it estimates it,
        # and the kernel may round an entry differently there, in a tile of another shape: add the sampling error.
        complete = entries <= COMPLETE and self.exact.shape[1] == entries
        bins.displaced = moved if complete else moved + unknown
        return bins

    @classmethod
    def joined(cls, parts: list["PilotSample"]) -> "PilotSample":
        """The samples of several batches or rows as one."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts], dim=1) for field in fields(cls)))


def mean_displacement(
    exact: Float64[Tensor, "head n"], rounded: Float[Tensor, "head n"], bins: BinLookup
) -> tuple[Float64[Tensor, " head"], Float64[Tensor, " head"]]:
    """How far rounding moves ranks, as a fraction of all entries: the mean, and an upper limit of its sampling error.

    Args:
        exact: Values in float64.
        rounded: The same values as a kernel computes them.
        bins: Bins of D.
    """
    counted_bin = bins(rounded)
    exact_bin = _bins_near(exact, counted_bin, bins.edges.double())
    n = exact.shape[1]
    share = torch.stack([torch.bincount(row, minlength=bins.edges.shape[1] + 1) for row in exact_bin]).double() / n
    mid_rank = share.cumsum(1) - share / 2
    moved = torch.zeros_like(exact)
    head, entry = (exact_bin != counted_bin).nonzero(as_tuple=True)
    moved[head, entry] = (mid_rank[head, exact_bin[head, entry]] - mid_rank[head, counted_bin[head, entry]]).abs()
    # The rule of three: an event that none of n entries shows has a probability of at most 3 / n (at 95 %). Here it is
    # a move to the next bin, which displaces a rank by no more than the largest bin's share.
    unseen = 3 / n * share.amax(1)
    return moved.mean(1), 2 * moved.std(1, correction=0) / n**0.5 + unseen


def _bins_near(
    values: Float64[Tensor, "head n"], guess: Int[Tensor, "head n"], edges: Float64[Tensor, "head edge"]
) -> Int[Tensor, "head n"]:
    """`torch.searchsorted`, which is slow, for the values alone that do not lie in the bin where they are expected."""
    limits = pad(pad(edges, (1, 0), value=-torch.inf), (0, 1), value=torch.inf)
    elsewhere = ~((limits.gather(1, guess) < values) & (values <= limits.gather(1, guess + 1)))
    found = guess.clone()
    for head, other in enumerate(elsewhere):
        found[head, other] = torch.searchsorted(edges[head], values[head, other])
    return found
