"""The record of a plan study: every answer under the plan of each measure, and under random ones.

A plan gives windows to key heads, or freezes or drops rotary pairs. An effect is the measure with the plan minus the
measure without, so what it costs is negative. The budget of a plan is the share of the key heads to choose from that
keep all keys, or of the pairs of each key head that keep their rotation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head
from positional_heads.results.answered_sets import AnsweredSets, saved_values
from positional_heads.results.files import PLAN_STUDY
from positional_heads.results.plan_checks import check_answers
from positional_heads.results.plan_tables import (
    KINDS,
    PlanControl,
    TriedPlan,
    plan_contrasts,
    plan_differences,
    plan_effects,
    tried,
)
from positional_heads.results.plan_verdict import plan_verdict
from positional_heads.results.plan_words import ALL_BUDGETS, EDITS, WINDOWS, PlanWords, plan_words, tried_edits
from positional_heads.results.record import computed_once, json_rows, nested
from positional_heads.results.tables import ROWS
from positional_heads.results.text import printable
from positional_heads.results.verdicts import rough_note

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False)
class PlanStudy(AnsweredSets):
    """What windows on key heads, or frozen or dropped pairs, cost a task, where each measure or chance chooses them.

    Attributes:
        task: Name of the task.
        rows: Properties of each answer: unit, reach, and, by task, length, depth, distance, position.
        cells: Every plan that was tried and its role in the study, the run without one first.
        values: Every measure of each answer under each distinct set, in the order of `sets`.
        chance: The value of each measure for a guess, where it is known.
        planned: What the plans do: "windows", "frozen pairs" or "dropped pairs".
        notes: What the choices could not decide, and what was not possible, in sentences.
        provenance: Versions, model, task, ablation, profile, settings and seed.
    """

    task: str
    rows: list[dict[str, Any]]
    cells: list[TriedPlan]
    values: dict[str, Float64[Tensor, "set row"]]
    chance: Mapping[str, float]
    planned: str
    notes: list[str]
    provenance: dict[str, Any]

    saved_as = PLAN_STUDY

    def __post_init__(self) -> None:
        """Refuse what is no study, e.g. in a file that somebody edited."""
        check_answers(self, KINDS, EDITS)

    @property
    def by(self) -> list[str]:
        """Names of the measures whose plans were tried."""
        return [*tried(self.cells, "plan")]

    @property
    def best(self) -> str:
        """The measure whose plans cost least at the first reach, over all budgets; of equal ones the first."""
        return self._ranked(None)[0]

    @property
    def budgets(self) -> list[float]:
        """Shares of the key heads that kept all keys, or of the pairs that kept their rotation, ascending."""
        return sorted({one.budget for one in self.cells if one.kind == "plan"})

    @property
    def description(self) -> str:
        """Model, task, plans, budgets and measures, in one line; parts of the provenance may be missing."""
        name = printable(self.model_name, newlines=False)
        measures = ", ".join(printable(one, newlines=False) for one in self.by)
        kept = plan_words(self.planned).budget.replace(" that", "")
        return (
            f"{name}: {printable(self.task, newlines=False)}, {len(self.rows)} answers under each of {len(self.sets)} "
            f"sets of {tried_edits(self.planned, self.provenance)}; "
            f"{', '.join(f'{budget:.0%}' for budget in self.budgets)} of the {kept}, chosen by "
            f"{measures}; changes of {self.measures[0]}"
        )

    @computed_once
    def effects(self, measure: str | None = None, *, by: str | None = None, level: float = 0.95) -> "pd.DataFrame":
        """What plans cost at each budget: the mean effect of each measure's plan, with its interval over units.

        Random plans are averaged first. The row of kind "none" holds the measure itself without a plan. Below four
        units there is no interval, and its ends are NaN.

        Args:
            measure: Which measure of the task; the most sensitive when None.
            by: Split by a column of the answers, e.g. "depth" or "length".
            level: Coverage of the intervals.

        Raises:
            ValueError: If there is no such measure or column.
        """
        return plan_effects(self.cells, self._unit_means(measure, by), by, level, self._words.column)

    @computed_once
    @checked
    def contrasts(
        self, measure: str | None = None, *, control: PlanControl = "chance", level: float = 0.95
    ) -> "pd.DataFrame":
        """The plan of each measure against random ones: gain, interval over units, and p-value, at each budget.

        A positive gain says that the measure chooses better than chance. The p-value is the share of random plans
        that cost as little or less, the plan itself included. The rows of budget "all" average over the budgets, random
        plans of one number being of one random ranking; theirs is the p-value to quote.

        Args:
            measure: Which measure of the task; the most sensitive when None.
            control: Random plans of as many windows anywhere, or as many in every layer as the plan has.
            level: Coverage of the intervals.

        Raises:
            ValueError: If there is no such measure, or the study has no plans of as many windows in every layer.
        """
        if not tried(self.cells, control):
            msg = "this study has no random plans of as many windows in every layer: run it with n_matched=20"
            if self.planned != WINDOWS:
                msg = f'a study of {self.planned} has no control "layers": every key head keeps as many pairs'
            raise ValueError(msg)
        return plan_contrasts(self.cells, self._unit_means(measure), control, level)

    @computed_once
    def differences(self, to: str | None = None, measure: str | None = None, *, level: float = 0.95) -> "pd.DataFrame":
        """The plan of each measure against that of one of them: paired gain and its interval over units.

        Args:
            to: The measure to compare with; when None, the one that costs least at the first reach, over all budgets.
                It was chosen for that, so gains over it look smaller than they are.
            measure: Which measure of the task; the most sensitive when None.
            level: Coverage of the intervals.

        Raises:
            ValueError: If there is no such measure.
        """
        if to is not None and to not in self.by:
            msg = f"no plan by {to!r} was tried: choose one of {', '.join(self.by)}"
            raise ValueError(msg)
        to = to or self._ranked(measure)[0]
        return plan_differences(self.cells, self._unit_means(measure), to, level)

    @property
    def verdict(self) -> str:
        """Which measure chooses best, and which choose better than chance, in words; the answer may be none."""
        parts = [f"{name}: {part._judgement}" for name, part in self._parts.items()]
        if not parts:
            return self._judgement
        how = f"{len(parts)} parts, each a test of its own (where(part=...)); tables of all average them."
        return " ".join([how, *parts])

    @property
    def _judgement(self) -> str:
        measure = self.measures[0]
        said = plan_verdict(
            self.task,
            measure,
            self.effects(),
            self.contrasts(),
            self.differences(),
            chance=self.chance.get(measure),
            units=self._units(self.reaches[0]),
            words=self._words,
            planned=self.planned,
            same_question=self._same_question,
        )
        return said + rough_note(self._units(self.reaches[0]))

    @property
    def _same_question(self) -> str | None:
        """The task that the retrieval score was measured on, if a plan goes by it and answers were hidden here, too."""
        if "retrieval" not in {name.removeprefix("-") for name in self.by}:
            return None
        measured_on = self.provenance.get("profile", {}).get("retrieval", {"task": "passkey"})  # the default
        asks = any(row.get("depth") is not None for row in self.rows)
        return str(measured_on["task"]) if asks and isinstance(measured_on, dict) and "task" in measured_on else None

    @property
    def _words(self) -> PlanWords:
        return plan_words(self.planned)

    def _main_table(self) -> "pd.DataFrame":
        table = self.contrasts()
        return table if len(table) <= ROWS else table[table["budget"] == ALL_BUDGETS]

    @property
    def _meanings(self) -> Mapping[str, str]:
        return self._words.meanings

    def _ranked(self, measure: str | None) -> list[str]:
        """The measures, the one that costs least at the first reach first."""
        table = self.contrasts(measure)
        over = table[(table["budget"] == ALL_BUDGETS) & (table["reach"] == self.reaches[0])]
        return list(over.sort_values("effect", ascending=False, kind="stable")["by"])

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "task": self.task,
            "planned": self.planned,
            "rows": self.rows,
            "cells": [[one.kind, one.k, one.number, [*map(str, one.heads)], one.by, one.budget] for one in self.cells],
            "measures": list(self.values),
            "chance": dict(self.chance),
            "notes": self.notes,
            "contrasts": json_rows(self.contrasts()),
            "effects": json_rows(self.effects()),
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "PlanStudy":
        values, planned = nested(tensors, "values"), content.get("planned", WINDOWS)
        read: Callable[[str], Head | str] = Head.parse if planned == WINDOWS else str
        return cls(
            cells=[
                TriedPlan(kind, k, number, tuple(map(read, heads)), by, budget)
                for kind, k, number, heads, by, budget in content["cells"]
            ],
            values=saved_values(values, content["measures"]),
            planned=planned,
            **{name: content[name] for name in ("task", "rows", "chance", "notes", "provenance")},
        )
