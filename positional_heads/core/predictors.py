"""Which measure of heads predicts the harm of ablating each one alone: rank correlations, and their differences.

Two things vary: which heads a model has, and on which units (examples that share content) harm was measured. Intervals
resample both, each on its own, and rank again in every resample. The spread of the resamples is taken, not their
middle: harm that is measured on resampled units is noisier than harm itself, so resampled correlations lie nearer to
zero. They are for the correlation with harm as measured on so many units; noise of the units makes that one smaller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float64, Int
from scipy import stats
from torch import Tensor

from positional_heads.core.statistics import FEWEST_UNITS, RESAMPLES, bootstrap_weights

FEWEST_HEADS = 8
"""Heads below which there is no interval, as for other rank correlations."""
PERMUTATIONS = 9999


@dataclass(frozen=True)
class Prediction:
    """How well one measure predicts harm.

    Attributes:
        correlation: Spearman's rank correlation over heads of the measure and the harm; NaN where one is constant.
        low: Lower end of its interval; NaN with few heads or units.
        high: Upper end of its interval.
        p_within: One-sided p-value over permutations of the heads of each layer: whether heads of one layer are told
            apart.
        p_all: The same over permutations of all heads: layers may be what is told apart.
        difference: Correlation minus that of the first measure.
        difference_low: Lower end of its interval.
        difference_high: Upper end of its interval.
    """

    correlation: float
    low: float
    high: float
    p_within: float
    p_all: float
    difference: float
    difference_low: float
    difference_high: float


def harm_predictions(
    measures: Mapping[str, Float64[Tensor, " head"]],
    harm: Float64[Tensor, "head unit"],
    layers: Int[Tensor, " head"],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Prediction]:
    """Rank correlation of each measure with mean harm over units, with everything that judges it.

    Args:
        measures: Measures of the same heads; the others are compared with the first.
        harm: Harm of ablating each head alone, on each unit.
        layers: Layer of each head.
        level: Coverage of the intervals, between 0 and 1.
        seed: Seed of resamples and permutations.
    """
    values = torch.stack(list(measures.values()))
    found = _standardized_ranks(values) @ _standardized_ranks(harm.mean(-1))
    spread, differing = _spreads(values, harm, seed)
    reach = NormalDist().inv_cdf((1 + level) / 2)
    middle = _on_fishers_scale(found, len(layers))
    low = torch.minimum((middle - reach * spread).tanh(), found)
    high = torch.maximum((middle + reach * spread).tanh(), found)
    apart = found - found[0]
    p_within = _p_values(values, harm.mean(-1), found, layers, seed)
    p_all = _p_values(values, harm.mean(-1), found, torch.zeros_like(layers), seed)
    columns = (found, low, high, p_within, p_all, apart, apart - reach * differing, apart + reach * differing)
    return {name: Prediction(*row) for name, row in zip(measures, torch.stack(columns, -1).tolist(), strict=True)}


def _standardized_ranks(values: Float64[Tensor, "*batch head"]) -> Float64[Tensor, "*batch head"]:
    """Mid-ranks with mean 0 and norm 1, so that a product of two is their correlation; NaN where all are equal."""
    ranks = torch.from_numpy(np.asarray(stats.rankdata(values.numpy(), axis=-1))).double()
    ranks -= ranks.mean(-1, keepdim=True)
    norm = ranks.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, ranks / norm, torch.nan)


def _spreads(
    measures: Float64[Tensor, "measure head"], harm: Float64[Tensor, "head unit"], seed: int
) -> tuple[Float64[Tensor, " measure"], Float64[Tensor, " measure"]]:
    """Standard deviation over resamples of each correlation, on Fisher's scale, and of its difference to the first."""
    heads, units = harm.shape
    if heads < FEWEST_HEADS or units < FEWEST_UNITS:
        return (torch.full((len(measures),), torch.nan, dtype=torch.float64),) * 2
    rng = np.random.default_rng([seed, heads, units])
    drawn = torch.from_numpy(rng.integers(heads, size=(RESAMPLES, heads)))
    means = bootstrap_weights(units, RESAMPLES, seed) @ harm.T / units
    harms = _standardized_ranks(means.gather(1, drawn))
    found = torch.stack([(_standardized_ranks(one[drawn]) * harms).sum(-1) for one in measures])
    # a resample in which all heads have one value says nothing
    return _sd(_on_fishers_scale(found, heads)), _sd(found - found[0])


def _on_fishers_scale(found: Float64[Tensor, "*batch"], heads: int) -> Float64[Tensor, "*batch"]:
    """Artanh of rank correlations; 1, which has none, counts as half way to the next lower one, two heads swapped."""
    largest = 1 - 6 / (heads * (heads**2 - 1))
    return found.clamp(-largest, largest).atanh()


def _sd(found: Float64[Tensor, "measure resample"]) -> Float64[Tensor, " measure"]:
    away = found - found.nanmean(-1, keepdim=True)
    return (away**2).nanmean(-1).sqrt()


def _p_values(
    measures: Float64[Tensor, "measure head"],
    harm: Float64[Tensor, " head"],
    found: Float64[Tensor, " measure"],
    groups: Int[Tensor, " head"],
    seed: int,
) -> Float64[Tensor, " measure"]:
    """Share of permutations within groups, the observed order included, that correlate at least as highly."""
    keys = torch.from_numpy(np.random.default_rng([seed, 1]).random((PERMUTATIONS, len(harm))))
    # in order of their group and then of a random key, heads take each other's places within their group
    own = groups.argsort(stable=True)
    order = own[(groups[own] + keys).argsort(-1)]
    permuted = torch.empty_like(keys)
    permuted[:, own] = _standardized_ranks(harm)[order]
    by_chance = permuted @ _standardized_ranks(measures).T
    at_least = (by_chance >= found - 1e-12).sum(0)  # up to rounding
    return torch.where(found.isnan(), torch.nan, (1 + at_least).double() / (1 + PERMUTATIONS))
