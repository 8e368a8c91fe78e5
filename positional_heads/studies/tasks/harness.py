"""lm-evaluation-harness on a bridge with heads ablated: its own HFLM and tasks, our hooks around it (extra `eval`).

Hooks on a bridge act inside the harness's model, so that little here is ours. A guard: the harness cuts prompts that
are too long from the left, and what it cuts may be what the question is about; such prompts are refused. And a seed:
tasks that write their own documents (RULER) draw them when they are loaded, before the harness seeds anything.
"""

import hashlib
import json
import random
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm.auto import tqdm

from positional_heads.bridge.ablation import Ablation, AblationMode, Reference
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.positions import numbered_rows
from positional_heads.bridge.run_lengths import follows_length, fresh_runs
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import Heads

INSTALL = "pip install 'positional-heads[eval]'"
LARGEST_SEED = 2**32 - 1
"""What the harness gives to NumPy."""


@checked
def evaluate_harness(
    model: TransformerLensModel,
    tasks: str | dict[str, Any] | Sequence[str | dict[str, Any]],
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
        mode: What becomes of them, see `ablated_heads`.
        reference: Text or tokens for `mean` and `resample`.
        distance: Distance in tokens for `far` and `near`.
        limit: Documents per task; all when None.
        include_path: Folder with task files; the harness's own tasks are then only looked through for names not there.
        metadata: What tasks that write their own documents are to know, e.g. `{"max_seq_lengths": [4096]}` for RULER;
            the name or folder of the model's tokenizer is given as "tokenizer" where this has none.
        max_length: Most tokens of prompt and answer; the model's context when None.
        batch_size: Prompts per forward pass, 1 when None; above 1 padding changes scores slightly, and `resample` is
            refused.
        seed: Seed of documents that tasks write themselves, and of few-shot examples. One seed, the same documents.

    Returns:
        The harness's own results, samples and aggregates of groups included, and under "documents" a sha256 over the
        prompts and answers of each task.

    Raises:
        ImportError: If the harness is not installed.
        FileNotFoundError: If there is no such folder.
        ValueError: If a prompt would be cut, a task does not exist, mode, heads or numbers make no sense, or prompts
            would be padded where frequencies follow the length of a run.
        TypeError: If tasks are neither names nor configurations.
    """
    batch_size = 1 if batch_size is None else batch_size
    if mode == "resample" and batch_size != 1:
        msg = f"mode 'resample' takes its reference by the document's number: batch_size must be 1, not {batch_size}"
        raise ValueError(msg)
    in_range("batch_size", batch_size, 1)
    _check_tasks(tasks, limit=limit, include_path=include_path, max_length=max_length, seed=seed)
    hooks = Ablation(model, mode, reference=reference, distance=distance).hooks(heads)
    where: dict[str, Any] = {"include_path": include_path, "metadata": metadata}
    drawn = _drawn(model, tasks, limit=limit, max_length=max_length, seed=seed, **where)
    with model.hooks(fwd_hooks=hooks):
        return drawn.run(model, batch_size)


@dataclass(frozen=True)
class _Drawn:
    """Tasks whose documents are there, to be run again and again.

    Attributes:
        members: Groups, and tasks that are in none, as the harness has them.
        names: Of all tasks.
        hashes: A sha256 over the prompts and answers of each task.
        limit: Documents per task.
        max_length: Most tokens of prompt and answer.
        seed: Of few-shot examples.
    """

    members: tuple[Any, ...]
    names: tuple[str, ...]
    hashes: dict[str, str]
    limit: int | None
    max_length: int | None
    seed: int

    def run(self, model: TransformerLensModel, batch_size: int) -> dict[str, Any]:
        """Results of the model as it is."""
        with _seeded(self.seed), fresh_runs(model):
            results: dict[str, Any] = _harness().simple_evaluate(
                model=_wrapped(model, self.max_length, batch_size),
                tasks=list(self.members),
                limit=self.limit,
                bootstrap_iters=0,
                log_samples=True,
                task_manager=_manager(None, {}, defaults=False),
                random_seed=self.seed,
                numpy_random_seed=self.seed,
                torch_random_seed=self.seed,
                fewshot_random_seed=self.seed,
            )
        return {**results, "documents": self.hashes}


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness as a task of ours: one score per document, for `evaluate` and `ablation_study`."""

    name: str
    metric: str
    documents: int
    drawn: _Drawn = field(repr=False)
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

    def measure(self, model: Any, batch_size: int | None = None) -> dict[str, Float64[Tensor, " row"]]:  # noqa: ARG002
        """The metric of every document, the same documents each time.

        Args:
            model: A TransformerBridge, as it is inside the block that ablates.
            batch_size: Not used: prompts go one by one, so that no score depends on what it was padded with.
        """
        found = self.drawn.run(model, 1)
        samples = sorted(found["samples"][self.name], key=lambda sample: sample["doc_id"])
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
    """A task of the harness, to be used like our own; it is run once to see which metrics its documents have.

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
    _check_tasks(task, limit=limit, include_path=include_path, max_length=max_length, seed=seed)
    where: dict[str, Any] = {"include_path": include_path, "metadata": metadata}
    drawn = _drawn(model, task, limit=limit, max_length=max_length, seed=seed, **where)
    name = task if isinstance(task, str) else str(task.get("group", task.get("task")))
    if drawn.names != (name,):
        msg = f"{name} is a group of tasks: choose one of {', '.join(drawn.names)}"
        raise ValueError(msg)
    found = drawn.run(model, 1)
    samples = found["samples"][name]
    numbers = [key for key, value in samples[0].items() if isinstance(value, (int, float)) and key != "doc_id"]
    if metric not in numbers:
        msg = f"{name} has no metric {metric!r} for each document; it has {', '.join(numbers)}"
        raise ValueError(msg)
    if found["higher_is_better"].get(name, {}).get(metric) is False:
        msg = f"{metric} of {name} is better when lower, and harm would look like gain: choose another metric"
        raise ValueError(msg)
    if any(sample[metric] == -1 for sample in samples):  # RULER's word for a document of another length
        msg = f"some documents of {name} have no {metric}: give the one length that it is for as max_seq_lengths"
        raise ValueError(msg)
    settings = {
        "metric": metric,
        "limit": limit,
        "include_path": None if include_path is None else str(include_path),
        "metadata": metadata,
        "max_length": max_length,
        "seed": seed,
        "sha256": drawn.hashes[name],
    }
    return HarnessTask(name, metric, len(samples), drawn, settings)


def _check_tasks(
    tasks: str | dict[str, Any] | Sequence[str | dict[str, Any]],
    *,
    limit: int | None,
    include_path: str | Path | None,
    max_length: int | None,
    seed: int,
) -> None:
    """What can be refused before the harness is imported, which takes long."""
    in_range("limit", limit, 1)
    in_range("max_length", max_length, 1)
    in_range("seed", seed, 0, LARGEST_SEED)
    chosen = _listed(tasks)
    if not chosen:
        msg = f"tasks {tasks!r} must be names of tasks of the harness, or their configurations (dicts), at least one"
        raise TypeError(msg)
    for task in chosen:
        if isinstance(task, dict) and not {"task", "group"} & task.keys():
            msg = f"the configuration {reprlib.repr(task)} has no name: give it one under 'task'"
            raise TypeError(msg)
    if include_path is not None and not Path(include_path).is_dir():
        msg = f"include_path {include_path}: no such folder; it must hold task files of the harness (.yaml)"
        raise FileNotFoundError(msg)


def _listed(tasks: str | dict[str, Any] | Sequence[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
    return [tasks] if isinstance(tasks, (str, dict)) else list(tasks)


def _harness() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        msg = f"the lm-evaluation-harness is not installed: {INSTALL}"
        raise ImportError(msg) from error
    return lm_eval


def _drawn(
    model: Any,
    tasks: str | dict[str, Any] | Sequence[str | dict[str, Any]],
    *,
    limit: int | None,
    include_path: str | Path | None,
    metadata: dict[str, Any] | None,
    max_length: int | None,
    seed: int,
) -> _Drawn:
    """Load tasks, have them write their documents, and see that none would be cut."""
    _harness()
    wrapped = _wrapped(model, max_length, 1)
    tokenizer = getattr(model.tokenizer, "name_or_path", None)
    known = {**({"tokenizer": tokenizer} if tokenizer else {}), **(metadata or {})}
    with _seeded(seed):
        loaded = _loaded(tasks, include_path, known)
    hashes = {}
    for name, task in loaded["tasks"].items():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
        task.build_all_requests(limit=limit)
        _refuse_truncation(name, task.instances, wrapped)
        said = json.dumps([[one.request_type, one.args] for one in task.instances], sort_keys=True, default=str)
        hashes[name] = hashlib.sha256(said.encode()).hexdigest()
    inside = {name for names in loaded["group_map"].values() for name in names}
    members = {**loaded["groups"], **loaded["tasks"]}
    outermost = tuple(member for name, member in members.items() if name not in inside)
    return _Drawn(outermost, tuple(loaded["tasks"]), hashes, limit, max_length, seed)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A block with a seed of its own for the process's generators, which are those that tasks draw from."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


def _manager(include_path: Any, metadata: dict[str, Any], *, defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=defaults, metadata=metadata)


def _loaded(
    tasks: str | dict[str, Any] | Sequence[str | dict[str, Any]],
    include_path: str | Path | None,
    metadata: dict[str, Any],
) -> dict[str, Any]:
    chosen = _listed(tasks)
    own = [] if include_path is None else [str(include_path)]
    names = {task for task in chosen if isinstance(task, str)}
    manager = _manager(own, metadata, defaults=False)
    if not names <= set(manager.all_tasks):
        folders = _folders(names - set(manager.all_tasks))
        manager = _manager([*folders, *own], metadata, defaults=not folders)
    missing = sorted(names - set(manager.all_tasks))
    if missing:
        msg = f"the harness has no task {', '.join(missing)}; include_path= names a folder with task files of your own"
        raise ValueError(msg)
    return dict(manager.load(chosen))


def _folders(names: set[str]) -> list[str]:
    """Folders of the harness's own files for these tasks, or none if one is not found by its name alone.

    Having the harness look through all of its tasks takes most of a minute; groups need that.
    """
    root = Path(str(_harness().__file__)).parent / "tasks"
    found = {}
    for file in sorted(root.rglob("*.yaml")):
        match = re.search(r"""^task: *["']?([\w.-]+)["']? *$""", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if match and match[1] in names:
            found[match[1]] = str(file.parent)
    return sorted(set(found.values())) if set(found) == names else []


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
    kind = _numbered(model, HFLM) if batch_size == 1 else HFLM
    return kind(pretrained=model.original_model, tokenizer=model.tokenizer, batch_size=batch_size, max_length=length)


def _numbered(model: Any, harness_model: Any) -> Any:
    """The harness's model, which answers each request under its document's number: `resample` goes by it.

    The harness sorts requests by length, so that their order says nothing.
    """

    class Numbered(harness_model):
        def _each(self, answer: Callable[..., list[Any]], requests: list[Any], quiet: bool) -> list[Any]:
            answers = []
            for request in tqdm(requests, desc="documents", disable=quiet):
                with numbered_rows(model, [request.doc_id]):
                    answers += answer([request], disable_tqdm=True)
            return answers

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._each(super().loglikelihood, requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._each(super().loglikelihood_rolling, requests, disable_tqdm)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._each(super().generate_until, requests, disable_tqdm)

    return Numbered


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
