"""Measure a task on a model, with heads ablated or not; the result is a record of every answer."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.ablation import Ablation, AblationMode, Reference
from positional_heads.bridge.active_extension import extension_provenance
from positional_heads.bridge.model import TransformerLensModel, heads_of_model
from positional_heads.bridge.provenance import data_hash, library_versions, model_provenance
from positional_heads.core.arguments import check_settings, checked, in_range, keyword_names
from positional_heads.core.function_hash import function_hash
from positional_heads.core.heads import Heads
from positional_heads.results.task import TaskResult
from positional_heads.studies.tasks.exam import exam
from positional_heads.studies.tasks.longbench import longbench
from positional_heads.studies.tasks.perplexity import perplexity
from positional_heads.studies.tasks.questions import QuestionOptions
from positional_heads.studies.tasks.recall import RECALL
from positional_heads.studies.tasks.task import AnswerTask, FunctionTask, Task, function_task

TASKS: dict[str, Callable[..., Task]] = {**RECALL, "exam": exam, "perplexity": perplexity, "longbench": longbench}
NEEDS_REFERENCE = ("mean", "resample")


@checked
def evaluate(
    model: TransformerLensModel,
    task: str | Task | Callable[[Any], Any],
    *,
    heads: Heads = (),
    mode: AblationMode = "zero",
    reference: Reference | None = None,
    distance: int | None = None,
    batch_size: int | None = None,
    **task_settings: Any,
) -> TaskResult:
    """Measure a task on a model, with heads ablated or not.

    Args:
        model: A TransformerBridge.
        task: Name of a task, one of `TASKS`; a task; or a function from the model to one score per example, higher
            being better.
        heads: Heads to ablate, as Head(3, 7), (3, 7) or "L3H7", one or several.
        mode: How they are ablated, see `ablated_heads`.
        reference: Text or tokens for `mean` and `resample`; held-out examples of the task when None.
        distance: Distance in tokens for `far` and `near`.
        batch_size: Sequences per forward pass; chosen by length when None.
        **task_settings: Settings of a task given by name, e.g. length, depths, examples, seed.

    Raises:
        ValueError: If the task, its settings, the mode or a head make no sense; the message says what to do.
    """
    in_range("batch_size", batch_size, 1)
    refuse_misspelled(evaluate, task, task_settings)
    chosen = heads_of_model(model, heads)
    task = make_task(model, task, **task_settings)
    ablation = prepared_ablation(model, task, mode, reference, distance)
    with model.hooks(fwd_hooks=ablation.hooks(chosen)):
        measures = task.measure(model, batch_size)
    provenance = {
        "versions": library_versions(),
        "model": model_provenance(model),
        **task_provenance(task, ablation),
        **extension_provenance(model),
        "heads": [str(head) for head in chosen],
    }
    return TaskResult(task.name, task.rows, measures, dict(task.chance), provenance)


def make_task(model: TransformerLensModel, task: str | Task | Callable[[Any], Any], **settings: Any) -> Task:
    """The task with this name, or a task of this function of the model; a task is returned unchanged.

    Raises:
        ValueError: If no task has this name, or settings are given for a task that is not given by name.
        TypeError: If a setting is unknown to the task.
    """
    if isinstance(task, str):
        check_task_name(task)
        check_settings(f"task {task}", settings, task_setting_names(task))
        return TASKS[task](model, **settings)
    if settings:
        msg = f"{', '.join(settings)}: settings go with the name of a task; this task has its own"
        raise ValueError(msg)
    if isinstance(task, Task):
        return task
    if not callable(task):
        msg = f"task must be the name of one ({', '.join(TASKS)}), a task, or a function of the model, got {task!r:.60}"
        raise TypeError(msg)
    return function_task(model, task)


def check_task_name(task: str) -> None:
    """Refuse a name that no task has.

    Raises:
        ValueError: If it is unknown.
    """
    if task not in TASKS:
        msg = f"task {task!r} is unknown: choose one of {', '.join(TASKS)}, or give a task or function of your own"
        raise ValueError(msg)


def refuse_misspelled(function: Callable[..., Any], task: Any, settings: Mapping[str, Any]) -> None:
    """Refuse a keyword that misspells one of the function's own, instead of calling it a setting of the task.

    Raises:
        TypeError: If a keyword is no setting of the task, and most like an argument of the function.
        ValueError: If no task has this name.
    """
    if isinstance(task, str):
        check_task_name(task)
    of_task = task_setting_names(task) if isinstance(task, str) else []
    own = keyword_names(function)
    for wrong in sorted(settings.keys() - set(of_task)):
        near = get_close_matches(wrong, [*of_task, *own], n=1)
        if near and near[0] in own:
            msg = f"{function.__name__} has no {wrong}; did you mean {near[0]}?"
            raise TypeError(msg)


def task_setting_names(task: str) -> list[str]:
    """Settings that the task with this name takes."""
    parameters = inspect.signature(TASKS[task]).parameters.values()
    own = [one.name for one in parameters if one.name != "model" and one.kind is not one.VAR_KEYWORD]
    return [*own, *QuestionOptions.__annotations__] if task in RECALL else own


def prepared_ablation(
    model: TransformerLensModel, task: Task, mode: AblationMode, reference: Reference | None, distance: int | None
) -> Ablation:
    """An ablation; if it needs a reference and none is given, the reference is the task's held-out examples.

    Raises:
        ValueError: If the mode makes no sense, or the task has no held-out examples.
    """
    if reference is None and mode in NEEDS_REFERENCE:
        reference = held_out_tokens(task)
        if not reference:
            msg = f"mode {mode!r} needs reference=: the task {task.name} has no held-out examples"
            raise ValueError(msg)
    return Ablation(model, mode, reference=reference, distance=distance)


def held_out_tokens(task: Task) -> list[Int[Tensor, " pos"]]:
    """The longest held-out examples of a task; none where it has no such examples."""
    held_out = task.held_out if isinstance(task, AnswerTask) else ()
    longest = max((len(example.tokens) for example in held_out), default=0)
    return [example.tokens for example in held_out if len(example.tokens) == longest]


def task_provenance(task: Task, ablation: Ablation | None) -> dict[str, Any]:
    """Provenance of a task, with a hash of its examples, and of how heads are ablated, if they are."""
    examples = task.examples if isinstance(task, AnswerTask) else None
    sha256 = None if examples is None else data_hash([(example.tokens, None) for example in examples])
    if isinstance(task, FunctionTask):
        sha256 = function_hash(task.function)
    known = {"task": {"name": task.name, "sha256": sha256, **task.settings}}
    if ablation is None:
        return known
    how = {"mode": ablation.mode, "distance": ablation.distance, "reference": ablation.reference_hash}
    return known | {
        "ablation": how | ({"sinks": ablation.sinks} if ablation.sinks else {}),
    }
