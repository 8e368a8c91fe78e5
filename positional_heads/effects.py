"""Do these heads matter more than others? Paired differences, their intervals, and a permutation test.

Everything is paired: each set of heads is ablated on the same units, so that a unit's difficulty drops out of every
difference. Units are independent of each other; answers within a unit are averaged first.
"""

from collections.abc import Collection

import numpy as np
import torch
from jaxtyping import Float64
from scipy import stats
from torch import Tensor

from positional_heads.heads import Head
from positional_heads.statistics import bootstrap_weights

RESAMPLES = 2000


def unit_means(values: Float64[Tensor, "*batch row"], units: list[int]) -> Float64[Tensor, "*batch unit"]:
    """Mean over the rows of each unit, units in the order of their numbers.

    Args:
        values: One value per row.
        units: Unit of each row.
    """
    numbers, index = np.unique(units, return_inverse=True)
    sums = torch.zeros(*values.shape[:-1], len(numbers), dtype=values.dtype)
    sums.index_add_(-1, torch.from_numpy(index), values)
    return sums / torch.from_numpy(np.bincount(index)).to(values.dtype)


def mean_interval(
    differences: Float64[Tensor, "*batch unit"], level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Float64[Tensor, "*batch 2"]:
    """Bootstrap interval of the mean over units.

    Percentiles of the resampled means, at levels widened for few units as in Hesterberg, "What Teachers Should Know
    About the Bootstrap" (2015), section 5: plain percentiles are too narrow by about (1 - 1/n)**.5 and have no tails.
    NaN with a single unit.

    Args:
        differences: One paired difference per unit.
        level: Coverage, between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Raises:
        ValueError: If the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        msg = f"level {level} must be between 0 and 1, e.g. 0.95"
        raise ValueError(msg)
    units = differences.shape[-1]
    if units < 2:  # noqa: PLR2004
        return torch.full((*differences.shape[:-1], 2), torch.nan, dtype=torch.float64)
    means = differences @ bootstrap_weights(units, resamples, seed).T / units
    tail = stats.norm.cdf(np.sqrt(units / (units - 1)) * stats.t.ppf((1 - level) / 2, units - 1))
    return torch.from_numpy(np.moveaxis(np.quantile(means.numpy(), [tail, 1 - tail], axis=-1), 0, -1).copy())


def permutation_p(observed: float, permuted: Float64[Tensor, " permutation"]) -> float:
    """One-sided p-value that ablating these heads lowers the measure more than ablating heads drawn at random does.

    The share of permutations, the observed one included, whose effect is at least as low. Valid as long as the permuted
    sets are drawn as this one would be if nothing set it apart, without replacement; ties count against it.

    Args:
        observed: Effect of the set: measure with it ablated less measure without; negative is harm.
        permuted: The same for other sets drawn at random, which may share heads with it.
    """
    return (1 + int((permuted <= observed).sum())) / (1 + len(permuted))


def jaccard(some: Collection[Head], others: Collection[Head]) -> float:
    """Overlap of two sets of heads: those in both over those in either; NaN for two empty ones."""
    either = set(some) | set(others)
    return len(set(some) & set(others)) / len(either) if either else float("nan")


def rank_correlation(some: Float64[Tensor, " head"], others: Float64[Tensor, " head"]) -> float:
    """Spearman's rank correlation over heads where both are known; NaN where that is not defined."""
    known = ~(some.isnan() | others.isnan())
    if int(known.sum()) < 3 or any(values[known].unique().numel() < 2 for values in (some, others)):  # noqa: PLR2004
        return float("nan")
    return float(stats.spearmanr(some[known].numpy(), others[known].numpy()).statistic)
