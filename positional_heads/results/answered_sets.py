"""What records of studies share that measure the same answers under many sets of ablated heads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.head_sets import AnySet, StudySet, distinct_sets
from positional_heads.results.ablation_tables import set_labels, sets_table
from positional_heads.results.effects import INTERACTION, UnitMeans, unit_means_by_reach
from positional_heads.results.record import Record, computed_once
from positional_heads.results.selection import matching, part_chance, parts_of, selected_json, selection_name

if TYPE_CHECKING:
    import pandas as pd

SAVED = (torch.float64, torch.float32, torch.uint8)
"""Types that measures are saved in: models compute in single precision, and the smallest that holds them is taken."""
SomeSets = TypeVar("SomeSets", bound="AnsweredSets")


class AnsweredSets(Record):
    """A record of every answer's measures under each set of heads; subclasses are dataclasses with these fields.

    Attributes:
        task: Name of the task.
        rows: Properties of each answer: unit, reach, and, by task, length, depth, distance, position.
        cells: Every set of heads and its role in the study, the un-ablated run first.
        values: Every measure of each answer under each distinct set, in the order of `sets`.
        chance: The value of each measure for a guess, where it is known.
    """

    task: str
    rows: list[dict[str, Any]]
    cells: Sequence[StudySet]
    values: dict[str, Float64[Tensor, "set row"]]
    chance: Mapping[str, float]

    @cached_property
    def sets(self) -> list[AnySet]:
        """Every distinct set of heads that was ablated, the empty one first."""
        return distinct_sets(self.cells)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures, the most sensitive first; higher is better."""
        return tuple(self.values)

    @property
    def reaches(self) -> list[str]:
        """long, short, and their difference, as far as the task has them."""
        reaches = [reach for reach in ("long", "short") if any(row["reach"] == reach for row in self.rows)]
        return [*reaches, INTERACTION] if len(reaches) > 1 else reaches

    def to_frame(self) -> "pd.DataFrame":
        """One row per answer and set of heads: every number, so that all statistics can be redone."""
        import pandas as pd

        rows = pd.DataFrame(self.rows)
        parts = []
        for cell in self.cells:
            measured = {name: values[self._index[cell.heads]].numpy() for name, values in self.values.items()}
            parts.append(rows.assign(**set_labels(cell), **measured))
        return pd.concat(parts, ignore_index=True)

    @computed_once
    def by_set(self, measure: str | None = None) -> "pd.DataFrame":
        """Mean effect of every single set that was ablated, one row per set and reach.

        Args:
            measure: Which measure; the most sensitive when None.

        Raises:
            ValueError: If there is no such measure.
        """
        return sets_table(self.cells, self._unit_means(measure))

    def where(self: SomeSets, **properties: Any) -> SomeSets:
        """The study of the same sets of heads on some of the answers only, with effects, verdict and all.

        Args:
            **properties: Value of a property of the answers (see `rows`), e.g. part="kv"; several values as a list.

        Raises:
            ValueError: If no answer has these properties; the message names those there are.
        """
        chosen = matching(self.task, self.rows, properties)
        rows = [self.rows[index] for index in chosen]
        parts, earlier = parts_of(rows), self.provenance.get("selected", {})
        return replace(  # type: ignore[type-var]  # a subclass is a dataclass
            self,
            task=f"{self.task} ({selection_name(properties)})",
            rows=rows,
            values={name: values[:, chosen] for name, values in self.values.items()},
            chance=(part_chance(self.chance, parts[0]) if len(parts) == 1 else {}) or self.chance,
            provenance={**self.provenance, "selected": {**earlier, **selected_json(properties)}},
        )

    def _tensors(self) -> dict[str, Tensor]:
        """Measures are stored in the smallest type that holds them exactly: models compute in single precision."""
        exact = {}
        for name, values in self.values.items():
            for dtype in SAVED[1:]:  # the last one that fits is the smallest
                if torch.equal(values.to(dtype).double(), values):
                    exact[f"values.{name}"] = values.to(dtype)
        return super()._tensors() | exact

    def _units(self, reach: str) -> int:
        """Independent units of the answers of a reach."""
        return len({row["unit"] for row in self.rows if row["reach"] == reach})

    @cached_property
    def _parts(self: SomeSets) -> dict[str, SomeSets]:
        """The study of each part of the task; none for a task of one part."""
        parts = parts_of(self.rows)
        return {part: self.where(part=part) for part in parts} if len(parts) > 1 else {}

    @cached_property
    def _index(self) -> dict[AnySet, int]:
        return {heads: index for index, heads in enumerate(self.sets)}

    def _unit_means(self, measure: str | None, by: str | None = None) -> Iterator[UnitMeans]:
        measure = self.measures[0] if measure is None else measure
        if measure not in self.values:
            msg = f"measure {measure!r} is not in this study: choose one of {', '.join(self.measures)}"
            raise ValueError(msg)
        if by is not None and by not in self.rows[0]:
            msg = f"the answers of {self.task} have no {by!r}: choose among {', '.join(self.rows[0])}"
            raise ValueError(msg)
        return unit_means_by_reach(self.rows, self.values[measure], self._index, by)


def saved_values(tensors: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Float64[Tensor, "set row"]]:
    """The measures of a file, in the order of their names.

    Raises:
        ValueError: If one has a type that measures are not saved in.
    """
    for name in names:
        if tensors[name].dtype not in SAVED:
            msg = f"values of {name} must be numbers that measures are saved as, got {tensors[name].dtype}"
            raise ValueError(msg)
    return {name: tensors[name].double() for name in names}
