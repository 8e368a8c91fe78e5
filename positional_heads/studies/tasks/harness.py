"""lm-evaluation-harness on a TransformerBridge with heads ablated (extra `eval`)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.bridge.ablation import Ablation, AblationMode, Reference
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import Heads
from positional_heads.studies.tasks.harness_tasks import HarnessRequest, HarnessTasks, LoadedTasks


@checked
def evaluate_harness(
    model: TransformerLensModel,
    tasks: HarnessTasks,
    *,
    heads: Heads = (),
    mode: AblationMode = "zero",
    reference: Reference | None = None,
    distance: int | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
    metadata: dict[str, Any] | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Run tasks of the lm-evaluation-harness with heads ablated.

    Args:
        model: A TransformerBridge.
        tasks: Names of tasks and groups, or their configurations; one alone, or a list.
        heads: Heads to ablate, as Head(3, 7), (3, 7) or "L3H7", one or several.
        mode: How they are ablated, see `ablated_heads`.
        reference: Text or tokens for `mean` and `resample`.
        distance: Distance in tokens for `far` and `near`.
        limit: Documents per task; all when None.
        include_path: Folder with task files; only names that are not in it are searched among the harness's own tasks.
        metadata: Settings of tasks that write their own documents, e.g. `{"max_seq_lengths": [4096]}` for RULER;
            "tokenizer" defaults to the name or folder of the model's tokenizer.
        max_length: Most tokens of prompt and answer; the model's context when None.
        batch_size: Prompts per forward pass, 1 when None; above 1 padding changes scores slightly, and `resample` is
            refused.
        seed: Seed of documents that tasks write themselves, and of few-shot examples.

    Returns:
        The harness's own results with samples and group aggregates, and under "documents" a sha256 over the prompts
        and answers of each task.

    Raises:
        ImportError: If the harness is not installed.
        FileNotFoundError: If there is no such folder.
        ValueError: If a prompt would be cut, a task does not exist, mode, heads or numbers make no sense, or padding
            would change the frequencies of shorter prompts.
        TypeError: If tasks are neither names nor configurations.
    """
    batch_size = 1 if batch_size is None else batch_size
    if mode == "resample" and batch_size != 1:
        msg = f"mode 'resample' takes its reference by the document's number: batch_size must be 1, not {batch_size}"
        raise ValueError(msg)
    in_range("batch_size", batch_size, 1)
    request = HarnessRequest(tasks, limit, include_path, metadata, max_length, seed)
    hooks = Ablation(model, mode, reference=reference, distance=distance).hooks(heads)
    loaded = LoadedTasks.load(model, request)
    with model.hooks(fwd_hooks=hooks):
        return loaded.run(model, batch_size)


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness for `evaluate` and `ablation_study`: one score per document."""

    name: str
    metric: str
    documents: int
    loaded: LoadedTasks = field(repr=False)
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

    def measure(self, model: TransformerLensModel, batch_size: int | None = None) -> dict[str, Float64[Tensor, " row"]]:  # noqa: ARG002
        """The metric of every document.

        Args:
            model: A TransformerBridge, as it is inside the block that ablates.
            batch_size: Not used: prompts are run one by one, so no score depends on padding.
        """
        results = self.loaded.run(model, 1)
        samples = sorted(results["samples"][self.name], key=lambda sample: sample["doc_id"])
        return {self.metric: torch.tensor([float(sample[self.metric]) for sample in samples], dtype=torch.float64)}


@checked
def harness_task(
    model: TransformerLensModel,
    task: str | dict[str, Any],
    metric: str,
    *,
    limit: int | None = None,
    include_path: str | Path | None = None,
    metadata: dict[str, Any] | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> HarnessTask:
    """A task of the harness, to be used like a task of this package; it is run once to find its documents' metrics.

    Args:
        model: A TransformerBridge.
        task: Name of the task, or its configuration.
        metric: Which of its metrics; higher must be better.
        limit: Documents; all when None.
        include_path: Folder with task files.
        metadata: As in `evaluate_harness`.
        max_length: Most tokens of prompt and answer; the model's context when None.
        seed: Seed of documents that the task writes itself, and of few-shot examples.

    Raises:
        ImportError: If the harness is not installed.
        FileNotFoundError: If there is no such folder.
        ValueError: If the task has no such metric for every document, lower is better, or numbers make no sense.
        TypeError: If the configuration names no task.
    """
    loaded = LoadedTasks.load(model, HarnessRequest(task, limit, include_path, metadata, max_length, seed))
    name = task if isinstance(task, str) else str(task.get("group", task.get("task")))
    if loaded.names != (name,):
        msg = f"{name} is a group of tasks: choose one of {', '.join(loaded.names)}"
        raise ValueError(msg)
    results = loaded.run(model, 1)
    samples = results["samples"][name]
    numbers = [key for key, value in samples[0].items() if isinstance(value, (int, float)) and key != "doc_id"]
    if metric not in numbers:
        msg = f"{name} has no metric {metric!r} for each document; it has {', '.join(numbers)}"
        raise ValueError(msg)
    if results["higher_is_better"].get(name, {}).get(metric) is False:
        msg = f"{metric} of {name} is better when lower, so harm would look like gain: choose another metric"
        raise ValueError(msg)
    if any(sample[metric] == -1 for sample in samples):  # RULER marks documents of another length by -1
        msg = f"some documents of {name} have no {metric}: give the one length that it is for as max_seq_lengths"
        raise ValueError(msg)
    settings = {
        "metric": metric,
        "limit": limit,
        "include_path": None if include_path is None else str(include_path),
        "metadata": metadata,
        "max_length": max_length,
        "seed": seed,
        "sha256": loaded.hashes[name],
    }
    return HarnessTask(name, metric, len(samples), loaded, settings)
