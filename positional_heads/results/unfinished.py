"""Interrupted runs in a folder and how to resume them, read without a model and without torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from positional_heads.results.files import (
    ABLATION,
    DISTANCE_RESPONSE,
    EMERGENCE,
    EXTRAPOLATION,
    FINISHED_FILE_NAME,
    HEAD_PROFILE,
    MANIPULATION,
    PARTIAL,
    PLAN_STUDY,
    RECOMMENDATION,
    SCORES,
    ResultFileError,
    ResultKind,
    earlier_sums,
    read_result,
)

_CHECKSUM = "sha256"


class Study(NamedTuple):
    """A kind of study that is resumed from its finished parts.

    Attributes:
        command: Its command; None where there is none.
        function: Its function.
        kind: The result that it ends in.
    """

    command: str | None
    function: str
    kind: ResultKind


STUDIES = {
    "emergence": Study("emerge", "emergence_study", EMERGENCE),
    "pairs": Study("plan --pairs --study", "pair_study", PLAN_STUDY),
    "windows": Study("plan --study", "plan_study", PLAN_STUDY),
    "ablation": Study("ablate", "ablation_study", ABLATION),
    "manipulation": Study("manipulate", "manipulation_study", MANIPULATION),
    "recommendation": Study("recommend", "recommend_extension", RECOMMENDATION),
    "retrieval": Study("profile", "profile_heads", HEAD_PROFILE),
    "trained": Study("extrapolate", "extrapolation_study", EXTRAPOLATION),
    "settings": Study(None, "distance_response", DISTANCE_RESPONSE),
}
"""Studies by what their own header has; the first that fits."""


def unfinished(folder: str | Path) -> str | None:
    """One sentence on every interrupted run in a folder; None if there is none.

    Args:
        folder: The folder of scores, shards or a study.
    """
    folder = Path(folder)
    sums = [folder / PARTIAL.file_name, *sorted(folder.glob("shard-*.unfinished.safetensors"))]
    notes = [note for file in sums if file.is_file() and (note := _unfinished_scores(file)) is not None]
    parts = folder / FINISHED_FILE_NAME
    if parts.is_file() and (note := _unfinished_study(parts)) is not None:
        notes.append(note)
    return " ".join(notes) or None


def _unfinished_scores(file: Path) -> str | None:
    try:
        content, _ = read_result(file, PARTIAL)
    except ResultFileError as error:
        return f"{error}; delete it to start over."
    if earlier := earlier_sums(file, content):
        return f"{earlier}."
    if _has_result(file, content):
        return None
    done, total = len(content["done"]), content["run"]["batches"]
    call = "positional-heads score command, or score_heads call with the same checkpoint="
    if "profile" in content["run"]["provenance"]:
        call = "positional-heads profile command, or profile_heads call with the same checkpoint="
    if file.name != PARTIAL.file_name:
        call = "positional-heads score --shard command, or score_shard call"
    return f"{file}: unfinished, {done} of {total} batches are counted; to resume, repeat the same {call}."


def _has_result(file: Path, content: Mapping[str, Any]) -> bool:
    """Whether what the sums were counted for lies beside them, of the same run: calls in Python keep the sums."""
    run, done = content["run"], {*content["done"]}
    kind = HEAD_PROFILE if "profile" in run["provenance"] else SCORES
    beside = file.parent / kind.file_name
    if file.name != PARTIAL.file_name:
        kind, beside = PARTIAL, file.with_name(file.name.replace(".unfinished.", "."))
    elif len(done) < run["batches"]:
        return False
    try:
        result, _ = read_result(beside, kind)
    except (OSError, ResultFileError):
        return False
    other = result["run"]["provenance"] if kind == PARTIAL else result["provenance"]
    counted = done <= {*result["done"]} if kind == PARTIAL else True
    return counted and _identity(run["provenance"]).items() <= _identity(other).items()


def _identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What was scored, and every setting; a profile has more of those than its sums."""
    settings = {**provenance.get("settings", {}), **provenance.get("profile", {})}
    settings = {f"settings.{name}": value for name, value in settings.items()}
    parts = {"model": provenance.get("model"), "extension": provenance.get("extension")}
    known = {"data": provenance.get("data", {}).get("sha256"), **parts, **settings}
    return {name: json.dumps(value, sort_keys=True) for name, value in known.items()}


def _unfinished_study(file: Path) -> str | None:
    try:
        header, *parts = finished_lines(file) or [{}]
    except ResultFileError as error:
        return f"{error}."
    if not header:  # killed before it was written
        return f"{file}: a study that was killed at its very beginning, nothing is lost; repeat its command."
    study = next((study for key, study in STUDIES.items() if key in header), STUDIES["trained"])
    if _written_since(file, study.kind):
        return None
    command = "" if study.command is None else f"positional-heads {study.command} command, or "
    done = sum("part" in line for line in parts)
    return (
        f"{file}: unfinished study, {done} of its parts done; to resume, repeat the same {command}{study.function} "
        "call with the same checkpoint=."
    )


def _written_since(file: Path, kind: ResultKind) -> bool:
    """Whether the study was finished: its result lies beside the parts, which calls in Python keep, and is newer."""
    result = file.parent / kind.file_name
    return result.is_file() and result.stat().st_mtime_ns >= file.stat().st_mtime_ns


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
