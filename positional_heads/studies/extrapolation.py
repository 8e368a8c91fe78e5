"""The extrapolation study in one call: scores and task performance beyond the training length, under each method."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.bridge.active_edits import refuse_unknown_edits
from positional_heads.bridge.model import TransformerLensModel, heads_of_model
from positional_heads.bridge.prefill import refuse_fixed_tables
from positional_heads.bridge.provenance import data_hash, library_versions, model_provenance
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.bridge.rope_scaling.extension import Extension
from positional_heads.bridge.rope_scaling.hugging_face import HuggingFaceMethod
from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rope_scaling.methods import METHODS as EVERY_METHOD
from positional_heads.bridge.rope_scaling.methods import canonical_name, needed_settings, rope_method, takes_factor
from positional_heads.bridge.rope_scaling.plain_rope import plain_rope
from positional_heads.bridge.run_cost import run_costs
from positional_heads.bridge.sequences import Text, as_sequences
from positional_heads.bridge.tokenizing import start_token, text_tokens
from positional_heads.core.arguments import check_settings, checked, in_range, is_number, refuse_twice
from positional_heads.core.heads import Head, Heads
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.scores import kept
from positional_heads.scoring.score import score_heads
from positional_heads.studies.budget import Budget, Planned
from positional_heads.studies.resume import FinishedParts, run_parts
from positional_heads.studies.tasks.evaluate import make_task, refuse_misspelled, task_setting_names
from positional_heads.studies.tasks.recall import RECALL
from positional_heads.studies.tasks.task import AnswerTask, Example
from positional_heads.studies.trials import Trial, TrialPlan, smaller_trial_plans

logger = logging.getLogger(__name__)

METHODS = ("none", "linear", "ntk", "yarn", "self_extend")
FOLLOWED_HEADS = 4
LONG_TEXT = 200
"""Characters from which on a setting's text goes into the provenance as its sha256."""


@checked
def extrapolation_study(
    model: TransformerLensModel,
    tokens: Text,
    methods: Sequence[str | Method] = METHODS,
    factors: Sequence[float] = (2, 4),
    *,
    task: str = "passkey",
    heads: Heads | None = None,
    training_length: int | None = None,
    sequences: int = 2,
    batch_size: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    budget: float | None = None,
    **task_settings: Any,
) -> ExtrapolationStudy:
    """Score heads and measure a task within and beyond the training length, under each method at each factor.

    Args:
        model: A TransformerBridge.
        tokens: A long text, of which the first sequences are taken; or token ids at least as long as the largest factor
            times the training length, e.g. cut_text(model, text, length, sequences=2, beyond_context=True).
        methods: Methods by name, each tried at every factor, or methods from `rope_method`, tried with their own
            settings at the length of every factor.
        factors: Lengths of the sequences as multiples of the training length; above 1.
        task: Name of a task whose answers lie at known distances.
        heads: Heads to follow, one or several, as Head(3, 7), (3, 7) or "L3H7"; the four with the highest rho within
            the training length when None.
        training_length: Tokens that the model was trained on; read from its configuration when None.
        sequences: Number of sequences to cut from a text and score.
        batch_size: Sequences of the task per forward pass; chosen by length when None.
        checkpoint: Folder to save finished methods in; the same call resumes from it.
        progress: Show a progress bar.
        budget: Minutes that the study may take. What does not fit is left out before it starts, and the record says so:
            the longest lengths first, then the last methods, down to four points. No limit when None.
        **task_settings: Settings of the task, e.g. depths, examples, haystack.

    Raises:
        ValueError: If a method, factor, task or head makes no sense, the text is too short, or the budget too small.
        UnsupportedModelError: If the model cannot be extended, or cannot run past its context.
    """
    limit = None if budget is None else Budget(budget)
    check_choices(methods, factors, task)
    in_range("sequences", sequences, 1)
    in_range("batch_size", batch_size, 1)
    refuse_misspelled(extrapolation_study, task, task_settings)
    check_settings(f"task {task}", task_settings, [*task_setting_names(task)])
    asked = None if heads is None else heads_of_model(model, heads)
    if asked == []:
        msg = "no head given: name at least one to follow, or None for those with the highest rho"
        raise ValueError(msg)
    # 1. the sequences, and every method at every length
    trained = trained_length(model, training_length)
    longest = round(max(factors) * trained)
    refuse_fixed_tables(model, longest)
    refuse_twice("factors", [f"the length {round(factor * trained)}" for factor in factors])
    rows = long_rows(model, tokens, longest, sequences)
    trials = [trial for method in methods for trial in _trials(method, factors, trained)]
    settings = {"depths": 5, "examples": 2, **task_settings}
    near = distant_task(model, task, trained, 0, settings)
    far = {length: distant_task(model, task, length, trained, settings) for length in {one.length for one in trials}}
    own_model = model_provenance(model)
    if checkpoint is not None:
        refuse_unknown_edits(own_model.get("edits", {}))  # before anything is run
    # 2. the model as it is, within the training length; the heads to follow
    layers = None if asked is None else sorted({head.layer for head in asked})  # all are needed to choose heads
    plain_scores = score_heads(
        model, rows[:, :trained], layers=layers, beyond_context=True, null_repeats=0, progress=progress
    )
    followed = plain_scores.top(FOLLOWED_HEADS) if asked is None else asked
    plain = _performance(model, near, batch_size)
    # 3. the same heads and the same task under each method, or under those that fit into the budget
    provenance: dict[str, Any] = {
        "versions": library_versions(),
        "model": own_model,
        "data": data_provenance(rows, longest, tokens),
        "task": {"name": task, **{key: abbreviated(value) for key, value in settings.items()}},
        "rotary": plain_scores.provenance.get("rotary"),
    }
    identity = {key: provenance[key] for key in ("model", "data", "task")}

    def measure(trial: Trial) -> dict[str, Any]:
        text = rows[:, : trial.length]
        with extended_rope(model, trial.method, training_length=training_length) as extension:
            performance = _performance(model, far[trial.length], batch_size)
            performance["loss"] = _loss_beyond(model, text, trained)
            return {**_allocation(model, extension, text, followed, trained), "performance": performance}

    costs = {rewritten: run_costs(model, rewritten=rewritten) for rewritten in (False, True)}

    def cost(trial: Trial) -> float:
        return costs[trial.method.rewrites_scores](trial.length)

    study = {**identity, "trained": trained, "heads": [str(head) for head in followed]}
    finished, notes = FinishedParts(study, checkpoint), []
    if limit is not None:
        chosen = _planned(limit, trials, measure, cost, finished, progress)
        trials, notes, provenance["budget"] = list(chosen.plan.trials), chosen.notes, chosen.account
    results = run_parts(
        {trial.name: trial for trial in trials},
        measure,
        finished=finished,
        title="extrapolating",
        unit="methods and lengths",
        progress=progress,
        cost=cost,
    )
    # 4. the record
    return ExtrapolationStudy(
        **_measured(trials, results),
        heads=followed,
        plain=plain,
        plain_curves=_head_values(kept(plain_scores.curve), followed),
        training_length=trained,
        provenance=provenance,
        notes=notes,
    )


def _measured(trials: Sequence[Trial], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of the record that have one entry for each method and length."""
    longest = max(trial.length for trial in trials)
    tables = {name: _float64([one[name] for one in results]) for name in ("frequencies", "rho_within", "rho_beyond")}
    performance = {name: [one["performance"][name] for one in results] for name in ("exact", "log_prob", "loss")}
    return {
        "labels": [trial.label for trial in trials],
        "lengths": [trial.length for trial in trials],
        "methods": [one["method"] for one in results],
        "curves": torch.stack([_padded(one["curves"], longest) for one in results]),
        "performance": {name: _float64(values) for name, values in performance.items()},
        **tables,
    }


def trained_length(model: TransformerLensModel, training_length: int | None = None) -> int:
    """Tokens that the model was trained on: those given, or those that its configuration says."""
    return plain_rope(model, min(resolve_layers(model).layers), training_length).training_length


def check_choices(methods: Sequence[str | Method], factors: Sequence[float], task: str) -> None:
    """Refuse methods, factors and tasks that no model can be studied with.

    Raises:
        ValueError: If none is given, a name is unknown, one is given twice, or a factor is not above 1.
    """
    for factor in factors:
        if not factor > 1:
            msg = f"factor {factor} must be above 1: it multiplies the training length"
            raise ValueError(msg)
    if task not in RECALL:
        msg = f"task {task!r} has no answers at known distances: choose one of {', '.join(RECALL)}"
        raise ValueError(msg)
    if not len(factors) or not len(methods):
        msg = "no method or no factor given: there is nothing to study"
        raise ValueError(msg)
    for name in (method for method in methods if isinstance(method, str)):
        if needed := needed_settings(name):
            named = ", ".join(one for one in EVERY_METHOD if not needed_settings(one))
            msg = f"method {name!r} needs {' and '.join(needed)}, which its name does not give: choose of {named}; in "
            msg += "Python, methods= takes those of ph.rope_method too"
            raise ValueError(msg)
    refuse_twice("methods", [method_label(method) for method in methods])
    refuse_twice("factors", [f"{factor:.12g}" for factor in factors])


@checked
def base_sweep(
    model: TransformerLensModel,
    tokens: Text,
    bases: Sequence[float],
    factors: Sequence[float] = (2,),
    **settings: Any,
) -> ExtrapolationStudy:
    """The extrapolation study with the base of the rotary frequencies as the method.

    Args:
        model: A TransformerBridge.
        tokens: As in `extrapolation_study`.
        bases: Bases to try; the model's own is plain RoPE.
        factors: As in `extrapolation_study`.
        **settings: As in `extrapolation_study`.

    Raises:
        ValueError: If a base is not above 1.
    """
    for base in bases:
        if not base > 1:
            msg = f"base {base} must be above 1: frequencies are its powers, base ** (-2 i / r)"
            raise ValueError(msg)
    methods = [HuggingFaceMethod("base", parameters={"base": float(base)}) for base in bases]
    return extrapolation_study(model, tokens, methods, factors, **settings)


def _planned(
    limit: Budget,
    trials: list[Trial],
    measure: Callable[[Trial], Any],
    cost: Callable[[Trial], float],
    finished: FinishedParts,
    progress: bool,
) -> Planned[TrialPlan]:
    """What fits into a budget, after the first method was timed at the smallest length, which is needed anyway."""
    plans = smaller_trial_plans(TrialPlan(tuple(trials)))
    first = min(plans[-1].trials, key=lambda trial: trial.length)
    finished.forget_untimed([first.name])
    run_parts({first.name: first}, measure, finished=finished, title="timing", unit="method", progress=progress)

    def seconds(plan: TrialPlan) -> float:
        return (
            finished.seconds[first.name]
            / cost(first)
            * sum(cost(trial) for trial in plan.trials if trial.name not in finished.results)
        )

    return limit.planned(
        plans,
        seconds,
        finished,
        taken=sum(
            finished.seconds_of([trial.name], finished.seconds[first.name] / cost(first) * cost(trial))
            for trial in trials
        ),
        left_out=lambda plan: plan.left_out_of(plans[0]),
        least=", ".join(plans[-1].names),
        progress=progress,
    )


def _trials(method: str | Method, factors: Sequence[float], trained: int) -> list[Trial]:
    lengths = [round(factor * trained) for factor in factors]
    label = method_label(method)
    if not isinstance(method, str):
        return [Trial(label, method, length) for length in lengths]
    takes = takes_factor(method)
    return [
        Trial(label, rope_method(method, factor if takes else None, training_length=trained), length)
        for factor, length in zip(factors, lengths, strict=True)
    ]


def method_label(method: str | Method) -> str:
    """What the record calls a method: its canonical name, or its name with its own settings."""
    if isinstance(method, str):
        return canonical_name(method)
    values = ", ".join(f"{key} {value:g}" for key, value in method.settings.items() if is_number(value))
    return f"{method.name} ({values})"


def abbreviated(value: Any) -> Any:
    """The sha256 of a long text; anything else unchanged."""
    if isinstance(value, str) and len(value) > LONG_TEXT:
        return f"sha256 {hashlib.sha256(value.encode()).hexdigest()}"
    return value


def long_rows(
    model: TransformerLensModel, tokens: Text, length: int, sequences: int, what: str = "the largest factor"
) -> Int[Tensor, "batch pos"]:
    """Rows of one length: cut from a text, or the beginnings of the sequences given.

    Args:
        model: A TransformerBridge.
        tokens: A text, or sequences.
        length: Tokens of each row.
        sequences: Rows to cut from a text; all that it holds, with a warning, where there are fewer.
        what: What needs this length, for the error.

    Raises:
        ValueError: If there are fewer tokens.
    """
    if not isinstance(tokens, str):
        rows = [row if mask is None else row[mask.bool()] for row, mask in as_sequences(model, tokens)]
        if (shortest := min(map(len, rows))) < length:
            msg = f"sequences of {shortest} tokens given, {what} needs {length}: give longer ones"
            raise ValueError(msg)
        return torch.stack([row[:length] for row in rows])
    start, ids = start_token(model), text_tokens(model, tokens, 0)
    room = length - len(start)
    if len(ids) < room:
        msg = f"the text has {len(ids)} tokens, a sequence at {what} needs {length}: give a longer text"
        raise ValueError(msg)
    pieces = ids[: len(ids) // room * room].view(-1, room)[:sequences]
    if len(pieces) < sequences:
        logger.warning(
            "%d sequences were asked for, the text holds %d of %d tokens: these are all", sequences, len(pieces), length
        )
    return torch.stack([torch.cat([start, piece]) for piece in pieces])


def data_provenance(rows: Int[Tensor, "batch pos"], longest: int, tokens: Text) -> dict[str, Any]:
    """What was run, and where it was drawn, if it was."""
    data = {"sha256": data_hash([(row, None) for row in rows]), "sequences": len(rows), "longest": longest}
    return data | ({} if (drawn := getattr(tokens, "drawn", None)) is None else {"drawn": drawn})


def _allocation(
    model: TransformerLensModel,
    extension: Extension,
    rows: Int[Tensor, "batch pos"],
    followed: Sequence[Head],
    trained: int,
) -> dict[str, Any]:
    """D by distance and rho of the heads, and the frequencies of the method.

    Query-key pairs up to the training length and those beyond it are scored apart; together they are all pairs.
    """
    layers = sorted({head.layer for head in followed})
    within = score_heads(model, rows, layers=layers, beyond_context=True, max_distance=trained - 1)
    beyond = score_heads(model, rows, layers=layers, beyond_context=True, min_distance=trained)
    near, far = (_head_values(kept(scores.curve), followed) for scores in (within, beyond))
    curves = [near[:, :trained], far[:, trained:]]
    table = extension.table(min(extension.chosen), rows.shape[1])
    factors = {"attention_factor": table.attention_factor, "score_factor": table.score_factor}
    return {
        "method": {**extension.provenance, **factors},
        "curves": torch.cat(curves, dim=1).tolist(),
        "frequencies": table.inv_freq.double().tolist(),
        "rho_within": _head_values(within.rho, followed).tolist(),
        "rho_beyond": _head_values(beyond.rho, followed).tolist(),
    }


def _padded(curves: list[list[float]], length: int) -> Float64[Tensor, "head distance"]:
    values = _float64(curves)
    return torch.nn.functional.pad(values, (0, length - values.shape[1]), value=torch.nan)


def _float64(values: Any) -> Float64[Tensor, "..."]:
    return torch.tensor(values, dtype=torch.float64)


def _head_values(values: Tensor, heads: Sequence[Head]) -> Tensor:
    return torch.stack([values[head] for head in heads])


def _performance(model: TransformerLensModel, task: AnswerTask, batch_size: int | None) -> dict[str, float]:
    """Mean of each measure over the answers of a task."""
    return {measure: float(values.mean()) for measure, values in task.measure(model, batch_size).items()}


def distant_task(
    model: TransformerLensModel, name: str, length: int, beyond: int, settings: dict[str, Any]
) -> AnswerTask:
    """The part of a recall task whose answers lie at least `beyond` tokens back.

    Args:
        model: A TransformerBridge.
        name: One of `RECALL`.
        length: Tokens of each sequence.
        beyond: Least distance of an answer.
        settings: Settings of the task.

    Raises:
        ValueError: If no answer lies so far back.
    """
    task = make_task(model, name, length=length, beyond_context=True, **settings)
    assert isinstance(task, AnswerTask)  # true of every task in RECALL
    examples = [one for one in task.examples if one.reach == "long" and (one.distance or 0) >= beyond]
    if not examples:
        msg = f"no answer of {name} lies {beyond} tokens back or more in {length} tokens: give smaller depths"
        raise ValueError(msg)
    return AnswerTask(task.name, tuple(examples), (), task.chance, task.settings)


def text_losses(
    model: TransformerLensModel,
    rows: Int[Tensor, "batch pos"] | Sequence[Int[Tensor, " _pos"]],
    start: int,
    batch_size: int | None = None,
) -> Float64[Tensor, " row"]:
    """Loss of each row's own tokens from `start` on, in nats per token."""
    examples = tuple(Example(row.cpu(), ((start, len(row)),), unit) for unit, row in enumerate(rows))
    return -AnswerTask("text", examples, (), {}).measure(model, batch_size)["log_prob"]


def _loss_beyond(model: TransformerLensModel, rows: Int[Tensor, "batch pos"], trained: int) -> float:
    """Mean loss of the text's own tokens from the training length on, in nats per token."""
    return float(text_losses(model, rows, trained).mean())
