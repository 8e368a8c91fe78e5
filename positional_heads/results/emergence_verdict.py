"""What an emergence study shows, in words: how many heads beat their null before and after, and what came first."""

import math
from typing import TYPE_CHECKING

from positional_heads.results.text import printable
from positional_heads.results.verdicts import ALPHA

if TYPE_CHECKING:
    import pandas as pd

NAMED = 5
"""Heads that are named at most."""


def emergence_verdict(
    steps: "pd.DataFrame", births: "pd.DataFrame", order: "pd.DataFrame | None", *, n_heads: int, null: bool, by: str
) -> str:
    """The verdict.

    Args:
        steps: One row per step.
        births: Births of heads and of the skill.
        order: Which came first; None without a task.
        n_heads: Heads with a score.
        null: Whether there is a null.
        by: What heads do from their birth on, as in `emergence_births.BORN`.
    """
    parts = [_before_and_after(steps, n_heads) if null else _without_null(), _of_heads(births, steps, by)]
    if order is not None:
        parts += [_of_skill(births), _first(order)]
    return " ".join(part for part in parts if part)


def _before_and_after(steps: "pd.DataFrame", n_heads: int) -> str:
    """Inherent or learned: heads that beat their null at the first and at the last checkpoint."""
    first, last = steps.iloc[0], steps.iloc[-1]
    found = (
        f"{int(first['beat_null'])} of {n_heads} heads beat their null at step {int(first['step'])}, "
        f"{int(last['beat_null'])} at step {int(last['step'])} (false discovery rate {ALPHA:g} in each)."
    )
    if int(first["step"]) > 0:
        return f"{found} The first checkpoint is not untrained, so what untrained weights show is not known."
    if int(first["beat_null"]) == 0:
        return f"{found} In untrained weights none is found to do more than geometry."
    return f"{found} What step 0 shows is not learned: it comes with RoPE and random weights, or is a false discovery."


def _without_null() -> str:
    return "Which heads are more than geometry is not known: there is no null (null_repeats=20)."


def _of_heads(births: "pd.DataFrame", steps: "pd.DataFrame", what: str) -> str:
    heads = births[births["kind"] == "head"]
    born = heads[heads["step"].map(math.isfinite)].sort_values(["step", "name"], kind="stable")
    if born.empty:
        return f"No head is found to {what.replace('their', 'its')} from some step to the end."
    first = born[born["step"] == born["step"].iloc[0]]
    named = ", ".join(first["name"][:NAMED]) + (f" and {len(first) - NAMED} more" if len(first) > NAMED else "")
    start = int(steps["step"].iloc[0])
    inherent = f", {int((born['step'] == start).sum())} of them from the first checkpoint on"
    if len(born) == 1:
        what = what.replace("beat their", "beats its").replace("have", "has")
    return f"{len(born)} {what} from some step to the end{inherent}; the first at {_at(first.iloc[0])}: {named}."


def _of_skill(births: "pd.DataFrame") -> str:
    sentences = []
    for row in births[births["kind"] == "skill"].to_dict("records"):
        name = printable(row["name"], newlines=False)
        sentences.append(
            f"The skill ({name}) lasts from {_at(row)}."
            if math.isfinite(row["step"])
            else f"The skill ({name}) is not born by the last checkpoint."
        )
    return " ".join(sentences)


def _first(order: "pd.DataFrame") -> str:
    """How many heads came first, and how many second."""
    if order.empty:
        return "No head is born, so none came before the skill."
    counts = order["first"].value_counts().to_dict()
    if counts.get("unknown", 0) == len(order):
        return "Whether heads or skill came first is not known: there are fewer than four units, or all say the same."
    told = ", ".join(
        f"{counts[key]} {words}"
        for key, words in (
            ("head", "came before half of the skill did"),
            ("skill", "after it"),
            ("undecided", "cannot be told from it"),
            ("unknown", "have no interval"),
        )
        if key in counts
    )
    return (
        f"Of the {len(order)} heads that are born, {told} (95 % interval of each difference in steps, by itself; a "
        "birth lies between two checkpoints). An order in time shows no cause."
    )


def _at(row: "pd.Series | dict[str, float]") -> str:
    """A birth with its interval."""
    step, low, high = (float(row[name]) for name in ("step", "low", "high"))
    if math.isnan(low):
        return f"step {int(step)}"
    low, high = (str(int(end)) if math.isfinite(end) else "not born" for end in (low, high))  # type: ignore[assignment]
    return f"step {int(step)} (95 % interval {low} to {high})"
