"""Is a head's score more than geometry and luck? Nulls, intervals, p-values and a verdict in words.

Pairs within a sequence are not independent: a p-value over a million of them means nothing. The independent units are
sequences, and the null is the same content at shuffled positions (method section 4).
"""

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from scipy import stats
from torch import Tensor

FEWEST_UNITS = 4
"""Independent units below which no interval is given: with three, one that covers what it says has no end."""


def bootstrap_weights(n_groups: int, resamples: int, seed: int) -> Float64[Tensor, "resample group"]:
    """How often each group of sequences is drawn in each resample, with replacement."""
    rng = np.random.default_rng([seed, n_groups])
    return torch.from_numpy(rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples)).double()


def excess_p_values(
    rho: Float[Tensor, "layer head"],
    null_rho: Float[Tensor, "repeat layer head"],
    sampling_variance: Float[Tensor, "layer head"] | None,
    n_groups: int,
) -> Float64[Tensor, "layer head"]:
    """One-sided p-value of each head's excess over its shuffled null, by a t test on both sources of chance.

    The excess rho - mean(null) varies with the shuffles drawn (sd of the null, predicting one more draw) and with the
    sequences drawn (bootstrap variance); Welch's degrees of freedom combine the two.

    Args:
        rho: Score of each head.
        null_rho: Scores with positions shuffled; at least 2 repeats.
        sampling_variance: Bootstrap variance of rho over sequences, or None with a single sequence.
        n_groups: Number of independent groups of sequences behind that variance.
    """
    repeats = null_rho.shape[0]
    shuffles = null_rho.double().var(0) * (1 + 1 / repeats)
    sequences = torch.zeros_like(shuffles) if sampling_variance is None else sampling_variance.double()
    variance = shuffles + sequences
    freedom = variance**2 / (shuffles**2 / (repeats - 1) + sequences**2 / max(n_groups - 1, 1))
    t = (rho.double() - null_rho.double().mean(0)) / variance.sqrt()
    return torch.from_numpy(np.asarray(stats.t.sf(t.numpy(), freedom.numpy()), dtype=np.float64))


def benjamini_hochberg(p_values: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """P-values adjusted for the number of heads, controlling the false discovery rate; NaN stays NaN."""
    adjusted = torch.full(p_values.shape, torch.nan, dtype=torch.float64)
    known = ~p_values.isnan()
    if known.any():
        adjusted[known] = torch.from_numpy(stats.false_discovery_control(p_values[known].double().numpy()))
    return adjusted


def one_token_rules(tokens: Int[Tensor, " pos"]) -> bool:
    """Whether one token, repeated, fills half of a sequence or more, so that its content hardly varies."""
    most = int(torch.bincount(tokens.long()).max())
    return most > 1 and 2 * most >= len(tokens)
