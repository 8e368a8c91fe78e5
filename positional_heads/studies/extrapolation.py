"""What happens to Positional Heads beyond the training length, under each method, and does it go with the task?"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from tqdm.auto import tqdm

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.prefill import refuse_fixed_tables
from positional_heads.bridge.provenance import data_hash, library_versions, model_provenance
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rope_scaling.extended_rope import Extension, extended_rope
from positional_heads.bridge.rope_scaling.hugging_face import HuggingFaceMethod
from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rope_scaling.methods import known_name, rope_method, takes_factor
from positional_heads.bridge.rope_scaling.plain_rope import plain_rope
from positional_heads.bridge.sequences import Text, as_sequences
from positional_heads.bridge.tokenizing import start_token, text_tokens
from positional_heads.core.arguments import check_settings, checked, in_range
from positional_heads.core.heads import Head, Heads, as_heads
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.scoring.score import score_heads
from positional_heads.studies.resume import FinishedParts
from positional_heads.studies.tasks.evaluate import make_task, task_setting_names
from positional_heads.studies.tasks.task import AnswerTask, Example

METHODS = ("none", "linear", "ntk", "yarn", "self_extend")
ANSWERS_AT_A_DISTANCE = ("passkey", "needle", "kv", "copy")
FOLLOWED_HEADS = 4
LONG_TEXT = 200


@checked
def extrapolation_study(
    model: TransformerLensModel,
    text_or_tokens: Text,
    methods: Sequence[str | Method] = METHODS,
    factors: Sequence[float] = (2, 4),
    *,
    task: str = "passkey",
    heads: Heads | None = None,
    training_length: int | None = None,
    sequences: int = 2,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **task_settings: Any,
) -> ExtrapolationStudy:
    """Score heads and measure a task within and beyond the training length, under each method at each factor.

    Args:
        model: A TransformerBridge.
        text_or_tokens: A long text, or token ids at least as long as the largest factor times the training length.
        methods: Methods by name, each tried at every factor, or methods from `rope_method`, tried as they are at the
            length of every factor.
        factors: How much longer than the training length sequences get; above 1.
        task: Name of a task whose answers lie at known distances.
        heads: Heads to follow, one or several, as Head(3, 7), (3, 7) or "L3H7"; the four with the highest rho within
            the training length when None.
        training_length: Tokens that the model was trained on; found in its configuration when None.
        sequences: How many sequences of the text to score, where a text is given.
        checkpoint: Folder in which finished methods are kept, so that the same call goes on where one was stopped.
        progress: Show a progress bar.
        **task_settings: Settings of the task, e.g. depths, examples, haystack.

    Raises:
        ValueError: If a method, factor, task or head makes no sense, or the text is too short.
        UnsupportedModelError: If the model cannot be extended, or cannot run past its context.
    """
    check_choices(methods, factors, task)
    rope = plain_rope(model, min(resolve_layers(model).layers), training_length)
    trained = rope.training_length
    known_heads = None if heads is None else as_heads(heads, int(model.cfg.n_layers), int(model.cfg.n_heads))
    if known_heads is not None and not known_heads:
        msg = "no head given: name at least one to follow, or None for those with the highest rho"
        raise ValueError(msg)
    in_range("sequences", sequences, 1)
    check_settings(f"task {task}", task_settings, [*task_setting_names(task)])
    longest = round(max(factors) * trained)
    refuse_fixed_tables(model, longest)
    tokens = _long_tokens(model, text_or_tokens, longest, sequences)
    trials = list(_trials(methods, factors, trained))
    settings = {"depths": 5, "examples": 2, **task_settings}
    provenance = {
        "versions": library_versions(),
        "model": model_provenance(model),
        "data": {"sha256": data_hash([(row, None) for row in tokens]), "sequences": len(tokens), "longest": longest},
        "task": {"name": task, **{key: _in_brief(value) for key, value in settings.items()}},
    }
    steps = len(trials) + 1
    with tqdm(total=steps, unit="method", desc="extrapolating", disable=not progress) as bar:
        plain_scores = score_heads(model, tokens[:, :trained], beyond_context=True, null_repeats=0)
        followed = plain_scores.top(FOLLOWED_HEADS) if known_heads is None else known_heads
        plain = _performance(model, task, trained, 0, settings)
        bar.update()
        identity = {**{key: provenance[key] for key in ("model", "data", "task")}, "trained": trained}
        finished = FinishedParts(checkpoint, {**identity, "heads": [str(head) for head in followed]})
        with finished.on_interrupt(len(trials)):
            if progress:
                finished.say_where(bar)
            for label, method, length in trials:
                if (part := f"{label} at {length}") not in finished:
                    with extended_rope(model, method, training_length=training_length) as extension:
                        made = _trial(model, extension, tokens[:, :length], followed, trained)
                        made["performance"] = _performance(model, task, length, trained, settings)
                        made["performance"]["loss"] = _loss_beyond(model, tokens[:, :length], trained)
                    finished.add(part, made)
                bar.update()
    found = [finished.results[f"{label} at {length}"] for label, _, length in trials]
    return ExtrapolationStudy(
        labels=[label for label, _, _ in trials],
        lengths=[length for _, _, length in trials],
        methods=[one["method"] for one in found],
        heads=followed,
        curves=torch.stack([_padded(one["curves"], longest) for one in found]),
        frequencies=_float64([one["frequencies"] for one in found]),
        rho_within=_float64([one["rho_within"] for one in found]),
        rho_beyond=_float64([one["rho_beyond"] for one in found]),
        performance={
            name: _float64([one["performance"][name] for one in found]) for name in ("exact", "log_prob", "loss")
        },
        plain=plain,
        plain_curves=_of(plain_scores.curve, followed),
        training_length=trained,
        provenance=provenance,
    )


def check_choices(methods: Sequence[str | Method], factors: Sequence[float], task: str) -> None:
    """Refuse methods, factors and tasks that make no sense with any model.

    Raises:
        ValueError: If there is none, a name is unknown, or a factor is not above 1.
    """
    for factor in factors:
        if not factor > 1:
            msg = f"factor {factor} must be above 1: it says how far beyond the training length to go"
            raise ValueError(msg)
    if task not in ANSWERS_AT_A_DISTANCE:
        msg = f"task {task!r} does not say how far back its answers lie: choose {', '.join(ANSWERS_AT_A_DISTANCE)}"
        raise ValueError(msg)
    if not len(factors) or not len(methods):
        msg = "no method or no factor given: there is nothing to study"
        raise ValueError(msg)
    for method in methods:
        if isinstance(method, str):
            known_name(method)


@checked
def base_sweep(
    model: TransformerLensModel,
    text_or_tokens: Text,
    bases: Sequence[float],
    factors: Sequence[float] = (2,),
    **settings: Any,
) -> ExtrapolationStudy:
    """One model under several bases of its frequencies: the study above with the base as the method.

    Args:
        model: A TransformerBridge.
        text_or_tokens: As in `extrapolation_study`.
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
    return extrapolation_study(model, text_or_tokens, methods, factors, **settings)


def _trials(
    methods: Sequence[str | Method], factors: Sequence[float], trained: int
) -> Iterator[tuple[str, Method, int]]:
    for method in methods:
        for factor in factors:
            length = round(factor * trained)
            if isinstance(method, str):
                own_factor = factor if takes_factor(method) else None
                yield method, rope_method(method, own_factor, training_length=trained), length
            else:
                own = ", ".join(f"{key} {value:g}" for key, value in method.settings.items() if _is_number(value))
                yield f"{method.name} ({own})", method, length


def _in_brief(value: Any) -> Any:
    """A long text by its sha256, anything else as it is."""
    if isinstance(value, str) and len(value) > LONG_TEXT:
        return f"sha256 {hashlib.sha256(value.encode()).hexdigest()}"
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _long_tokens(model: Any, text_or_tokens: Text, length: int, sequences: int) -> Int[Tensor, "batch pos"]:
    if not isinstance(text_or_tokens, str):
        rows = [tokens if mask is None else tokens[mask.bool()] for tokens, mask in as_sequences(model, text_or_tokens)]
        if (shortest := min(map(len, rows))) < length:
            msg = f"sequences of {shortest} tokens given, the largest factor needs {length}"
            raise ValueError(msg)
        return torch.stack([row[:length] for row in rows])
    start, tokens = start_token(model), text_tokens(model, text_or_tokens, 0)
    room = length - len(start)
    if len(tokens) < room:
        msg = f"the text has {len(tokens)} tokens, a sequence at the largest factor needs {length}: give a longer text"
        raise ValueError(msg)
    pieces = tokens[: len(tokens) // room * room].view(-1, room)[:sequences]
    return torch.stack([torch.cat([start, piece]) for piece in pieces])


def _trial(
    model: Any, extension: Extension, tokens: Int[Tensor, "batch pos"], followed: Sequence[Head], trained: int
) -> dict[str, Any]:
    """Scores over pairs within the training length, and over those beyond; between them they count every pair once."""
    layers = sorted({head.layer for head in followed})
    within = score_heads(model, tokens, layers=layers, beyond_context=True, max_distance=trained - 1)
    beyond = score_heads(model, tokens, layers=layers, beyond_context=True, min_distance=trained)
    curves = torch.cat([_of(within.curve, followed)[:, :trained], _of(beyond.curve, followed)[:, trained:]], dim=1)
    table = extension.table(min(extension.chosen), tokens.shape[1])
    return {
        "method": {
            **extension.provenance,
            "attention_factor": table.attention_factor,
            "score_factor": table.score_factor,
        },
        "curves": curves.tolist(),
        "frequencies": table.inv_freq.double().tolist(),
        "rho_within": _of(within.rho, followed).tolist(),
        "rho_beyond": _of(beyond.rho, followed).tolist(),
    }


def _padded(curves: list[list[float]], length: int) -> Float64[Tensor, "head distance"]:
    found = _float64(curves)
    return torch.nn.functional.pad(found, (0, length - found.shape[1]), value=torch.nan)


def _float64(values: Any) -> Float64[Tensor, "..."]:
    return torch.tensor(values, dtype=torch.float64)


def _of(values: Tensor, heads: Sequence[Head]) -> Tensor:
    return torch.stack([values[head] for head in heads])


def _performance(model: Any, name: str, length: int, beyond: int, settings: dict[str, Any]) -> dict[str, float]:
    """Measures of a task, over the answers that lie at least so far back."""
    task = make_task(model, name, length=length, beyond_context=True, **settings)
    assert isinstance(task, AnswerTask)  # all of those that are let in
    examples = [one for one in task.examples if one.reach == "long" and (one.distance or 0) >= beyond]
    if not examples:
        msg = f"no answer of {name} lies {beyond} tokens back or more in {length} tokens: give smaller depths"
        raise ValueError(msg)
    asked = AnswerTask(task.name, tuple(examples), (), task.chance, task.settings)
    return {measure: float(values.mean()) for measure, values in asked.measure(model).items()}


def _loss_beyond(model: Any, tokens: Int[Tensor, "batch pos"], trained: int) -> float:
    """Loss of the text's own tokens from the training length on, in nats per token."""
    rows = tuple(Example(row.cpu(), ((trained, len(row)),), unit) for unit, row in enumerate(tokens))
    return -float(AnswerTask("text", rows, (), {}).measure(model)["log_prob"].mean())
