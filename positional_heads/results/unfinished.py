"""Interrupted runs in a folder and how to resume them, read without a model and without torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from positional_heads.results.files import FINISHED_FILE_NAME, PARTIAL, ResultFileError, earlier_sums, read_result

_CHECKSUM = "sha256"
STUDIES = {
    "emergence": ("emerge", "emergence_study"),
    "pairs": ("plan --pairs --study", "pair_study"),
    "windows": ("plan --study", "plan_study"),
    "ablation": ("ablate", "ablation_study"),
    "manipulation": ("manipulate", "manipulation_study"),
    "recommendation": ("recommend", "recommend_extension"),
    "retrieval": ("profile", "profile_heads"),
}
"""Command and function of studies, by what their own header has; the first that fits."""
OTHERS = ("extrapolate", "extrapolation_study")


def unfinished(folder: str | Path) -> str | None:
    """One sentence on every interrupted run in a folder; None if there is none.

    Args:
        folder: The folder of scores, shards or a study.
    """
    folder = Path(folder)
    sums = [folder / PARTIAL.file_name, *sorted(folder.glob("shard-*.unfinished.safetensors"))]
    notes = [_unfinished_scores(file) for file in sums if file.is_file()]
    if (folder / FINISHED_FILE_NAME).is_file():
        notes.append(_unfinished_study(folder / FINISHED_FILE_NAME))
    return " ".join(notes) or None


def _unfinished_scores(file: Path) -> str:
    try:
        content, _ = read_result(file, PARTIAL)
    except ResultFileError as error:
        return f"{error}; delete it to start over."
    if earlier := earlier_sums(file, content):
        return f"{earlier}."
    done, total = len(content["done"]), content["run"]["batches"]
    call = "positional-heads score command, or score_heads call with the same checkpoint="
    if "profile" in content["run"]["provenance"]:
        call = "positional-heads profile command, or profile_heads call with the same checkpoint="
    if file.name != PARTIAL.file_name:
        call = "positional-heads score --shard command, or score_shard call"
    return f"{file}: unfinished, {done} of {total} batches are counted; to resume, repeat the same {call}."


def _unfinished_study(file: Path) -> str:
    try:
        header, *parts = finished_lines(file) or [{}]
    except ResultFileError as error:
        return f"{error}."
    command, function = next((names for key, names in STUDIES.items() if key in header), OTHERS)
    if not header:  # killed before it was written
        return f"{file}: a study that was killed at its very beginning, nothing is lost; repeat its command."
    return (
        f"{file}: unfinished study, {len(parts)} of its parts done; to resume, repeat the same positional-heads "
        f"{command} command, or {function} call with the same checkpoint=."
    )


def finished_line(line: Mapping[str, Any]) -> str:
    """A finished part as a line of the file, with a checksum: a flipped bit would change a number unnoticed."""
    return json.dumps({**line, _CHECKSUM: _checksum(line)}) + "\n"


def finished_lines(file: Path) -> list[dict[str, Any]]:
    """The complete lines of a file of finished parts; what follows the last newline was still being written.

    Lines of earlier versions have no checksum.

    Raises:
        ResultFileError: If a line is damaged.
    """
    lines = []
    for number, raw in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            line = json.loads(raw)
            whole = line.pop(_CHECKSUM, None) in {None, _checksum(line)}
        except (AttributeError, RecursionError, TypeError, ValueError):
            whole = False
        if not whole:
            remedy = "that line, so that only its part is run again" if number > 1 else "the file to start over"
            msg = f"{file}: line {number} is damaged; delete {remedy}"
            raise ResultFileError(msg)
        lines.append(line)
    return lines


def _checksum(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line).encode()).hexdigest()[:16]
