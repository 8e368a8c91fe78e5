"""Run a study part by part, and resume it after an interruption: one JSON line on disk for each finished part.

A line that was incomplete when the process died is dropped; lines of another study are refused. What a budget leaves
out is decided once and kept among the parts, so that a resumed study is the one that was begun.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from positional_heads.bridge.active_edits import refuse_unknown_edits
from positional_heads.core.whole_files import write_atomically
from positional_heads.results.files import FINISHED_FILE_NAME
from positional_heads.results.unfinished import finished_line, finished_lines
from positional_heads.scoring.progress import Work, work_bar

Part = TypeVar("Part")
WORTH_SAYING = 30.0
"""Seconds of finished parts from which on it is said where they are saved."""
clock = time.monotonic
"""The clock; tests have one of their own."""


def now() -> float:
    """Seconds since some moment."""
    return clock()


class FinishedParts:
    """The finished parts of one study, kept in memory and, if there is a folder, on disk.

    Attributes:
        file: The file on disk, or None.
        results: Result of each finished part.
        seconds: How long each took, where that is known.
        spent: Seconds that parts have taken since this was made.
        decisions: What was decided about the study, as JSON.
        announced: Whether no progress bar need say any more where the file is.
    """

    def __init__(self, study: Mapping[str, Any], folder: str | Path | None) -> None:
        """Read what is finished.

        Args:
            study: What identifies the study: model (as `model_provenance` gives it), task, settings. Must be JSON.
            folder: Folder to save finished parts in and to resume from; nothing is saved when None.

        Raises:
            ValueError: If the folder holds parts of another study, or hooks of others act on the model, of which a file
                cannot know what they change.
            ResultFileError: If the file is damaged.
        """
        self.file = None if folder is None else Path(folder) / FINISHED_FILE_NAME
        if self.file is not None:
            refuse_unknown_edits(study["model"].get("edits", {}))
        lines = [] if self.file is None else _saved_lines(self.file, study)
        parts = [line for line in lines if "part" in line]
        self.results: dict[str, Any] = {line["part"]: line["result"] for line in parts}
        self.seconds: dict[str, float] = {line["part"]: line["seconds"] for line in parts if "seconds" in line}
        self.decisions: list[dict[str, Any]] = [line["decision"] for line in lines if "decision" in line]
        self.announced, self.spent = False, 0.0

    def run(self, name: str, part: Part, run: Callable[[Part], Any]) -> Any:
        """The result of a part, which is run unless it is finished."""
        if name not in self.results:
            began = now()
            result = run(part)
            self.seconds[name] = now() - began
            self.spent += self.seconds[name]
            self.results[name] = result
            self._append({"part": name, "result": result, "seconds": self.seconds[name]})
        return self.results[name]

    def seconds_of(self, names: Iterable[str], otherwise: float) -> float:
        """How long those of the parts took that are finished.

        Args:
            names: Names of parts, each once.
            otherwise: What one of them took where that is not known.
        """
        return sum(self.seconds.get(name, otherwise) for name in names if name in self.results)

    def forget_untimed(self, names: Iterable[str]) -> None:
        """Let these parts be run again if it is not known how long they took, which older versions did not keep."""
        for name in names:
            if name not in self.seconds:
                self.results.pop(name, None)

    def decide(self, decision: dict[str, Any]) -> None:
        """Keep a decision."""
        self.decisions.append(decision)
        self._append({"decision": decision})

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.file is None:
            return
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(finished_line(line))
            stream.flush()
            os.fsync(stream.fileno())  # a finished part survives a crash of the machine, too


def run_parts(
    parts: Mapping[str, Part],
    run: Callable[[Part], Any],
    *,
    finished: FinishedParts,
    title: str,
    unit: str,
    progress: bool,
    cost: Callable[[Part], float] = lambda _: 1.0,
) -> list[Any]:
    """Run every part that is not finished.

    Args:
        parts: The parts by name.
        run: Called with one part; must return JSON.
        finished: The parts that are finished; all are afterwards.
        title: Title of the progress bar.
        unit: What the progress bar counts, in the plural.
        progress: Show a progress bar.
        cost: Cost of a part compared with the others, for the time left.

    Returns:
        The results, in the order of the parts.

    Raises:
        KeyboardInterrupt: On Ctrl-C, with a message that says what is saved.
    """
    work = {name: Work(cost(part)) for name, part in parts.items()}
    with work_bar(work, finished.results, title=title, unit=unit, shown=progress) as bar:
        bar.announced = finished.announced
        try:
            for name, part in parts.items():
                finished.run(name, part, run)
                bar.finish([name], finished.file if finished.spent > WORTH_SAYING else None)
                finished.announced = bar.announced
        except KeyboardInterrupt as interrupt:
            if finished.file is None:
                raise
            saved = f"{len(bar.finished)} of {len(parts)} parts are finished and saved in {finished.file}"
            msg = f"{saved}; rerun the same command to resume"
            raise KeyboardInterrupt(msg) from interrupt
    return [finished.results[name] for name in parts]


def _saved_lines(file: Path, study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines below the header; the file is begun, or rewritten without its incomplete last line."""
    header = json.loads(json.dumps(study))
    lines = (finished_lines(file) if file.exists() else []) or [header]
    if lines[0] != header:
        changed = sorted(key for key in {*header, *lines[0]} if header.get(key) != lines[0].get(key))
        msg = (
            f"{file}: holds finished parts of another study (different: {', '.join(changed)}); finish that study with "
            "its own settings, choose another folder, or delete the file"
        )
        raise ValueError(msg)
    write_atomically(file, "".join(map(finished_line, lines)))
    return lines[1:]
