"""Progress bars over parts of unequal cost: they count parts, and estimate the time left from their costs."""

import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from tqdm.auto import tqdm

Name = TypeVar("Name", bound=Hashable)
BAR = "{desc}|{bar}| {percentage:.0f}% [{elapsed}, {remaining} left]"


class Work(NamedTuple):
    """What one part is.

    Attributes:
        cost: Its cost, in any unit.
        units: How much of what the bar counts is in it.
    """

    cost: float
    units: int = 1


class WorkBar(Generic[Name]):
    """A progress bar, see `work_bar`.

    Attributes:
        finished: Names of the parts that are finished.
    """

    def __init__(
        self, parts: Mapping[Name, Work], finished: Iterable[Name], title: str, unit: str, shown: bool
    ) -> None:
        """Show a bar; see `work_bar` for the arguments."""
        self.finished = {name for name in finished if name in parts}
        self._parts, self._title, self._unit = parts, title, unit
        self._units, self._total = self._sum(self.finished).units, self._sum(parts)
        begun = self._sum(self.finished).cost
        self.bar = tqdm(
            total=self._total.cost, initial=begun, desc=self._described(), bar_format=BAR, disable=not shown
        )

    def finish(self, names: Iterable[Name]) -> None:
        """These parts are finished; each is counted once."""
        new = {name for name in names if name in self._parts} - self.finished
        self.finished |= new
        added = self._sum(new)
        self._units += added.units
        self.bar.set_description_str(self._described(), refresh=False)
        self.bar.update(added.cost)

    def say(self, line: str) -> None:
        """Write a line above the bar, if it is shown."""
        if not self.bar.disable:
            self.bar.write(line, sys.stderr)

    def _sum(self, names: Iterable[Name]) -> Work:
        parts = [self._parts[name] for name in names]
        return Work(sum(part.cost for part in parts), sum(part.units for part in parts))

    def _described(self) -> str:
        return f"{self._title}: {self._units}/{self._total.units} {self._unit} "


@contextmanager
def work_bar(
    parts: Mapping[Name, Work], finished: Iterable[Name], *, title: str, unit: str, shown: bool
) -> Iterator[WorkBar[Name]]:
    """A progress bar whose time left is that of the cost left, not that of the number of parts.

    Args:
        parts: Every part by name.
        finished: Names of parts that were finished before; they say nothing about the speed.
        title: Title of the bar.
        unit: What it counts, in the plural.
        shown: Whether to show it.
    """
    work = WorkBar(parts, finished, title, unit, shown)
    with work.bar:
        yield work
