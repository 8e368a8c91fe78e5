"""Who counts the batches, where one process is not enough?"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from positional_heads.scoring.counter import EntryCounter
from positional_heads.scoring.sums import ScoreSums


@runtime_checkable
class Executor(Protocol):
    """Counts numbered batches elsewhere and hands back their sums, in any order."""

    def started(self, model: Any) -> AbstractContextManager[None]:
        """Be ready to count, or refuse before anything long has begun.

        Args:
            model: This process's own.
        """
        ...

    def counted(self, counter: EntryCounter, empty: ScoreSums, numbers: Sequence[int]) -> Iterator[ScoreSums]:
        """Sums over some of the batches at a time, until all are done.

        Args:
            counter: The run, with this process's model.
            empty: Its plans and bins, nothing counted.
            numbers: Which batches.
        """
        ...


def named_executor(executor: "str | Executor | None") -> "Executor | None":
    """The executor meant by a name.

    Raises:
        ValueError: If there is none of that name.
        ModuleNotFoundError: If what it needs is not installed.
    """
    if not isinstance(executor, str):
        return executor
    if executor != "ray":
        msg = f"unknown executor {executor!r}: choose 'ray', or leave it out to count in this process"
        raise ValueError(msg)
    from positional_heads.scoring.ray_executor import RayExecutor

    return RayExecutor()
