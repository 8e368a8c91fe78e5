"""Follow every head through training: score each checkpoint on one text, beside its loss and a task.

One checkpoint is in memory at a time. What it gave is saved at once under the step, with the fingerprint of its weights
and, for one on disk, with the names, sizes and times of its files: while these are the same it is not loaded again. A
checkpoint that is made by a function is loaded again, and only measured again if its weights differ.
"""

import base64
import gc
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from positional_heads.bridge.active_edits import refuse_unknown_edits
from positional_heads.bridge.active_extension import extension_provenance
from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.provenance import library_versions, model_provenance
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.sequences import Text, as_sequences, real_tokens
from positional_heads.bridge.tokenizing import as_list
from positional_heads.core.arguments import check_settings, checked, in_range, keyword_names
from positional_heads.results.emergence import EmergenceStudy
from positional_heads.results.scores import HeadScores
from positional_heads.scoring.score import score_heads
from positional_heads.scoring.settings import ScoringSettings, updated_settings
from positional_heads.studies.checkpoint_sources import Checkpoint, training_checkpoints
from positional_heads.studies.extrapolation import text_losses
from positional_heads.studies.head_profile import refuse_without_needle, retrieval_task
from positional_heads.studies.resume import FinishedParts, run_parts
from positional_heads.studies.retrieval_trials import RetrievalTrials
from positional_heads.studies.tasks.evaluate import make_task, refuse_misspelled, task_provenance, task_setting_names
from positional_heads.studies.tasks.task import Task
from positional_heads.zoo.bundled import load_model

logger = logging.getLogger(__name__)

SAME = ("architecture", "dtype", "context", "layers", "heads")
"""What is said of all checkpoints at once, besides the name."""
LARGE = 2**26
"""Bytes of weights from which on a model is freed at once: that takes about a second, whatever its size."""
ALSO = ("dtype", "quantization", "quantization_config", "adapter", "compatibility_mode", "edits", "extension")
"""What tells models of the same weights apart."""
Asked = str | Task | Callable[[Any], Any] | None


@checked
def emergence_study(
    checkpoints: Any,
    text: Text,
    task: str | Task | Callable[[Any], Any] | None = None,
    *,
    null_repeats: int = 20,
    control_keys: int = 0,
    retrieval: str | Task | Callable[[Any], Any] | None = "passkey",
    retrieval_examples: int = 5,
    batch_size: int | None = None,
    plain_text: bool = False,
    load_options: Mapping[str, Any] | None = None,
    settings: ScoringSettings | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **task_settings: Any,
) -> EmergenceStudy:
    """Follow every head through the checkpoints of a training run: its score and retrieval beside loss and a task.

    Every checkpoint is scored as by `score_heads`, on the same tokens, and must first reproduce its own attention
    scores. The loss is the mean over all tokens of the text but the first of each sequence.

    Args:
        checkpoints: A folder whose folders are named by step (checkpoint-500, step_500, step500, 500, ...); a hub name
            with revisions that end in the step, ("EleutherAI/pythia-70m", ["step0", "step1000"]); a mapping from step
            to a path, a hub name, (hub name, revision), or a function without arguments that returns a model or what
            `load_model` takes; or pairs of step and any of these.
        text: As `tokens` in `score_heads`. All checkpoints must cut it into the same tokens.
        task: Name of a task, a task, or a function from the model to one score per example; None for none.
        null_repeats: Shuffles of positions for the null; 0 for no null, and no excess.
        control_keys: Score also without so many first keys, as in `ScoringSettings`.
        retrieval: Task for the retrieval score, as in `profile_heads`; None for no such score.
        retrieval_examples: Examples of it at most.
        batch_size: Sequences per forward pass; chosen by length when None.
        plain_text: As in `score_heads`.
        load_options: Keywords of `load_model` for checkpoints that no function makes, e.g. {"device": "cuda"}.
        settings: Further settings of the score; the defaults when None.
        seed: Seed of shuffles and resamples, and of a task given by name.
        checkpoint: Folder to save and keep each finished checkpoint in. The same call resumes, and with further
            checkpoints runs only what is new.
        progress: Show a progress bar over the checkpoints.
        **task_settings: Settings of a task given by name, e.g. length, depths, examples.

    Raises:
        FileNotFoundError: If a folder, its checkpoints or a revision is not there.
        TypeError: If an argument or a checkpoint is of another kind.
        ValueError: If there are fewer than two, a step is given twice, a checkpoint cannot be loaded or has another
            shape or other tokens than another, or a setting makes no sense. What is finished stays saved.
        UnsupportedModelError: If a checkpoint is not rotary, or its scores cannot be reproduced.
    """
    in_range("batch_size", batch_size, 1)
    in_range("retrieval_examples", retrieval_examples, 1, 100_000)
    own = {"null_repeats": null_repeats, "control_keys": control_keys, "seed": seed}
    chosen = updated_settings("emergence_study", settings, own, [])
    if isinstance(retrieval, str):
        refuse_without_needle(retrieval)
    check_settings("load_model", load_options or {}, keyword_names(load_model)[1:])
    if isinstance(task, str):
        refuse_misspelled(emergence_study, task, task_settings)
        if "seed" in task_setting_names(task):
            task_settings = {"seed": seed, **task_settings}
        check_settings(f"task {task}", task_settings, task_setting_names(task))
    else:
        check_settings("emergence_study without the name of a task", task_settings, keyword_names(emergence_study))
    told = _text_hash(text)
    places = training_checkpoints(checkpoints, load_options or {})
    following = _Following(
        text, plain_text, batch_size, chosen, task, task_settings, retrieval, retrieval_examples, checkpoint is not None
    )
    identity = {
        "model": {},
        "emergence": {"score": asdict(chosen), "plain_text": plain_text, "examples": retrieval_examples},
        "text": told,
        "task": {"name": _name_of(task), **task_settings},
        "asked": _name_of(retrieval),
    }
    finished = FinishedParts(identity, checkpoint)
    named = {f"step {one.step}": one for one in places}
    _forget_others(named, finished)

    def measure(one: Checkpoint) -> dict[str, Any]:
        others = {name: finished.results[name] for name in named if name in finished.results}
        try:
            return following.measured(one, next(iter(others.items()), None))
        except ValueError as error:
            if finished.file is None or not others:
                raise
            msg = (
                f"{error}; {len(others)} of {len(named)} checkpoints are finished and saved in {finished.file}: mend "
                "this one or leave it out, and make the same call again"
            )
            raise (UnsupportedModelError if isinstance(error, UnsupportedModelError) else ValueError)(msg) from error

    parts = run_parts(named, measure, finished=finished, title="following heads", unit="checkpoints", progress=progress)
    asked = {"plain_text": plain_text, "retrieval": _name_of(retrieval), "retrieval_examples": retrieval_examples}
    return _study(checkpoints, places, parts, {**asdict(chosen), **asked})


@dataclass(frozen=True)
class _Following:
    """What is measured of each checkpoint."""

    text: Any
    plain_text: bool
    batch_size: int | None
    settings: ScoringSettings
    task: Asked
    task_settings: Mapping[str, Any]
    retrieval: Asked
    retrieval_examples: int
    saved: bool

    def measured(self, one: Checkpoint, other: tuple[str, Mapping[str, Any]] | None) -> dict[str, Any]:
        """Everything about one checkpoint, as JSON.

        Args:
            one: The checkpoint.
            other: Name and result of one that is finished, which this one must be comparable with.

        Raises:
            ValueError: If it cannot be loaded or measured, or has another shape or other tokens.
            UnsupportedModelError: If it cannot be scored.
        """
        _collect(None if other is None else other[1])
        files, model = one.files, one.load()
        try:
            part = self._of_model(model, f"step {one.step}", other)
        except UnsupportedModelError as error:
            msg = f"checkpoint of step {one.step} ({one.name}): {error}"
            raise UnsupportedModelError(msg) from error
        except ValueError as error:
            msg = f"checkpoint of step {one.step} ({one.name}): {error}"
            raise ValueError(msg) from error
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        # a revision has files once it is downloaded
        return {"files": files or one.files, "weights": _weights(model), "bytes": size, **part}

    def _of_model(
        self, model: TransformerLensModel, name: str, other: tuple[str, Mapping[str, Any]] | None
    ) -> dict[str, Any]:
        if self.saved:
            refuse_unknown_edits(model_provenance(model).get("edits", {}))
        rotary = resolve_layers(model)
        shape = {
            "layers": int(model.cfg.n_layers),
            "heads": int(model.cfg.n_heads),
            "pairs": sorted({layer.n_pairs for layer in rotary.layers.values()}),
        }
        _refuse_other("shape", shape, name, other)
        sequences = as_sequences(model, self.text, plain_text=self.plain_text)
        rows = [real_tokens(row, mask).cpu() for row, mask in sequences]
        task = None if self.task is None else make_task(model, self.task, **self.task_settings)
        asked = {} if task is None else {**task_provenance(task, None)["task"], "answers": len(task.rows)}
        if task is not None:
            _refuse_other("task", asked, name, other)
        scores = score_heads(
            model, self.text, batch_size=self.batch_size, plain_text=self.plain_text, settings=self.settings
        )
        _refuse_other("data", scores.provenance["data"]["sha256"], name, other)
        trials, notes = self._retrieval(model, max(map(len, rows)))
        kept = base64.b64encode(scores.without_curves().to_bytes()).decode()
        part = {"shape": shape, "data": scores.provenance["data"]["sha256"], "scores": kept, "notes": notes}
        part |= {
            "loss": text_losses(model, rows, 1, self.batch_size).tolist(),
            "tokens": [len(row) - 1 for row in rows],
        }
        part |= {"retrieval": trials, "task": None}
        if task is not None:
            values = {key: one.tolist() for key, one in task.measure(model, self.batch_size).items()}
            part |= {"rows": task.rows, "values": values, "chance": dict(task.chance), "called": task.name}
            part["task"] = asked
        return part

    def _retrieval(self, model: TransformerLensModel, longest: int) -> tuple[list[Any] | None, list[str]]:
        """Retrieval scores of every head on each example, None where it is not answered; and why there are none."""
        if self.retrieval is None:
            return None, []
        asked = retrieval_task(model, self.retrieval, longest)
        if isinstance(asked, str):
            return None, [asked]
        trials = RetrievalTrials(model, asked)
        trials.trials = trials.trials[: self.retrieval_examples]
        kept = FinishedParts({"model": {}}, None)
        _, notes = trials.each(kept, progress=False)
        return [kept.results[trial.name] for trial in trials.trials], notes


def _refuse_other(what: str, value: Any, name: str, other: tuple[str, Mapping[str, Any]] | None) -> None:
    """Refuse a checkpoint that cannot be compared with one that is finished.

    Raises:
        ValueError: If it cannot.
    """
    if other is None or other[1][what] == value:
        return
    if what == "data":
        msg = f"its tokenizer cuts the text into other tokens than that of {other[0]}: give token ids, or one tokenizer"
    else:
        kind = "of another shape" if what == "shape" else "asked another task"
        msg = f"it is {kind} than {other[0]}: {name} has {value}, {other[0]} {other[1][what]}"
    raise ValueError(msg)


def _weights(model: TransformerLensModel) -> str:
    """Fingerprint of the weights, and what else changes what the model computes."""
    known = {**model_provenance(model), **extension_provenance(model)}
    others = {key: value for key in ALSO if (value := known.get(key))}
    return f"{known['weights']} {json.dumps(others, sort_keys=True, default=str)}"


def _collect(part: Mapping[str, Any] | None) -> None:
    """Free the model of the checkpoint before, if they are large: bridges hold themselves in circles."""
    if part is not None and part["bytes"] >= LARGE:
        gc.collect()


def _forget_others(named: Mapping[str, Checkpoint], finished: FinishedParts) -> None:
    """Forget what was measured of other weights: where files changed, or a function made the model, it is loaded."""
    for name, one in named.items():
        kept = finished.results.get(name)
        if kept is None or (kept["files"] is not None and kept["files"] == one.files):
            continue
        _collect(kept)
        if _weights(one.load()) != kept["weights"]:
            logger.warning("the checkpoint of %s (%s) has changed since, so it is measured again", name, one.name)
            del finished.results[name]
    kept_parts = [(name, finished.results[name]) for name in named if name in finished.results]
    for name, part in kept_parts[1:]:  # they may be of calls with other checkpoints, so nothing has compared them yet
        for what in ("shape", "data", "task"):
            _refuse_other(what, part[what], name, kept_parts[0])


def _text_hash(text: Any) -> str:
    """A sha256 over texts or token ids as they are given, which needs no model.

    Raises:
        TypeError: If this is neither.
    """
    digest = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, str):
            digest.update(b"t" + item.encode("utf-8", "surrogatepass") + b"\0")
        elif isinstance(item, Integral):
            digest.update(b"%d," % int(item))
        elif isinstance(item, Mapping) and "input_ids" in item:
            feed(item["input_ids"])
            if item.get("attention_mask") is not None:
                feed(item["attention_mask"])
        else:
            digest.update(b"[")
            for inner in item.tolist() if isinstance(item, Tensor) and item.ndim else as_list(item):
                feed(inner)
            digest.update(b"]")

    feed(text)
    return digest.hexdigest()


def _name_of(asked: Asked) -> Any:
    """What identifies a task before there is a model to make it for."""
    if asked is None or isinstance(asked, str):
        return asked
    return task_provenance(asked, None) if isinstance(asked, Task) else str(getattr(asked, "__name__", "function"))


def _study(
    checkpoints: Any, places: list[Checkpoint], parts: list[dict[str, Any]], settings: dict[str, Any]
) -> EmergenceStudy:
    """The record of all parts."""
    scores = {
        one.step: HeadScores.from_bytes(base64.b64decode(part["scores"]), f"step {one.step}")
        for one, part in zip(places, parts, strict=True)
    }
    first, last = parts[0], next(reversed(scores.values()))
    names = [str(one.provenance["model"]["name"]) for one in scores.values()]
    name = " to ".join(dict.fromkeys((names[0], names[-1])))
    if isinstance(checkpoints, (str, Path)):
        name = str(checkpoints)
    elif isinstance(places[0].source, tuple):
        name = places[0].source[0]
    asked = first["task"] is not None
    return EmergenceStudy(
        scores=scores,
        loss=torch.tensor([part["loss"] for part in parts], dtype=torch.float64),
        tokens=torch.tensor(first["tokens"]),
        retrieval=_retrieval_of(parts, last),
        task=first["called"] if asked else "",
        rows=first["rows"] if asked else [],
        values={
            measure: torch.tensor([part["values"][measure] for part in parts], dtype=torch.float64)
            for measure in (first["values"] if asked else ())
        },
        chance=first["chance"] if asked else {},
        notes=_notes(places, parts),
        provenance={
            "versions": library_versions(),
            "model": {"name": name, **{key: last.provenance["model"].get(key) for key in SAME}},
            "data": last.provenance["data"],
            "settings": settings,
            **({"task": first["task"]} if asked else {}),
            **({"extension": extension} if (extension := last.provenance.get("extension")) else {}),
            "source": _source(checkpoints),
            "checkpoints": [
                {"step": one.step, "name": one.name, "weights": part["weights"].partition(" ")[0]}
                for one, part in zip(places, parts, strict=True)
            ],
        },
    )


def _source(checkpoints: Any) -> Any:
    """Where the checkpoints are, as a command names it; None where no command can."""
    if isinstance(checkpoints, (str, Path)):
        return {"folder": str(checkpoints)}
    if isinstance(checkpoints, (list, tuple)) and isinstance(checkpoints[0], str):
        return {"model": checkpoints[0], "revisions": list(checkpoints[1])}
    return None


def _retrieval_of(parts: list[dict[str, Any]], scores: HeadScores) -> Tensor | None:
    """Retrieval scores at each checkpoint; NaN where it does not answer an example."""
    trials = max(len(part["retrieval"] or ()) for part in parts)
    if trials == 0:
        return None
    found = torch.full((len(parts), trials, *scores.rho.shape), torch.nan, dtype=torch.float64)
    for number, part in enumerate(parts):
        for trial, one in enumerate(part["retrieval"] or ()):
            if one is not None:
                found[number, trial] = torch.tensor(one, dtype=torch.float64)
    return found


def _notes(places: list[Checkpoint], parts: list[dict[str, Any]]) -> list[str]:
    """What was not possible; what holds for every checkpoint is said once."""
    everywhere = [note for note in parts[0]["notes"] if all(note in part["notes"] for part in parts)]
    single = [
        f"Step {one.step}: {note}"
        for one, part in zip(places, parts, strict=True)
        for note in part["notes"]
        if note not in everywhere
    ]
    return [*everywhere, *single]
