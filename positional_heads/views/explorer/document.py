"""The explorer's document: everything that its page shows, as JSON that programs can read, too.

`schema.json` describes every field. Numbers are rounded to five significant digits, and null where they are unknown.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import torch

from positional_heads.results.ablation import AblationStudy
from positional_heads.results.comparison import Comparison
from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.head_names import MIXED
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import printable
from positional_heads.views.explorer.by_distance import curve_part, extension_part, mass_part, merged, pair_part
from positional_heads.views.explorer.changes import comparison_part, effect_parts
from positional_heads.views.explorer.measures import (
    distance_measures,
    measure,
    profile_measures,
    same_scores,
    score_measures,
)
from positional_heads.views.explorer.runs import Run, Runs
from positional_heads.views.explorer.sentences import head_sentences
from positional_heads.views.explorer.series import series_part
from positional_heads.views.explorer.texts import ROOM, text_parts

FORMAT, VERSION = "positional_heads.explorer", 1
NOT_PROFILED = "not profiled"
"""What a head is whose layer the profile left out."""
MOST_CHARACTERS, LEAST_ROOM = 10_500_000, 600_000
"""Characters of a document in which texts find room, and those that each has where there is none."""
LISTS = ("measures", "curves", "masses", "pairs", "series", "effects", "extensions", "comparisons", "texts")


def explorer_document(runs: Runs, title: str | None = None) -> dict[str, Any]:
    """The document of some results, as strict JSON: no NaN, no infinity, every name printable.

    Args:
        runs: The results.
        title: Title of the page; the model and its text when None.
    """
    heads, notes = runs.names, [*runs.notes]
    parts: dict[str, list[Any]] = {name: [] for name in LISTS}
    details: dict[str, dict[str, Any]] = {head: {} for head in heads}
    scored = list(own_scores(runs, notes))
    for run, scores in scored:
        parts["measures"] += score_measures(run, scores)
        if (curves := curve_part(run, scores, heads)) is not None:
            parts["curves"].append(curves[0])
            merged(details, "curves", run.id, curves[1])
    for run in runs.runs:
        _add(run, heads, parts, details)
        if run.record.left_out:
            notes.append(f"{run.name}: {run.record.left_out.removeprefix('; ')}.")
        notes += [f"{run.name}: {note}" for note in _notes(run)]
    _add_texts(runs, parts, details)
    first = runs.runs[0]
    alike, others = _by_weights(runs, scored[0][0] if scored else first)
    notes += others
    labels = _labels(alike)
    parts["measures"] = parts["measures"] or [_recorded(first, details)]
    return {
        "format": FORMAT,
        "version": VERSION,
        "software": version("positional_heads"),
        "title": printable(title, newlines=False) if title is not None else _title(runs),
        "model": {
            "name": first.model,
            "layers": runs.layers,
            "heads": runs.heads,
            "training_length": next((run.training_length for run in runs.runs if run.training_length), None),
        },
        "runs": [_run(run) for run in runs.runs],
        "notes": [printable(note, newlines=False) for note in notes],
        "heads": heads,
        "is": None if labels is None else [names[0] if names else NOT_PROFILED for names in labels],
        "names": labels,
        "sentences": head_sentences(alike, [(run, scores) for run, scores in scored if run in alike.runs], labels),
        **{name: parts[name] for name in LISTS[:1]},
        "rank_by": _rank_by(scored, parts["measures"]),
        **{name: parts[name] for name in LISTS[1:]},
        "details": details,
    }


def own_scores(runs: Runs, notes: list[str]) -> Iterator[tuple[Run, HeadScores]]:
    """The scores of each run that has its own; those of a profile that another run has too are not repeated."""
    seen: list[tuple[Run, HeadScores]] = []
    for run in runs.runs:
        scores = run.record.scores if isinstance(run.record, HeadProfile) else run.record
        if not isinstance(scores, HeadScores):
            continue
        if twin := next((one for one, others in seen if same_scores(scores, others)), None):
            notes.append(f"The scores of {run.name} are those of {twin.name}, so they are shown once.")
            continue
        seen.append((run, scores))
        yield run, scores


def schema() -> dict[str, Any]:
    """The JSON Schema of the document."""
    text = (files("positional_heads.views.explorer") / "schema.json").read_text(encoding="utf-8")
    return json.loads(text)


def _add(run: Run, heads: list[str], parts: dict[str, list[Any]], details: dict[str, dict[str, Any]]) -> None:
    """Add what a run has beside scores."""
    record = run.record
    if isinstance(record, HeadProfile):
        parts["measures"] += profile_measures(run, record)
        pairs, by_head = pair_part(run, record, heads)
        parts["pairs"].append(pairs)
        merged(details, "contribution", run.id, by_head)
        series, by_head = series_part(record, run.id, run.training_length)
        parts["series"].append(series)
        merged(details, "series", run.id, by_head)
    if isinstance(record, DistanceProfile):
        parts["measures"] += distance_measures(run, record)
    if isinstance(record, HeadProfile | DistanceProfile):
        masses, by_head = mass_part(run, record, heads)
        parts["masses"].append(masses)
        merged(details, "mass", run.id, by_head)
    if isinstance(record, AblationStudy):
        effects, measures = effect_parts(run, record)
        parts["effects"] += effects
        parts["measures"] += measures
    if isinstance(record, ExtrapolationStudy):
        extension, by_head = extension_part(run, record)
        parts["extensions"].append(extension)
        merged(details, "extension", run.id, by_head)
    if isinstance(record, Comparison):
        comparison, measures = comparison_part(run, record)
        parts["comparisons"].append(comparison)
        parts["measures"] += measures


def _add_texts(runs: Runs, parts: dict[str, list[Any]], details: dict[str, dict[str, Any]]) -> None:
    """Add the texts, in the room that all else leaves in a page of one file; long ones have fewer keys then."""
    examples = runs.of(HeadExamples)
    taken = len(json.dumps([parts, details], separators=(",", ":"))) if examples else 0
    for left, run in zip(range(len(examples), 0, -1), examples, strict=True):
        room = min(ROOM, max(LEAST_ROOM, (MOST_CHARACTERS - taken) // left))
        assert isinstance(run.record, HeadExamples)
        texts, by_head = text_parts(run.record, run.id, room)
        parts["texts"] += texts
        for head, known in by_head.items():
            details[head].setdefault("texts", {}).update(known)
            taken += len(json.dumps(known))


def _run(run: Run) -> dict[str, Any]:
    record, data = run.record, run.record.provenance.get("data") or {}
    verdict = record.verdict
    return {
        "id": run.id,
        "name": run.name,
        "kind": type(record).__name__,
        "file": None if run.file is None else printable(run.file, newlines=False),
        "model": run.model,
        "text": run.text,
        "tokens": data.get("tokens"),
        "longest": data.get("longest"),
        "verdict": None if verdict is None else printable(verdict, newlines=False),
        "description": printable(record.description, newlines=False),
    }


def _by_weights(runs: Runs, spoken_of: Run) -> tuple[Runs, list[str]]:
    """The runs of the model that sentences speak of, and notes on those of other weights: they would mislead unsaid."""
    known = (spoken_of.provenance.get("model") or {}).get("weights")
    others = [
        run
        for run in runs.runs
        if known is not None and (run.provenance.get("model") or {}).get("weights") not in {None, known}
    ]
    notes = [f"{run.name} is of a model with other weights than {spoken_of.name}." for run in others]
    return replace(runs, runs=[run for run in runs.runs if run not in others]), notes


def _recorded(run: Run, details: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What to colour heads by where nothing was measured of every head: whether there is anything to show of one."""
    known = torch.tensor([[float(bool(detail)) for detail in details.values()]])
    return measure(run, "recorded", known, "whether these results hold anything of the head", scale="flag")


def _notes(run: Run) -> list[str]:
    """Notes of studies; those of examples belong to their text."""
    record = run.record
    return record.notes if isinstance(record, AblationStudy | ExtrapolationStudy) else []


def _labels(runs: Runs) -> list[list[str]] | None:
    """Every name of each head by the first profile; none for heads that it left out."""
    profiles = runs.of(HeadProfile)
    if not profiles:
        return None
    profile = profiles[0].record
    assert isinstance(profile, HeadProfile)
    return [
        (profile.labels[head] or [MIXED.name]) if int(profile.key_heads[head]) >= 0 else [] for head in profile.heads
    ]


def _rank_by(scored: list[tuple[Run, HeadScores]], measures: list[dict[str, Any]]) -> str | None:
    """The measure shown first: the excess where there is a null, or else rho; None without measures."""
    with_null = next((run for run, scores in scored if scores.null is not None), None)
    if with_null is not None:
        return f"{with_null.id}/excess"
    if scored:
        return f"{scored[0][0].id}/rho"
    return measures[0]["id"] if measures else None


def _title(runs: Runs) -> str:
    first = runs.runs[0]
    text = next((run.text for run in runs.runs if run.text), None)
    return first.model if text is None else f"{first.model} on {text}"
