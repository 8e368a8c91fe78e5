"""What has a study that was stopped already run? One line per finished part, added when it is finished.

A line that was being written when the process died is not counted; lines of another study are never mixed in.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from positional_heads.results.files import FINISHED_FILE_NAME, write_atomically


class FinishedParts:
    """Results of a study's parts by name, in memory and, if a folder is given, on disk; they must be JSON.

    Args:
        folder: Where to keep them; nowhere when None.
        study: What makes the study this study: model, task, mode.

    Raises:
        ValueError: If the folder holds parts of another study.
    """

    def __init__(self, folder: str | Path | None, study: Mapping[str, Any]) -> None:
        self.file = None if folder is None else Path(folder) / FINISHED_FILE_NAME
        self.results: dict[str, Any] = {}
        if self.file is None:
            return
        header = json.loads(json.dumps(study))
        lines = _whole_lines(self.file) or [header]
        if lines[0] != header:
            changed = sorted(key for key in {*header, *lines[0]} if header.get(key) != lines[0].get(key))
            msg = (
                f"{self.file}: holds the finished part of another study (different: {', '.join(changed)}); run that "
                "one to its end with its own settings, choose another folder, or delete the file"
            )
            raise ValueError(msg)
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in lines))
        self.results = {line["part"]: line["result"] for line in lines[1:]}

    def __contains__(self, part: str) -> bool:
        return part in self.results

    def add(self, part: str, result: Any) -> None:
        """Keep the result of one part."""
        self.results[part] = result
        if self.file is None:
            return
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"part": part, "result": result}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def say_where(self, bar: Any) -> None:
        """Say beside a progress bar where parts are kept, if they are."""
        if self.file is not None:
            bar.write(f"finished parts are kept in {self.file}: the same call goes on where it was stopped", sys.stderr)

    @contextmanager
    def on_interrupt(self, total: int) -> Iterator[None]:
        """Where Ctrl-C ends what is done inside, say what is kept.

        Args:
            total: How many parts the study has.
        """
        try:
            yield
        except KeyboardInterrupt as interrupt:
            if self.file is None:
                raise
            kept = f"{len(self.results)} of {total} parts are finished and kept in {self.file}"
            msg = f"{kept}; the same call goes on from there"
            raise KeyboardInterrupt(msg) from interrupt


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """Every line that was written to its end."""
    if not file.exists():
        return []
    # what follows the last end of line was being written
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
