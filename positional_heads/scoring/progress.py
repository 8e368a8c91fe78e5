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
    """A progress bar; see `work_bar`."""

    def __init__(self, bar: "tqdm[None]", parts: Mapping[Name, Work], title: str, unit: str) -> None:
        self._bar, self._parts = bar, parts
        self._title, self._unit = title, unit
        self._total = sum(part.units for part in parts.values())
        self._done = 0
        self.finished: set[Name] = set()

    def finish(self, names: Iterable[Name]) -> None:
        """These parts are finished; each is counted once."""
        new = {name for name in names if name in self._parts} - self.finished
        self.finished |= new
        self._done += sum(self._parts[name].units for name in new)
        self._bar.set_description_str(f"{self._title}: {self._done}/{self._total} {self._unit} ", refresh=False)
        self._bar.update(sum(self._parts[name].cost for name in new))

    def say(self, line: str) -> None:
        """Write a line above the bar, if there is one."""
        if not self._bar.disable:
            self._bar.write(line, sys.stderr)


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
    finished = [name for name in dict.fromkeys(finished) if name in parts]
    before, total = (sum(parts[name].cost for name in some) for some in (finished, parts))
    with tqdm(total=total, bar_format=BAR, disable=not shown) as bar:
        work = WorkBar(bar, parts, title, unit)
        work.finish(finished)
        bar.initial = before
        yield work
