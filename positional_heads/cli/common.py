"""Shared by all commands: reading text, one-line errors, and the check that results can be written."""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from positional_heads.cli.wording import say, warnings_in_options

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUNDLED = "bundled"
PLACEMENTS = ("auto", "balanced", "sequential")
"""Ways to spread a model over devices, by name."""
LOOKED_AT = 2**16
"""Bytes of a text file that are checked before the model is loaded, where only parts of it will be read."""
EXPLORER_MARK = b'"positional_heads.explorer"'
"""What an explorer's page holds, the format of its document: a page of another hand is not removed."""
DEBUG = "POSITIONAL_HEADS_DEBUG"
"""Environment variable that shows tracebacks of failures."""


def refuse_suffix(file: Path) -> None:
    """Refuse to write a page to a file that is called like something else, a result among them."""
    if file.suffix not in {"", ".html", ".htm"}:
        msg = f"{file}: a page is called something.html; give --out such a name, or a folder"
        raise ValueError(msg)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Report any failure in one line, with an exit status; with DEBUG set, show the traceback."""
    try:
        with warnings_in_options():
            yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise  # reported already, or nobody reads the output
    except KeyboardInterrupt as interrupt:
        say(f"interrupted: {' '.join(str(interrupt).split()) or 'nothing was finished that could be saved'}")
        raise typer.Exit(130) from interrupt
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (ValueError, TypeError, OSError, RuntimeError, MemoryError, ImportError)):
            reason = (
                f"{type(error).__name__}: {reason}; this is a fault of positional-heads: {DEBUG}=1 shows the traceback"
            )
        say(f"error: {reason}")
        raise typer.Exit(1) from error


def read_texts(names: list[str] | None) -> list[str]:
    """Texts by file name, `-`, `bundled` or `bundled:KIND`.

    Raises:
        ValueError: If no text is given, or one is empty or not text.
    """
    return [read_text(name) for name in _given(names)]


def text_sources(names: list[str] | None) -> list[str | Path]:
    """Texts to draw from, as `read_texts` takes them; a file is its path, since only parts of it may be read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If no text is given, or one is empty or does not begin as text.
    """
    return [_begun(name) if _is_file_name(name) else read_text(name) for name in _given(names)]


def whole_sources(names: list[str] | None) -> list[str | Path]:
    """Texts to cut as a whole; a file is its path, by which results name it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If no text is given, or one is empty or not text.
    """
    texts = read_texts(names)
    return [Path(name) if _is_file_name(name) else text for name, text in zip(_given(names), texts, strict=True)]


def _begun(name: str) -> Path:
    """The path of a text file whose beginning is text; all of a short one."""
    from positional_heads.bridge.text_sources import TextFile, text_between, whole_text

    file = TextFile(_file(name))
    if file.size <= LOOKED_AT:
        whole_text(file)
    else:
        text_between(file, 0, LOOKED_AT)
    return file.path


def read_text(name: str) -> str:
    """One text by file name, `-`, `bundled` or `bundled:KIND`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty or not text, or there is no such bundled text.
    """
    from positional_heads.bridge.text_sources import HeldText, TextFile, whole_text

    if name == "-":
        return whole_text(HeldText(name, sys.stdin.buffer.read()))
    if not _is_file_name(name):
        return _bundled(name)
    return whole_text(TextFile(_file(name)))


def say_drawn(pieces: list[Any], seed: int, n_texts: int) -> None:
    """Say how sequences were drawn."""
    say(
        f"{len(pieces)} sequences of at most {max(map(len, pieces))} tokens drawn from {n_texts} "
        f"{'text' if n_texts == 1 else 'texts'} at random (--seed {seed}; --in-order takes the first ones), "
        f"{sum(map(len, pieces))} tokens"
    )


def _given(names: list[str] | None) -> list[str]:
    if not names:
        msg = "no text given: add --text FILE (--text - reads standard input, --text bundled the bundled text)"
        raise ValueError(msg)
    return names


def _is_file_name(name: str) -> bool:
    return name != "-" and name.partition(":")[0] != BUNDLED


def _file(name: str) -> Path:
    if not Path(name).is_file():
        msg = f"{name}: no such text file{_hint(name)}"
        raise FileNotFoundError(msg)
    return Path(name)


def _bundled(name: str) -> str:
    from positional_heads.zoo.bundled import TEXT_KINDS, bundled_text

    kind = name.partition(":")[2] if ":" in name else TEXT_KINDS[0]
    if kind not in TEXT_KINDS:
        known = ", ".join(f"{BUNDLED}:{one}" for one in TEXT_KINDS)
        near = get_close_matches(kind, TEXT_KINDS, n=1)
        msg = f"{name}: no such bundled text; choose one of {known}" + (
            f"; did you mean {BUNDLED}:{near[0]}?" if near else ""
        )
        raise ValueError(msg)
    return bundled_text(kind)


@contextmanager
def prepared_folder(out: Path, file_name: str, overwrite: bool) -> Iterator[None]:
    """Check before a long run that results can be written to a folder and replace no others.

    A folder that is made here and still empty when the run fails is removed. Where a result was replaced, the folder's
    page, and files that only the old result has, are removed.

    Args:
        out: The folder.
        file_name: Name of the result file.
        overwrite: Allow replacing results.

    Raises:
        ValueError: If the folder holds results, and they may not be replaced, or something else of that name.
        OSError: If the folder cannot be written.
    """
    from positional_heads.core.whole_files import write_atomically
    from positional_heads.results.files import lies_in, refuse_foreign

    refuse_foreign(out / file_name)
    if not (overwrite and lies_in(out, file_name)):
        _refuse_shared(out, file_name)
    before = _beside(out / file_name)
    if (out / file_name).exists() and not overwrite:
        msg = f"{out}: already holds results; choose another --out, or add --overwrite"
        raise ValueError(msg)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    probe = out / ".writable"
    try:
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        msg = f"{out}: cannot write there ({error.strerror or error}); choose another --out"
        raise OSError(msg) from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty: what is in it is worth keeping
            for folder in made:
                folder.rmdir()
        raise
    _remove_stale(out / file_name, before)


def _refuse_shared(out: Path, file_name: str) -> None:
    """Refuse a folder with a result of another kind, a table or plot of which would be replaced.

    Raises:
        ValueError: If it is one.
    """
    from positional_heads.results.files import BESIDE, lies_in

    mine = next((names for kind, names in BESIDE.items() if kind.file_name == file_name), ())
    for kind, names in BESIDE.items():
        other = kind.file_name != file_name and lies_in(out, kind.file_name)
        if shared := [name for name in names if other and name in mine and lies_in(out, name)]:
            msg = f"{out}: holds {kind.file_name}, whose {' and '.join(shared)} would be replaced; choose another --out"
            raise ValueError(msg)


def _beside(result: Path) -> dict[Path, int]:
    """When a result was written, its folder's page, its tables and plots; those that are there."""
    from positional_heads.results.files import BESIDE, EXPLORER_NAME, PAGE_NAME

    own = next((names for kind, names in BESIDE.items() if kind.file_name == result.name), ())
    names = (result.name, PAGE_NAME, EXPLORER_NAME, *own)
    return {file: file.stat().st_mtime_ns for name in names if (file := result.parent / name).is_file()}


def _remove_stale(result: Path, before: dict[Path, int]) -> None:
    """Remove what belongs to a result that was replaced, and was not written again.

    Args:
        result: The result file.
        before: When it and others were written before.
    """
    from positional_heads.results.files import EXPLORER_DATA, EXPLORER_NAME, PAGE_NAME

    after = _beside(result)
    if result not in before or after.get(result) == before[result]:
        return
    pages = {PAGE_NAME: (b"<title>Positional Heads: ", "report"), EXPLORER_NAME: (EXPLORER_MARK, "explore")}
    stale = [file for file, time in before.items() if after.get(file) == time]
    stale = [file for file in stale if file.name not in pages or pages[file.name][0] in file.read_bytes()]
    for file in stale:
        file.unlink()
    if any(file.name == EXPLORER_NAME for file in stale):
        for layer in (result.parent / EXPLORER_DATA).glob("L*.json"):
            layer.unlink()
    if stale:
        again = [pages[file.name][1] for file in stale if file.name in pages]
        advice = "".join(f"; positional-heads {command} {result.parent} writes the page" for command in again)
        say(f"removed, of the result that was replaced: {', '.join(map(str, stale))}{advice}")


def load_named(
    model: str,
    device: str | None,
    dtype: str | None,
    trust_remote_code: bool,
    *,
    device_map: str | None = None,
    **places: Path | None,
) -> "TransformerBridge":
    """Load `bundled`, `smollm2`, a folder, a GGUF file, or a model of the hub.

    Args:
        model: Which.
        device: A device, or a way to spread the model over several.
        dtype: Precision.
        trust_remote_code: Run code that comes with the model.
        device_map: A way to spread it, or a table in JSON.
        places: The other folders that it is loaded with: `adapter`, `offload_folder`.

    Raises:
        ValueError: If the name is a misspelt one of ours.
    """
    from positional_heads.zoo.real import refuse_misspelt

    refuse_misspelt(model)
    if device in PLACEMENTS and device_map is None:
        device, device_map = None, device
    table = _placement(device_map)
    say("loading TransformerLens and the model ...")
    from positional_heads.zoo.bundled import load_model

    return load_model(
        model, device=device, device_map=table, dtype=dtype, trust_remote_code=trust_remote_code, **places
    )


def _placement(device_map: str | None) -> str | dict[str, str | int] | None:
    """A way to spread a model by its name, or a table.

    Raises:
        ValueError: If it is neither.
    """
    if device_map is None or device_map in PLACEMENTS:
        return device_map
    try:
        table = json.loads(device_map)
    except ValueError:
        table = None
    if not isinstance(table, dict) or not all(type(place) in {str, int} for place in table.values()):
        msg = (
            f"--device-map {device_map!r}: give {', '.join(PLACEMENTS)}, or a table in JSON, e.g. "
            """'{"": "disk"}'"""
        )
        raise ValueError(msg)
    return table


def _hint(name: str) -> str:
    near = name != BUNDLED and get_close_matches(name.lower().partition(":")[0], [BUNDLED], cutoff=0.75)
    return f"; did you mean {BUNDLED!r}?" if near else ""


def choice(option: str, value: str | None, words: Any) -> Any:
    """The value of an option, if it is one of the words of a `Literal`.

    Raises:
        ValueError: If it is another word.
    """
    if value is not None and value not in get_args(words):
        msg = f"{option} {value!r} is unknown: choose one of {', '.join(get_args(words))}"
        raise ValueError(msg)
    return value


def numbers(option: str, text: str, example: str) -> list[float]:
    """Numbers separated by commas.

    Args:
        option: The option.
        text: Its value.
        example: A valid value, for the message.

    Raises:
        ValueError: If a part is not a number.
    """
    try:
        values = [float(part) for part in text.split(",")]
        if not all(map(math.isfinite, values)):
            raise ValueError(text)
        return values
    except ValueError as error:
        msg = f"{option} {text!r} must be numbers separated by commas, e.g. {example}"
        raise ValueError(msg) from error
