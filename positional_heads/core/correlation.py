"""Does a head move its dominant dimension with distance? Spearman's rho over all pairs, streamed and merged exactly.

Method section 4. The ranks of all distances are known in closed form before a pair is seen, because a sequence of n
tokens has n - t pairs at distance t. So two sums per bin of D and head suffice: how many pairs fell into the bin, and
the sum of their distances' ranks. The ranks of D follow from the counts. Everything kept is an integer (ranks and D in
fixed point), so that tiles, sequences, processes and machines add up to the very same numbers in any order.
"""

import math
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy.stats import rankdata
from torch import Tensor

from positional_heads.core.binning import BinLookup, single_valued
from positional_heads.core.kernels.sums import DIMENSION_SCALE, EntrySums, tile_sums
from positional_heads.core.plan import EntryPlan
from positional_heads.core.sampling import REPLICATES

SUMS = (
    *("pairs", "rank_sums", "counted", "dimension_sums", "saturated", "group_pairs", "group_rank_sums"),
    *("replicate_pairs", "replicate_rank_sums"),
)
COARSE_BINS = 64
"""Bins kept per group of sequences, for resampling: enough for an interval, not for the estimate itself."""


class CorrelationSums:
    """Sums over the pairs of one layer: folds tiles of D in, adds to others, and is judged by `Correlation`."""

    def __init__(self, plan: EntryPlan, edges: Float[Tensor, "head edge"] | BinLookup) -> None:
        """Start empty.

        Args:
            plan: Which pairs will be counted.
            edges: Bin edges of D per head, see `binning.equal_mass_edges`; or bins that others use as well.

        Raises:
            ValueError: If the number of bins is not a multiple of `COARSE_BINS`.
        """
        self.bins = edges if isinstance(edges, BinLookup) else BinLookup(edges)
        edges = self.bins.edges
        heads, bins = edges.shape[0], edges.shape[1] + 1
        if bins % COARSE_BINS:
            msg = f"{bins} bins must be a multiple of {COARSE_BINS}"
            raise ValueError(msg)
        self.plan = plan
        self.edges = edges
        zeros = partial(torch.zeros, dtype=torch.long, device=edges.device)
        self.pairs = zeros((heads, bins))
        self.rank_sums = zeros((heads, bins))
        self.counted = zeros((plan.distances,))
        self.dimension_sums = zeros((heads, plan.distances))
        self.saturated = zeros((heads,))
        self.group_pairs = zeros((plan.n_groups, heads, COARSE_BINS))
        self.group_rank_sums = zeros((plan.n_groups, heads, COARSE_BINS))
        replicates = 0 if plan.step is None else REPLICATES
        self.replicate_pairs = zeros((replicates, heads, COARSE_BINS))
        self.replicate_rank_sums = zeros((replicates, heads, COARSE_BINS))
        self.ranks = plan.rank_grid.to(edges.device)

    @property
    def tensors(self) -> dict[str, Int[Tensor, "..."]]:
        """The sums by name."""
        return {name: getattr(self, name) for name in SUMS}

    def update(
        self,
        dominant: Float[Tensor, "head pair"],
        distance: Int[Tensor, " pair"],
        sequence: int,
        replicate: int | None = None,
        saturated: Bool[Tensor, "head pair"] | None = None,
    ) -> None:
        """Count the pairs of one tile of one sequence; see `kernels.sums.tile_sums`.

        Args:
            dominant: Dominant dimension of every pair, per head.
            distance: Distance of every pair in tokens; only pairs that the plan counts.
            sequence: Which sequence of the plan they come from.
            replicate: Which replicate of the sample they are; None where all pairs count.
            saturated: Whether one rotary pair holds the softmax of a pair; nowhere when None.
        """
        if saturated is None:
            saturated = torch.zeros_like(dominant, dtype=torch.bool)
        self.add(tile_sums(dominant, distance, self.bins, self.ranks, saturated), sequence, replicate)

    def add(self, sums: EntrySums, sequence: int, replicate: int | None = None) -> None:
        """Add what a kernel counted in some pairs of one sequence.

        Args:
            sums: Its sums, over this plan's distances and these bins.
            sequence: Which sequence of the plan they come from.
            replicate: Which replicate of the sample they are; None where all pairs count.
        """
        self.pairs += sums.pairs
        self.rank_sums += sums.rank_sums
        self.counted += sums.counted
        self.dimension_sums += sums.dimension_sums
        self.saturated += sums.saturated
        coarse = (len(self.edges), COARSE_BINS, -1)
        pairs, rank_sums = sums.pairs.view(coarse).sum(-1), sums.rank_sums.view(coarse).sum(-1)
        group = self.plan.group(sequence)
        self.group_pairs[group] += pairs
        self.group_rank_sums[group] += rank_sums
        if replicate is not None:
            self.replicate_pairs[replicate] += pairs
            self.replicate_rank_sums[replicate] += rank_sums

    def absorb(self, other: "CorrelationSums") -> None:
        """Add the statistics of other pairs to these, in place.

        Raises:
            ValueError: If the two were planned or binned differently.
        """
        same_bins = torch.equal(self.edges, other.edges) and self.bins.resolution == other.bins.resolution
        if self.plan != other.plan or not same_bins:
            msg = "statistics of different plans or bins cannot be added: score both with one plan"
            raise ValueError(msg)
        for name, ours in self.tensors.items():
            ours.add_(other.tensors[name])

    def __add__(self, other: "CorrelationSums") -> "CorrelationSums":
        """The statistics over both sets of pairs, exactly as if one had counted them all.

        Raises:
            ValueError: If the two were planned or binned differently.
        """
        total = CorrelationSums(self.plan, self.bins)
        total.absorb(self)
        total.absorb(other)
        return total

    def correlation(self) -> "Correlation":
        """What the sums say, once every pair of the plan has been counted.

        Raises:
            RuntimeError: If pairs are missing or were counted twice.
        """
        missing = self.plan.pair_counts - self.counted.cpu()
        if missing.any():
            distance = int(missing.abs().argmax())
            msg = (
                f"the plan has {int(self.plan.pair_counts[distance])} pairs at distance {distance}, "
                f"{int(self.counted[distance])} were counted: add the missing shards before judging"
            )
            raise RuntimeError(msg)
        return Correlation(self.plan, **{name: tensor.cpu() for name, tensor in self.tensors.items()}, bins=self.bins)


@dataclass(frozen=True)
class Correlation:
    """Rank correlations of distance and dominant dimension for the heads of one layer."""

    plan: EntryPlan
    pairs: Int[Tensor, "head bin"]
    rank_sums: Int[Tensor, "head bin"]
    counted: Int[Tensor, " distance"]
    dimension_sums: Int[Tensor, "head distance"]
    group_pairs: Int[Tensor, "group head coarse"]
    group_rank_sums: Int[Tensor, "group head coarse"]
    replicate_pairs: Int[Tensor, "replicate head coarse"]
    replicate_rank_sums: Int[Tensor, "replicate head coarse"]
    saturated: Int[Tensor, " head"]
    bins: BinLookup

    @cached_property
    def rho(self) -> Float64[Tensor, " head"]:
        """Spearman's rho over all pairs, ties by mid-rank; NaN where distance or D does not vary."""
        counts = self.plan.pair_counts.double()
        return _spearman(self.pairs.double(), self.rank_sums.double(), *self._rank_moments(counts))

    @property
    def bound(self) -> Float64[Tensor, " head"]:
        """How far rho can be from Spearman's rho on float64 D in cells of the resolution (derivation: statistics.md).

        Of binning at the very worst, and of rounding as far as the pilot sample shows it.
        """
        pairs = self.pairs.double()
        ranks = _mid_ranks(pairs) - pairs.sum(-1, keepdim=True) / 2
        between = (pairs * ranks**2).sum(-1)
        alone = single_valued(self.bins.edges.cpu(), self.bins.resolution)
        within = ((pairs**3 - pairs) / 12).masked_fill(alone, 0).sum(-1)
        share = within / (between + within)
        rho = self.rho.abs().clamp(max=1)
        binned = rho * (1 - (1 - share).sqrt()) + share.sqrt() * (1 - rho**2).sqrt()
        return (binned + self._rounded(ranks, between)).clamp(max=2)

    def _rounded(
        self, ranks: Float64[Tensor, "head bin"], squares: Float64[Tensor, " head"]
    ) -> Float64[Tensor, " head"]:
        """How far rounding of D can move rho: the displacement of ranks times the furthest residual."""
        counts = self.plan.pair_counts.double()
        mean, rank_squares = self._rank_moments(counts)
        total = counts.sum()
        furthest_rank = ranks.abs().masked_fill(self.pairs == 0, 0).amax(-1) / (squares / total).sqrt()
        distances = (self.plan.rank_grid - mean).abs().masked_fill(counts == 0, 0)
        furthest_distance = distances.max() / (rank_squares / total).sqrt()
        residual = furthest_distance + self.rho.abs() * furthest_rank
        moved = 2 * self.bins.displaced.cpu() * total  # pairs that round, and those whose mid-rank they shift
        return moved * residual / (squares / total).sqrt()

    @property
    def saturation(self) -> Float64[Tensor, " head"]:
        """Share of pairs in which one rotary pair holds more than 99.9 % of the softmax."""
        return self.saturated.double() / self.counted.sum()

    @cached_property
    def curve(self) -> Float64[Tensor, "head distance"]:
        """Mean dominant dimension at each distance; NaN where no pair counts."""
        return self.dimension_sums.double() / DIMENSION_SCALE / self.counted.double()

    @property
    def rho_curve(self) -> Float64[Tensor, " head"]:
        """Spearman's rho between distance and the mean D at that distance: no noise left, so far larger than rho."""
        return curve_correlation(self.curve)

    def resampled_rho(self, weights: Float[Tensor, "resample group"]) -> Float64[Tensor, "resample head"]:
        """Rho with each group of sequences counted `weights` times, on coarse bins.

        Distances keep their ranks among all sequences: exact where sequences share a length, close where not.
        """
        weights = weights.double()
        pairs = torch.einsum("rg,ghc->rhc", weights, self.group_pairs.double())
        rank_sums = torch.einsum("rg,ghc->rhc", weights, self.group_rank_sums.double())
        counts = weights @ self.plan.group_pair_counts.double()
        return _spearman(pairs, rank_sums, *(moment[:, None] for moment in self._rank_moments(counts)))

    @property
    def sampling_sd(self) -> Float64[Tensor, " head"]:
        """What sampling pairs adds to the error of rho: zero where all were counted, else from replicates' spread."""
        if self.plan.step is None:
            return torch.zeros(len(self.pairs), dtype=torch.float64)
        moments = self._rank_moments(self.plan.replicate_pair_counts.double())
        rho = _spearman(
            self.replicate_pairs.double(), self.replicate_rank_sums.double(), *(moment[:, None] for moment in moments)
        )
        return rho.std(0) / math.sqrt(REPLICATES)

    def _rank_moments(self, counts: Float[Tensor, "*lead distance"]) -> tuple[Tensor, Tensor]:
        """Mean and sum of squares about it of the distances' ranks, in grid steps."""
        ranks = self.plan.rank_grid.double()
        total = counts.sum(-1)
        mean = (counts * ranks).sum(-1) / total
        return mean, (counts * (ranks - mean[..., None]) ** 2).sum(-1)


def curve_correlation(curve: Float[Tensor, "*lead distance"]) -> Float64[Tensor, "*lead"]:
    """Spearman's rho between distance and a curve over it, leaving out distances without a value."""
    rows = curve.reshape(-1, curve.shape[-1]).double()
    rho = torch.full((rows.shape[0],), torch.nan, dtype=torch.float64)
    known = ~rows.isnan()
    for mask in torch.unique(known, dim=0):  # heads of one layer share theirs
        alike = (known == mask).all(1)
        ranks = torch.from_numpy(rankdata(rows[alike][:, mask].numpy(), axis=1)).double()
        distance = torch.arange(ranks.shape[1], dtype=torch.float64)
        ranks, distance = ranks - ranks.mean(1, keepdim=True), distance - distance.mean()
        rho[alike] = (ranks @ distance) / (ranks.square().sum(1) * distance.square().sum()).sqrt()
    return rho.reshape(curve.shape[:-1])


def _spearman(
    pairs: Float64[Tensor, "*lead bin"],
    rank_sums: Float64[Tensor, "*lead bin"],
    rank_mean: Float64[Tensor, "*#lead"],
    rank_squares: Float64[Tensor, "*#lead"],
) -> Float64[Tensor, "*lead"]:
    ranks = _mid_ranks(pairs) - pairs.sum(-1, keepdim=True) / 2
    covariance = (ranks * (rank_sums - pairs * rank_mean[..., None])).sum(-1)
    squares = (pairs * ranks**2).sum(-1)
    rho = covariance / (squares * rank_squares).sqrt()
    return torch.where((squares > 0) & (rank_squares > 0), rho, torch.nan)


def _mid_ranks(pairs: Float64[Tensor, "*lead bin"]) -> Float64[Tensor, "*lead bin"]:
    """Mid-rank of each bin, from zero: the pairs below, and half of its own."""
    return pairs.cumsum(-1) - pairs / 2
