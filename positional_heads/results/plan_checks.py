"""Checks of plans: what a file that somebody edited, or a caller, may not hold."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.core.arguments import is_number

LONGEST_NAME = 80


def check_plan(plan: Any) -> None:
    """Refuse fields that every plan has and that are not what they should be.

    Raises:
        ValueError: If one has another type, or a value that makes no sense.
    """
    if not isinstance(plan.by, str) or not plan.by.strip() or len(plan.by) > LONGEST_NAME + 1:
        msg = f"by must be a name of at most {LONGEST_NAME} characters, got {plan.by!r:.90}"
        raise ValueError(msg)
    check_budget(plan.budget)
    check_notes(plan.notes, plan.provenance)


def check_notes(notes: Any, provenance: Any) -> None:
    """Refuse notes that are no sentences, and a provenance that is no table.

    Raises:
        ValueError: If they are none.
    """
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        msg = "notes must be a list of sentences"
        raise ValueError(msg)
    if not isinstance(provenance, dict):
        msg = f"provenance must be a dict, got {type(provenance).__name__}"
        raise ValueError(msg)


def check_budget(budget: Any) -> None:
    """Refuse a budget that is no share.

    Raises:
        ValueError: If it is none.
    """
    if not is_number(budget) or not 0 <= budget <= 1:
        msg = f"budget {budget!r:.20} must be a number from 0 to 1"
        raise ValueError(msg)


def check_shape(name: str, values: Any, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Refuse a tensor of another shape or type.

    Raises:
        ValueError: If it is one.
    """
    if not isinstance(values, Tensor) or list(values.shape) != list(shape) or values.dtype != dtype:
        got = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        msg = f"{name} must be {dtype} {list(shape)}, got {got}"
        raise ValueError(msg)


def check_key_heads(key_heads: Int[Tensor, "layer head"]) -> None:
    """Refuse a table of key heads that no model has.

    Raises:
        ValueError: If it is one.
    """
    if key_heads.ndim != 2 or not key_heads.numel() or key_heads.dtype != torch.long:  # noqa: PLR2004
        msg = f"key_heads must be whole numbers [layer head], got {key_heads.dtype} {list(key_heads.shape)}"
        raise ValueError(msg)
    least, most = int(key_heads.min()), int(key_heads.max())
    if least < -1 or not 0 <= most < key_heads.shape[1]:
        msg = f"key_heads must be -1 to {key_heads.shape[1] - 1}, one at least not -1, got {least} to {most}"
        raise ValueError(msg)
