"""Does a head move its dominant dimension with distance? Spearman's rho over all pairs, streamed and merged exactly.

Method section 4. The ranks of all distances are known in closed form before a pair is seen, because a sequence of n
tokens has n - t pairs at distance t. So two sums per bin of D and head suffice: how many pairs fell into the bin, and
the sum of their distances' ranks. The ranks of D follow from the counts. Everything kept is an integer (ranks and D in
fixed point), so that tiles, sequences, processes and machines add up to the very same numbers in any order.

Conventions that bite: distance = query_pos - key_pos >= 0, in tokens; a window of W lets a query see distances 0 to
W - 1; `skip_keys` drops the first keys of each sequence; `min_distance` and `max_distance` are both inclusive.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy.stats import spearmanr
from torch import Tensor

from positional_heads.binning import BinLookup, refuse_not_finite, single_valued

RANK_SCALE = 2.0**31
"""A distance's mid-rank, as a fraction of all pairs, is kept in steps of 2^-31; a bin holds up to 2^32 pairs."""
DIMENSION_SCALE = 2.0**24
"""D is summed in steps of 2^-24, a float32's own precision at 1."""
COARSE_BINS = 64
"""Bins kept per group of sequences, for resampling: enough for an interval, not for the estimate itself."""


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


class PairStatistics:
    """Sums over the pairs of one layer: folds tiles of D in, adds to others, and is judged by `Correlation`."""

    def __init__(self, plan: PairPlan, edges: Float[Tensor, "head edge"]) -> None:
        """Start empty.

        Args:
            plan: Which pairs will be counted.
            edges: Bin edges of D per head, see `binning.equal_mass_edges`.

        Raises:
            ValueError: If the number of bins is not a multiple of `COARSE_BINS`.
        """
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
        self.group_pairs = zeros((plan.n_groups, heads, COARSE_BINS))
        self.group_rank_sums = zeros((plan.n_groups, heads, COARSE_BINS))
        self._rank_grid = plan.rank_grid.to(edges.device)
        self._bins = BinLookup(edges)

    @property
    def tensors(self) -> dict[str, Int[Tensor, "..."]]:
        """The sums by name."""
        names = ("pairs", "rank_sums", "counted", "dimension_sums", "group_pairs", "group_rank_sums")
        return {name: getattr(self, name) for name in names}

    def update(self, dominant: Float[Tensor, "head pair"], distance: Int[Tensor, " pair"], sequence: int) -> None:
        """Count the pairs of one tile of one sequence; at most 2^20 pairs, so that float64 sums stay exact.

        Args:
            dominant: Dominant dimension of every pair, per head.
            distance: Distance of every pair in tokens; only pairs that the plan counts.
            sequence: Which sequence of the plan they come from.

        Raises:
            ValueError: If the tile is too large, or D is not finite.
        """
        if distance.numel() > 2**20:
            msg = f"a tile of {distance.numel()} pairs is too large: 2^20 at most"
            raise ValueError(msg)
        refuse_not_finite(dominant)
        heads, bins = self.pairs.shape
        row = torch.arange(heads, device=dominant.device)[:, None]
        bin_of = (self._bins(dominant) + row * bins).flatten()
        ranks = self._rank_grid[distance].double().expand(heads, -1).flatten()
        pairs = torch.bincount(bin_of, minlength=heads * bins).view(heads, bins)
        rank_sums = torch.bincount(bin_of, weights=ranks, minlength=heads * bins).long().view(heads, bins)
        cell = (distance + row * self.plan.distances).flatten()
        fixed = (dominant.double() * DIMENSION_SCALE).round().flatten()
        self.pairs += pairs
        self.rank_sums += rank_sums
        self.counted += torch.bincount(distance, minlength=self.plan.distances)
        self.dimension_sums += (
            torch.bincount(cell, weights=fixed, minlength=heads * self.plan.distances).long().view(heads, -1)
        )
        group = self.plan.group(sequence)
        self.group_pairs[group] += pairs.view(heads, COARSE_BINS, -1).sum(-1)
        self.group_rank_sums[group] += rank_sums.view(heads, COARSE_BINS, -1).sum(-1)

    def __add__(self, other: "PairStatistics") -> "PairStatistics":
        """The statistics over both sets of pairs, exactly as if one had counted them all.

        Raises:
            ValueError: If the two were planned or binned differently.
        """
        if self.plan != other.plan or not torch.equal(self.edges, other.edges):
            msg = "statistics of different plans or bins cannot be added: score both with one plan"
            raise ValueError(msg)
        total = PairStatistics(self.plan, self.edges)
        for name, tensor in total.tensors.items():
            tensor.copy_(self.tensors[name] + other.tensors[name])
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
        return Correlation(self.plan, **{name: tensor.cpu() for name, tensor in self.tensors.items()}, edges=self.edges)


@dataclass(frozen=True)
class Correlation:
    """Rank correlations of distance and dominant dimension for the heads of one layer."""

    plan: PairPlan
    pairs: Int[Tensor, "head bin"]
    rank_sums: Int[Tensor, "head bin"]
    counted: Int[Tensor, " distance"]
    dimension_sums: Int[Tensor, "head distance"]
    group_pairs: Int[Tensor, "group head coarse"]
    group_rank_sums: Int[Tensor, "group head coarse"]
    edges: Float[Tensor, "head edge"]

    @cached_property
    def rho(self) -> Float64[Tensor, " head"]:
        """Spearman's rho over all pairs, ties by mid-rank; NaN where distance or D does not vary."""
        counts = self.plan.pair_counts.double()
        return _spearman(self.pairs.double(), self.rank_sums.double(), *self._rank_moments(counts))

    @property
    def bound(self) -> Float64[Tensor, " head"]:
        """How far rho can be from Spearman's rho on unbinned D, at the very worst (derivation: docs/statistics.md)."""
        pairs = self.pairs.double()
        total = pairs.sum(-1)
        between = (pairs * (_mid_ranks(pairs) - total[:, None] / 2) ** 2).sum(-1)
        within = ((pairs**3 - pairs) / 12).masked_fill(single_valued(self.edges.cpu()), 0).sum(-1)
        share = within / (between + within)
        rho = self.rho.abs().clamp(max=1)
        return rho * (1 - (1 - share).sqrt()) + share.sqrt() * (1 - rho**2).sqrt()

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

    def _rank_moments(self, counts: Float[Tensor, "*lead distance"]) -> tuple[Tensor, Tensor]:
        """Mean and sum of squares about it of the distances' ranks, in grid steps."""
        ranks = self.plan.rank_grid.double()
        total = counts.sum(-1)
        mean = (counts * ranks).sum(-1) / total
        return mean, (counts * (ranks - mean[..., None]) ** 2).sum(-1)


def curve_correlation(curve: Float[Tensor, "*lead distance"]) -> Float64[Tensor, "*lead"]:
    """Spearman's rho between distance and a curve over it, leaving out distances without a value."""
    rows = curve.reshape(-1, curve.shape[-1])
    rho = torch.full((rows.shape[0],), torch.nan, dtype=torch.float64)
    for row, values in enumerate(rows):
        known = ~values.isnan()
        if int(known.sum()) > 1 and values[known].min() < values[known].max():
            distance = torch.arange(values.numel())[known]
            rho[row] = float(spearmanr(distance.numpy(), values[known].numpy()).statistic)
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
