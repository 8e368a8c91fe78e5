"""Read and write the files of other tools: nothing in a file is run, and no file of another kind is replaced.

Files come from anywhere. `torch.load` reads them with `weights_only=True`, which makes tensors, numbers, texts, lists
and dicts, and refuses everything else before it exists; a plain pickle is never opened.
"""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from positional_heads.core.arguments import is_number
from positional_heads.core.whole_files import write_atomically
from positional_heads.results.files import ResultFileError
from positional_heads.results.text import printable


def existing_file(path: str | Path, kind: str) -> Path:
    """The file of a path.

    Args:
        path: Where it should be.
        kind: What it should be, for the message, e.g. "a file of MHA2MLA ranks".

    Raises:
        FileNotFoundError: If there is none.
    """
    file = Path(path)
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "no such file"
        msg = f"{file}: {found}, expected {kind}"
        raise FileNotFoundError(msg)
    return file


def write_own_kind(file: Path, content: bytes | str, kind: str, read: Callable[[Path], object]) -> Path:
    """Write a whole file; one of the same kind is replaced, any other is left alone.

    Args:
        file: The file; its folder is made if missing.
        content: Everything in it.
        kind: What it is, for the message.
        read: The reader of this kind, which refuses other files.

    Raises:
        ResultFileError: If another file, or a folder, has this name.
    """
    refuse_other_kind(file, kind, read)
    write_atomically(file, content)
    return file


def refuse_other_kind(file: Path, kind: str, read: Callable[[Path], object]) -> None:
    """Refuse to replace what `read` does not understand; an empty or missing file may be written.

    Raises:
        ResultFileError: If something else has this name.
    """
    if file.is_dir():
        msg = f"{file}: is a folder, and {kind} would get this name; choose another, or move the folder first"
        raise ResultFileError(msg)
    if not file.is_file() or not file.stat().st_size:
        return
    try:
        read(file)
    except (ValueError, OSError) as error:
        msg = f"{file}: exists already and is not {kind}; choose another name, or delete it first"
        raise ResultFileError(msg) from error


def torch_bytes(content: Any) -> bytes:
    """What `torch.save` writes."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def read_torch(path: str | Path, kind: str) -> Any:
    """The tensors, numbers, texts, lists and dicts of a file that `torch.save` wrote.

    Args:
        path: The file.
        kind: What it should be, for messages.

    Raises:
        FileNotFoundError: If there is none.
        ResultFileError: If it holds anything else, is compressed, or is damaged.
    """
    file = existing_file(path, kind)
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        msg = f"{file}: is not {kind}: no file of torch.save, or a damaged one; plain pickles are not opened"
        raise ResultFileError(msg) from error
    if unpacked > file.stat().st_size:  # torch.save compresses nothing
        msg = f"{file}: is not {kind}: it would unpack to {unpacked} bytes, more than the file has"
        raise ResultFileError(msg)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        msg = f"{file}: is not {kind}, or is damaged: torch refuses to read it safely ({type(error).__name__})"
        raise ResultFileError(msg) from error


def plain_tensor(value: Any, file: Path, what: str) -> Tensor:
    """A value of a torch file, if it is an ordinary tensor that the file has room for.

    Args:
        value: What was read.
        file: Where from.
        what: What it should be, for the message.

    Raises:
        ResultFileError: If it is none, or one that repeats few numbers many times.
    """
    if type(value) is not Tensor:
        msg = f"{file}: {what} must be a tensor, got {type(value).__name__}"
        raise ResultFileError(msg)
    if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_meta:
        msg = f"{file}: {what} must be a plain tensor, got one that is nested, sparse, quantised or without numbers"
        raise ResultFileError(msg)
    if not value.numel():
        msg = f"{file}: {what} is an empty tensor, {list(value.shape)}"
        raise ResultFileError(msg)
    if value.numel() * value.element_size() > file.stat().st_size:
        msg = f"{file}: {what} claims {value.numel()} numbers, more than the file holds"
        raise ResultFileError(msg)
    return value


def read_json(path: str | Path, kind: str) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: If there is none.
        ResultFileError: If it is not JSON.
    """
    file = existing_file(path, kind)
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        msg = f"{file}: is not {kind}: not JSON, or a damaged file"
        raise ResultFileError(msg) from error


def read_own_json(path: str | Path, kind: str, label: str, version: int, keys: Sequence[str]) -> dict[str, Any]:
    """The content of a JSON file that this library wrote.

    Args:
        path: The file.
        kind: What it should be, for messages.
        label: Its `format`.
        version: The newest version that can be read.
        keys: What it must have besides, and nothing else.

    Raises:
        FileNotFoundError: If there is none.
        ResultFileError: If it is another file, from a newer version, or has too little or too much in it.
    """
    content = read_json(path, kind)
    if not isinstance(content, dict) or content.get("format") != label:
        msg = f"{path}: is not {kind}: its format is not {label!r}"
        raise ResultFileError(msg)
    written = content.get("version")
    if type(written) is not int or written > version:
        msg = f"{path}: written in format {written!r:.20}, this version reads up to {version}: upgrade"
        raise ResultFileError(msg)
    own = {"format", "version", *keys}
    if own != content.keys():
        less, more = sorted(own - content.keys()), sorted(content.keys() - own)
        wrong = "; ".join(
            f"{words} {', '.join(one[:30] for one in names)}"
            for words, names in (("lacks", less), ("has besides", more))
            if names
        )
        msg = f"{path}: is not {kind} as this version writes it: {printable(wrong, newlines=False)}"
        raise ResultFileError(msg)
    return content


def table_of_numbers(value: Any, axes: int, file: Path, what: str) -> Tensor:
    """Nested lists of numbers as a float64 tensor; null is NaN.

    Args:
        value: What was read.
        axes: How deep the lists are nested.
        file: Where from.
        what: What it should be, for the message.

    Raises:
        ResultFileError: If it is anything else, uneven, or empty.
    """

    def numbers(part: Any, depth: int) -> Any:
        if depth == axes:
            if part is not None and not is_number(part):
                raise TypeError
            return torch.nan if part is None else float(part)
        if not isinstance(part, list) or not part:
            raise TypeError
        return [numbers(inner, depth + 1) for inner in part]

    try:
        return torch.tensor(numbers(value, 0), dtype=torch.float64)
    except (TypeError, ValueError, OverflowError) as error:
        msg = f"{file}: {what} must be lists of numbers, {axes} deep and of equal lengths"
        raise ResultFileError(msg) from error
