"""Run a study part by part, and resume it after an interruption: one JSON line on disk for each finished part.

A line that was incomplete when the process died is dropped; lines of another study are refused.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from positional_heads.results.files import FINISHED_FILE_NAME, write_atomically

Part = TypeVar("Part")


def run_parts(
    parts: Mapping[str, Part],
    run: Callable[[Part], Any],
    *,
    study: Mapping[str, Any],
    folder: str | Path | None,
    title: str,
    unit: str,
    progress: bool,
) -> list[Any]:
    """Run every part that the folder has no result of.

    Args:
        parts: The parts by name.
        run: Called with one part; must return JSON.
        study: What identifies the study: model, task, settings. Must be JSON.
        folder: Folder to save finished parts in and to resume from; nothing is saved when None.
        title: Title of the progress bar.
        unit: What the progress bar counts.
        progress: Show a progress bar.

    Returns:
        The results, in the order of the parts.

    Raises:
        ValueError: If the folder holds parts of another study.
        KeyboardInterrupt: On Ctrl-C, with a message that says what is saved.
    """
    file = None if folder is None else Path(folder) / FINISHED_FILE_NAME
    results = {} if file is None else _saved_results(file, study)
    finished = sum(name in results for name in parts)
    with tqdm(total=len(parts), initial=finished, unit=unit, desc=title, disable=not progress) as bar:
        if progress and file is not None:
            bar.write(f"progress is saved in {file}; rerun the same command to resume", sys.stderr)
        try:
            for name in [name for name in parts if name not in results]:
                results[name] = run(parts[name])
                if file is not None:
                    _append(file, {"part": name, "result": results[name]})
                bar.update()
        except KeyboardInterrupt as interrupt:
            if file is None:
                raise
            saved = f"{sum(name in results for name in parts)} of {len(parts)} parts are finished and saved in {file}"
            msg = f"{saved}; rerun the same command to resume"
            raise KeyboardInterrupt(msg) from interrupt
    return [results[name] for name in parts]


def _saved_results(file: Path, study: Mapping[str, Any]) -> dict[str, Any]:
    """Results by name of part; the file is begun, or rewritten without its incomplete last line."""
    header = json.loads(json.dumps(study))
    lines = _complete_lines(file) or [header]
    if lines[0] != header:
        changed = sorted(key for key in {*header, *lines[0]} if header.get(key) != lines[0].get(key))
        msg = (
            f"{file}: holds finished parts of another study (different: {', '.join(changed)}); finish that study with "
            "its own settings, choose another folder, or delete the file"
        )
        raise ValueError(msg)
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))
    return {line["part"]: line["result"] for line in lines[1:]}


def _complete_lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    # what follows the last newline was still being written
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def _append(file: Path, line: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())  # a finished part survives a crash of the machine, too
