"""lm-evaluation-harness on a bridge with heads ablated: its own HFLM and tasks, our hooks around it (extra `eval`).

Hooks on a bridge act inside the harness's model, so that nothing here but a guard is ours: the harness cuts prompts
that are too long from the left, and what it cuts may be what the question is about. Such prompts are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.heads import Head
from positional_heads.host.ablation import Ablation, Reference
from positional_heads.host.model import TransformerLensModel
from positional_heads.host.run_lengths import follows_length, fresh_runs

INSTALL = "pip install 'positional-heads[eval]'"


def evaluate_harness(
    model: TransformerLensModel,
    tasks: Sequence[str | dict[str, Any]],
    *,
    ablate: Sequence[Head] = (),
    mode: str = "zero",
    reference: Reference | None = None,
    distance: int | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
    max_length: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Run tasks of the lm-evaluation-harness with heads ablated.

    Args:
        model: A TransformerBridge.
        tasks: Names of tasks, or their configurations.
        ablate: Heads to ablate meanwhile.
        mode: What becomes of them, see `ablated_heads`.
        reference: Text or tokens for `mean` and `resample`.
        distance: Distance in tokens for `far` and `near`.
        limit: Documents per task; all when None.
        include_path: Folder with task files; the harness's own tasks are then only looked through for names not there.
        max_length: Most tokens of prompt and answer; the model's context when None.
        batch_size: Prompts at a time; above 1 padding moves scores a little.
        seed: Seed of few-shot examples.

    Returns:
        The harness's own results, samples included.

    Raises:
        ImportError: If the harness is not installed.
        ValueError: If a prompt would be cut, a task does not exist, mode and heads make no sense, or prompts would be
            padded where frequencies follow the length of a run.
    """
    hooks = Ablation(model, mode, reference=reference, distance=distance).hooks(ablate) if ablate else []
    harness = _harness()
    loaded = _loaded(tasks, include_path)
    wrapped = _wrapped(model, max_length, batch_size)
    for name, task in loaded["tasks"].items():
        task.build_all_requests(limit=limit)
        _refuse_truncation(name, task.instances, wrapped)
    with fresh_runs(model), model.hooks(fwd_hooks=hooks):  # type: ignore[attr-defined]
        return harness.simple_evaluate(
            model=wrapped,
            tasks=list(loaded["tasks"].values()),
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            task_manager=_manager(include_path, defaults=False),
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness as a task of ours: one score per document, for `evaluate` and `ablation_study`."""

    name: str
    metric: str
    arguments: dict[str, Any]
    documents: int
    settings: dict[str, Any] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)

    @property
    def measures(self) -> tuple[str, ...]:
        """The one metric."""
        return (self.metric,)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One entry per document, each a unit of its own."""
        return [{"example": index, "unit": index, "reach": "long"} for index in range(self.documents)]

    def measure(self, model: Any, batch_size: int | None = None) -> dict[str, Float64[Tensor, " row"]]:
        """The metric of every document."""
        found = evaluate_harness(model, [self.name], batch_size=batch_size or 1, **self.arguments)
        samples = sorted(found["samples"][self.name], key=lambda sample: sample["doc_id"])
        return {self.metric: torch.tensor([float(sample[self.metric]) for sample in samples], dtype=torch.float64)}


def harness_task(
    model: TransformerLensModel,
    name: str,
    metric: str,
    *,
    limit: int | None = None,
    include_path: str | Path | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> HarnessTask:
    """A task of the harness by name, to be used like our own; it is run once to see which metrics its documents have.

    Args:
        model: A TransformerBridge.
        name: Name of the task.
        metric: Which of its metrics; higher must be better.
        limit: Documents; all when None.
        include_path: Folder with task files.
        max_length: Most tokens of prompt and answer; the model's context when None.
        seed: Seed of few-shot examples.

    Raises:
        ImportError: If the harness is not installed.
        ValueError: If the task has no such metric per document, or lower is better.
    """
    arguments: dict[str, Any] = {"limit": limit, "include_path": include_path, "max_length": max_length, "seed": seed}
    found = evaluate_harness(model, [name], **arguments)
    samples = found["samples"][name]
    numbers = [key for key, value in samples[0].items() if isinstance(value, (int, float)) and key != "doc_id"]
    if metric not in numbers:
        msg = f"{name} has no metric {metric!r} for each document; it has {', '.join(numbers)}"
        raise ValueError(msg)
    if found["higher_is_better"].get(name, {}).get(metric) is False:
        msg = f"{metric} of {name} is better when lower, and harm would look like gain: choose another metric"
        raise ValueError(msg)
    settings = {"metric": metric, **arguments, "include_path": None if include_path is None else str(include_path)}
    return HarnessTask(name, metric, arguments, len(samples), settings)


def _harness() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        msg = f"the lm-evaluation-harness is not installed: {INSTALL}"
        raise ImportError(msg) from error
    return lm_eval


def _manager(include_path: str | Path | None, *, defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    # looking through the harness's own tasks takes most of a minute
    return TaskManager(include_path=None if include_path is None else str(include_path), include_defaults=defaults)


def _loaded(tasks: Sequence[str | dict[str, Any]], include_path: str | Path | None) -> dict[str, Any]:
    manager = _manager(include_path, defaults=False)
    names = [task for task in tasks if isinstance(task, str)]
    if not set(names) <= set(manager.all_tasks):
        manager = _manager(include_path, defaults=True)
    missing = sorted(set(names) - set(manager.all_tasks))
    if missing:
        msg = f"the harness has no task {', '.join(missing)}; include_path= names a folder with task files of your own"
        raise ValueError(msg)
    return manager.load(list(tasks))


def _wrapped(model: Any, max_length: int | None, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    if model.tokenizer is None:
        msg = "the model has no tokenizer: the harness gives text, not tokens"
        raise ValueError(msg)
    if batch_size != 1 and follows_length(model):
        msg = (
            f"batch_size {batch_size} pads prompts, and this rotation follows the length of the run, so that short "
            "prompts would get the frequencies of the longest: give batch_size=1"
        )
        raise ValueError(msg)
    length = int(model.cfg.n_ctx) if max_length is None else max_length
    return HFLM(pretrained=model.original_model, tokenizer=model.tokenizer, batch_size=batch_size, max_length=length)


def _refuse_truncation(name: str, instances: Sequence[Any], wrapped: Any) -> None:
    """Compare every prompt with the room there is for it, as the harness itself would before cutting it."""
    for instance in instances:
        kind, arguments = instance.request_type, instance.args
        if kind == "generate_until":
            context, settings = arguments
            room = wrapped.max_length - int(settings.get("max_gen_toks", wrapped.max_gen_toks))
            tokens = len(wrapped.tok_encode(context))
        elif kind in {"loglikelihood", "multiple_choice"}:
            context, answer = arguments
            if context:
                tokens = sum(map(len, wrapped._encode_pair(context, answer))) - 1
            else:
                tokens = len(wrapped.tok_encode(answer))
            room = wrapped.max_length
        else:  # loglikelihood_rolling goes over the text in windows, and leaves nothing out
            continue
        if tokens > room:
            msg = (
                f"{name}, document {instance.doc_id}: its prompt has {tokens} tokens, there is room for {room}, and "
                "the harness would cut its beginning: choose a shorter task, or a larger max_length if the model can"
            )
            raise ValueError(msg)
