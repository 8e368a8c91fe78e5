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
FEWEST_SHUFFLES = 4
"""Shuffles below which a head that does not beat its null shows nothing."""


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


def verdict(
    q_values: Float[Tensor, "layer head"] | None,
    excess: Float[Tensor, "layer head"] | None,
    rho: Float[Tensor, "layer head"],
    alpha: float,
    n_groups: int,
    repeats: int,
    *,
    monotonous: tuple[int, int] = (0, 1),
) -> str:
    """What the scores do and do not show, in words.

    Args:
        q_values: Of each head's excess; None without a null.
        excess: Of rho over its null; None without one.
        rho: Score of each head, NaN where undefined.
        alpha: False discovery rate.
        n_groups: Groups of sequences.
        repeats: Shuffles of the null.
        monotonous: In how many sequences one token fills half or more, and how many there are.
    """
    said = _findings(q_values, excess, rho, alpha, n_groups, repeats)
    if monotonous[0]:
        said += (
            f" In {monotonous[0]} of {monotonous[1]} sequences one token fills half or more: content hardly varies "
            "there, and rho says what position alone does to this model, not how it treats text."
        )
    return said


def _findings(
    q_values: Float[Tensor, "layer head"] | None,
    excess: Float[Tensor, "layer head"] | None,
    rho: Float[Tensor, "layer head"],
    alpha: float,
    n_groups: int,
    repeats: int,
) -> str:
    heads = int((~rho.isnan()).sum())
    if heads == 0:
        return "No head has a defined score: nothing can be said about this model on this text."
    if q_values is None or excess is None:
        return (
            f"{heads} heads scored, without a null model: geometry alone can correlate D with distance, so a high rho "
            "is not yet evidence. Score again with null_repeats=20."
        )
    significant = (q_values <= alpha) & (excess > 0)
    found = int(significant.sum())
    unit = f"{n_groups} groups of sequences" if n_groups > 1 else "a single sequence (no spread over sequences known)"
    basis = f"at a false discovery rate of {alpha:g}, over {unit}"
    if found == 0 and (repeats < FEWEST_SHUFFLES or n_groups < FEWEST_UNITS):
        return (
            f"Undecided: none of {heads} heads beats its null ({basis}), but {repeats} shuffles and "
            f"{n_groups} group{'s' * (n_groups > 1)} of sequences are too few to see one that does. Score again with "
            "null_repeats=20 and at least 8 sequences."
        )
    if found == 0:
        return (
            f"No head beats its null: of {heads} heads, none correlates dominant dimension with distance more than the "
            f"same content at shuffled positions does ({basis}). Do not read the ranking as Positional Heads."
        )
    rising = significant & (rho > 0)
    others = found - int(rising.sum())
    no_score = f"{others} more" if others < found else f"{others} of {heads} heads"
    no_score += f" {'have' if others > 1 else 'has'} a significant excess but rho of 0 or less: no Positional Heads"
    if others == found:
        return f"No head with a positive rho beats its null ({basis}); {no_score}."
    largest = float(excess[rising].max())
    return (
        f"{found - others} of {heads} heads beat their null with a positive rho ({basis}); "
        f"{no_score + '; ' if others else ''}the largest excess of rho over shuffled "
        f"positions is {largest:.3f}. Leading positions differ in content even in an untrained model: see that this "
        "stays with skip_keys=64. And it is correlation: masking these heads must hurt long-range tasks before they "
        "are shown to carry distance."
    )
