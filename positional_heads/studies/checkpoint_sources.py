"""Checkpoints of a training run: which step each has, where it is, and how to know it again without loading it.

A folder is known by the name, size and time of change of its files; a revision of the hub by those of its snapshot.
What a function makes is known only once it is made, by the fingerprint of its weights.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positional_heads.bridge.loaded_models import is_loaded
from positional_heads.core.arguments import is_integer
from positional_heads.core.logs import error_reason
from positional_heads.zoo.bundled import BUNDLED, load_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

logger = logging.getLogger(__name__)

NAMED_BY_STEP = re.compile(r"(?:(?:checkpoint|ckpt|global_?step|step|iter)[-_]?)?(\d+)", re.IGNORECASE)
UNDERSTOOD = "checkpoint-500, step_500, step500, global_step500, ckpt-500, iter_500 or 500"
IN_REVISION = re.compile(r"\D*?(\d+)")
"""A revision of the hub that is named by its step: step1000, checkpoint-1000."""
MODEL_FILES = ("config.json", "adapter_config.json")
READ_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
"""What is read of a revision; `*.bin` where it has no safetensors."""
OF_BUNDLED = (
    "{step: partial(ph.load_bundled_model, step) for step in ph.bundled_steps()}, or some of these steps (from "
    "functools import partial)"
)
"""The checkpoints of the bundled model, as messages name them."""
FEWEST = 2
SHOWN = 8
"""Names that a message lists at most."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        step: Training step.
        name: What it is called in messages and results.
        source: A path or hub name, a hub name and a revision, or a function without arguments that returns a model.
        options: Keywords of `load_model`, for what is not made by a function.
    """

    step: int
    name: str
    source: str | Path | tuple[str, str] | Callable[[], Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> str | None:
        """A sha256 over the files of a folder: names, sizes, times of change; None where that is not known."""
        folder = self._folder()
        if folder is None or not folder.is_dir():
            return None
        stated = [(str(file.relative_to(folder)), file.stat()) for file in sorted(folder.rglob("*")) if file.is_file()]
        known = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stated]
        listed = [str(folder.resolve()), known, {name: str(value) for name, value in sorted(self.options.items())}]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    def load(self) -> "TransformerBridge":
        """Load it.

        Raises:
            ValueError: If it cannot be loaded, whatever the reason.
        """
        try:
            if isinstance(self.source, tuple):
                bridge = load_model(str(downloaded(*self.source)), **self.options)
                bridge.cfg.model_name = self.name
                return bridge
            if isinstance(self.source, (str, Path)):
                return load_model(self.source, **self.options)
            return load_model(self.source())
        except Exception as error:
            msg = f"checkpoint of step {self.step} ({self.name}) cannot be loaded: {error_reason(error)}"
            raise ValueError(msg) from error

    def _folder(self) -> Path | None:
        if isinstance(self.source, tuple):
            return downloaded(*self.source, only_here=True)
        return Path(self.source) if isinstance(self.source, (str, Path)) else None


def downloaded(name: str, revision: str, *, only_here: bool = False) -> Path | None:
    """The folder of one revision of a model of the hub, downloaded if need be.

    Args:
        name: Its hub name.
        revision: A branch, a tag or a commit.
        only_here: Look on this machine only; None if it is not here.

    Raises:
        FileNotFoundError: If it cannot be had.
    """
    from huggingface_hub import snapshot_download

    def found(patterns: list[str]) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=only_here))

    try:
        folder = found(READ_FILES)
        if not any(folder.glob("*.safetensors")):
            folder = found([*READ_FILES, "*.bin"])
    except Exception as error:
        if only_here:
            return None
        msg = f"revision {revision!r} of {name!r} cannot be had: {error_reason(error)}"
        raise FileNotFoundError(msg) from error
    whole = (folder / "config.json").is_file() and (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")))
    return folder if whole or not only_here else None


def training_checkpoints(checkpoints: Any, options: Mapping[str, Any]) -> list[Checkpoint]:
    """The checkpoints in the order of their steps, each checked as far as it can be without loading it.

    Args:
        checkpoints: As in `emergence_study`.
        options: Keywords of `load_model`.

    Raises:
        FileNotFoundError: If a folder, or its checkpoints, or a revision is not there.
        TypeError: If this is nothing that names checkpoints.
        ValueError: If there are fewer than two, one has no step, or two have the same.
    """
    pairs = list(_pairs(checkpoints))
    found: dict[int, Checkpoint] = {}
    for step, source in pairs:
        if not is_integer(step) or not 0 <= step < 2**63:
            msg = f"step {step!r:.40} must be a whole number of at least 0, e.g. {{500: 'runs/checkpoint-500'}}"
            raise ValueError(msg)
        one = _checked(int(step), source, options)
        if one.step in found:
            msg = f"step {step} is given twice, as {found[one.step].name} and as {one.name}: leave one of them out"
            raise ValueError(msg)
        found[one.step] = one
    if len(found) < FEWEST:
        names = "".join(f" ({one.name})" for one in found.values())
        msg = (
            f"an emergence study needs at least two checkpoints, got {len(found)}{names}: add some, or run score_heads "
            "for one"
        )
        raise ValueError(msg)
    return [found[step] for step in sorted(found)]


def _pairs(checkpoints: Any) -> Iterable[tuple[Any, Any]]:
    """Step and source of each."""
    if isinstance(checkpoints, (str, Path)):
        return _in_folder(checkpoints)
    if isinstance(checkpoints, Mapping):
        return list(checkpoints.items())
    if _is_revisions(checkpoints):
        name, revisions = checkpoints
        _refuse_bundled(name)
        return [(_step_of(one), (name, one)) for one in revisions]
    if isinstance(checkpoints, Iterable) and not isinstance(checkpoints, (bytes, set)) and not is_loaded(checkpoints):
        pairs = list(checkpoints)
        if all(isinstance(one, (tuple, list)) and len(one) == 2 for one in pairs):  # noqa: PLR2004
            return pairs
        if all(map(is_integer, pairs)):
            msg = (
                f"checkpoints are steps alone: say where each is, as {{step: path}}; for the bundled model give "
                f"{OF_BUNDLED}"
            )
            raise TypeError(msg)
    msg = (
        f"checkpoints must be a folder, (hub name, [revisions]), {{step: path or function}} or (step, function) pairs, "
        f"got {type(checkpoints).__name__}"
    )
    raise TypeError(msg)


def _is_revisions(checkpoints: Any) -> bool:
    """Whether this is a hub name with revisions."""
    if not isinstance(checkpoints, (tuple, list)) or len(checkpoints) != 2:  # noqa: PLR2004
        return False
    name, revisions = checkpoints
    many = isinstance(revisions, Sequence) and not isinstance(revisions, (str, bytes))
    return isinstance(name, str) and many and all(isinstance(one, str) for one in revisions)


def _refuse_bundled(name: str) -> None:
    """Refuse revisions of the bundled model, which no hub has.

    Raises:
        ValueError: If it is this one.
    """
    if name == BUNDLED:
        msg = f"{BUNDLED!r} has no revisions: its checkpoints are files of this package, give {OF_BUNDLED}"
        raise ValueError(msg)


def _step_of(revision: str) -> int:
    """The step that a revision is named by.

    Raises:
        ValueError: If it has none.
    """
    match = IN_REVISION.fullmatch(revision)
    if match is None:
        msg = (
            f"revision {revision!r} does not end in a step, as step1000 does: name one that does, or in Python give "
            f"its step, {{1000: (name, {revision!r})}}"
        )
        raise ValueError(msg)
    return int(match[1])


def _in_folder(place: str | Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder; other folders are passed over, with a warning where they hold a model.

    Raises:
        FileNotFoundError: If there is no such folder, or no checkpoint in it.
    """
    folder = Path(place).expanduser()
    if not str(place).strip() or not folder.is_dir():
        way = "for a model of the hub give (name, [revisions])"
        if str(place) == BUNDLED:
            way = f"for the bundled model give {OF_BUNDLED}"
        msg = f"{str(place)!r}: no such folder of checkpoints; {way}"
        raise FileNotFoundError(msg)
    inside = sorted(one for one in folder.iterdir() if one.is_dir())
    named = [(int(match[1]), one) for one in inside if (match := NAMED_BY_STEP.fullmatch(one.name))]
    if not named:
        names = ", ".join(one.name for one in sorted(folder.iterdir())[:SHOWN])
        msg = f"{folder}: no folder named by a step, such as {UNDERSTOOD}; found {names or 'nothing'}"
        raise FileNotFoundError(msg)
    passed = [one.name for one in inside if not NAMED_BY_STEP.fullmatch(one.name) and _holds_model(one)]
    if passed:
        logger.warning("%s: %s not named by a step (%s), so left out", folder, ", ".join(passed[:SHOWN]), UNDERSTOOD)
    return named


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MODEL_FILES) or any(folder.glob("*.gguf"))


def _checked(step: int, source: Any, options: Mapping[str, Any]) -> Checkpoint:
    """One checkpoint, refused where it is seen not to be there.

    Raises:
        FileNotFoundError: If it is a folder without a model, or a revision that is not here while the hub is off.
        TypeError: If it is neither a path, a hub name with a revision, nor a function.
    """
    if is_loaded(source):
        msg = f"step {step} is a loaded model: give a path or a function that loads it, to hold one model at a time"
        raise TypeError(msg)
    if isinstance(source, (tuple, list)) and len(source) == 2 and all(isinstance(one, str) for one in source):  # noqa: PLR2004
        name, revision = source
        _refuse_bundled(name)
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE and downloaded(name, revision, only_here=True) is None:
            msg = (
                f"revision {revision!r} of {name!r} is not on this machine, and the hub is switched off: first run "
                f"`hf download {name} --revision {revision}`"
            )
            raise FileNotFoundError(msg)
        return Checkpoint(step, f"{name} at {revision}", (name, revision), options)
    if isinstance(source, (str, Path)):
        folder = Path(source).expanduser()
        if folder.is_dir() and not _holds_model(folder):
            msg = f"{folder}: no config.json in it, so it is no checkpoint in `transformers` format (step {step})"
            raise FileNotFoundError(msg)
        return Checkpoint(step, str(source), folder if folder.exists() else source, options)
    if callable(source):
        return Checkpoint(step, _called(source), source)
    msg = (
        f"step {step} must be a path, a hub name, (hub name, revision), or a function that returns a model, got "
        f"{type(source).__name__}"
    )
    raise TypeError(msg)


def _called(function: Any) -> str:
    """What a function is called, with the arguments of a partial one."""
    inner, arguments = getattr(function, "func", function), getattr(function, "args", ())
    name = str(getattr(inner, "__name__", type(inner).__name__))
    return f"{name}({', '.join(map(repr, arguments))})"[:80] if arguments else name
