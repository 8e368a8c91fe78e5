"""Sums so far, on disk: what a killed run goes on from."""

import time
from collections.abc import Callable
from pathlib import Path

from positional_heads.result_files import PARTIAL_FILE_NAME
from positional_heads.score_sums import ScoreSums

SHARE = 20
"""Writing may take one part in so many of the time."""


class Checkpoint:
    """A file with a run's sums so far, replaced every so often, whole or not at all."""

    def __init__(self, folder: str | Path | None, seconds: float, name: str = PARTIAL_FILE_NAME) -> None:
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

    def remove(self) -> None:
        """Delete the file, once what it was for is on disk."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)
