"""Choose answers by their properties: which rows match, what they are called, and what a guess gives on them."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def matching(task: str, rows: Rows, properties: Mapping[str, Any]) -> list[int]:
    """Numbers of the rows that have all of these properties.

    Args:
        task: Name of the task, for messages.
        rows: Properties of each answer.
        properties: Wanted value of each property, or several as a list, tuple or set.

    Raises:
        ValueError: If there is no such property, value, or row, or nothing is asked for.
    """
    if not properties:
        msg = f"no property given: choose among {', '.join(rows[0])}, e.g. where(reach='long')"
        raise ValueError(msg)
    wanted = {name: _values(value) for name, value in properties.items()}
    for name, values in wanted.items():
        if name not in rows[0]:
            msg = f"the answers of {task} have no {name!r}: choose among {', '.join(rows[0])}"
            raise ValueError(msg)
        known = list(dict.fromkeys(row[name] for row in rows))
        if not values:
            msg = f"no value of {name} given: choose among {reprlib.repr(known)}"
            raise ValueError(msg)
        if missing := [value for value in values if value not in known]:
            msg = f"no answer of {task} has {name} {missing[0]!r}: choose among {reprlib.repr(known)}"
            raise ValueError(msg)
    chosen = [index for index, row in enumerate(rows) if all(row[name] in values for name, values in wanted.items())]
    if not chosen:
        msg = f"no answer of {task} has {selection_name(properties)} at once: ask for fewer properties"
        raise ValueError(msg)
    return chosen


def selection_name(properties: Mapping[str, Any]) -> str:
    """The properties in words."""
    return ", ".join(f"{name} {' or '.join(map(str, _values(value)))}" for name, value in properties.items())


def selected_json(properties: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The properties as they are kept in a file."""
    return {name: _values(value) for name, value in properties.items()}


def parts_of(rows: Rows) -> list[str]:
    """Names of the task's parts; none for a task of one kind of question."""
    return sorted({row["part"] for row in rows if "part" in row})


def part_chance(chance: Mapping[str, float], part: str) -> dict[str, float]:
    """What a guess gives on one part, by measure."""
    end = f" of {part}"
    return {name.removesuffix(end): value for name, value in chance.items() if name.endswith(end)}


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset | range) else [value]
