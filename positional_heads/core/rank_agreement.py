"""How far two rankings of the same heads agree: rank correlation and its noise, shared top heads against chance."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from scipy import stats
from torch import Tensor

from positional_heads.core.statistics import FEWEST_UNITS


class RankAgreement(NamedTuple):
    """Rank correlation of two scorings over heads.

    Attributes:
        correlation: Spearman's, of the scores as they are: noise in either lowers it.
        low: Lower end of the interval over sequences; NaN without resamples.
        high: Its upper end.
        ceiling: What it would be if nothing but the sequences differed, of the excess at least; NaN if not known.
    """

    correlation: float
    low: float = math.nan
    high: float = math.nan
    ceiling: float = math.nan


class SharedTop(NamedTuple):
    """Heads that two rankings share among their top ones.

    Attributes:
        k: Number of top heads of each.
        shared: Heads among both.
        expected: How many two random rankings share.
        jaccard: Shared heads over heads in either.
        p_value: Chance that two random rankings share as many or more, exactly (hypergeometric).
    """

    k: int
    shared: int
    expected: float
    jaccard: float
    p_value: float


def row_correlations(some: Float64[Tensor, "row head"], others: Float64[Tensor, "row head"]) -> Float64[Tensor, " row"]:
    """Spearman's correlation of each row of one with the same row of the other; NaN where one is constant."""
    ranks = [torch.from_numpy(stats.rankdata(rows.numpy(), axis=1)).double() for rows in (some, others)]
    mine, other = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    return (mine * other).sum(1) / (mine.square().sum(1) * other.square().sum(1)).sqrt()


def rank_agreement(
    scores: tuple[Float64[Tensor, " head"], Float64[Tensor, " head"]],
    resamples: tuple[Float64[Tensor, "some head"], Float64[Tensor, "others head"]],
    groups: tuple[int, int],
    *,
    paired: bool,
    level: float = 0.95,
) -> RankAgreement:
    """Spearman's correlation with an interval over sequences: Student's t on the variance over resamples.

    Resampled scores are noisier than the scores, so their correlations are lower: they give the width of the interval
    and not its middle.

    Args:
        scores: Scores of heads that both have.
        resamples: The same over resampled sequences.
        groups: Groups of sequences of each.
        paired: Whether row by row both resample the same sequences.
        level: Coverage.
    """
    correlation = float(row_correlations(scores[0][None], scores[1][None])[0])
    fewest = min(groups)
    if fewest < FEWEST_UNITS:
        return RankAgreement(correlation)
    rows = min(map(len, resamples))
    some, others = (one[:rows] for one in resamples)
    # With one seed, row r draws the same numbers of both: if they are other sequences, pairing would invent a
    # correlation. A row and the next one are independent.
    resampled = row_correlations(some, others if paired else others.roll(1, 0))
    half = float(stats.t.ppf((1 + level) / 2, fewest - 1)) * float(resampled.std()) * math.sqrt(fewest / (fewest - 1))
    low, high = max(-1.0, correlation - half), min(1.0, correlation + half)
    ceiling = math.nan if paired else math.sqrt(math.prod(map(reliability, resamples, groups)))
    return RankAgreement(correlation, low, high, ceiling)


def reliability(resamples: Float64[Tensor, "resample head"], groups: int) -> float:
    """Rank correlation to expect of two scorings of other sequences of the same kind, from resamples of one.

    Two resamples correlate as v / (v + s), where v is the variance of the scores over heads and s that of their noise.
    The scores have that noise too, so two scorings correlate as (v - s) / v.

    Args:
        resamples: Scores of heads over resampled sequences.
        groups: Groups of sequences; resamples understate the noise by (groups - 1) / groups.
    """
    correlation = float(row_correlations(resamples, resamples.roll(1, 0)).mean())
    noise = (1 / correlation - 1) * groups / (groups - 1) if correlation > 0 else math.inf
    return max(0.0, 1 - noise)


def shared_top(some: Float64[Tensor, " head"], others: Float64[Tensor, " head"], k: int) -> SharedTop:
    """Heads that two scorings share among the k highest.

    Args:
        some: Scores of heads that both have.
        others: The other scores of the same heads.
        k: Number of top heads, at least 1.
    """
    top, other = (set(np.argsort(-scores.numpy(), kind="stable")[:k].tolist()) for scores in (some, others))
    n, shared = len(some), len(top & other)
    p_value = float(stats.hypergeom.sf(shared - 1, n, k, k))
    return SharedTop(k, shared, k * k / n, shared / (2 * k - shared), p_value)
