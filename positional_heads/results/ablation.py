"""What did ablating the top heads do, and what did the controls? A frozen record of every answer, and its statistics.

Conventions: an effect is the measure with heads ablated less the measure without, so that harm is negative; a contrast
is the effect of the top heads less the mean effect of random sets; the reach "long - short" is the effect far away less
the effect nearby.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.head_sets import Cell, HeadSet, by_kind, distinct_sets
from positional_heads.core.heads import Head
from positional_heads.core.statistics import jaccard, mean_interval, permutation_p, rank_correlation, unit_means
from positional_heads.results.files import ABLATION
from positional_heads.results.record import Record, computed_once, json_rows, nested
from positional_heads.results.text import printable
from positional_heads.results.verdicts import ablation_verdict

if TYPE_CHECKING:
    import pandas as pd

INTERACTION = "long - short"
COMPARED = ("top", "random", "lowest", "retrieval")
ALL_DOSES = "all"


@dataclass(frozen=True, repr=False)
class AblationStudy(Record):
    """An ablation study: which sets of heads were ablated, and every answer's measures under each.

    Attributes:
        task: Name of the task.
        rows: What is known of each answer: unit, reach, and, by task, length, depth, distance, position.
        cells: Every set of heads and what it stands for, the un-ablated run first.
        values: For every measure, each answer under each distinct set, in the order of `sets`.
        ranking: The scored heads, the most positional first.
        ranked_by: The score that they were ranked by; NaN where there is none.
        retrieval: Retrieval score of each head, or None if there is none.
        chance: What a guess gives, per measure, where that is known.
        notes: What could not be done, in sentences.
        provenance: Versions, model, task, mode, scores, settings and seed.
    """

    task: str
    rows: list[dict[str, Any]]
    cells: list[Cell]
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
        name = printable(self.provenance.get("model", {}).get("name", "a model"), newlines=False)
        mode = self.provenance.get("ablation", {}).get("mode", "?")
        return (
            f"{name}: {printable(self.task, newlines=False)}, {len(self.rows)} answers under each of {len(self.sets)} "
            f"sets of heads, mode {mode}; top sets of {', '.join(map(str, self.sizes))} heads; changes of "
            f"{self.measures[0]}"
        )

    def _main_table(self) -> "pd.DataFrame":
        return self.contrasts()

    @cached_property
    def sets(self) -> list[HeadSet]:
        """Every distinct set of heads that was ablated, the empty one first."""
        return distinct_sets(self.cells)

    @property
    def measures(self) -> tuple[str, ...]:
        """What was measured, the most sensitive first; higher is better."""
        return tuple(self.values)

    @property
    def sizes(self) -> list[int]:
        """Sizes of the top sets."""
        return sorted(by_kind(self.cells, "top"))

    @property
    def reaches(self) -> list[str]:
        """long, short, and their difference, as far as the task has them."""
        found = [reach for reach in ("long", "short") if any(row["reach"] == reach for row in self.rows)]
        return [*found, INTERACTION] if len(found) > 1 else found

    def to_frame(self) -> "pd.DataFrame":
        """One line per answer and cell: every number, so that all statistics can be redone."""
        import pandas as pd

        rows = pd.DataFrame(self.rows)
        place = {heads: index for index, heads in enumerate(self.sets)}
        parts = []
        for cell in self.cells:
            measured = {name: values[place[cell.heads]].numpy() for name, values in self.values.items()}
            names = " ".join(str(head) for head in cell.heads)
            parts.append(rows.assign(kind=cell.kind, k=cell.k, number=cell.number, heads=names, **measured))
        return pd.concat(parts, ignore_index=True)

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
        import pandas as pd

        measure = self._known_measure(measure)
        lines = []
        for group, rows in self._groups(by):
            for reach in self.reaches if by is None else [one for one in self.reaches if one != INTERACTION]:
                units = self._units(measure, reach, rows)
                if units is None:
                    continue
                own = {} if by is None else {by: group}
                plain, bounds = _summary(units[0], level, self._bounds(measure, reach, 0)), self._bounds(measure, reach)
                lines.append({**own, "kind": "none", "k": 0, "reach": reach, **plain, "sets": 1})
                changes = units - units[0]
                for kind in COMPARED:
                    for k, cells in by_kind(self.cells, kind).items():
                        mean = changes[[self._place[cell.heads] for cell in cells]].mean(0)
                        found = _summary(mean, level, bounds)
                        lines.append({**own, "kind": kind, "k": k, "reach": reach, **found, "sets": len(cells)})
        return pd.DataFrame(lines)

    @computed_once
    def contrasts(self, measure: str | None = None, *, level: float = 0.95) -> "pd.DataFrame":
        """Top heads against random ones: difference, interval over units, and permutation p-value, at each size.

        The rows of size "all" average over the sizes; theirs is the p-value to quote, the one test of the study. It
        compares with permuted rankings, which may share heads with the top sets; the difference is to random sets,
        which may not.

        Args:
            measure: Which measure; the most sensitive when None.
            level: Coverage of the intervals.

        Raises:
            ValueError: If there is no such measure.
        """
        import pandas as pd

        measure = self._known_measure(measure)
        top, random, permuted = (by_kind(self.cells, kind) for kind in ("top", "random", "permuted"))
        lines = []
        for reach in self.reaches:
            units = self._units(measure, reach)
            if units is None:
                continue
            changes, bounds = units - units[0], self._bounds(measure, reach)
            observed = {k: changes[self._place[top[k][0].heads]] for k in self.sizes}
            drawn = {k: changes[[self._place[cell.heads] for cell in permuted[k]]].mean(-1) for k in permuted}
            others = {k: changes[[self._place[cell.heads] for cell in random[k]]].mean(0) for k in random}
            doses: list[tuple[int | str, list[int]]] = [(k, [k]) for k in self.sizes]
            for k, sizes in [*doses, (ALL_DOSES, self.sizes)]:
                paired = [observed[size] - others[size] for size in sizes if size in others]
                difference = torch.stack(paired).mean(0) if paired else torch.full_like(units[0], torch.nan)
                effect = float(torch.stack([observed[size].mean() for size in sizes]).mean())
                line = {"k": k, "reach": reach, "top": effect, **_summary(difference, level, bounds, "difference")}
                permutations = torch.stack([drawn[size] for size in sizes]).mean(0) if drawn else torch.zeros(0)
                line["p_value"] = permutation_p(effect, permutations.double())
                sets = sum(len(random.get(size, [])) for size in sizes)
                lines.append({**line, "random_sets": sets, "permutations": len(permutations)})
        return pd.DataFrame(lines)

    @computed_once
    def by_set(self, measure: str | None = None) -> "pd.DataFrame":
        """Mean effect of every single set that was ablated, one line per cell and reach.

        Args:
            measure: Which measure; the most sensitive when None.

        Raises:
            ValueError: If there is no such measure.
        """
        import pandas as pd

        measure = self._known_measure(measure)
        lines = []
        for reach in self.reaches:
            units = self._units(measure, reach)
            if units is not None:
                means = (units - units[0]).mean(-1)
                lines += [
                    {
                        "kind": cell.kind,
                        "k": cell.k,
                        "number": cell.number,
                        "heads": " ".join(str(head) for head in cell.heads),
                        "reach": reach,
                        "effect": float(means[self._place[cell.heads]]),
                    }
                    for cell in self.cells
                ]
        return pd.DataFrame(lines)

    @computed_once
    def by_head(self, measure: str | None = None, *, level: float = 0.95) -> "pd.DataFrame":
        """Effect of every head that was ablated alone, beside its scores, the most harmful loss far away first."""
        import pandas as pd

        measure = self._known_measure(measure)
        heads = [cell.heads[0] for cells in by_kind(self.cells, "single").values() for cell in cells]
        frame = pd.DataFrame({"name": [str(head) for head in heads]})
        frame["score"] = [float(self.ranked_by[head]) for head in heads]
        if self.retrieval is not None:
            frame["retrieval"] = [float(self.retrieval[head]) for head in heads]
        for reach in self.reaches:
            units = self._units(measure, reach)
            if units is None or not heads:
                continue
            changes = units[[self._place[head,] for head in heads]] - units[0]
            low, high = mean_interval(changes, level, bounds=self._bounds(measure, reach)).unbind(-1)
            for name, column in ((reach, changes.mean(-1)), (f"{reach} low", low), (f"{reach} high", high)):
                frame[name] = column.numpy()
        return frame.sort_values("long", ignore_index=True) if "long" in frame else frame

    def overlap(self) -> "pd.DataFrame":
        """Do heads with a high score also fetch the answer? Jaccard overlap of the two kinds of top heads by size."""
        import pandas as pd

        top, fetching = by_kind(self.cells, "top"), by_kind(self.cells, "retrieval")
        lines = [{"k": k, "jaccard": jaccard(top[k][0].heads, fetching[k][0].heads)} for k in fetching]
        return pd.DataFrame(lines, columns=["k", "jaccard"])

    @cached_property
    def correlations(self) -> dict[str, float]:
        """Rank correlation over heads of score, retrieval score, and harm done far away by ablating the head alone."""
        columns = {"score": self.ranked_by.flatten()}
        if self.retrieval is not None:
            columns["retrieval"] = self.retrieval.flatten()
        harm = torch.full_like(self.ranked_by, torch.nan)
        frame = self.by_head()
        if "long" in frame:
            for name, effect in zip(frame["name"], frame["long"], strict=True):
                harm[Head.parse(name)] = -effect
        columns["harm"] = harm.flatten()
        names = list(columns)
        return {
            f"{one} and {other}": rank_correlation(columns[one], columns[other])
            for index, one in enumerate(names)
            for other in names[index + 1 :]
        }

    @property
    def verdict(self) -> str:
        """What the study shows, in words; that may be that the heads do not matter."""
        return ablation_verdict(self)

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
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "AblationStudy":
        values = nested(tensors, "values")
        return cls(
            task=content["task"],
            rows=content["rows"],
            cells=[
                Cell(kind, k, number, tuple(Head.parse(head) for head in heads))
                for kind, k, number, heads in content["cells"]
            ],
            values={name: values[name] for name in content["measures"]},
            ranking=[Head.parse(head) for head in content["ranking"]],
            ranked_by=tensors["ranked_by"],
            retrieval=tensors.get("retrieval"),
            chance=content["chance"],
            notes=content["notes"],
            provenance=content["provenance"],
        )

    @cached_property
    def _place(self) -> dict[HeadSet, int]:
        return {heads: index for index, heads in enumerate(self.sets)}

    def _known_measure(self, measure: str | None) -> str:
        measure = self.measures[0] if measure is None else measure
        if measure not in self.values:
            msg = f"measure {measure!r} was not taken: choose one of {', '.join(self.measures)}"
            raise ValueError(msg)
        return measure

    def _groups(self, by: str | None) -> list[tuple[Any, list[int]]]:
        if by is None:
            return [(None, list(range(len(self.rows))))]
        if by not in self.rows[0]:
            msg = f"the answers of {self.task} have no {by!r}: choose among {', '.join(self.rows[0])}"
            raise ValueError(msg)
        found: dict[Any, list[int]] = {}
        for index, row in enumerate(self.rows):
            found.setdefault(row[by], []).append(index)
        return list(found.items())

    def _units(self, measure: str, reach: str, rows: Sequence[int] | None = None) -> Float64[Tensor, "set unit"] | None:
        """Each unit's mean at this reach, under every set; None where there is no such row."""
        if reach == INTERACTION:
            far, near = self._units(measure, "long", rows), self._units(measure, "short", rows)
            return None if far is None or near is None or far.shape != near.shape else far - near
        among = range(len(self.rows)) if rows is None else rows
        chosen = [index for index in among if self.rows[index]["reach"] == reach]
        if not chosen:
            return None
        return unit_means(self.values[measure][:, chosen], [self.rows[index]["unit"] for index in chosen])

    def _bounds(self, measure: str, reach: str, lowest: int = -1) -> tuple[float, float] | None:
        """Lowest and highest possible change at a reach, or, with a lowest of 0, measure; None if there are none.

        A measure whose every value lies from 0 to 1, such as right and wrong answers, is taken to be bounded by them.
        """
        values = self.values[measure]
        if bool(((values < 0) | (values > 1)).any()):
            return None
        return (lowest - 1.0, 1.0 - lowest) if reach == INTERACTION else (float(lowest), 1.0)


def _summary(
    units: Float64[Tensor, " unit"], level: float, bounds: tuple[float, float] | None, name: str = "effect"
) -> dict[str, float]:
    # where there is no random set to compare with, there is no difference
    known = not bool(units.isnan().any())
    low, high = mean_interval(units, level, bounds=bounds).tolist() if known else (float("nan"), float("nan"))
    return {name: float(units.mean()), "low": low, "high": high}
