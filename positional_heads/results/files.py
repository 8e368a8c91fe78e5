"""How is a result kept on disk? One safetensors file, readable without loading torch, whole or not there.

The header holds everything that is not a tensor as JSON, a table of heads among it, and a sha256 of itself and the
numbers: a flipped bit in a safetensors file would otherwise load without a word.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from positional_heads.results.atomic import write_atomically

FORMAT = "positional_heads.HeadScores"
STUDY = "positional_heads.AblationStudy"
STUDY_FILE_NAME = "study.safetensors"
EXTRAPOLATION = "positional_heads.ExtrapolationStudy"
EXTRAPOLATION_FILE_NAME = "extrapolation.safetensors"
EXAMPLES = "positional_heads.HeadExamples"
EXAMPLES_FILE_NAME = "examples.safetensors"
PARTIAL = "positional_heads.ScoreSums"
FINISHED_FILE_NAME = "finished.jsonl"
"""Name of the finished parts of a study that was stopped."""
PARTIAL_FILE_NAME = "sums.safetensors"
FORMAT_VERSION = 1
FILE_NAME = "scores.safetensors"
_KEY = "positional_heads"
_CHECKSUM = "sha256"
_WRITTEN_BY = {
    FORMAT: "positional-heads score",
    STUDY: "positional-heads ablate",
    EXTRAPOLATION: "positional-heads extrapolate",
    EXAMPLES: "HeadExamples.save",
    PARTIAL: "positional-heads score",
}


class ResultFileError(ValueError):
    """A result file is damaged, foreign, or from a newer version of this library."""


def result_file(path: str | Path, name: str = FILE_NAME) -> Path:
    """The file meant by a path: itself, or the one of this name in a folder."""
    path = Path(path)
    return path / name if path.is_dir() or not path.suffix else path


def write_result(file: Path, tensors: bytes, content: dict[str, Any], kind: str = FORMAT) -> None:
    """Write serialised tensors with this content in their header, all of it or nothing.

    Args:
        file: Where to.
        tensors: A safetensors file without metadata, as bytes.
        content: Everything else; must be JSON.
        kind: What kind of result it is.
    """
    write_atomically(file, packed(tensors, content, kind))


def packed(tensors: bytes, content: dict[str, Any], kind: str) -> bytes:
    """What `write_result` writes, for sending it elsewhere; the arguments are the same."""
    header, data = _split(tensors)
    header["__metadata__"] = {_KEY: json.dumps({"format": kind, "version": FORMAT_VERSION, **content})}
    header["__metadata__"][_CHECKSUM] = _checksum(header, data)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + data


def read_result(path: str | Path, kind: str = FORMAT, name: str = FILE_NAME) -> tuple[dict[str, Any], bytes]:
    """Read a result file's content and its bytes, checked.

    Args:
        path: The file, or its folder.
        kind: What kind of result it must be.
        name: What the file is called in a folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ResultFileError: If the file is damaged, foreign, or from a newer version.
    """
    file = result_file(path, name)
    if not file.is_file():
        msg = f"{file}: no such result file; {_WRITTEN_BY[kind]} writes one called {name}"
        raise FileNotFoundError(msg)
    raw = file.read_bytes()
    return unpacked(raw, kind, file), raw


def unpacked(raw: bytes, kind: str, source: Any) -> dict[str, Any]:
    """The content of what `packed` made, checked.

    Args:
        raw: Its bytes.
        kind: What kind of result it must be.
        source: Where it comes from, for the error.

    Raises:
        ResultFileError: If it is damaged, foreign, or from a newer version.
    """
    try:
        header, data = _split(raw)
        metadata = header.get("__metadata__", {})
        stated = metadata.pop(_CHECKSUM, None)
        content = json.loads(metadata.get(_KEY, "{}"))
    except (ValueError, AttributeError, struct.error) as error:
        msg = f"{source}: not a result file, or a truncated one; run again"
        raise ResultFileError(msg) from error
    if content.get("format") != kind:
        msg = f"{source}: a safetensors file, but not a {kind}; {_WRITTEN_BY[kind]} writes those"
        raise ResultFileError(msg)
    version = content.get("version", FORMAT_VERSION)
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
