"""Intervals of ratios of sums over groups of sequences, of which each head has its own: some have no weight for it."""

import torch
from jaxtyping import Float64, Int
from scipy import stats
from torch import Tensor

from positional_heads.core.statistics import FEWEST_UNITS, RESAMPLES, bootstrap_weights


def weighted_groups(weights: Float64[Tensor, "_group layer head"]) -> Int[Tensor, "layer head"]:
    """Number of groups that each head's ratio rests on: those with weight."""
    return (weights > 0).sum(0)


def ratio_interval(
    sums: Float64[Tensor, "_group layer head"], weights: Float64[Tensor, "_group layer head"], level: float
) -> Float64[Tensor, "layer head 2"]:
    """Interval of sum over weight: Student's t on the bootstrap's variance over the groups that have weight.

    A group without weight for a head, such as a sequence that is too short for a range, says nothing of it: the ratio
    does not use it, and neither do the resamples. NaN for heads with fewer than 4 groups, and for those of which all
    groups say the same, such as 5 of 5 copied passkeys: they do not show how far off another would be.

    Args:
        sums: Sum of a measure over each group.
        weights: What the sums are divided by.
        level: Coverage, between 0 and 1.
    """
    half = torch.full(weights.shape[1:], torch.nan, dtype=torch.float64)
    counted, which = torch.unique((weights > 0).flatten(1).T, dim=0, return_inverse=True)
    for number, groups in enumerate(counted):
        n_groups, heads = int(groups.sum()), (which == number).view(half.shape)
        if n_groups < FEWEST_UNITS:
            continue
        drawn = bootstrap_weights(n_groups, RESAMPLES, 0)
        above, below = (drawn @ values[groups][:, heads] for values in (sums, weights))
        variance = (above / below).var(0) * n_groups / (n_groups - 1)
        ratios = sums[groups][:, heads] / weights[groups][:, heads]
        variance[(ratios == ratios[0]).all(0)] = torch.nan
        half[heads] = stats.t.ppf((1 + level) / 2, n_groups - 1) * variance.sqrt()
    values = sums.sum(0) / weights.sum(0)
    return torch.stack([values - half, values + half], dim=-1)
