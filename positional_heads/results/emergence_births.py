"""When heads and a skill are above their thresholds during training, in the sample and in resamples of it.

Heads are resampled by sequences, all of a checkpoint's heads and all checkpoints together: the same sequences are drawn
everywhere. A skill is resampled by the units of its task, and retrieval by its examples, each independently.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float64, Int
from scipy import stats
from torch import Tensor

from positional_heads.core.arguments import in_range
from positional_heads.core.births import birth_ends, births
from positional_heads.core.statistics import (
    FEWEST_UNITS,
    bootstrap_weights,
    excess_p_values,
    mean_interval,
    unit_means,
)
from positional_heads.results.scores import HeadScores

HeadMeasure = Literal["excess", "rho", "retrieval"]
SkillRule = Literal["half-way", "above chance"]
SKILL_RULES: tuple[SkillRule, ...] = ("half-way", "above chance")
THRESHOLDS = {"rho": 0.2, "retrieval": 0.1}
"""Least value that counts, where none is given; 0.1 is Wu et al.'s for retrieval heads (arXiv 2404.15574)."""
BORN = {
    "excess": "beat their null",
    "rho": "have a rho of at least {:g}",
    "retrieval": "have a retrieval score of at least {:g}",
}
"""What heads do from their birth on, by measure."""
SKILL_SEED, TRIAL_SEED = 1, 2
"""Seeds of resamples that are independent of those of the sequences, which have the seed of the scores."""


def check_threshold(measure: HeadMeasure, threshold: float | None) -> None:
    """Refuse a threshold that the measure has no use for, or cannot reach.

    Raises:
        ValueError: If it is one.
    """
    if threshold is not None and measure == "excess":
        msg = "threshold goes with rho and retrieval: an excess counts where it is significant"
        raise ValueError(msg)
    in_range("threshold", threshold, -1 if measure == "rho" else 0, 1)


@dataclass(frozen=True)
class Crossings:
    """Whether a measure is above its threshold at each checkpoint.

    Attributes:
        above: In the sample.
        resampled: In each resample; None below four independent units.
        known: Where resamples show how far off another sample would be: not where all units say the same.
    """

    above: Bool[Tensor, "checkpoint *shape"]
    resampled: Bool[Tensor, "checkpoint resample *shape"] | None
    known: Bool[Tensor, "*shape"]

    @property
    def births(self) -> Int[Tensor, "*shape"]:
        """The checkpoint of each birth; the number of checkpoints where there is none."""
        return births(self.above)

    @property
    def resampled_births(self) -> Int[Tensor, "resample *shape"] | None:
        """The same in each resample."""
        return None if self.resampled is None else births(self.resampled)

    def ends(self, level: float) -> tuple[Int[Tensor, "*shape"], Int[Tensor, "*shape"]] | None:
        """Both ends of the interval of each birth; None without resamples."""
        resampled = self.resampled_births
        return None if resampled is None else birth_ends(resampled, level)


def excess_crossings(scores: Sequence[HeadScores], alpha: float) -> Crossings:
    """Which heads beat their null, as `HeadScores.beats_null` tests it, at each checkpoint.

    In a resample rho is that of the drawn sequences; the null, its shuffles and the standard error stay the sample's.

    Raises:
        ValueError: If there is no null, or the rate is out of range.
    """
    above = torch.stack([one.beats_null(alpha) for one in scores])
    return _crossings(scores, above, lambda one, rho: _beats_null(one, rho, alpha))


def rho_crossings(scores: Sequence[HeadScores], threshold: float) -> Crossings:
    """Which heads have a rho of at least a threshold at each checkpoint."""
    above = torch.stack([one.rho >= threshold for one in scores])
    return _crossings(scores, above, lambda _, rho: rho >= threshold)


def retrieval_crossings(
    retrieval: Float64[Tensor, "checkpoint trial layer head"], threshold: float, resamples: int
) -> Crossings:
    """Which heads have a mean retrieval score of at least a threshold, over the examples that the model answers.

    A checkpoint that answers none has no retrieval score, which counts as below the threshold.
    """
    answered = (~retrieval.isnan()).double()
    n_trials = retrieval.shape[1]
    above = retrieval.nansum(1) / answered.sum(1) >= threshold
    if n_trials < FEWEST_UNITS:
        return Crossings(above, None, torch.zeros_like(above[0]))
    weights = bootstrap_weights(n_trials, resamples, TRIAL_SEED)
    sums, counts = (torch.einsum("rt,ctlh->crlh", weights, each) for each in (retrieval.nan_to_num(), answered))
    first = retrieval[:, :1].nan_to_num()
    known = (retrieval.nan_to_num() != first).flatten(0, 1).any(0)  # of all examples alike nothing is known
    return Crossings(above, sums / counts >= threshold, known)


def skill_crossings(
    units: Float64[Tensor, "checkpoint unit"], chance: float | None, rule: SkillRule, resamples: int
) -> Crossings:
    """At which checkpoints a task is above chance, or at least half-way from chance to its value at the last one.

    It is above chance where the lower end of the 95 % interval of its mean is; for half-way the last checkpoint must
    be. In a resample, the mean is that of the drawn units, and the interval is as wide as the sample's.

    Args:
        units: Mean of each independent unit of the task.
        chance: The value of a guess; that at the first checkpoint, paired by unit, when None.
        rule: Which of the two.
        resamples: Number of resamples.
    """
    gains = units - (units[:1] if chance is None else chance)
    means = gains.mean(1)
    bounds = None
    if bool(((units >= 0) & (units <= 1)).all()):
        bounds = (-1.0, 1.0) if chance is None else (-chance, 1 - chance)
    low = means
    if tested := units.shape[1] >= FEWEST_UNITS:
        low = mean_interval(gains, bounds=bounds)[:, 0]
    beneath = means - low
    weights = bootstrap_weights(units.shape[1], resamples, SKILL_SEED) / units.shape[1]
    drawn = gains @ weights.T
    above, resampled = (_skilled(each, beneath, rule) for each in (means[:, None], drawn))
    differing = bool((units != units[:, :1]).any())  # of units that all say the same nothing is known
    return Crossings(above[:, 0], resampled if tested else None, torch.tensor(tested and differing))


def _skilled(
    means: Float64[Tensor, "checkpoint resample"], beneath: Float64[Tensor, " checkpoint"], rule: SkillRule
) -> Bool[Tensor, "checkpoint resample"]:
    beyond = means > beneath[:, None]
    return beyond if rule == "above chance" else (means >= means[-1:] / 2) & beyond[-1:]


def _crossings(
    scores: Sequence[HeadScores],
    above: Bool[Tensor, "checkpoint layer head"],
    judge: Callable[[HeadScores, Tensor], Tensor],
) -> Crossings:
    if any(one.bootstrap_rho is None or one.n_groups < FEWEST_UNITS for one in scores):
        return Crossings(above, None, torch.zeros_like(above[0]))
    known = torch.stack([~one.interval().isnan().any(-1) | one.rho.isnan() for one in scores]).all(0)
    return Crossings(above, torch.stack([judge(one, _resampled_rho(one)) for one in scores]), known)


def _resampled_rho(scores: HeadScores) -> Float64[Tensor, "resample layer head"]:
    """Rho in each resample, spread as over samples: resampling G groups understates the variance by (G - 1) / G."""
    assert scores.bootstrap_rho is not None
    rho, groups = scores.rho.double(), scores.n_groups
    return rho + (scores.bootstrap_rho.double() - rho) * math.sqrt(groups / (groups - 1))


def _beats_null(
    scores: HeadScores, rho: Float64[Tensor, "resample layer head"], alpha: float
) -> Bool[Tensor, "resample layer head"]:
    """Which heads beat their null in each resample, at a false discovery rate over its heads."""
    assert scores.null is not None
    p_values = excess_p_values(rho, scores.null.rho, scores.sampling_variance, scores.n_groups)
    scored = ~scores.p_values.isnan()
    beats = torch.zeros_like(rho).bool()
    if bool(scored.any()):
        tested = p_values[:, scored].nan_to_num(nan=1.0)
        q_values = torch.from_numpy(stats.false_discovery_control(tested.numpy(), axis=1))
        excess = (rho - scores.null.mean.double())[:, scored]
        beats[:, scored] = (q_values <= alpha) & (excess > 0) & (rho[:, scored] > 0)
    return beats


def skill_units(
    rows: Sequence[dict[str, object]], values: Float64[Tensor, "checkpoint row"], reach: str
) -> Float64[Tensor, "checkpoint unit"]:
    """Mean of each unit's answers at one reach."""
    chosen = [index for index, row in enumerate(rows) if row["reach"] == reach]
    return unit_means(values[:, chosen], [int(rows[index]["unit"]) for index in chosen])  # type: ignore[call-overload]
