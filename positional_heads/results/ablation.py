"""The record of an ablation study: every answer under every set of heads, and the statistics of their effects.

An effect is the measure with heads ablated minus the measure without, so harm is negative. A contrast is the effect of
the top heads minus the mean effect of random sets, in the same layers or, as a weaker control, anywhere. The reach
"long - short" is the effect at long range minus the effect at short range.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.head_sets import StudySet, by_kind, existing_permutations
from positional_heads.core.heads import Head, head_values
from positional_heads.core.statistics import jaccard, rank_correlation
from positional_heads.results.ablation_tables import (
    FEWEST_RANKED,
    Control,
    contrasts_table,
    effects_table,
    heads_alone_table,
    predictors_table,
)
from positional_heads.results.answered_sets import AnsweredSets, saved_values
from positional_heads.results.files import ABLATION
from positional_heads.results.ranked_heads import ranked_heads
from positional_heads.results.record import computed_once, json_rows, nested
from positional_heads.results.text import printable
from positional_heads.results.verdicts import ablation_verdict, rough_note, single_heads_verdict

if TYPE_CHECKING:
    import pandas as pd

RankBy = Literal["rho", "excess", "rho_curve", "retrieval"]
"""What can rank heads, beside measures of the user's own."""


@dataclass(frozen=True, repr=False, eq=False)
class AblationStudy(AnsweredSets):
    """An ablation study: the sets of heads that were ablated, and every answer's measures under each.

    Attributes:
        task: Name of the task.
        rows: Properties of each answer: unit, reach, and, by task, length, depth, distance, position.
        cells: Every set of heads and its role in the study, the un-ablated run first.
        values: Every measure of each answer under each distinct set, in the order of `sets`.
        ranking: The scored heads, the most positional first.
        ranked_by: The score that ranks them; NaN where there is none.
        retrieval: Retrieval score of each head, or None if there is none.
        chance: The value of each measure for a guess, where it is known.
        notes: Parts of the study that were not possible, or left out for a budget, in sentences.
        provenance: Versions, model, task, mode, scores, settings and seed.
    """

    task: str
    rows: list[dict[str, Any]]
    cells: list[StudySet]
    values: dict[str, Float64[Tensor, "set row"]]
    ranking: list[Head]
    ranked_by: Float64[Tensor, "layer head"]
    retrieval: Float64[Tensor, "layer head"] | None
    chance: Mapping[str, float]
    notes: list[str]
    provenance: dict[str, Any]

    saved_as = ABLATION

    @property
    def description(self) -> str:
        """Model, task and sets of heads, in one line; parts of the provenance may be missing."""
        name = printable(self.model_name, newlines=False)
        mode = self.provenance.get("ablation", {}).get("mode", "?")
        sets = f"top sets of {', '.join(map(str, self.sizes))} heads" if self.sizes else "heads one by one"
        return (
            f"{name}: {printable(self.task, newlines=False)}, {len(self.rows)} answers under each of {len(self.sets)} "
            f"sets of heads, mode {mode}; {sets}; changes of "
            f"{self.measures[0]}{self.left_out}"
        )

    def _main_table(self) -> "pd.DataFrame":
        return self.contrasts() if self.sizes else self.by_head()

    @property
    def rank_by(self) -> str:
        """What ranks the heads: rho, excess, rho_curve, retrieval, or the name of another measure."""
        return str(self.provenance.get("scores", {}).get("rank_by", "rho"))

    @property
    def sizes(self) -> list[int]:
        """Sizes of the top sets."""
        return sorted(by_kind(self.cells, "top"))

    @computed_once
    def effects(self, measure: str | None = None, *, by: str | None = None, level: float = 0.95) -> "pd.DataFrame":
        """Mean effect of each kind of set at each size, with its interval over units.

        Random sets are averaged first. The row of kind "none" holds the un-ablated measure itself. Below four units
        there is no interval, and its ends are NaN.

        Args:
            measure: Which measure; the most sensitive when None.
            by: Split by a column of the answers, e.g. "depth" or "length".
            level: Coverage of the intervals.

        Raises:
            ValueError: If there is no such measure or column.
        """
        return effects_table(self.cells, self._unit_means(measure, by), by, level)

    @computed_once
    @checked
    def contrasts(
        self, measure: str | None = None, *, control: Control = "random", level: float = 0.95
    ) -> "pd.DataFrame":
        """Top heads against random ones: difference, interval over units, and permutation p-value, at each size.

        The rows of size "all" average over the sizes that have random sets, all columns alike; over all sizes where
        none has any. Theirs is the p-value to quote, the one test of the study. It compares with permuted rankings,
        which may share heads with the top sets; the difference is to random sets, which may not.

        Args:
            measure: Which measure; the most sensitive when None.
            control: Random sets with as many heads in every layer, or of heads of any layer. Rankings are permuted
                within layers, so there is no p-value for the latter.
            level: Coverage of the intervals.

        Raises:
            ValueError: If there is no such measure, or the study has no sets of any layer.
        """
        if control == "anywhere" and not by_kind(self.cells, control) and self.sizes:
            msg = "this study has no sets of heads of any layer: run it with n_anywhere=20"
            raise ValueError(msg)
        return contrasts_table(self.cells, self._unit_means(measure), control, level)

    @computed_once
    def by_head(self, measure: str | None = None, *, level: float = 0.95) -> "pd.DataFrame":
        """Effect of every head that was ablated alone, with its scores; the largest harm at long range first.

        Args:
            measure: Which measure; the most sensitive when None.
            level: Coverage of the intervals.

        Raises:
            ValueError: If there is no such measure.
        """
        columns = {"score": self.ranked_by}
        if self.retrieval is not None and self.rank_by != "retrieval":
            columns["retrieval"] = self.retrieval
        return heads_alone_table(self.cells, self._unit_means(measure), columns, level)

    @checked
    def predictors(
        self, measures: Mapping[str, Any], measure: str | None = None, *, level: float = 0.95
    ) -> "pd.DataFrame":
        """How well each measure of the heads predicts the harm of ablating a head alone, at each reach.

        Rank correlations over the heads that were ablated alone and have a value in every measure, and the difference
        of each to that of the first measure. Intervals resample heads and units; p-values are one-sided (a higher
        measure, more harm), by permutations within layers and over all heads. Harm that is measured on few units is
        noisy, which makes all correlations smaller.

        Args:
            measures: Measures by name, each with one row per layer and one column per head, NaN where undefined, e.g.
                {"rho": scores.rho, "excess": scores.excess, "retrieval": study.retrieval}.
            measure: Which measure of the task; the most sensitive when None.
            level: Coverage of the intervals.

        Raises:
            ValueError: If there is no such measure, no head was ablated alone, or a measure of the heads has another
                shape or is infinite.
            TypeError: If a measure of the heads is no array of numbers.
        """
        if not 0 < level < 1:
            msg = f"level {level} must be between 0 and 1, e.g. 0.95"
            raise ValueError(msg)
        if not measures:
            msg = "no measure of the heads given: name one, e.g. {'rho': scores.rho}"
            raise ValueError(msg)
        shape = self.ranked_by.shape
        of_heads = {str(name): head_values(str(name), values, shape) for name, values in measures.items()}
        return predictors_table(self.cells, self._unit_means(measure), of_heads, level)

    def overlap(self) -> "pd.DataFrame":
        """Jaccard overlap of the heads with the highest score and those with the highest retrieval score, by size."""
        import pandas as pd

        top, retrieval = by_kind(self.cells, "top"), by_kind(self.cells, "retrieval")
        lines = [{"k": k, "jaccard": jaccard(top[k][0].heads, retrieval[k][0].heads)} for k in retrieval]
        return pd.DataFrame(lines, columns=["k", "jaccard"])

    @cached_property
    def correlations(self) -> dict[str, float]:
        """Rank correlation over heads of score, retrieval score, and harm at long range by ablating the head alone."""
        harm = torch.full_like(self.ranked_by, torch.nan)
        frame = self.by_head()
        if "long" in frame:
            for name, effect in zip(frame["name"], frame["long"], strict=True):
                harm[Head.parse(name)] = -effect
        retrieval = None if self.rank_by == "retrieval" else self.retrieval
        columns = {"score": self.ranked_by, "retrieval": retrieval, "harm": harm}
        scores = {name: values.flatten() for name, values in columns.items() if values is not None}
        return {
            f"{one} and {other}": rank_correlation(scores[one], scores[other]) for one, other in combinations(scores, 2)
        }

    @property
    def verdict(self) -> str:
        """Whether the task needs the top heads more than others, in words; the answer may be no."""
        parts = [f"{name}: {part._judgement}" for name, part in self._parts.items()]
        if parts:
            how = f"{len(parts)} parts, each a test of its own (where(part=...)); tables of all average them."
            parts = [how, *parts]
        if self.sizes:
            largest = by_kind(self.cells, "top")[self.sizes[-1]][0].heads
            ranked = ranked_heads(self.rank_by, largest, self.provenance.get("scores", {}))
            return " ".join([*(parts or [self._judgement]), ranked])
        return " ".join(parts) or self._judgement

    @property
    def _judgement(self) -> str:
        """The verdict without what ranks the heads."""
        measure = self.measures[0]
        if not self.sizes:
            said = single_heads_verdict(
                self.task,
                measure,
                self.effects(),
                self.by_head(),
                self._own_prediction,
                chance=self.chance.get(measure),
                units=self._units(self.reaches[0]),
            )
        else:
            said = ablation_verdict(
                self.task,
                measure,
                self.contrasts(),
                self.effects(),
                chance=self.chance.get(measure),
                units=self._units(self.reaches[0]),
                significant=self.provenance["scores"].get("significant"),
                harm=self.correlations["score and harm"],
                singles=len(by_kind(self.cells, "single").get(1, [])),
                scored=len(self.ranking),
                exhausted=self._permutations_exhausted,
                rank_by=self.rank_by,
                anywhere=self.contrasts(control="anywhere") if self._both_controls else None,
            )
        return said + rough_note(self._units(self.reaches[0]))

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "task": self.task,
            "rows": self.rows,
            "cells": [[cell.kind, cell.k, cell.number, [str(head) for head in cell.heads]] for cell in self.cells],
            "measures": list(self.values),
            "ranking": [str(head) for head in self.ranking],
            "chance": dict(self.chance),
            "notes": self.notes,
            "contrasts": json_rows(self.contrasts()),
            "effects": json_rows(self.effects()),
            **({} if self.sizes else {"single_heads": json_rows(self.by_head())}),
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "AblationStudy":
        values = nested(tensors, "values")
        return cls(
            task=content["task"],
            rows=content["rows"],
            cells=[
                StudySet(kind, k, number, tuple(Head.parse(head) for head in heads))
                for kind, k, number, heads in content["cells"]
            ],
            values=saved_values(values, content["measures"]),
            ranking=[Head.parse(head) for head in content["ranking"]],
            ranked_by=tensors["ranked_by"],
            retrieval=tensors.get("retrieval"),
            chance=content["chance"],
            notes=content["notes"],
            provenance=content["provenance"],
        )

    @property
    def _permutations_exhausted(self) -> bool:
        """Whether no more permuted rankings exist than there are: fewer than asked for, or all were drawn."""
        settings = self.provenance.get("settings", {})
        asked = settings.get("n_permuted", settings.get("n_random", 0))
        drawn = max(map(len, by_kind(self.cells, "permuted").values()), default=0)
        return drawn < asked or drawn >= existing_permutations(self.ranking, self.sizes)

    @property
    def _both_controls(self) -> bool:
        """Whether the same sizes have random sets of both kinds, so that their means can be compared."""
        matched, anywhere = (by_kind(self.cells, kind).keys() for kind in ("random", "anywhere"))
        return bool(matched) and matched == anywhere

    @cached_property
    def _own_prediction(self) -> dict[str, Any]:
        """How well what ranks the heads predicts the harm of single ones; empty with too few heads."""
        if len(self.ranking) < FEWEST_RANKED:
            return {}
        return dict(self.predictors({self.rank_by: self.ranked_by}).iloc[0])
