"""Measure a task on a model, with heads ablated or not; the result is a record of every answer."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float64
from torch import Tensor

from positional_heads.bridge.ablation import Ablation, AblationMode, Reference
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.core.arguments import check_settings, checked, in_range
from positional_heads.core.heads import Heads, as_heads
from positional_heads.results.tables import result_html
from positional_heads.results.text import printable
from positional_heads.studies.tasks.longbench import longbench
from positional_heads.studies.tasks.perplexity import perplexity
from positional_heads.studies.tasks.questions import Where
from positional_heads.studies.tasks.recall import RECALL
from positional_heads.studies.tasks.task import AnswerTask, Task, function_task

if TYPE_CHECKING:
    import pandas as pd

TASKS: dict[str, Callable[..., Task]] = {**RECALL, "perplexity": perplexity, "longbench": longbench}
NEEDS_REFERENCE = ("mean", "resample")


@dataclass(frozen=True)
class TaskResult:
    """The measures of every answer of a task.

    Attributes:
        task: Name of the task.
        rows: Properties of each answer: unit, reach, and, by task, length, depth, distance, position.
        measures: Every measure of each answer; higher is better.
        chance: Expected value of each measure for a guess, if there is one.
    """

    task: str
    rows: list[dict[str, Any]]
    measures: dict[str, Float64[Tensor, " row"]]
    chance: Mapping[str, float]

    def __repr__(self) -> str:
        reaches = self.mean().to_dict("index")
        said = [
            f"{reach} range: {', '.join(f'{name} {value:.3f}' for name, value in means.items())}"
            for reach, means in reaches.items()
        ]
        return f"TaskResult({self._line}; {'; '.join(said)})"

    def _repr_html_(self) -> str:
        return result_html("TaskResult", self._line, None, self.mean().reset_index())

    @property
    def _line(self) -> str:
        name = printable(self.task, newlines=False)
        guess = ", ".join(f"{measure} {value:.3f}" for measure, value in self.chance.items())
        return f"{name}: {len(self.rows)} answers" + (f", a guess gives {guess}" if guess else "")

    def to_frame(self) -> "pd.DataFrame":
        """One line per answer."""
        import pandas as pd

        return pd.DataFrame(self.rows).assign(**{name: values.numpy() for name, values in self.measures.items()})

    def mean(self, by: str | Sequence[str] = "reach") -> "pd.DataFrame":
        """Every measure, averaged by what is known of the answers.

        Args:
            by: One or more of the columns of `to_frame`, e.g. "reach", "depth", or "position" for loss by position.

        Raises:
            ValueError: If the task has no such column.
        """
        frame = self.to_frame()
        for column in [by] if isinstance(by, str) else by:
            if column not in frame:
                msg = f"{self.task} has no column {column!r}: choose among {', '.join(frame.columns)}"
                raise ValueError(msg)
        return frame.groupby(by, dropna=False)[list(self.measures)].mean()


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
        task: Name of a task (passkey, needle, kv, copy, latest, perplexity, longbench), a task, or a function from the
            model to one score per example, higher being better.
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
    chosen = as_heads(heads, int(model.cfg.n_layers), int(model.cfg.n_heads))
    task = make_task(model, task, **task_settings)
    ablation = prepared_ablation(model, task, mode, reference, distance)
    with model.hooks(fwd_hooks=ablation.hooks(chosen)):
        return TaskResult(task.name, task.rows, task.measure(model, batch_size), task.chance)


def make_task(model: Any, task: str | Task | Callable[[Any], Any], **settings: Any) -> Task:
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


def task_setting_names(task: str) -> list[str]:
    """Settings that the task with this name takes."""
    parameters = inspect.signature(TASKS[task]).parameters.values()
    own = [one.name for one in parameters if one.name != "model" and one.kind is not one.VAR_KEYWORD]
    return [*own, *Where.__annotations__] if task in RECALL else own


def prepared_ablation(
    model: TransformerLensModel, task: Task, mode: AblationMode, reference: Reference | None, distance: int | None
) -> Ablation:
    """An ablation; if it needs a reference and none is given, the reference is the task's held-out examples.

    Raises:
        ValueError: If the mode makes no sense, or the task has no held-out examples.
    """
    if reference is None and mode in NEEDS_REFERENCE:
        if not isinstance(task, AnswerTask) or not task.held_out:
            msg = f"mode {mode!r} needs reference=: the task {task.name} has no held-out examples"
            raise ValueError(msg)
        longest = max(len(example.tokens) for example in task.held_out)
        reference = [example.tokens for example in task.held_out if len(example.tokens) == longest]
    return Ablation(model, mode, reference=reference, distance=distance)
