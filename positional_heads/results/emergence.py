"""The record of an emergence study: every head's score at each checkpoint of a training run, beside loss and task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.births import difference_ends
from positional_heads.core.heads import Head
from positional_heads.results.edits import measured_under
from positional_heads.results.emergence_births import (
    BORN,
    SKILL_RULES,
    THRESHOLDS,
    Crossings,
    HeadMeasure,
    SkillRule,
    check_threshold,
    excess_crossings,
    retrieval_crossings,
    rho_crossings,
    skill_crossings,
    skill_units,
)
from positional_heads.results.emergence_checks import check_emergence
from positional_heads.results.emergence_tables import heads_by_step, step_rows
from positional_heads.results.emergence_verdict import emergence_verdict
from positional_heads.results.files import EMERGENCE
from positional_heads.results.record import Record, computed_once, json_rows, nested
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import printable
from positional_heads.results.verdicts import ALPHA, rough_note

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False)
class EmergenceStudy(Record):
    """Scores of every head, loss and a task at each checkpoint of a training run, in the order of steps.

    Attributes:
        scores: Scores without curves, by step.
        loss: Mean loss of each sequence of the text at each checkpoint, in nats per predicted token.
        tokens: Predicted tokens of each sequence.
        retrieval: Retrieval score of each head on each example; NaN where that checkpoint does not answer it. None
            where none was asked for, or none could be made.
        task: Name of the task; empty without one.
        rows: Properties of each answer of the task.
        values: Every measure of each answer at each checkpoint, the most sensitive first; higher is better.
        chance: The value of each measure for a guess, where it is known.
        notes: What was not possible, in sentences.
        provenance: Versions, checkpoints with fingerprints of their weights, task, settings and seed.
    """

    scores: dict[int, HeadScores]
    loss: Float64[Tensor, "checkpoint sequence"]
    tokens: Int[Tensor, " sequence"]
    retrieval: Float64[Tensor, "checkpoint trial layer head"] | None
    task: str
    rows: list[dict[str, Any]]
    values: dict[str, Float64[Tensor, "checkpoint row"]]
    chance: Mapping[str, float]
    notes: list[str]
    provenance: dict[str, Any]

    saved_as = EMERGENCE

    def __post_init__(self) -> None:
        """Refuse what is no study, e.g. in a file that somebody edited."""
        check_emergence(self)

    @property
    def steps(self) -> list[int]:
        """Training steps of the checkpoints, ascending."""
        return list(self.scores)

    @property
    def heads(self) -> list[Head]:
        """Every head of the model, in order."""
        return next(iter(self.scores.values())).heads

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the task's measures, the most sensitive first; none without a task."""
        return tuple(self.values)

    @property
    def description(self) -> str:
        """What was followed, in one line."""
        layers, heads = next(iter(self.scores.values())).rho.shape
        task = f", {printable(self.task, newlines=False)}" if self.task else ""
        return (
            f"{printable(self.model_name, newlines=False)}: {layers} layers of {heads} heads at {len(self.steps)} "
            f"checkpoints, steps {self.steps[0]} to {self.steps[-1]}, {len(self.tokens)} sequences{task}"
        )

    @computed_once
    def to_frame(self) -> "pd.DataFrame":
        """One row per step and head: the columns of `HeadScores.to_frame`, `beats_null` and the retrieval score."""
        return heads_by_step(self.scores, self.retrieval)

    @computed_once
    @checked
    def step_frame(self, level: float = 0.95) -> "pd.DataFrame":
        """One row per step: loss, each measure of the task, and how many heads beat their null.

        Loss is in nats per token, with an interval over sequences; a measure of the task comes with `_low` and `_high`
        over units, and ends in `_short` at short range. Below four units intervals are NaN.

        Args:
            level: Coverage of the intervals.

        Raises:
            ValueError: If the level is not between 0 and 1.
        """
        means = {
            (name, reach): skill_units(self.rows, values, reach)
            for name, values in self.values.items()
            for reach in self._reaches
        }
        return step_rows(self.scores, self.loss, self.tokens, means, level)

    @computed_once
    @checked
    def births(
        self,
        measure: HeadMeasure = "excess",
        *,
        threshold: float | None = None,
        alpha: float = ALPHA,
        skill: str | None = None,
        level: float = 0.95,
    ) -> "pd.DataFrame":
        """When each head and the skill were born: the first step from which each stays above its threshold.

        An infinite step is "not born". The interval holds the births in that share of resamples; `born` is the share of
        resamples with a birth. All are NaN below four independent units, or where all units say the same. A birth at
        one checkpoint happened after the checkpoint before.

        Rows of kind "skill" are those of the task at long range: "half-way" is half-way from chance to its value at
        the last checkpoint, which must be above chance; "above chance" is where the lower end of its 95 % interval is.
        Where chance is not known, it is the value at the first checkpoint.

        Args:
            measure: "excess": the head beats its null (`HeadScores.beats_null`); "rho" or "retrieval": at least the
                threshold.
            threshold: Least rho, 0.2 when None, or least retrieval score, 0.1 when None.
            alpha: False discovery rate over the heads of a checkpoint, for the excess.
            skill: Measure of the task; the most sensitive when None.
            level: Coverage of the intervals.

        Raises:
            ValueError: If the study has no such measure, or a number is out of range.
        """
        import pandas as pd

        crossings = self._head_crossings(measure, threshold, alpha)
        scored = [head for head in self.heads if self._scored[head]]
        rows = [{"kind": "head", "name": str(head), **self._birth(crossings, head, level)} for head in scored]
        for rule, crossed in self._skill_crossings(skill).items():
            rows.append({"kind": "skill", "name": f"{self.task}, {rule}", **self._birth(crossed, (), level)})
        return pd.DataFrame(rows, columns=["kind", "name", "step", "low", "high", "born"])

    @computed_once
    @checked
    def order(
        self,
        measure: HeadMeasure = "excess",
        *,
        rule: SkillRule = "half-way",
        threshold: float | None = None,
        alpha: float = ALPHA,
        skill: str | None = None,
        level: float = 0.95,
    ) -> "pd.DataFrame":
        """Which came first, each head that is born or the skill: one row per head, the earliest first.

        `difference` is the head's step minus the skill's, with its interval over resamples of both; a negative one says
        that the head came first. `first` is "head" or "skill" where the whole interval says so, "undecided" where it
        does not, and "unknown" where there is no interval. Each head is judged by itself. What comes first need not be
        the cause of what follows.

        Args:
            measure: As in `births`.
            rule: Which birth of the skill.
            threshold: As in `births`.
            alpha: As in `births`.
            skill: As in `births`.
            level: Coverage of the intervals.

        Raises:
            ValueError: If the study has no task or no such measure, or a number is out of range.
        """
        import pandas as pd

        if not self.values:
            msg = "this study has no task, so no skill is born: run it with task='passkey'"
            raise ValueError(msg)
        heads, own = self._head_crossings(measure, threshold, alpha), self._skill_crossings(skill)[rule]
        steps = torch.tensor([*map(float, self.steps), math.inf], dtype=torch.float64)
        born, skilled = steps[heads.births], float(steps[own.births])
        ends = None
        if heads.resampled_births is not None and own.resampled_births is not None:
            drawn, of_skill = steps[heads.resampled_births], steps[own.resampled_births]
            n = min(len(drawn), len(of_skill))
            ends = difference_ends(drawn[:n], of_skill[:n, None, None].expand_as(drawn[:n]), level)
        rows = []
        for head in sorted(self.heads, key=lambda head: (float(born[head]), head)):
            if not math.isfinite(float(born[head])):
                continue
            known = ends is not None and bool(heads.known[head] & own.known)
            low, high = (float(end[head]) for end in ends) if known and ends is not None else (math.nan, math.nan)
            first = ("head" if high < 0 else "skill" if low > 0 else "undecided") if known else "unknown"
            row = {"name": str(head), "head_step": float(born[head]), "skill_step": skilled}
            rows.append(row | {"difference": float(born[head]) - skilled, "low": low, "high": high, "first": first})
        columns = ["name", "head_step", "skill_step", "difference", "low", "high", "first"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def verdict(self) -> str:
        """How many heads beat their null at the first and at the last checkpoint, and what came first, in words."""
        under = measured_under(self.provenance)
        found = emergence_verdict(
            self.step_frame(),
            self.own_births(),
            self.own_order() if self.values else None,
            n_heads=int(self._scored.sum()),
            null=self._has_null,
            by=self.born,
        )
        found += rough_note(min(one.n_groups for one in self.scores.values()), "groups of sequences")
        if self.values:
            found += rough_note(len({row["unit"] for row in self.rows if row["reach"] == self._reaches[0]}))
        return found if under is None else f"{found} Measured under {under}."

    @checked
    def judged_by(self, measure: HeadMeasure, threshold: float | None = None) -> "EmergenceStudy":
        """The same study, whose verdict, tables, plot and file go by the births of heads by this measure.

        Args:
            measure: As in `births`.
            threshold: As in `births`.

        Raises:
            ValueError: If the study has no such measure, or the threshold is out of range.
        """
        self._head_crossings(measure, threshold, ALPHA)  # refused here
        settings = {**self.provenance.get("settings", {}), "births": measure, "threshold": threshold}
        return replace(self, provenance={**self.provenance, "settings": settings})

    @property
    def default_measure(self) -> HeadMeasure:
        """What the verdict goes by: what it was told to, or the excess, or rho in a study without a null."""
        told: HeadMeasure | None = self.provenance.get("settings", {}).get("births")
        return told or ("excess" if self._has_null else "rho")

    @property
    def default_threshold(self) -> float | None:
        """The least value that counts in the verdict, where it was told one."""
        threshold: float | None = self.provenance.get("settings", {}).get("threshold")
        return threshold

    @property
    def born(self) -> str:
        """What heads do from their birth on, in words."""
        threshold = THRESHOLDS.get(self.default_measure) if self.default_threshold is None else self.default_threshold
        return BORN[self.default_measure].format(threshold)

    def own_births(self) -> "pd.DataFrame":
        """`births` by what the verdict goes by."""
        return self.births(self.default_measure, threshold=self.default_threshold)

    def own_order(self) -> "pd.DataFrame":
        """`order` by what the verdict goes by."""
        return self.order(self.default_measure, threshold=self.default_threshold)

    @property
    def _has_null(self) -> bool:
        return all(one.null is not None for one in self.scores.values())

    @property
    def _scored(self) -> Tensor:
        """Heads that have a score at some checkpoint."""
        return torch.stack([~one.rho.isnan() for one in self.scores.values()]).any(0)

    @property
    def _reaches(self) -> list[str]:
        return [reach for reach in ("long", "short") if any(row["reach"] == reach for row in self.rows)]

    @property
    def _resamples(self) -> int:
        return int(self.provenance.get("settings", {}).get("resamples", 1000))

    def _head_crossings(self, measure: HeadMeasure, threshold: float | None, alpha: float) -> Crossings:
        scores = list(self.scores.values())
        check_threshold(measure, threshold)
        if measure == "excess":
            if not self._has_null:
                msg = "no null was computed: run the study with null_repeats=20, or take births('rho')"
                raise ValueError(msg)
            return excess_crossings(scores, alpha)
        least = THRESHOLDS[measure] if threshold is None else threshold
        if measure == "rho":
            return rho_crossings(scores, least)
        if self.retrieval is None:
            msg = "this study has no retrieval scores: run it with retrieval='passkey'"
            raise ValueError(msg)
        return retrieval_crossings(self.retrieval, least, self._resamples)

    def _skill_crossings(self, skill: str | None) -> dict[SkillRule, Crossings]:
        """When the skill is there, by rule; none without a task."""
        if skill is not None and skill not in self.values:
            msg = f"skill {skill!r} is no measure of this study: choose one of {', '.join(self.values) or 'none'}"
            raise ValueError(msg)
        if not self.values:
            return {}
        name = skill or self.measures[0]
        units = skill_units(self.rows, self.values[name], self._reaches[0])
        chance = self.chance.get(name)
        return {rule: skill_crossings(units, chance, rule, self._resamples) for rule in SKILL_RULES}

    def _birth(self, crossings: Crossings, place: Any, level: float) -> dict[str, float]:
        """Step of one birth, its interval, and the share of resamples with one."""
        steps = [*map(float, self.steps), math.inf]
        row = {"step": steps[int(crossings.births[place])], "low": math.nan, "high": math.nan, "born": math.nan}
        ends, resampled = crossings.ends(level), crossings.resampled_births
        if ends is None or resampled is None or not bool(crossings.known[place]):
            return row
        low, high = (steps[int(end[place])] for end in ends)
        born = float((resampled[:, place[0], place[1]] if place else resampled).lt(len(self.steps)).double().mean())
        return {**row, "low": low, "high": high, "born": born}

    def _main_table(self) -> "pd.DataFrame":
        return self.step_frame()

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "steps": self.steps,
            "task": self.task,
            "rows": self.rows,
            "measures": list(self.values),
            "chance": dict(self.chance),
            "notes": self.notes,
            "table": json_rows(self.step_frame()),
            "born": self.born,
            "births": json_rows(self.own_births()),
            "order": json_rows(self.own_order()) if self.values else [],
            "scores": {str(step): _described(one) for step, one in self.scores.items()},
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "EmergenceStudy":
        own, values = nested(tensors, "scores"), nested(tensors, "values")
        return cls(
            scores={
                step: HeadScores._from_file(content["scores"][str(step)], nested(own, str(step)))
                for step in content["steps"]
            },
            loss=tensors["loss"],
            tokens=tensors["tokens"],
            retrieval=tensors.get("retrieval"),
            values={name: values[name] for name in content["measures"]},
            **{name: content[name] for name in ("task", "rows", "chance", "notes", "provenance")},
        )


def _described(scores: HeadScores) -> dict[str, Any]:
    """What is no tensor of scores, without their tables."""
    content = scores._content()
    return {name: content[name] for name in ("reasons", "provenance", "control")}
