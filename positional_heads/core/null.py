"""Spearman's rho of every shuffle of a layer, from sums that add up over sequences, processes and machines.

See docs/equations.md, section 4. The sums are those of `correlation`, for each shuffle. Shuffles may be sampled
(`shuffles.ShufflePlan`): then the two halves of each sample, drawn independently, show the error of its rho.
"""

from dataclasses import dataclass, fields

from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.binning import BinLookup
from positional_heads.core.correlation import rank_moments, spearman
from positional_heads.core.kernels.sums import DIMENSION_SCALE, ShuffleSums
from positional_heads.core.shuffles import HALVES, ShufflePlan


@dataclass(frozen=True)
class NullSums:
    """Sums over the shuffles of one layer, and their statistics once every sequence has been counted.

    Attributes:
        plan: Which entries of each shuffle count.
        bins: Bins of D, those of the sums at own positions.
        sums: The sums.
    """

    plan: ShufflePlan
    bins: BinLookup
    sums: ShuffleSums

    @classmethod
    def empty(cls, plan: ShufflePlan, bins: BinLookup) -> "NullSums":
        """Nothing counted."""
        halves = 0 if plan.step is None else HALVES
        return cls(plan, bins, ShuffleSums.zeros(plan.repeats, halves, plan.entries.distances, bins))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The sums by name."""
        return {field.name: getattr(self.sums, field.name) for field in fields(self.sums)}

    def refuse_incomplete(self) -> None:
        """Refuse sums that lack entries, or hold some twice.

        Raises:
            RuntimeError: If the entries at a distance are not as many as planned.
        """
        missing = self.plan.entry_counts - self.sums.distance_counts.cpu()
        if missing.any():
            shuffle, distance = divmod(int(missing.abs().argmax()), missing.shape[1])
            msg = (
                f"shuffle {shuffle} has {int(self.plan.entry_counts[shuffle, distance])} query-key pairs at distance "
                f"{distance}, {int(self.sums.distance_counts[shuffle, distance])} were counted: add the missing shards "
                "first"
            )
            raise RuntimeError(msg)

    @property
    def rho(self) -> Float64[Tensor, "shuffle head"]:
        """Spearman's rho of each shuffle, ties by mid-rank; NaN where distance or D does not vary."""
        return self._rho(self.sums.entries, self.sums.rank_sums, self.plan.entry_counts)

    @property
    def sampling_sd(self) -> Float64[Tensor, " head"] | None:
        """Standard error that sampling adds to the rho of one shuffle; None where all entries count.

        Half the difference of two independent halves estimates the error of their mean, with one degree of freedom. All
        shuffles have the same error, so their estimates are pooled.
        """
        if self.plan.step is None:
            return None
        halves = self._rho(self.sums.half_entries, self.sums.half_rank_sums, self.plan.half_entry_counts)
        return ((halves[:, 0] - halves[:, 1]) / 2).square().mean(0).sqrt()

    @property
    def curve(self) -> Float64[Tensor, "shuffle head distance"]:
        """Mean dominant dimension of each shuffle at each distance; NaN where no entry counts."""
        return self.sums.dimension_sums.cpu().double() / DIMENSION_SCALE / self.plan.entry_counts[:, None].double()

    @property
    def pooled_curve(self) -> Float64[Tensor, "head distance"]:
        """Mean dominant dimension at each distance over the entries of all shuffles; NaN where no entry counts."""
        counts = self.plan.entry_counts.sum(0).double()
        return self.sums.dimension_sums.cpu().double().sum(0) / DIMENSION_SCALE / counts

    def _rho(self, entries: Tensor, rank_sums: Tensor, counts: Tensor) -> Float64[Tensor, "*lead head"]:
        mean, squares = rank_moments(counts.double(), self.plan.entries.rank_grid.double())
        return spearman(entries.cpu().double(), rank_sums.cpu().double(), mean[..., None], squares[..., None])
