"""Sums so far, on disk: what a killed run goes on from."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from positional_heads.results.files import PARTIAL
from positional_heads.scoring.sums import ScoreSums

SHARE = 20
"""Writing may take one part in so many of the time."""


class Checkpoint:
    """A file with a run's sums so far, replaced every so often, whole or not at all."""

    def __init__(self, folder: str | Path | None, seconds: float, name: str = PARTIAL.file_name) -> None:
        """Write nothing yet.

        Args:
            folder: Where to; nowhere when None.
            seconds: How often to write.
            name: What the file is called.

        Raises:
            ValueError: If the time is negative.
        """
        if seconds < 0:
            msg = f"checkpoint_seconds {seconds} must not be negative: 0 writes after every batch"
            raise ValueError(msg)
        self.file = None if folder is None else Path(folder) / name
        self._seconds = seconds
        self._due = time.monotonic() + seconds

    def restored(self, check: Callable[[ScoreSums], None]) -> ScoreSums | None:
        """The sums on disk, if there are any.

        Args:
            check: Raises if they are of another run.

        Raises:
            ResultFileError: If the file is damaged.
        """
        if self.file is None:
            return None
        for half_written in self.file.parent.glob(f".{self.file.name}.*.partial"):  # by a process that was killed
            half_written.unlink(missing_ok=True)
        if not self.file.exists():
            return None
        found = ScoreSums.load(self.file)
        check(found)
        return found

    def keep(self, sums: ScoreSums, *, now: bool = False) -> None:
        """Write the sums if it is time.

        Args:
            sums: Whole batches only.
            now: Whether or not it is time.
        """
        started = time.monotonic()
        if self.file is None or not (now or started >= self._due):
            return
        sums.save(self.file)
        finished = time.monotonic()
        self._due = finished + max(self._seconds, SHARE * (finished - started) if self._seconds else 0)

    @contextmanager
    def on_interrupt(self, sums: ScoreSums) -> Iterator[None]:
        """Where Ctrl-C ends what is done inside, write the sums first, and say so.

        Args:
            sums: Whole batches only, unless a step was torn.
        """
        try:
            yield
        except TornStep:
            raise
        except KeyboardInterrupt as interrupt:
            if self.file is None:
                raise
            self.keep(sums, now=True)
            done, total = len(sums.done), sums.run["batches"]
            msg = f"{done} of {total} batches are counted and kept in {self.file}; the same call goes on from there"
            raise KeyboardInterrupt(msg) from interrupt

    def remove(self) -> None:
        """Delete the file, once what it was for is on disk."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


class TornStep(KeyboardInterrupt):
    """What was being added to when Ctrl-C came is half added to."""


@contextmanager
def whole_step() -> Iterator[None]:
    """A step that Ctrl-C lets come to its end, so that sums hold whole batches; a second one stops it at once.

    Raises:
        KeyboardInterrupt: At the end, if Ctrl-C was pressed once.
        TornStep: At once, if it was pressed again.
    """
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:  # noqa: ARG001
        if pressed:
            raise TornStep
        pressed.append(number)
        os.write(2, b"\nfinishing this batch; press again to stop at once\n")  # sys.stderr may be in mid-write

    before = signal.getsignal(signal.SIGINT)
    # Ctrl-C reaches the main thread only; who handles it in another way, or ignores it, is left alone
    ours = threading.current_thread() is threading.main_thread() and before is signal.default_int_handler
    try:
        if ours:
            signal.signal(signal.SIGINT, note)
        yield
    except KeyboardInterrupt as interrupt:
        raise TornStep from interrupt
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
