"""Progress bars over parts of unequal cost: they count parts, and estimate the time left from their costs."""

import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
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
        announced: Whether it has said where progress is saved.
    """

    def __init__(
        self, parts: Mapping[Name, Work], finished: Iterable[Name], title: str, unit: str, shown: bool
    ) -> None:
        """Show a bar; see `work_bar` for the arguments."""
        self.finished, self.announced = {name for name in finished if name in parts}, False
        self._parts, self._title, self._unit = parts, title, unit
        self._units, self._total = self._sum(self.finished).units, self._sum(parts)
        begun = self._sum(self.finished).cost
        self.bar = tqdm(
            total=self._total.cost, initial=begun, desc=self._described(), bar_format=BAR, disable=not shown
        )

    def finish(self, names: Iterable[Name], saved: Path | None = None) -> None:
        """These parts are finished; each is counted once.

        Args:
            names: Their names.
            saved: The file that they were saved in; named once, if parts are left for which a run would be resumed.
        """
        new = {name for name in names if name in self._parts} - self.finished
        self.finished |= new
        added = self._sum(new)
        self._units += added.units
        self.bar.set_description_str(self._described(), refresh=False)
        self.bar.update(added.cost)
        if saved is not None and not self.announced and self.finished < self._parts.keys():
            self.announced = True
            if not self.bar.disable:
                self.bar.write(f"progress is saved in {saved}; rerun the same command to resume", sys.stderr)

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
