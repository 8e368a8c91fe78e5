"""Checks of an emergence study: what a file that somebody edited may not hold."""

from typing import Any

import torch

from positional_heads.core.arguments import is_integer, is_number
from positional_heads.results.plan_checks import check_notes
from positional_heads.results.scores import HeadScores


def check_emergence(study: Any) -> None:
    """Refuse fields that do not fit each other.

    Raises:
        ValueError: If there is no checkpoint, steps do not ascend, shapes differ, or answers have no unit or reach.
    """
    check_notes(study.notes, study.provenance)
    steps = list(study.scores)
    if not steps or not all(is_integer(step) and step >= 0 for step in steps) or sorted(set(steps)) != steps:
        msg = f"steps must be ascending whole numbers of at least 0, got {steps!r:.80}"
        raise ValueError(msg)
    shapes = {step: tuple(one.rho.shape) for step, one in study.scores.items() if isinstance(one, HeadScores)}
    if len(shapes) != len(steps) or len(set(shapes.values())) > 1:
        msg = f"scores must be those of one model at each step, got layers x heads of {shapes!r:.80}"
        raise ValueError(msg)
    shape = shapes[steps[0]]
    if study.loss.shape != (len(steps), len(study.tokens)) or bool((study.tokens < 1).any()):
        msg = f"loss {tuple(study.loss.shape)} does not fit {len(steps)} checkpoints and {len(study.tokens)} sequences"
        raise ValueError(msg)
    retrieval = study.retrieval
    if retrieval is not None and (retrieval.ndim, len(retrieval), *retrieval.shape[2:]) != (4, len(steps), *shape):
        msg = f"retrieval {tuple(retrieval.shape)} does not fit {len(steps)} checkpoints of {shape} heads"
        raise ValueError(msg)
    _check_task(study, len(steps))


def _check_task(study: Any, n_steps: int) -> None:
    """Refuse answers of a task that do not fit."""
    if (
        not isinstance(study.task, str)
        or bool(study.task) != bool(study.values)
        or bool(study.rows) != bool(study.task)
    ):
        msg = "a study with a task has its name, answers and measures, and one without has none of them"
        raise ValueError(msg)
    for row in study.rows:
        if not isinstance(row, dict) or not is_integer(row.get("unit")) or row.get("reach") not in {"long", "short"}:
            msg = f"each answer has a unit and a reach, long or short, got {row!r:.80}"
            raise ValueError(msg)
    for name, values in study.values.items():
        if values.dtype != torch.float64 or values.shape != (n_steps, len(study.rows)):
            msg = f"values of {name} must be {n_steps} x {len(study.rows)} float64, got {tuple(values.shape)}"
            raise ValueError(msg)
    for name, value in study.chance.items():
        if not is_number(value):
            msg = f"chance of {name!r:.40} must be a finite number, got {value!r:.40}"
            raise ValueError(msg)
