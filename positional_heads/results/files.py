"""Result files: one safetensors file each, readable without torch, complete or absent.

The header holds everything that is not a tensor as JSON, including the result's tables, and a sha256 of itself and the
numbers: without it safetensors would load a file with a flipped bit as if nothing had happened.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from positional_heads.core.whole_files import write_atomically


class ResultKind(NamedTuple):
    """A kind of result file.

    Attributes:
        label: The format label in the file.
        file_name: What the file is called in a folder.
        written_by: The command or method that writes it.
    """

    label: str
    file_name: str
    written_by: str


SCORES = ResultKind("positional_heads.HeadScores", "scores.safetensors", "positional-heads score")
ABLATION = ResultKind("positional_heads.AblationStudy", "study.safetensors", "positional-heads ablate")
EXTRAPOLATION = ResultKind(
    "positional_heads.ExtrapolationStudy", "extrapolation.safetensors", "positional-heads extrapolate"
)
JUMPS = ResultKind("positional_heads.JumpStudy", "jumps.safetensors", "JumpStudy.save")
EXAMPLES = ResultKind("positional_heads.HeadExamples", "examples.safetensors", "HeadExamples.save")
PROFILE = ResultKind("positional_heads.ContributionProfile", "profile.safetensors", "ContributionProfile.save")
HEAD_PROFILE = ResultKind("positional_heads.HeadProfile", "heads.safetensors", "positional-heads profile")
DISTANCE_PROFILE = ResultKind("positional_heads.DistanceProfile", "distances.safetensors", "positional-heads distances")
DISTANCE_RESPONSE = ResultKind("positional_heads.DistanceResponse", "response.safetensors", "DistanceResponse.save")
HEAD_PLAN = ResultKind("positional_heads.HeadPlan", "plan.safetensors", "positional-heads plan")
PAIR_PLAN = ResultKind("positional_heads.PairPlan", "pairs.safetensors", "positional-heads plan --pairs")
PLAN_STUDY = ResultKind("positional_heads.PlanStudy", "plans.safetensors", "positional-heads plan --study")
MANIPULATION = ResultKind(
    "positional_heads.ManipulationStudy", "manipulation.safetensors", "positional-heads manipulate"
)
RECOMMENDATION = ResultKind(
    "positional_heads.Recommendation", "recommendation.safetensors", "positional-heads recommend"
)
COMPARISON = ResultKind("positional_heads.Comparison", "comparison.safetensors", "positional-heads compare")
STABILITY = ResultKind("positional_heads.Stability", "stability.safetensors", "positional-heads compare")
EMERGENCE = ResultKind("positional_heads.EmergenceStudy", "emergence.safetensors", "positional-heads emerge")
TASK = ResultKind("positional_heads.TaskResult", "task.safetensors", "TaskResult.save")
PARTIAL = ResultKind("positional_heads.ScoreSums", "sums.safetensors", "positional-heads score")
"""The sums of an unfinished scoring run or of a shard."""
FINISHED_FILE_NAME = "finished.jsonl"
"""The finished parts of an interrupted study."""
PAGE_NAME = "report.html"
"""The page of everything in a folder."""
EXPLORER_NAME = "explorer.html"
"""The page on which readers choose heads, beside that."""
EXPLORER_DATA = "explorer_data"
"""Folder of the files of layers beside it, where it is too large for one file."""
_STUDY = ("effects.csv", "contrasts.csv", "answers.parquet")
BESIDE = {
    SCORES: ("heads.csv", "rho.png", "curves.png", "report.md", EXAMPLES.file_name),
    HEAD_PROFILE: (
        *("profile.csv", "pairs.csv", "correlations.csv", "profile.png", "correlations.png", "pairs.png"),
        *("profile.md", EXAMPLES.file_name),
    ),
    DISTANCE_PROFILE: ("distances.csv", "distance_curves.csv", "distances.png", "distances.md"),
    DISTANCE_RESPONSE: ("responses.csv", "responses.png", "responses.md"),
    ABLATION: (*_STUDY, "single_heads.csv", "dose_response.png", "ablation.md"),
    MANIPULATION: (*_STUDY, "dose_response.png", "manipulation.md"),
    PLAN_STUDY: (*_STUDY, "differences.csv", "loss_by_budget.png", "plans.md"),
    HEAD_PLAN: ("key_heads.csv", "plan.md"),
    PAIR_PLAN: ("pairs.csv", "pairs.md"),
    EXTRAPOLATION: (
        *("extrapolation.csv", "link.csv", "told_apart.csv", "told_apart.png", "extrapolation.png"),
        "extrapolation.md",
    ),
    RECOMMENDATION: (
        *("recommendation.csv", "pairs.csv", "heads.csv", "loss_by_factor.png", "rope_scaling.json"),
        "recommendation.md",
    ),
    JUMPS: ("jumps.csv", "agreement.csv", "jumps.png", "jumps.md"),
    EMERGENCE: ("heads_by_step.csv", "steps.csv", "births.csv", "order.csv", "emergence.png", "emergence.md"),
    COMPARISON: ("changes.csv", "agreement.csv", "top.csv", "pairs.csv", "comparison.png", "comparison.md"),
    STABILITY: ("heads.csv", "pairs.csv", "stability.png", "stability.md"),
}
"""Tables, plots, texts and examples that a report folder may have beside a result of each kind."""
FORMAT_VERSION = 1
_KEY = "positional_heads"
_CHECKSUM = "sha256"


class ResultFileError(ValueError):
    """A result file is damaged, foreign, or from a newer version of this library."""


def result_file(path: str | Path, file_name: str) -> Path:
    """The file that a path means: itself, or the one of this name if the path is a folder."""
    path = Path(path)
    return path / file_name if path.is_dir() or not path.suffix else path


def lies_in(folder: Path, file_name: str) -> bool:
    """Whether a folder holds a file of this name, or a link to none: it is not passed over, and refused when read."""
    file = folder / file_name
    return os.path.lexists(file) and not file.is_dir()


def kind_of(file: Path) -> str | None:
    """The format label of a result file; None if this is none."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                return None
            metadata = json.loads(stream.read(length)).get("__metadata__", {})
        label: str | None = json.loads(metadata.get(_KEY, "{}")).get("format")
    except (OSError, ValueError, AttributeError, RecursionError, TypeError, struct.error):
        return None
    return label


def refuse_foreign(file: Path) -> None:
    """Refuse to replace a file that is not a result, or a folder.

    Raises:
        ResultFileError: If there is one.
    """
    if file.is_dir():
        msg = f"{file}: is a folder, and a result file would get this name; choose another, or move the folder first"
        raise ResultFileError(msg)
    if file.is_file() and file.stat().st_size and kind_of(file) is None:
        msg = f"{file}: exists already and is not a result file; choose another name, or delete it first"
        raise ResultFileError(msg)


def write_result(file: Path, tensors: bytes, content: dict[str, Any], kind: ResultKind) -> None:
    """Write serialised tensors with this content in their header, complete or not at all.

    Args:
        file: The file to write.
        tensors: A safetensors file without metadata, as bytes.
        content: Everything else; must be JSON.
        kind: The kind of result.
    """
    write_atomically(file, packed(tensors, content, kind))


def packed(tensors: bytes, content: dict[str, Any], kind: ResultKind) -> bytes:
    """The bytes that `write_result` writes, to be sent elsewhere; the arguments are the same."""
    header, data = _split(tensors)
    header["__metadata__"] = {_KEY: json.dumps({"format": kind.label, "version": FORMAT_VERSION, **content})}
    header["__metadata__"][_CHECKSUM] = _checksum(header, data)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # safetensors wants the numbers to start at a multiple of 8 bytes
    return struct.pack("<Q", len(encoded)) + encoded + data


def read_result(path: str | Path, kind: ResultKind) -> tuple[dict[str, Any], bytes]:
    """Read and check a result file: its content and its bytes.

    Args:
        path: The file, or its folder.
        kind: The kind of result it must be.

    Raises:
        FileNotFoundError: If there is no such file.
        ResultFileError: If the file is damaged, foreign, or from a newer version.
    """
    file = result_file(path, kind.file_name)
    if not file.is_file():
        found = "a link to a file that is not there" if file.is_symlink() else "no such result file"
        found = "a folder, not a result file" if file.is_dir() else found
        msg = f"{file}: {found}; {kind.written_by} writes one called {kind.file_name}"
        raise FileNotFoundError(msg)
    try:
        raw = file.read_bytes()
    except OSError as error:
        msg = f"{file}: cannot be read ({error.strerror or error}); make it readable, or run again"
        raise OSError(msg) from error
    return unpacked(raw, kind, file), raw


@contextmanager
def understood(source: Any, kind: ResultKind) -> Iterator[None]:
    """A block that reads a whole file's content; what it lacks is reported as a fault of the file.

    Args:
        source: The file, for the error.
        kind: The kind of result it is.

    Raises:
        ResultFileError: If the content is not what this version expects.
    """
    try:
        yield
    except ResultFileError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        msg = (
            f"{source}: not damaged, but not a {kind.label} as this version reads it "
            f"({type(error).__name__}: {error}); read it by the program or version that wrote it, or run again"
        )
        raise ResultFileError(msg) from error


def earlier_sums(file: Path, content: dict[str, Any]) -> str | None:
    """Why the sums in a file cannot be continued: an earlier version wrote them; None if this one did."""
    if "null" in content:
        return None
    return f"{file}: these sums are of an earlier version and cannot be continued: delete the file and count again"


def unpacked(raw: bytes, kind: ResultKind, source: Any) -> dict[str, Any]:
    """The content that `packed` wrote, checked.

    Args:
        raw: The bytes.
        kind: The kind of result they must be.
        source: Where they come from, for the error.

    Raises:
        ResultFileError: If they are damaged, foreign, or from a newer version.
    """
    try:
        header, data = _split(raw)
        metadata = header.get("__metadata__", {})
        stated = metadata.pop(_CHECKSUM, None)
        content: dict[str, Any] = json.loads(metadata.get(_KEY, "{}"))
        label, version = str(content.get("format", "")), int(content.get("version", FORMAT_VERSION))
    except (ValueError, AttributeError, RecursionError, TypeError, struct.error) as error:
        msg = f"{source}: not a result file, or a truncated one; run again"
        raise ResultFileError(msg) from error
    if label != kind.label:
        msg = f"{source}: a safetensors file, but not a {kind.label}; {kind.written_by} writes those"
        if name := label.removeprefix("positional_heads."):
            msg += f"; this is {'an' if name[0] in 'AE' else 'a'} {name}"
            in_python = {PROFILE.label, TASK.label}
            msg += f": read it by {name}.load in Python" if label in in_python else ""
        raise ResultFileError(msg)
    if version > FORMAT_VERSION:
        msg = f"{source}: written in format {version}, this version reads up to {FORMAT_VERSION}: upgrade"
        raise ResultFileError(msg)
    if stated != _checksum(header, data):
        msg = f"{source}: its content does not match its checksum, the file is truncated or damaged; run again"
        raise ResultFileError(msg)
    return content


def _checksum(header: dict[str, Any], data: bytes) -> str:
    return hashlib.sha256(json.dumps(header).encode() + data).hexdigest()


def _split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", raw[:8])
    if length > len(raw) - 8:
        msg = "truncated header"
        raise ValueError(msg)
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]
