"""The record of a manipulation study: every answer with rotary pairs of heads moved, beside random pairs and heads.

An effect is the measure with pairs manipulated minus the measure without, so harm is negative. Two questions have a
control each: which pairs matter (random pairs of the same heads), and of which heads (random heads in the same layers).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.arguments import is_number
from positional_heads.core.head_sets import by_kind
from positional_heads.core.heads import Head
from positional_heads.results.ablation_tables import effects_table
from positional_heads.results.answered_sets import AnsweredSets, saved_values
from positional_heads.results.files import MANIPULATION
from positional_heads.results.manipulation_tables import ManipulatedSet, manipulation_contrasts
from positional_heads.results.manipulation_verdict import manipulation_verdict
from positional_heads.results.plan_checks import check_measured, check_set, check_shape
from positional_heads.results.printed_manipulations import ALL_COUNTS, DONE, EVERY, KINDS, MEANINGS, done
from positional_heads.results.ranked_heads import ranked_heads
from positional_heads.results.record import computed_once, json_rows, nested
from positional_heads.results.tables import ROWS
from positional_heads.results.text import printable
from positional_heads.results.verdicts import rough_note

if TYPE_CHECKING:
    import pandas as pd

MOVED = re.compile(r"L\d+H\d+:\d+(-\d+)?(,\d+(-\d+)?)*")
"""A head and its manipulated pairs."""


@dataclass(frozen=True, repr=False, eq=False)
class ManipulationStudy(AnsweredSets):
    """What it costs a task that rotary pairs of the top heads, or of random ones, are frozen, zeroed or rescaled.

    Attributes:
        task: Name of the task.
        rows: Properties of each answer: unit, reach, and, by task, length, depth, distance, position.
        cells: Every set of manipulated pairs and its role in the study, the run without any first. Its `heads` are
            texts, a head and its pairs each, e.g. "L1H2:3,12-15"; its `k` is the number of pairs of each head.
        values: Every measure of each answer under each distinct set, in the order of `sets`.
        heads: The top heads, the highest first.
        frequencies: Frequency of each pair of these heads in radians per token; NaN beyond a layer's last pair.
        sizes: Size of the mean contribution of each pair at a distance, averaged over query-key pairs: the dominant
            pairs are those with the largest. None where there was no text to find them on.
        how: What was done to pairs: "freeze", "zero" or "scale".
        factor: The factor of their frequencies, for "scale" alone.
        chance: The value of each measure for a guess, where it is known.
        notes: Parts of the study that were not possible, in sentences.
        provenance: Versions, model, task, manipulation, scores, settings and seed.
    """

    task: str
    rows: list[dict[str, Any]]
    cells: list[ManipulatedSet]
    values: dict[str, Float64[Tensor, "set row"]]
    heads: list[Head]
    frequencies: Float64[Tensor, "head pair"]
    sizes: Float64[Tensor, "head pair"] | None
    how: str
    factor: float | None
    chance: Mapping[str, float]
    notes: list[str]
    provenance: dict[str, Any]

    saved_as = MANIPULATION

    def __post_init__(self) -> None:
        """Refuse what is no study, e.g. in a file that somebody edited."""
        if self.how not in DONE or (self.factor is not None) != (self.how == "scale"):
            got = f"{self.how!r:.40}, factor {self.factor!r:.40}"
            msg = f"how must be {', '.join(DONE)}, and only the last has a factor, got {got}"
            raise ValueError(msg)
        if self.factor is not None and not is_number(self.factor):
            msg = f"factor must be a finite number, got {self.factor!r:.40}"
            raise ValueError(msg)
        for cell in self.cells:
            check_set(cell, ("none", *KINDS), MOVED)
        counts = {kind: by_kind(self.cells, kind).keys() for kind in KINDS}
        if not self.cells or self.cells[0].kind != "none" or not all(counts[kind] for kind in ("slowest", EVERY)):
            msg = f"a study needs cells of no pair, the first, of the slowest pairs and of {EVERY}"
            raise ValueError(msg)
        if any(found and found != counts["slowest"] for kind, found in counts.items() if kind != EVERY):
            msg = "every kind of cells needs the numbers of pairs that those of the slowest have"
            raise ValueError(msg)
        if not self.heads:
            msg = "a study needs the heads whose pairs were manipulated"
            raise ValueError(msg)
        for name, values in {"frequencies": self.frequencies, "sizes": self.sizes}.items():
            if values is not None:
                check_shape(name, values, (len(self.heads), self.frequencies.shape[-1]), torch.float64)
        check_measured(self)

    @property
    def counts(self) -> list[int]:
        """Numbers of manipulated pairs of each head, but for all of them."""
        return sorted(by_kind(self.cells, "slowest"))

    @property
    def description(self) -> str:
        """Model, task, heads and pairs, in one line; parts of the provenance may be missing."""
        name = printable(self.model_name, newlines=False)
        return (
            f"{name}: {printable(self.task, newlines=False)}, {len(self.rows)} answers under each of {len(self.sets)} "
            f"sets of pairs {done(self.how, self.factor)}; {', '.join(map(str, self.counts))} pairs of each of the top "
            f"{len(self.heads)} heads by {printable(self.rank_by, newlines=False)}; changes of {self.measures[0]}"
        )

    @property
    def rank_by(self) -> str:
        """What ranks the heads: rho, excess, rho_curve, retrieval, or the name of another measure."""
        return str(self.provenance.get("scores", {}).get("rank_by", "rho"))

    @computed_once
    def effects(self, measure: str | None = None, *, by: str | None = None, level: float = 0.95) -> "pd.DataFrame":
        """Mean effect of each kind of pairs at each number of them, with its interval over units.

        Random sets are averaged first. The row of kind "none" holds the measure itself, without a manipulation. Below
        four units there is no interval, and its ends are NaN.

        Args:
            measure: Which measure; the most sensitive when None.
            by: Split by a column of the answers, e.g. "depth" or "length".
            level: Coverage of the intervals.

        Raises:
            ValueError: If there is no such measure or column.
        """
        return effects_table(self.cells, self._unit_means(measure, by), by, level, KINDS, "pairs")

    @computed_once
    def contrasts(self, measure: str | None = None, *, level: float = 0.95) -> "pd.DataFrame":
        """Chosen pairs against random pairs of the same heads, and the top heads against random ones.

        Each has its difference, interval over units and permutation p-value, at each number of pairs. The rows of
        "all" pairs average over the numbers, random pairs of one number being of one random ranking; theirs are the
        p-values to quote, `p_holm` being corrected for all contrasts. P-values of heads compare with permuted rankings,
        which may share heads with the top ones; the difference is to random heads, which may not.

        Args:
            measure: Which measure; the most sensitive when None.
            level: Coverage of the intervals.

        Raises:
            ValueError: If there is no such measure.
        """
        return manipulation_contrasts(self.cells, self._unit_means(measure), level)

    @property
    def verdict(self) -> str:
        """Which pairs of the top heads the task needs, and whether more than those of others, in words."""
        parts = [f"{name}: {part._judgement}" for name, part in self._parts.items()]
        if parts:
            how = f"{len(parts)} parts, each a test of its own (where(part=...)); tables of all average them."
            parts = [how, *parts]
        ranked = ranked_heads(self.rank_by, self.heads, self.provenance.get("scores", {}))
        return " ".join([*(parts or [self._judgement]), ranked])

    @property
    def _judgement(self) -> str:
        """The verdict without what ranks the heads."""
        measure = self.measures[0]
        said = manipulation_verdict(
            self.task,
            measure,
            self.effects(),
            self.contrasts(),
            how=self.how,
            factor=self.factor,
            heads=len(self.heads),
            chance=self.chance.get(measure),
            units=self._units(self.reaches[0]),
        )
        return said + rough_note(self._units(self.reaches[0]))

    def _main_table(self) -> "pd.DataFrame":
        table = self.contrasts()
        return table if len(table) <= ROWS else table[table["pairs"] == ALL_COUNTS]

    @property
    def _meanings(self) -> Mapping[str, str]:
        return MEANINGS

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "task": self.task,
            "how": self.how,
            "factor": self.factor,
            "rows": self.rows,
            "cells": [[cell.kind, cell.k, cell.number, [*cell.heads]] for cell in self.cells],
            "measures": list(self.values),
            "heads": [str(head) for head in self.heads],
            "chance": dict(self.chance),
            "notes": self.notes,
            "contrasts": json_rows(self.contrasts()),
            "effects": json_rows(self.effects()),
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "ManipulationStudy":
        return cls(
            cells=[ManipulatedSet(kind, k, number, tuple(heads)) for kind, k, number, heads in content["cells"]],
            values=saved_values(nested(tensors, "values"), content["measures"]),
            heads=[Head.parse(head) for head in content["heads"]],
            frequencies=tensors["frequencies"],
            sizes=tensors.get("sizes"),
            **{name: content[name] for name in ("task", "rows", "how", "factor", "chance", "notes", "provenance")},
        )
