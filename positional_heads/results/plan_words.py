"""How studies of plans name what they tried: windows on key heads, or rotary pairs that are frozen or dropped."""

from collections.abc import Mapping
from typing import Any, NamedTuple

WINDOWS = "windows"
ALL_BUDGETS = "all"
"""The budget of rows that average over all."""
EDITS = (WINDOWS, "frozen pairs", "dropped pairs")
"""What plans do."""


class PlanWords(NamedTuple):
    """Words of one kind of plan.

    Attributes:
        column: The column of tables that counts what was edited.
        best: Beginning of the verdict; {by} is the measure and {task} the task.
        every: The plan that spares nothing.
        alike: What random plans have in common with those of measures.
        budget: What a budget is a share of.
        axis: The same along an axis.
        meanings: What columns mean that hold something else in studies of the other kind.
    """

    column: str
    best: str
    every: str
    alike: str
    budget: str
    axis: str
    meanings: Mapping[str, str]


def plan_words(planned: str) -> PlanWords:
    """The words for "windows", "frozen pairs" or "dropped pairs"."""
    if planned == WINDOWS:
        budget = "key heads that keep all keys"
        return PlanWords(
            column=WINDOWS,
            best="Windows on the key heads lowest by {by} cost {task} least",
            every="windows on all key heads",
            alike="windows",
            budget=budget,
            axis=f"share of {budget} (no share of the cache)",
            meanings={},
        )
    budget = "pairs that keep their rotation"
    return PlanWords(
        column="edited_pairs",
        best=f"{planned.capitalize()} cost {{task}} least where {{by}} chooses those that rotate",
        every=f"{planned} only",
        alike="pairs",
        budget=budget,
        axis=f"share of {budget}, of each key head",
        meanings={
            "by": "what chose the pairs of each key head: those with its highest values keep their rotation",
            "budget": "share of the pairs of each key head that keep their rotation",
            "edited_pairs": f"{planned}, of all key heads",
        },
    )


def tried_edits(planned: str, provenance: Mapping[str, Any]) -> str:
    """What the sets of a study are sets of; parts of the provenance may be missing."""
    settings = provenance.get("settings", {})
    if planned == WINDOWS:
        return f"windows of {settings.get('window', '?')} keys and {settings.get('sinks', '?')} first ones"
    return planned
