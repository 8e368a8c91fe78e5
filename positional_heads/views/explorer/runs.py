"""The runs that an explorer shows: every result of one shape in a folder, or those given in Python.

A report has room for a few results of a kind; an explorer shows all that have as many layers and heads as the first,
and names the others in its notes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positional_heads.core.heads import Head
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.comparison import Comparison
from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.files import lies_in
from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.record import Record
from positional_heads.results.scores import HeadScores
from positional_heads.results.tables import model_label
from positional_heads.results.text import printable
from positional_heads.results.unfinished import unfinished
from positional_heads.views.explorer.short_names import short_name, text_names, without_paths
from positional_heads.views.report.headlined import after_headline, result_folders
from positional_heads.views.report.page import SHOWN_KINDS, WRITING

KINDS: dict[type[Record], str] = {
    HeadScores: "scores",
    HeadProfile: "profile",
    DistanceProfile: "distances",
    AblationStudy: "ablation",
    ExtrapolationStudy: "extrapolation",
    Comparison: "comparison",
    HeadExamples: "texts",
}
"""Records that an explorer shows, in this order, and what each is called."""


class NoHeadsError(ValueError):
    """No result says how many layers and heads the model has."""


@dataclass(frozen=True)
class Run:
    """One result that an explorer shows.

    Attributes:
        id: What the document calls it, e.g. "run-1".
        name: What people call it; never a local path.
        record: The result.
        file: Its file, relative to the folder; None if it was given in Python.
    """

    id: str
    name: str
    record: Record
    file: str | None

    @property
    def provenance(self) -> dict[str, Any]:
        """Its provenance; of a comparison, that of the first result."""
        first = self.record.provenance.get("a")
        return first if isinstance(first, dict) else self.record.provenance

    @property
    def model(self) -> str:
        """Short name of its model, with how its weights were stored."""
        return printable(model_label(self.record.provenance), newlines=False)

    @property
    def text(self) -> str | None:
        """Short names of its texts; None where none is known."""
        return ", ".join(text_names(self.record)) or None

    @property
    def training_length(self) -> int | None:
        """Tokens that the model was trained on, as far as known."""
        if isinstance(self.record, ExtrapolationStudy):
            return self.record.training_length
        context = (self.provenance.get("model") or {}).get("context")
        return int(context) if context else None


@dataclass(frozen=True)
class Runs:
    """Results of one shape.

    Attributes:
        layers: Layers of the model.
        heads: Heads of each layer.
        runs: The results, scores first.
        notes: What was left out and why, in sentences.
    """

    layers: int
    heads: int
    runs: list[Run]
    notes: list[str]

    def of(self, kind: type[Record]) -> list[Run]:
        """The runs of one kind."""
        return [run for run in self.runs if isinstance(run.record, kind)]

    @property
    def names(self) -> list[str]:
        """Every head, layer by layer."""
        return [str(Head(layer, head)) for layer in range(self.layers) for head in range(self.heads)]


def read_runs(folder: str | Path) -> Runs:
    """Every result in a folder and its subfolders that an explorer shows.

    Raises:
        FileNotFoundError: If there is no such folder, or no such result in it.
        ResultFileError: If a result is damaged, foreign, or from a newer version.
    """
    return _runs(*_read(Path(folder)))


def _read(folder: Path) -> tuple[list[tuple[str, Record, str]], list[str]]:
    """The name, result and file of everything that an explorer shows, and what it does not show; see `read_runs`."""
    if folder.is_file():
        msg = f"{folder}: is a file; give its folder, {folder.parent}"
        raise FileNotFoundError(msg)
    if not folder.is_dir():
        msg = f"{folder}: no such folder; give the --out folder of positional-heads {WRITING}"
        raise FileNotFoundError(msg)
    folders = result_folders(folder)
    found: list[tuple[str, Record, str]] = []
    for kind, word in KINDS.items():
        name = kind.saved_as.file_name
        for path in (path for path in folders if lies_in(path, name)):
            called = word if path == folder else path.name
            found.append((called, kind.load(path / name), (path / name).relative_to(folder).as_posix()))
    shown = {kind.saved_as for kind in KINDS}
    others = [
        (path / kind.file_name).relative_to(folder).as_posix()
        for kind in SHOWN_KINDS
        if kind not in shown
        for path in folders
        if lies_in(path, kind.file_name)
    ]
    notes = [f"Not shown here, but in report.html: {', '.join(others)}."] if others else []
    notes += [note.replace(f"{folder}/", "") for path in folders if (note := unfinished(path)) is not None]
    if not found:
        msg = (
            f"{folder}: holds no result that an explorer shows ({', '.join(kind.saved_as.file_name for kind in KINDS)})"
            f"; give the --out folder of positional-heads score, profile, ablate, extrapolate or compare"
        )
        raise FileNotFoundError(" ".join([msg, *notes]))
    return found, notes


def given_runs(results: Iterable[Record] | Mapping[str, Record | str | Path]) -> Runs:
    """Results given in Python.

    Args:
        results: The results, by name if they should have names of their own, or folders by name.

    Raises:
        FileNotFoundError: If there is no such folder, or no such result in it.
        ResultFileError: If a result is damaged, foreign, or from a newer version.
        TypeError: If one is no result that an explorer shows.
        ValueError: If there is none, or none has heads.
    """
    named = results.items() if isinstance(results, Mapping) else [(None, record) for record in results]
    found: list[tuple[str, Record, None]] = []
    notes: list[str] = []
    for name, record in named:
        if isinstance(record, str | Path):
            held, more = _read(Path(record))
            found += [(f"{name}" if "/" not in file else f"{name}, {called}", one, None) for called, one, file in held]
            notes += more
            continue
        kind = next((kind for kind in KINDS if isinstance(record, kind)), None)
        if kind is None:
            known = ", ".join(kind.__name__ for kind in KINDS)
            msg = f"an explorer shows a folder of results, or {known}; got {type(record).__name__}"
            raise TypeError(msg)
        found.append((KINDS[kind] if name is None else str(name), record, None))
    if not found:
        msg = "no result given: give a folder, a result, or a list of results"
        raise ValueError(msg)
    return _runs(found, notes)


def _runs(found: Sequence[tuple[str, Record, str | None]], notes: list[str]) -> Runs:
    """Runs of the shape of the first result that says it, scores as in the report."""
    profiles = [record for _, record, _ in found if isinstance(record, HeadProfile)]
    scores = sorted(
        (one for one in found if isinstance(one[1], HeadScores)), key=lambda one: after_headline(one[1], profiles)
    )
    headlined = Path(scores[0][2]).parent if scores and scores[0][2] else None
    in_order = iter(scores)
    found = [next(in_order) if isinstance(one[1], HeadScores) else one for one in found]
    layers, heads = next((shape for _, record, _ in found if (shape := _shape(record)) is not None), (0, 0))
    if not layers * heads:
        msg = "these results do not say how many layers and heads the model has: add scores or a profile of it"
        raise NoHeadsError(msg)
    fitting = []
    for name, record, file in found:
        shape = _shape(record) or (layers, heads)
        beyond = [head for head in _heads(record) if head.layer >= layers or head.head >= heads]
        if shape != (layers, heads) or beyond:
            of = f"of {shape[0]} layers of {shape[1]} heads" if shape != (layers, heads) else f"of {beyond[0]}"
            notes.append(
                f"Left out, because it is {of} and the other results are of {layers} layers of {heads} heads: "
                f"{file or short_name(name)}."
            )
        else:
            fitting.append((name, without_paths(record), file))
    order = list(KINDS.values())
    fitting.sort(key=lambda one: (order.index(_word(one[1])), _elsewhere(one[1], one[2], headlined)))
    names = _names([(short_name(name), record, file is not None) for name, record, file in fitting])
    runs = [
        Run(f"run-{number}", name, record, file)
        for number, (name, (_, record, file)) in enumerate(zip(names, fitting, strict=True), 1)
    ]
    return Runs(layers, heads, runs, [without_home(note) for note in notes])


def without_home(note: str) -> str:
    """A note without the folder of the person who ran it."""
    return note.replace(str(Path.home()), "~")


def _names(named: Sequence[tuple[str, Record, bool]]) -> list[str]:
    """Names that differ: of files the text if texts differ, then the kind, then the text, then a number.

    Args:
        named: Name, result, and whether the name is only that of its folder.
    """
    several = len({text for _, record, _ in named if (text := _text(record))}) > 1
    plain = [
        f"{text} ({name})" if several and of_folder and (text := _text(record)) not in {"", name} else name
        for name, record, of_folder in named
    ]
    called = [name for name, _, _ in named]
    longer = []
    for name, (own, record, _) in zip(plain, named, strict=True):
        shared = plain.count(name) > 1 or (name == own and called.count(own) > 1)
        longer.append(f"{name}: {_word(record)}" if shared and _word(record) != name else name)
    with_text = []
    for name, (_, record, _) in zip(longer, named, strict=True):
        text = _text(record)
        with_text.append(f"{name} on {text}" if longer.count(name) > 1 and text and text not in name else name)
    seen: dict[str, int] = {}
    final = []
    for name in with_text:
        seen[name] = seen.get(name, 0) + 1
        final.append(name if with_text.count(name) == 1 else f"{name} ({seen[name]})")
    return final


def _text(record: Record) -> str:
    """The text of a result as a part of its name: the first, and how many more; empty if unknown."""
    first, *more = text_names(record) or [""]
    return f"{first} and {len(more)} more" if more else first


def _word(record: Record) -> str:
    """What the kind of a result is called."""
    return next(word for kind, word in KINDS.items() if isinstance(record, kind))


def _elsewhere(record: Record, file: str | None, headlined: Path | None) -> bool:
    """Whether this is a text of another folder than that of the first scores."""
    return isinstance(record, HeadExamples) and file is not None and Path(file).parent != headlined


def _shape(record: Record) -> tuple[int, int] | None:
    """Layers and heads of the model of a result; None where it does not say."""
    if isinstance(record, HeadScores):
        layers, heads = record.rho.shape
    elif isinstance(record, HeadProfile):
        layers, heads = record.mass.shape[:2]
    elif isinstance(record, DistanceProfile):
        layers, heads = record.half_distance.shape
    elif isinstance(record, AblationStudy):
        layers, heads = record.ranked_by.shape
    elif isinstance(record, Comparison):
        layers, heads = record.rho.shape[1:]
    else:
        model = record.provenance.get("model") or {}
        if not (model.get("layers") and model.get("heads")):
            return None
        layers, heads = model["layers"], model["heads"]
    return int(layers), int(heads)


def _heads(record: Record) -> list[Head]:
    """The heads that a result of some heads is of."""
    return record.heads if isinstance(record, ExtrapolationStudy | HeadExamples) else []
