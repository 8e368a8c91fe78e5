"""Numbers as the explorer's document holds them: five significant digits, and null for what is unknown or infinite."""

from typing import Any, SupportsFloat

import numpy as np
from torch import Tensor

DIGITS = 5
EXACT = 22
"""Powers of ten up to this one are exact in double precision, so that dividing by them rounds once."""
WHOLE = 1e15


def numbers(values: Any) -> Any:
    """Nested lists of an array or a tensor, as the document holds its numbers; whole numbers as integers."""
    exact = values.detach().double().numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=np.float64)
    finite = np.isfinite(exact)
    sized = np.where(finite & (exact != 0), np.abs(exact), 1.0)
    places = DIGITS - 1 - np.floor(np.log10(sized)).astype(np.int64)
    far = np.abs(places) > EXACT
    power = 10.0 ** np.where(far, 0, np.abs(places))
    given = np.where(finite, exact, 0.0)
    kept = np.where(places >= 0, np.round(given * power) / power, np.round(given / power) * power)
    cells = kept.astype(object)
    cells[far] = [float(f"{x:.{DIGITS}g}") for x in given[far]]
    whole = (kept == np.trunc(kept)) & (np.abs(kept) < WHOLE) & ~far
    cells[whole] = [int(x) for x in kept[whole]]
    cells[~finite] = None
    return cells.tolist()


def number(value: SupportsFloat | None) -> float | int | None:
    """One number as the document holds it."""
    return None if value is None else numbers(float(value))


def flags(values: Tensor, known: Tensor) -> list[int | None]:
    """True and false as 1 and 0, in one line; null where nothing is known."""
    pairs = zip(values.flatten().tolist(), known.flatten().tolist(), strict=True)
    return [int(value) if there else None for value, there in pairs]
