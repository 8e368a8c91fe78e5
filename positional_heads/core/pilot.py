"""Where do bins go, and how many values does rounding put into a wrong one? A few query-key pairs show it for all."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from positional_heads.core.binning import BinLookup, equal_mass_edges
from positional_heads.core.kernels.eager import EagerKernel
from positional_heads.core.kernels.sums import Kernel, Planes
from positional_heads.core.plan import Places

SEEN = 256
"""Query-key pairs of a run up to which the pilot knows what rounding does to each."""


@dataclass(frozen=True)
class PilotSample:
    """D of some query-key pairs of a layer, as the kernel has it, and in float64.

    Attributes:
        sample: D as the kernel has it.
        rounded: Some of that.
        exact: The same pairs in float64.
    """

    sample: Float[Tensor, "head n"]
    rounded: Float[Tensor, "head checked"]
    exact: Float64[Tensor, "head checked"]

    @classmethod
    def of(
        cls, kernel: Kernel, planes: tuple[Planes, Planes], places: Places, temperature: float, checked: int
    ) -> "PilotSample":
        """Look at listed pairs of one sequence.

        Args:
            kernel: Which is going to count.
            planes: Rotated queries and keys of the sequence; where they are float64, nothing rounds.
            places: Positions of the pairs.
            temperature: Softmax temperature of D.
            checked: Of how many pairs, spread over the list, D is also computed in float64.
        """
        sample = kernel.listed_dominant(*planes, places, temperature)
        if sample.dtype == torch.float64:
            return cls(sample, sample, sample)
        step = -(-len(places[0]) // checked) or 1
        query, key = (plane.double() for plane in planes)
        exact = EagerKernel().listed_dominant(query, key, (places[0][::step], places[1][::step]), temperature)
        return cls(sample, sample[:, ::step], exact)

    def bins(self, n_bins: int, resolution: float, every: int) -> BinLookup:
        """Bins of equal mass, which know how far rounding moves ranks.

        Args:
            n_bins: How many.
            resolution: Width of the cells in which values of D are equal.
            every: Pairs of the whole run.
        """
        edges = equal_mass_edges(self.sample, n_bins, resolution)
        if self.sample.dtype == torch.float64:
            return BinLookup(edges, resolution)
        moved, unknown = mean_displacement(self.exact, self.rounded, edges)
        # of a few pairs all are seen; of more, other tiles or kernels may round single ones otherwise than the pilot
        known = every <= SEEN and self.exact.shape[1] == every
        return BinLookup(edges, resolution, moved if known else moved + unknown)

    @classmethod
    def joined(cls, parts: list["PilotSample"]) -> "PilotSample":
        """All parts in one."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts], dim=1) for field in fields(cls)))


def mean_displacement(
    exact: Float64[Tensor, "head pair"], rounded: Float[Tensor, "head pair"], edges: Float[Tensor, "head edge"]
) -> tuple[Float64[Tensor, " head"], Float64[Tensor, " head"]]:
    """How far rounding moves ranks, as a fraction of all pairs: on average, and the sampling error of that at most.

    Args:
        exact: Values in float64.
        rounded: The same values as a kernel has them.
        edges: Bin edges.
    """
    right, found = (torch.searchsorted(edges.double(), values.double().contiguous()) for values in (exact, rounded))
    n = exact.shape[1]
    share = torch.stack([torch.bincount(row, minlength=edges.shape[1] + 1) for row in right]).double() / n
    mid_rank = share.cumsum(1) - share / 2
    moved = (mid_rank.gather(1, right) - mid_rank.gather(1, found)).abs()
    unseen = 3 / n * share.amax(1)  # moves by one bin that none of n pairs made are at most 3 in n, 19 times in 20
    return moved.mean(1), 2 * moved.std(1, correction=0) / n**0.5 + unseen
