"""Effects of ablation on independent units: one measure at one reach, with and without each set of heads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.head_sets import AnySet, StudySet
from positional_heads.core.statistics import mean_interval, unit_means

INTERACTION = "long - short"


@dataclass(frozen=True)
class UnitMeans:
    """Each unit's mean of one measure at one reach, under every set of heads.

    Attributes:
        group: The answers averaged, where they are split by a column.
        reach: long, short, or their difference.
        means: The means; the first set is the empty one.
        index: Index of each set of heads in `means`.
        bounded: Whether every answer's measure lies from 0 to 1, as right and wrong answers do.
    """

    group: Any
    reach: str
    means: Float64[Tensor, "set unit"]
    index: Mapping[AnySet, int]
    bounded: bool

    def changes(self, sets: Sequence[StudySet]) -> Float64[Tensor, "chosen unit"]:
        """Each unit's mean with these sets ablated minus its mean with none."""
        return (self.means - self.means[0])[[self.index[one.heads] for one in sets]]

    def intact(self, level: float) -> dict[str, float]:
        """Mean measure with no head ablated, and its interval."""
        return _summary(self.means[0], level, self._bounds(lowest=0), "effect")

    def change(self, units: Float64[Tensor, " unit"], level: float, name: str = "effect") -> dict[str, float]:
        """Mean of these changes over units, and its interval; NaN where they are NaN."""
        return _summary(units, level, self._bounds(), name)

    def intervals(self, changes: Float64[Tensor, "chosen unit"], level: float) -> Float64[Tensor, "chosen 2"]:
        """Interval of the mean of each row of changes."""
        return mean_interval(changes, level, bounds=self._bounds())

    def _bounds(self, lowest: float = -1.0) -> tuple[float, float] | None:
        """Lowest and highest possible change, or, with a lowest of 0, measure; None if there are none."""
        if not self.bounded:
            return None
        return (lowest - 1.0, 1.0 - lowest) if self.reach == INTERACTION else (float(lowest), 1.0)


def unit_means_by_reach(
    rows: Sequence[Mapping[str, Any]],
    values: Float64[Tensor, "set row"],
    index: Mapping[AnySet, int],
    by: str | None = None,
) -> Iterator[UnitMeans]:
    """The means over units at each reach, and of the difference of the reaches, by group of answers.

    The difference is left out where answers are split, or where the units of the two reaches do not match.

    Args:
        rows: Properties of each answer.
        values: One measure of each answer under every set of heads.
        index: Index of each set of heads in `values`.
        by: A column of the rows to split by.
    """
    bounded = not bool(((values < 0) | (values > 1)).any())
    for group in dict.fromkeys(row[by] for row in rows) if by is not None else [None]:
        means = {}
        for reach in ("long", "short"):
            chosen = [
                answer for answer, row in enumerate(rows) if row["reach"] == reach and (by is None or row[by] == group)
            ]
            if chosen:
                means[reach] = unit_means(values[:, chosen], [rows[answer]["unit"] for answer in chosen])
                yield UnitMeans(group, reach, means[reach], index, bounded)
        if by is None and len(means) > 1 and means["long"].shape == means["short"].shape:
            yield UnitMeans(group, INTERACTION, means["long"] - means["short"], index, bounded)


def _summary(
    units: Float64[Tensor, " unit"], level: float, bounds: tuple[float, float] | None, name: str
) -> dict[str, float]:
    low, high = torch.nan, torch.nan
    if not bool(units.isnan().any()):  # no random set to compare with
        low, high = mean_interval(units, level, bounds=bounds).tolist()
    return {name: float(units.mean()), "low": low, "high": high}
