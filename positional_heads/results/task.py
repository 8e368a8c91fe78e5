"""Result of a task: every answer's measures, with heads ablated or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float64
from torch import Tensor

from positional_heads.results.files import TASK
from positional_heads.results.record import Record, json_rows, nested
from positional_heads.results.selection import parts_of
from positional_heads.results.text import printable, rounded

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False)
class TaskResult(Record):
    """The measures of every answer of a task.

    Attributes:
        task: Name of the task.
        rows: Properties of each answer: unit, reach, and, by task, length, depth, distance, position.
        measures: Every measure of each answer; higher is better.
        chance: Expected value of each measure for a guess, if there is one.
        provenance: Versions, model, task and its settings, ablated heads and mode.
    """

    task: str
    rows: list[dict[str, Any]]
    measures: dict[str, Float64[Tensor, " row"]]
    chance: dict[str, float]
    provenance: dict[str, Any]

    saved_as = TASK

    @property
    def description(self) -> str:
        """The task, how many answers, a guess, and the mean of each measure, in one line."""
        name = printable(self.task, newlines=False)
        guess = ", ".join(f"{measure} {rounded(value)}" for measure, value in self.chance.items())
        means = [
            f"{where if isinstance(where, str) else ', '.join(where)} range: "
            + ", ".join(f"{measure} {rounded(value)}" for measure, value in values.items())
            for where, values in self.mean(self._columns).to_dict("index").items()
        ]
        return "; ".join([f"{name}: {len(self.rows)} answers" + (f", a guess gives {guess}" if guess else ""), *means])

    def to_frame(self) -> "pd.DataFrame":
        """One line per answer."""
        import pandas as pd

        return pd.DataFrame(self.rows).assign(**{name: values.numpy() for name, values in self.measures.items()})

    def mean(self, by: str | Sequence[str] = "reach") -> "pd.DataFrame":
        """Every measure, averaged over the answers with the same properties.

        Args:
            by: One or more of the columns of `to_frame`, e.g. "reach", "depth", or "position" for loss by position.

        Raises:
            ValueError: If the task has no such column.
        """
        frame = self.to_frame()
        for column in [by] if isinstance(by, str) else by:
            if column not in frame:
                msg = f"{self.task} has no column {column!r}: choose among {', '.join(frame.columns)}"
                raise ValueError(msg)
        return frame.groupby(by, dropna=False)[list(self.measures)].mean()

    def _main_table(self) -> "pd.DataFrame":
        return self.mean(self._columns).reset_index()

    @property
    def _columns(self) -> str | list[str]:
        """What the means are split by: parts of a task are not averaged."""
        return ["part", "reach"] if parts_of(self.rows) else "reach"

    def _content(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "rows": self.rows,
            "measures": list(self.measures),
            "chance": self.chance,
            "means": json_rows(self._main_table()),
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "TaskResult":
        own = {name: content[name] for name in ("task", "rows", "chance", "provenance")}
        measures = nested(tensors, "measures")
        return cls(measures={name: measures[name] for name in content["measures"]}, **own)
