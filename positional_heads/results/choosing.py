"""Which of several extensions to take, from losses and answers of the same sequences under each. It may be none.

Every comparison is of pairs: two extensions on the same sequence, or on the same question. The rules, in order:

1. A candidate must be better than no extension: the interval of its difference in loss lies below zero, or that of its
   difference in recall above zero while that of the loss does not lie above. As many are compared as were tried, so the
   intervals here have a level of 1 - 0.05 / number of candidates.
2. Those that recall noticeably less than the best of these at recalling are set aside: a loss over text is mostly that
   of near words, and does not show whether far ones are found. Noticeable is a 95 % interval of the difference that
   lies above 0.1 nats per token, a tenth of the probability.
3. Of the rest, the one with the lowest loss is first. Others whose difference from it has a 95 % interval with zero in
   it are tied with it.
4. Of those that are tied, the one that loses least on short texts (of the training length), and others whose difference
   from that one has a 95 % interval with zero in it, go on.
5. Of those the smallest factor that reaches the target length is taken; where none does, the largest. Any factor of
   dynamic NTK reaches it, since its base grows with the run.
6. Where factors are equal too, the simplest method to deploy (`SIMPLEST`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.statistics import mean_interval

SIMPLEST = ("ntk", "linear", "llama3", "yarn", "dynamic")
"""Methods from the simplest on. NTK changes the base only, which every program reads; linear divides all frequencies by
one number; Llama 3's rule treats pairs differently, and every version of transformers reads its block alike; so does
YaRN, whose block they read differently; the frequencies of dynamic NTK change as a run grows, so keys in a cache keep
those of the moment they came in."""
ALPHA = 0.05
NOTICEABLE = 0.1
"""Nats per token by which an answer's log-probability may differ without a candidate being set aside."""


@dataclass(frozen=True)
class Choice:
    """What the rules say of the candidates, each by its place in the record.

    Attributes:
        better: Candidates that a configuration can express and that are better than no extension.
        behind: Those of them that recall less than the best one.
        ranked: The others, the lowest loss first.
        tied: Those of them that are as good as the first, the first included.
        gentle: Those of the tied that lose as little on short texts as the one that loses least, that one first.
        taken: The one to take; None for none.
        level: Level of the intervals by which candidates are better than no extension.
    """

    better: list[int]
    behind: list[int]
    ranked: list[int]
    tied: list[int]
    gentle: list[int]
    taken: int | None
    level: float


def chosen(
    losses: Float64[Tensor, "candidate sequence"],
    losses_within: Float64[Tensor, "candidate sequence"],
    answers: Float64[Tensor, "candidate answer"] | None,
    methods: Sequence[Mapping[str, Any]],
    expressible: Sequence[bool],
    ratio: float,
) -> Choice:
    """The choice by the rules above.

    Args:
        losses: Loss beyond the training length; the first row is of no extension.
        losses_within: Loss of short texts, in the same rows.
        answers: Log-probability of each answer of the task; None without a task.
        methods: Name and factor of each, as `method` and `factor`.
        expressible: Whether a configuration can express it.
        ratio: Target length over training length.
    """
    candidates = [place for place in range(1, len(losses)) if expressible[place]]
    level = 1 - ALPHA / max(1, len(losses) - 1)
    better = [place for place in candidates if _is_better(losses, answers, place, level)]
    behind = [] if answers is None else _behind(answers, better)
    ranked = [place for place in _by_mean(losses, better) if place not in behind]
    tied = _alike(losses, ranked)
    gentle = _alike(losses_within, _by_mean(losses_within, tied))
    taken = min(gentle, key=lambda place: _preference(methods[place], ratio), default=None)
    return Choice(better, behind, ranked, tied, gentle, taken, level)


def _is_better(
    losses: Float64[Tensor, "candidate sequence"],
    answers: Float64[Tensor, "candidate answer"] | None,
    place: int,
    level: float,
) -> bool:
    lost = losses[place] - losses[0]
    if _is_above(-lost, level):
        return True
    return answers is not None and _is_above(answers[place] - answers[0], level) and not _is_above(lost, level)


def _behind(answers: Float64[Tensor, "candidate answer"], places: Sequence[int]) -> list[int]:
    best = max(places, key=lambda place: float(answers[place].mean()), default=None)
    return [] if best is None else [place for place in places if _is_above(answers[best] - answers[place] - NOTICEABLE)]


def _by_mean(losses: Float64[Tensor, "candidate sequence"], places: Sequence[int]) -> list[int]:
    """The lowest mean first."""
    return sorted(places, key=lambda place: float(losses[place].mean()))


def _alike(losses: Float64[Tensor, "candidate sequence"], ranked: Sequence[int]) -> list[int]:
    """Those that are not told apart from the first one, the first one included."""
    return [place for place in ranked if not _is_above(losses[place] - losses[ranked[0]])]


def _is_above(differences: Float64[Tensor, " unit"], level: float = 1 - ALPHA) -> bool:
    """Whether the interval of a mean difference lies above zero; not where there are too few units for one."""
    return bool(mean_interval(differences, level)[0] > 0)


def _preference(method: Mapping[str, Any], ratio: float) -> tuple[bool, float, int]:
    """What is smaller is taken: the smallest factor that reaches the target, else the largest; then the simplest."""
    factor = float(method["factor"])
    reaches = method["method"] == "dynamic" or factor >= ratio * (1 - 1e-9)
    return not reaches, factor if reaches else -factor, SIMPLEST.index(method["method"])
