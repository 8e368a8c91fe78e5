"""Statistics of scores and of ablations: p-values, intervals and rank correlations.

Query-key pairs of one sequence are not independent, so a p-value over a million of them means nothing. For scores the
independent units are sequences, and the null is the same content at shuffled positions (docs/equations.md, section 4).
For ablations each set of heads is ablated on the same units, so a unit's difficulty drops out of every paired
difference; answers within a unit are averaged first.
"""

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from scipy import stats
from torch import Tensor

from positional_heads.core.heads import Head

FEWEST_UNITS = 4
"""Independent units below which no interval is given: with three, an interval of the right coverage is infinite."""
RESAMPLES = 2000
KEPT_DRAWS, LARGEST_KEPT = 4, 2**21
"""Draws that are kept, and numbers of the largest: rows of a table have as many units each, and drawing is slow."""


def bootstrap_weights(n_groups: int, resamples: int, seed: int) -> Float64[Tensor, "resample group"]:
    """How often each group of sequences is drawn in each resample, with replacement."""
    return _kept(_counts, n_groups, resamples, seed)


def _kept(draw: Callable[[int, int, int], Any], units: int, resamples: int, seed: int) -> Float64[Tensor, "resample _"]:
    """A draw, as a tensor of the caller's own; the last small ones are kept, and large ones drawn anew."""
    small = units * resamples <= LARGEST_KEPT
    return torch.from_numpy(_last_draws(draw, units, resamples, seed).copy() if small else draw(units, resamples, seed))


@lru_cache(maxsize=KEPT_DRAWS)
def _last_draws(draw: Callable[[int, int, int], Any], units: int, resamples: int, seed: int) -> Any:
    return draw(units, resamples, seed)


def _counts(units: int, resamples: int, seed: int) -> Any:
    """How often each unit is drawn, as an array of [resample unit]."""
    drawn = np.random.default_rng([seed, units]).multinomial(units, np.full(units, 1 / units), size=resamples)
    return drawn.astype(np.float64)


def _continuous(units: int, resamples: int, seed: int) -> Any:
    """Dirichlet weights of units and of one more, as an array of [resample unit]."""
    return np.random.default_rng([seed, units]).dirichlet(np.ones(units + 1), size=resamples)


def excess_p_values(
    rho: Float[Tensor, "*resample layer head"],
    null_rho: Float[Tensor, "repeat layer head"],
    sampling_variance: Float[Tensor, "layer head"] | None,
    n_groups: int,
) -> Float64[Tensor, "*resample layer head"]:
    """One-sided p-value of each head's excess over its shuffled null, by a t test on both sources of chance.

    The excess rho - mean(null) varies with the shuffles (variance of the null, for predicting one more draw) and with
    the sequences (bootstrap variance). Welch's degrees of freedom combine the two.

    Args:
        rho: Score of each head, or of each head in resamples, which are tested as if each were the sample.
        null_rho: Scores with positions shuffled; at least 2 repeats.
        sampling_variance: Bootstrap variance of rho over sequences, or None with a single sequence.
        n_groups: Number of independent groups of sequences behind that variance.
    """
    repeats = null_rho.shape[0]
    shuffles = null_rho.double().var(0) * (1 + 1 / repeats)
    sequences = torch.zeros_like(shuffles) if sampling_variance is None else sampling_variance.double()
    variance, freedom = added_variances((shuffles, repeats - 1), (sequences, max(n_groups - 1, 1)))
    t = (rho.double() - null_rho.double().mean(0)) / variance.sqrt()
    return torch.from_numpy(np.asarray(stats.t.sf(t.numpy(), freedom.numpy()), dtype=np.float64))


def added_variances(
    *parts: tuple[Float64[Tensor, "*shape"], int],
) -> tuple[Float64[Tensor, "*shape"], Float64[Tensor, "*shape"]]:
    """Variance of a sum of independent parts, and its degrees of freedom by Welch and Satterthwaite.

    Args:
        *parts: An estimated variance, and the degrees of freedom that it was estimated with.
    """
    variance = torch.stack([part for part, _ in parts]).sum(0)
    return variance, variance**2 / torch.stack([part**2 / freedom for part, freedom in parts]).sum(0)


def benjamini_hochberg(p_values: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """P-values adjusted for the number of heads, controlling the false discovery rate; NaN stays NaN."""
    adjusted = torch.full(p_values.shape, torch.nan, dtype=torch.float64)
    defined = ~p_values.isnan()
    if defined.any():
        adjusted[defined] = torch.from_numpy(stats.false_discovery_control(p_values[defined].double().numpy()))
    return adjusted


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's method: the chance of one false claim among them all; in the order given.

    The smallest is multiplied by their number, the next by one less, and so on; none is below an earlier one, or
    above 1.
    """
    adjusted, largest, tried = [1.0] * len(p_values), 0.0, len(p_values)
    for place, number in enumerate(sorted(range(tried), key=p_values.__getitem__)):
        largest = max((tried - place) * p_values[number], largest)
        adjusted[number] = min(largest, 1.0)
    return adjusted


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
    differences: Float64[Tensor, "*batch unit"],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    *,
    bounds: tuple[float, float] | None = None,
) -> Float64[Tensor, "*batch 2"]:
    """Interval of the mean over units; NaN below `FEWEST_UNITS` of them.

    Without bounds this is the bootstrap-t (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section
    5), which is infinite where too few units differ. With bounds, which right and wrong answers have, it is Gaffke's
    interval (Learned-Miller and Thomas, arXiv 1905.06208): resampled with continuous weights and one more unit at the
    bound. For zeros and ones it is the interval of Clopper and Pearson, and it is valid where all units agree.

    Args:
        differences: One paired difference per unit.
        level: Coverage, between 0 and 1.
        resamples: Number of resamples.
        seed: Seed of the resamples.
        bounds: Lowest and highest possible value of a unit; None for no bounds.

    Raises:
        ValueError: If the level is not between 0 and 1, or a unit lies outside the bounds.
    """
    if not 0 < level < 1:
        msg = f"level {level} must be between 0 and 1, e.g. 0.95"
        raise ValueError(msg)
    units = differences.shape[-1]
    if units < FEWEST_UNITS:
        return torch.full((*differences.shape[:-1], 2), torch.nan, dtype=torch.float64)
    tails = (1 - level) / 2, (1 + level) / 2
    if bounds is None:
        low, high = _studentized(differences, tails, resamples, seed)
    else:
        low, high = _bounded(differences, tails, resamples, seed, bounds)
    return torch.stack([low, high], dim=-1)


def _studentized(
    differences: Float64[Tensor, "*batch unit"], tails: tuple[float, float], resamples: int, seed: int
) -> tuple[Float64[Tensor, "*batch"], Float64[Tensor, "*batch"]]:
    """Bootstrap-t: deviations of resampled means from the mean, in standard deviations of their own resample."""
    mean = differences.mean(-1)
    away = differences - mean[..., None]
    weights = bootstrap_weights(differences.shape[-1], resamples, seed).T / differences.shape[-1]
    moved, spread = away @ weights, away.std(-1, correction=0)
    own = ((away**2) @ weights - moved**2).clamp(min=0).sqrt()
    same = own <= 1e-7 * spread[..., None]  # up to rounding, the resample drew units of one value
    t = torch.where(same, torch.where(moved == 0, 0.0, moved.sign() * torch.inf), moved / own)
    low, high = (_quantile(t, tail, method) for tail, method in zip(tails, ("lower", "higher"), strict=True))
    constant = spread <= 1e-12 * mean.abs()
    return tuple(torch.where(constant, mean, mean - end * spread) for end in (high, low))  # type: ignore[return-value]


def _bounded(
    differences: Float64[Tensor, "*batch unit"],
    tails: tuple[float, float],
    resamples: int,
    seed: int,
    bounds: tuple[float, float],
) -> tuple[Float64[Tensor, "*batch"], Float64[Tensor, "*batch"]]:
    """Gaffke's interval: the mean under Dirichlet weights, with one more unit at the bound."""
    units = differences.shape[-1]
    # the tolerance is for means of zeros and ones, which rounding may put past a bound
    if float(differences.min()) < bounds[0] - 1e-9 or float(differences.max()) > bounds[1] + 1e-9:
        msg = f"a unit lies outside of {bounds[0]:g} to {bounds[1]:g}: omit bounds if there are none"
        raise ValueError(msg)
    weights = _kept(_continuous, units, resamples, seed)
    own, at_bound = differences @ weights[:, :units].T, weights[:, units]
    low, high = (_quantile(own + bound * at_bound, tail, "linear") for bound, tail in zip(bounds, tails, strict=True))
    return low, high


def _quantile(values: Float64[Tensor, "*batch resample"], tail: float, method: str) -> Float64[Tensor, "*batch"]:
    """NumPy's quantile, because `torch.quantile` takes at most 2^24 numbers."""
    return torch.from_numpy(np.asarray(np.quantile(values.numpy(), tail, axis=-1, method=method)))  # type: ignore[call-overload]


def permutation_p(observed: float, permuted: Float64[Tensor, " permutation"]) -> float:
    """One-sided p-value: ablating these heads lowers the measure more than ablating heads of a permuted ranking.

    It is the share of permutations, the observed one included, whose effect is at least as low; ties count against the
    claim. It is valid if the ranking and its permutations are exchangeable under the null, drawn without replacement.

    Args:
        observed: Effect of the set: measure with it ablated less measure without; negative is harm.
        permuted: The same for permuted sets, which may share heads with it.
    """
    return (1 + int((permuted <= observed).sum())) / (1 + len(permuted))


def jaccard(some: Collection[Head], others: Collection[Head]) -> float:
    """Jaccard index of two sets of heads: heads in both over heads in either; NaN for two empty sets."""
    either = set(some) | set(others)
    return len(set(some) & set(others)) / len(either) if either else float("nan")


def rank_correlation(some: Float64[Tensor, " head"], others: Float64[Tensor, " head"]) -> float:
    """Spearman's rank correlation over heads where both are defined; NaN if fewer than three, or constant."""
    defined = ~(some.isnan() | others.isnan())
    some, others = some[defined], others[defined]
    if len(some) < 3 or any(bool((values == values[0]).all()) for values in (some, others)):  # noqa: PLR2004
        return float("nan")
    return float(stats.spearmanr(some.numpy(), others.numpy()).statistic)


def one_token_rules(tokens: Int[Tensor, " pos"]) -> bool:
    """Whether one token, repeated, fills half of a sequence or more, so its content hardly varies."""
    most = int(torch.bincount(tokens.long()).max())
    return most > 1 and 2 * most >= len(tokens)
