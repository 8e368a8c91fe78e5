"""Shared by all commands: reading text, one-line errors, and the check that results can be written."""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUNDLED = "bundled"
PLACEMENTS = ("auto", "balanced", "sequential")
"""Ways to spread a model over devices, by name."""
DEBUG = "POSITIONAL_HEADS_DEBUG"
"""Environment variable that shows tracebacks of failures."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Report any failure in one line, with an exit status; with DEBUG set, show the traceback."""
    try:
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


def say(message: str) -> None:
    """Print a message to standard error; standard output is for results."""
    typer.echo(message, err=True)


def read_texts(names: list[str] | None) -> list[str]:
    """Texts by file name, `-` or `bundled`.

    Raises:
        ValueError: If no text is given, or one is empty or not text.
    """
    if not names:
        msg = "no text given: add --text FILE (--text - reads standard input, --text bundled the bundled text)"
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
        msg = f"{name}: no such text file{_hint(name)}"
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
    """Check before a long run that results can be written to a folder and replace no others.

    Args:
        out: The folder.
        file_name: Name of the result file.
        overwrite: Allow replacing results.

    Raises:
        ValueError: If the folder holds results, and they may not be replaced.
        OSError: If the folder cannot be written.
    """
    from positional_heads.results.files import write_atomically

    if (out / file_name).exists() and not overwrite:
        msg = f"{out}: already holds results; choose another --out, or add --overwrite"
        raise ValueError(msg)
    probe = out / ".writable"
    try:
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        msg = f"{out}: cannot write there ({error.strerror or error}); choose another --out"
        raise OSError(msg) from error


def load_named(
    model: str,
    device: str | None,
    dtype: str | None,
    trust_remote_code: bool,
    *,
    device_map: str | None = None,
    **places: Path | None,
) -> "TransformerBridge":
    """Load `bundled`, a folder, or a model of the hub.

    Args:
        model: Which.
        device: A device, or a way to spread the model over several.
        dtype: Precision.
        trust_remote_code: Run code that comes with the model.
        device_map: A way to spread it, or a table in JSON.
        places: The other folders that it is loaded with: `adapter`, `offload_folder`.

    Raises:
        ValueError: If the name is a misspelt `bundled`.
    """
    if (hint := _hint(model)) and not Path(model).is_dir():
        msg = f"model {model!r} is not a folder{hint}"
        raise ValueError(msg)
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
    near = name != BUNDLED and get_close_matches(name.lower(), [BUNDLED], cutoff=0.75)
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
