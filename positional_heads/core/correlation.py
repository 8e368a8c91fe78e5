"""Spearman's rho between distance and D over all query-key pairs, streamed and merged exactly.

See docs/equations.md, section 4.

The ranks of all distances are known in closed form before an entry is computed, because a sequence of n tokens has
n - t entries at distance t. So two sums per head and bin of D suffice: how many entries fell into the bin, and the sum
of their distances' ranks. The ranks of D follow from the counts. Every sum is an integer (ranks and D in fixed point),
so tiles, sequences, processes and machines add up to the same numbers in any order.
"""

import math
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int
from scipy.stats import rankdata
from torch import Tensor

from positional_heads.core.binning import BinLookup, single_valued
from positional_heads.core.kernels.sums import COARSE_BINS, DIMENSION_SCALE, EntrySums
from positional_heads.core.plan import REPLICATES, EntryPlan


class CorrelationSums:
    """Sums over the entries of one layer, from which `correlation` computes the statistics.

    Attributes:
        plan: Which entries are counted.
        bins: Bins of D.
        ranks: Rank of each distance, on the device of the bins.
        tensors: The sums by name, see `Correlation`.
    """

    def __init__(self, plan: EntryPlan, bins: BinLookup) -> None:
        """Start at zero.

        Args:
            plan: Which entries will be counted.
            bins: Bins of D per head, see `binning.equal_mass_edges`.

        Raises:
            ValueError: If the number of bins is not a multiple of `COARSE_BINS`.
        """
        heads, n_bins, distances = len(bins.edges), bins.edges.shape[1] + 1, plan.distances
        if n_bins % COARSE_BINS:
            msg = f"{n_bins} bins must be a multiple of {COARSE_BINS}"
            raise ValueError(msg)
        self.plan = plan
        self.bins = bins
        self.ranks = plan.rank_grid.to(bins.edges.device)
        replicates = 0 if plan.step is None else REPLICATES
        shapes = {
            "entries": (heads, n_bins),
            "rank_sums": (heads, n_bins),
            "distance_counts": (distances,),
            "dimension_sums": (heads, distances),
            "saturated": (heads,),
            "group_entries": (plan.n_groups, heads, COARSE_BINS),
            "group_rank_sums": (plan.n_groups, heads, COARSE_BINS),
            "replicate_entries": (replicates, heads, COARSE_BINS),
            "replicate_rank_sums": (replicates, heads, COARSE_BINS),
        }
        self.tensors: dict[str, Int[Tensor, ...]] = {
            name: torch.zeros(shape, dtype=torch.long, device=bins.edges.device) for name, shape in shapes.items()
        }

    def add(self, sums: EntrySums, sequence: int, replicate: int | None = None) -> None:
        """Add a kernel's sums over some entries of one sequence.

        Args:
            sums: Over this plan's distances and these bins.
            sequence: Number of the sequence in the plan.
            replicate: Number of the replicate that the entries belong to; None where all entries count.
        """
        for field in fields(EntrySums):
            self.tensors[field.name] += getattr(sums, field.name)
        group = self.plan.group(sequence)
        for name in ("entries", "rank_sums"):
            coarse = getattr(sums, name).view(len(self.bins.edges), COARSE_BINS, -1).sum(-1)
            self.tensors[f"group_{name}"][group] += coarse
            if replicate is not None:
                self.tensors[f"replicate_{name}"][replicate] += coarse

    def absorb(self, other: "CorrelationSums") -> None:
        """Add the sums over other entries to these, in place.

        Raises:
            ValueError: If the two have different plans or bins.
        """
        edges = other.bins.edges.to(self.bins.edges.device)
        same_bins = torch.equal(self.bins.edges, edges) and self.bins.resolution == other.bins.resolution
        if self.plan != other.plan or not same_bins:
            msg = "sums of different plans or bins cannot be added: score both with one plan"
            raise ValueError(msg)
        for name, ours in self.tensors.items():
            ours.add_(other.tensors[name].to(ours.device))

    def correlation(self) -> "Correlation":
        """The statistics, once every entry of the plan has been counted.

        Raises:
            RuntimeError: If entries are missing or were counted twice.
        """
        tensors = {name: tensor.cpu() for name, tensor in self.tensors.items()}
        missing = self.plan.entry_counts - tensors["distance_counts"]
        if missing.any():
            distance = int(missing.abs().argmax())
            msg = (
                f"the plan has {int(self.plan.entry_counts[distance])} query-key pairs at distance {distance}, "
                f"{int(tensors['distance_counts'][distance])} were counted: add the missing shards first"
            )
            raise RuntimeError(msg)
        return Correlation(self.plan, self.bins, **tensors)


@dataclass(frozen=True)
class Correlation:
    """Rank correlations of distance and D for the heads of one layer.

    Attributes:
        plan: Which entries were counted.
        bins: Bins of D.
        entries: Entries in each bin.
        rank_sums: Sum of the ranks of their distances.
        distance_counts: Entries at each distance.
        dimension_sums: Sum of D at each distance, in steps of 2^-24.
        saturated: Entries in which one rotary pair holds nearly all of the softmax.
        group_entries: `entries` of each group of sequences, in coarse bins.
        group_rank_sums: `rank_sums` of each group of sequences, in coarse bins.
        replicate_entries: `entries` of each replicate of a sample, in coarse bins.
        replicate_rank_sums: `rank_sums` of each replicate of a sample, in coarse bins.
    """

    plan: EntryPlan
    bins: BinLookup
    entries: Int[Tensor, "head bin"]
    rank_sums: Int[Tensor, "head bin"]
    distance_counts: Int[Tensor, " distance"]
    dimension_sums: Int[Tensor, "head distance"]
    saturated: Int[Tensor, " head"]
    group_entries: Int[Tensor, "group head coarse"]
    group_rank_sums: Int[Tensor, "group head coarse"]
    replicate_entries: Int[Tensor, "replicate head coarse"]
    replicate_rank_sums: Int[Tensor, "replicate head coarse"]

    @cached_property
    def rho(self) -> Float64[Tensor, " head"]:
        """Spearman's rho over all entries, ties by mid-rank; NaN where distance or D does not vary."""
        counts = self.plan.entry_counts.double()
        return spearman(self.entries.double(), self.rank_sums.double(), *self._rank_moments(counts))

    @property
    def bound(self) -> Float64[Tensor, " head"]:
        """Largest possible error of rho against Spearman's rho on float64 D rounded to the resolution.

        Binning hides the order of D within a bin. The vector of true ranks is the vector of bin mid-ranks plus a
        residual orthogonal to it, whose squared length is largest where a bin holds no ties. With `share` the
        residual's part of the whole, the true rho is sqrt(1 - share) rho + sqrt(share) c for some |c| up to
        sqrt(1 - rho^2), which bounds the difference from rho (docs/statistics.md). Rounding by the kernel is added as
        far as the pilot sample measured it.
        """
        entries = self.entries.double()
        ranks = _centred_ranks(entries)
        between = (entries * ranks**2).sum(-1)
        ties_only = single_valued(self.bins.edges.cpu(), self.bins.resolution)
        # (n^3 - n) / 12 is the sum of squares of n consecutive ranks about their mean: a bin's residual without ties
        within = ((entries**3 - entries) / 12).masked_fill(ties_only, 0).sum(-1)
        share = within / (between + within)
        rho = self.rho.abs().clamp(max=1)
        binned = rho * (1 - (1 - share).sqrt()) + share.sqrt() * (1 - rho**2).sqrt()
        return (binned + self._rounding_error(ranks, between)).clamp(max=2)

    def _rounding_error(
        self, ranks: Float64[Tensor, "head bin"], squares: Float64[Tensor, " head"]
    ) -> Float64[Tensor, " head"]:
        """How far rounding of D can move rho: the displacement of ranks times the largest residual of an entry."""
        counts = self.plan.entry_counts.double()
        mean, rank_squares = self._rank_moments(counts)
        total = counts.sum()
        furthest_rank = ranks.abs().masked_fill(self.entries == 0, 0).amax(-1) / (squares / total).sqrt()
        distances = (self.plan.rank_grid - mean).abs().masked_fill(counts == 0, 0)
        furthest_distance = distances.max() / (rank_squares / total).sqrt()
        residual = furthest_distance + self.rho.abs() * furthest_rank
        # twice, because each entry that moves also shifts the mid-ranks of the bins that it passes
        moved = 2 * self.bins.displaced.cpu() * total
        return moved * residual / (squares / total).sqrt()

    @property
    def saturation(self) -> Float64[Tensor, " head"]:
        """Share of entries in which one rotary pair holds more than 99.9 % of the softmax."""
        return self.saturated.double() / self.distance_counts.sum()

    @cached_property
    def curve(self) -> Float64[Tensor, "head distance"]:
        """Mean dominant dimension at each distance; NaN where no entry counts."""
        return self.dimension_sums.double() / DIMENSION_SCALE / self.distance_counts.double()

    @property
    def rho_curve(self) -> Float64[Tensor, " head"]:
        """Spearman's rho between distance and the mean D at that distance.

        Averaging removes variation by content, so it is often far larger in size than rho.
        """
        return curve_correlation(self.curve)

    def resampled_rho(self, weights: Float[Tensor, "resample group"]) -> Float64[Tensor, "resample head"]:
        """Rho with each group of sequences counted `weights` times, on coarse bins.

        Distances keep their ranks among all sequences: exact where sequences share a length, close where not.
        """
        weights = weights.double()
        entries = torch.einsum("rg,ghc->rhc", weights, self.group_entries.double())
        rank_sums = torch.einsum("rg,ghc->rhc", weights, self.group_rank_sums.double())
        counts = weights @ self.plan.group_entry_counts.double()
        return spearman(entries, rank_sums, *(moment[:, None] for moment in self._rank_moments(counts)))

    @property
    def sampling_sd(self) -> Float64[Tensor, " head"]:
        """Standard error that sampling adds to rho, from the replicates' spread; zero where all entries count."""
        if self.plan.step is None:
            return torch.zeros(len(self.entries), dtype=torch.float64)
        moments = self._rank_moments(self.plan.replicate_entry_counts.double())
        rho = spearman(
            self.replicate_entries.double(), self.replicate_rank_sums.double(), *(moment[:, None] for moment in moments)
        )
        return rho.std(0) / math.sqrt(REPLICATES)

    def _rank_moments(self, counts: Float[Tensor, "*lead distance"]) -> tuple[Tensor, Tensor]:
        return rank_moments(counts, self.plan.rank_grid.double())


def rank_moments(
    counts: Float[Tensor, "*lead distance"], ranks: Float64[Tensor, " distance"]
) -> tuple[Float64[Tensor, "*lead"], Float64[Tensor, "*lead"]]:
    """Mean and sum of squares about it of the distances' ranks, over so many entries at each distance."""
    total = counts.sum(-1)
    mean = (counts * ranks).sum(-1) / total
    return mean, (counts * (ranks - mean[..., None]) ** 2).sum(-1)


def curve_correlation(curve: Float[Tensor, "*lead distance"]) -> Float64[Tensor, "*lead"]:
    """Spearman's rho between distance and a curve over it, leaving out distances without a value."""
    rows = curve.reshape(-1, curve.shape[-1]).double()
    rho = torch.full((rows.shape[0],), torch.nan, dtype=torch.float64)
    defined = ~rows.isnan()
    for mask in torch.unique(defined, dim=0):  # all heads of a layer have values at the same distances
        members = (defined == mask).all(1)
        ranks = torch.from_numpy(rankdata(rows[members][:, mask].numpy(), axis=1)).double()
        distance = torch.arange(ranks.shape[1], dtype=torch.float64)
        ranks, distance = ranks - ranks.mean(1, keepdim=True), distance - distance.mean()
        rho[members] = (ranks @ distance) / (ranks.square().sum(1) * distance.square().sum()).sqrt()
    return rho.reshape(curve.shape[:-1])


def spearman(
    entries: Float64[Tensor, "*lead bin"],
    rank_sums: Float64[Tensor, "*lead bin"],
    rank_mean: Float64[Tensor, "*#lead"],
    rank_squares: Float64[Tensor, "*#lead"],
) -> Float64[Tensor, "*lead"]:
    """Pearson's correlation of the two ranks, from sums per bin of D.

    All entries of a bin share one rank of D, so the sum over entries of (rank of D) x (rank of distance) is a sum over
    bins of (rank of D) x (sum of the distances' ranks). Both are centred before they are multiplied: uncentred, the
    sums reach the cube of the number of entries, and their difference would lose the covariance to rounding.

    Args:
        entries: Entries in each bin.
        rank_sums: Sum of their distances' ranks.
        rank_mean: Mean of the distances' ranks over all entries.
        rank_squares: Sum of squared deviations from it.
    """
    ranks = _centred_ranks(entries)
    covariance = (ranks * (rank_sums - entries * rank_mean[..., None])).sum(-1)
    squares = (entries * ranks**2).sum(-1)
    rho = covariance / (squares * rank_squares).sqrt()
    return torch.where((squares > 0) & (rank_squares > 0), rho, torch.nan)


def _centred_ranks(entries: Float64[Tensor, "*lead bin"]) -> Float64[Tensor, "*lead bin"]:
    """Mid-rank of each bin (the entries below, and half of its own) less the mean of all ranks."""
    return entries.cumsum(-1) - entries / 2 - entries.sum(-1, keepdim=True) / 2
