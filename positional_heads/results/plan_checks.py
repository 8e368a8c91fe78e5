"""Checks of plans: what a file that somebody edited, or a caller, may not hold."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.core.arguments import LIMIT, is_integer, is_number

LONGEST_NAME = 80
PAIRS = re.compile(r"L\d+K\d+:[0-9a-f]+")
"""A key head that loses pairs, with the digits of those that it keeps."""


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


def check_whole(name: str, number: Any, least: int) -> None:
    """Refuse what is no whole number of at least so much.

    Raises:
        ValueError: If it is none.
    """
    if not is_integer(number) or not least <= number < LIMIT:
        msg = f"{name} {number!r:.20} must be a whole number of at least {least}"
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


def check_answers(study: Any, kinds: Sequence[str], edits: Sequence[str]) -> None:
    """Refuse a study of plans whose parts do not fit together.

    Args:
        study: The study.
        kinds: What roles a plan may have.
        edits: What plans may do.

    Raises:
        ValueError: If a part has another form, or a number makes no sense.
    """
    if study.planned not in edits:
        msg = f"planned must be one of {', '.join(edits)}, got {study.planned!r:.40}"
        raise ValueError(msg)
    for cell in study.cells:
        _check_cell(cell, kinds, pairs=study.planned != edits[0])
    found = {cell.kind for cell in study.cells}
    if not {"none", "plan", "chance", "all"} <= found or study.cells[0].kind != "none":
        msg = f"a study needs cells of no plan, the first, and of kinds plan, chance and all, got {sorted(found)}"
        raise ValueError(msg)
    check_measured(study)


def check_measured(study: Any) -> None:
    """Refuse a study of answers whose task, rows, values, chance, notes or provenance do not fit together.

    Args:
        study: The study; its cells are checked already.

    Raises:
        ValueError: If a part has another form, or a number makes no sense.
    """
    check_notes(study.notes, study.provenance)
    rows = study.rows
    if not isinstance(study.task, str) or not isinstance(rows, list) or not rows:
        msg = "a study needs the name of its task, and a row for every answer"
        raise ValueError(msg)
    if any(not isinstance(row, dict) or not {"unit", "reach"} <= row.keys() for row in rows):
        msg = "every row needs a unit and a reach"
        raise ValueError(msg)
    if other := {str(row["reach"]) for row in rows} - {"long", "short"}:
        msg = f"the reach of an answer is long or short, got {min(other)!r:.40}"
        raise ValueError(msg)
    if not study.values:
        msg = "a study needs values of a measure"
        raise ValueError(msg)
    for name, values in study.values.items():
        check_shape(f"values of {name}", values, (len(study.sets), len(rows)), torch.float64)
        if not bool(values.isfinite().all()):
            msg = f"values of {name} must be finite"
            raise ValueError(msg)
    chance = study.chance if isinstance(study.chance, Mapping) else {"chance": None}
    if any(not is_number(value) for value in chance.values()):
        msg = "chance must have a number for each measure of which it is known"
        raise ValueError(msg)


def _check_cell(cell: Any, kinds: Sequence[str], *, pairs: bool) -> None:
    """Refuse a plan of a study with another role, or with sets of another kind."""
    check_set(cell, kinds, PAIRS if pairs else None)
    if not isinstance(cell.by, str):
        msg = f"a cell is chosen by a measure with a name, got {cell.by!r:.40}"
        raise ValueError(msg)
    check_budget(cell.budget)


def check_set(cell: Any, kinds: Sequence[str], text: re.Pattern[str] | None) -> None:
    """Refuse a set of a study with another role, or of another kind.

    Args:
        cell: The set.
        kinds: What roles it may have.
        text: What its members are as texts; heads when None.

    Raises:
        ValueError: If it is such a set.
    """
    if cell.kind not in kinds or (cell.kind == "none") != (not cell.heads):
        msg = f"a cell is of kind {', '.join(kinds)}, and only that of none edits nothing, got {cell.kind!r:.40}"
        raise ValueError(msg)
    if any(not is_integer(number) or number < 0 for number in (cell.k, cell.number)):
        msg = f"size and number of a cell are whole numbers of at least 0, got {cell.k!r:.20}, {cell.number!r:.20}"
        raise ValueError(msg)
    if not all(
        isinstance(one, tuple) if text is None else isinstance(one, str) and text.fullmatch(one) for one in cell.heads
    ):
        msg = f"a cell of kind {cell.kind} has a set of another kind: {cell.heads[0]!r:.40}"
        raise ValueError(msg)
