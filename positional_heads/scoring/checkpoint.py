"""Checkpoints of a run: the sums so far, saved at intervals and on Ctrl-C."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from positional_heads.bridge.active_edits import model_edits, refuse_unknown_edits
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.results.files import PARTIAL
from positional_heads.scoring.sums import ScoreSums

SHARE = 20
"""Saving may take one part in so many of the time."""


class Checkpoint:
    """A file with the sums so far of a run, always whole, replaced at intervals."""

    def __init__(
        self,
        model: TransformerLensModel,
        folder: str | Path | None,
        seconds: float,
        name: str = PARTIAL.file_name,
    ) -> None:
        """Choose file and interval; nothing is written before `save`.

        Args:
            model: The model that is run, of which a checkpoint must know all that changes it.
            folder: Where the file goes; nothing is ever saved when None.
            seconds: Least time between saves.
            name: Name of the file.

        Raises:
            ValueError: If the time is negative, or hooks of others act on the model and there is a folder.
        """
        if seconds < 0:
            msg = f"checkpoint_seconds {seconds} must not be negative: 0 saves after every batch"
            raise ValueError(msg)
        self.file = None if folder is None else Path(folder) / name
        if self.file is not None:
            refuse_unknown_edits(model_edits(model))
        self._seconds = seconds
        self._due = time.monotonic() + seconds

    def load(self, check: Callable[[ScoreSums], None]) -> ScoreSums | None:
        """The sums on disk, if there are any.

        Args:
            check: Raises if they are of another run.

        Raises:
            ResultFileError: If the file is damaged.
        """
        if self.file is None or not self.file.exists():
            return None
        sums = ScoreSums.load(self.file)
        check(sums)
        return sums

    def save(self, sums: ScoreSums) -> None:
        """Save the sums.

        Args:
            sums: Whole batches only.
        """
        if self.file is None:
            return
        started = time.monotonic()
        sums.save(self.file)
        finished = time.monotonic()
        self._due = finished + max(self._seconds, SHARE * (finished - started) if self._seconds else 0)

    def save_if_due(self, sums: ScoreSums) -> bool:
        """Save the sums if enough time has passed since the last save.

        Args:
            sums: Whole batches only.

        Returns:
            Whether they were saved.
        """
        if self.file is None or time.monotonic() < self._due:
            return False
        self.save(sums)
        return True

    @contextmanager
    def on_interrupt(self, sums: ScoreSums) -> Iterator[None]:
        """A block in which Ctrl-C saves the sums, and is raised again with a message on how to resume.

        Args:
            sums: Whole batches only.
        """
        try:
            yield
        except IncompleteBatch:
            raise
        except KeyboardInterrupt as interrupt:
            if self.file is None:
                raise
            self.save(sums)
            counted = f"{len(sums.done)} of {sums.run['batches']} batches are counted and saved in {self.file}"
            msg = f"{counted}; rerun the same command to resume"
            raise KeyboardInterrupt(msg) from interrupt

    def remove(self) -> None:
        """Delete the file."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


class IncompleteBatch(KeyboardInterrupt):
    """Ctrl-C was pressed twice during one batch: the sums hold a part of it and must not be saved."""


@contextmanager
def interrupt_delayed() -> Iterator[None]:
    """A block that the first Ctrl-C lets finish, so sums hold whole batches; a second one stops it at once.

    Raises:
        KeyboardInterrupt: At the end of the block, if Ctrl-C was pressed once.
        IncompleteBatch: At once, if it was pressed again.
    """
    pressed: list[int] = []

    def handler(number: int, frame: Any) -> None:  # noqa: ARG001
        if pressed:
            raise IncompleteBatch
        pressed.append(number)
        # os.write, because the signal may come during a write to sys.stderr, which is not reentrant
        os.write(2, b"\nfinishing this batch; press again to stop at once\n")

    before = signal.getsignal(signal.SIGINT)
    # Only the main thread may set handlers; a handler that the user set, or an ignored signal, is left alone.
    ours = threading.current_thread() is threading.main_thread() and before is signal.default_int_handler
    try:
        if ours:
            signal.signal(signal.SIGINT, handler)
        yield
    except KeyboardInterrupt as interrupt:
        raise IncompleteBatch from interrupt
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
