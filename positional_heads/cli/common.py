"""What every command does alike: read text, refuse in one line, find out early whether results can be written."""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUNDLED = "bundled"
DEBUG = "POSITIONAL_HEADS_DEBUG"
"""Environment variable that lets failures of the command line through with their tracebacks."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn any failure into one line and an exit status; the traceback is shown where DEBUG is set."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise  # said already, or nobody is there to read it
    except KeyboardInterrupt as interrupt:
        say(f"interrupted: {' '.join(str(interrupt).split()) or 'nothing was finished that could be kept'}")
        raise typer.Exit(130) from interrupt
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (ValueError, TypeError, OSError, RuntimeError, MemoryError, ImportError)):
            said = f"{type(error).__name__}: {said}; this is a fault of positional-heads: {DEBUG}=1 shows where it is"
        say(f"error: {said}")
        raise typer.Exit(1) from error


def say(message: str) -> None:
    """Tell the user something, beside the results on standard output."""
    typer.echo(message, err=True)


def read_texts(names: list[str] | None) -> list[str]:
    """Texts by file name, `-` or `bundled`.

    Raises:
        ValueError: If no text is given, or one is empty or not text.
    """
    if not names:
        msg = "no text given: add --text FILE (or --text - for standard input, --text bundled for ours)"
        raise ValueError(msg)
    return [read_text(name) for name in names]


def read_text(name: str) -> str:
    """One text by file name, `-` or `bundled`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty or not text.
    """
    if name == BUNDLED:
        from positional_heads.zoo.bundled import bundled_text

        return bundled_text()
    if name == "-":
        content = sys.stdin.buffer.read()
    elif Path(name).is_file():
        content = Path(name).read_bytes()
    else:
        msg = f"{name}: no such text file"
        raise FileNotFoundError(msg)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        msg = f"{name}: not UTF-8 text (byte {error.start}): is it a binary file? Convert it to UTF-8 first"
        raise ValueError(msg) from error
    if "\0" in text:
        msg = f"{name}: a binary file, it holds null bytes; give plain text"
        raise ValueError(msg)
    if not text.strip():
        msg = f"{name}: the text is empty, there is nothing to score"
        raise ValueError(msg)
    return text


def prepare_folder(out: Path, file_name: str, overwrite: bool) -> None:
    """Find out before the long part whether results can be written, and would not replace others.

    Args:
        out: The folder.
        file_name: What the result will be called in it.
        overwrite: Whether others may be replaced.

    Raises:
        ValueError: If there are others.
        OSError: If the folder cannot be written.
    """
    from positional_heads.results.files import write_atomically

    if (out / file_name).exists() and not overwrite:
        msg = f"{out}: holds results already; choose another --out, or add --overwrite"
        raise ValueError(msg)
    probe = out / ".writable"
    try:
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        msg = f"{out}: cannot write there ({error.strerror or error}); choose another --out"
        raise OSError(msg) from error


def load_named(model: str, device: str | None, dtype: str | None, trust_remote_code: bool) -> "TransformerBridge":
    """The model meant on the command line: `bundled`, a folder, or a hub name."""
    say("loading the host libraries and the model ...")
    from positional_heads.zoo.bundled import load_model

    return load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)


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
    """Numbers with commas between them.

    Args:
        option: Whose value it is.
        text: The value.
        example: One that would do.

    Raises:
        ValueError: If a part is not a number.
    """
    try:
        found = [float(part) for part in text.split(",")]
        if not all(map(math.isfinite, found)):
            raise ValueError(text)
        return found
    except ValueError as error:
        msg = f"{option} {text!r} must be numbers with commas between them, e.g. {example}"
        raise ValueError(msg) from error
