"""Tasks of the lm-evaluation-harness, loaded with their documents, and the harness's own HFLM on a TransformerBridge.

Hooks on a bridge act inside the harness's model, so little is needed here. Two guards: the harness cuts long prompts
from the left, where the question may depend on them, so such prompts are refused; and tasks that write their own
documents (RULER) draw them when they are loaded, before the harness sets its seeds, so the seed is set here.
"""

import functools
import hashlib
import json
import random
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import collect_env
from tqdm.auto import tqdm

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.positions import numbered_rows
from positional_heads.bridge.run_lengths import follows_length, fresh_runs
from positional_heads.core.arguments import in_range
from positional_heads.studies.tasks.longbench_metrics import INSTALL

_machine = functools.cache(collect_env.get_pretty_env_info)
"""What the harness adds to each result about the machine; to find it, PyTorch starts pip and a dozen other programs."""

LARGEST_SEED = 2**32 - 1
"""The largest seed that NumPy takes from the harness."""

HarnessTasks = str | dict[str, Any] | Sequence[str | dict[str, Any]]
"""Names of tasks and groups of the harness, or their configurations; one, or several."""


@dataclass(frozen=True)
class HarnessRequest:
    """Which tasks to load, checked as far as possible without importing the harness, which is slow.

    Attributes:
        tasks: Names or configurations.
        limit: Documents per task; all when None.
        include_path: Folder with task files.
        metadata: Settings of tasks that write their own documents.
        max_length: Most tokens of prompt and answer; the model's context when None.
        seed: Seed of documents and few-shot examples.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a number is out of its range.
        TypeError: If tasks are neither names nor configurations with a name.
    """

    tasks: HarnessTasks
    limit: int | None
    include_path: str | Path | None
    metadata: dict[str, Any] | None
    max_length: int | None
    seed: int

    def __post_init__(self) -> None:
        in_range("limit", self.limit, 1)
        in_range("max_length", self.max_length, 1)
        in_range("seed", self.seed, 0, LARGEST_SEED)
        if not self.chosen:
            msg = f"tasks {self.tasks!r} must be at least one name of a task of the harness, or configuration (dict)"
            raise TypeError(msg)
        for task in self.chosen:
            if isinstance(task, dict) and not {"task", "group"} & task.keys():
                msg = f"the configuration {reprlib.repr(task)} has no name: give it one under 'task'"
                raise TypeError(msg)
        if self.include_path is not None and not Path(self.include_path).is_dir():
            msg = f"include_path {self.include_path}: no such folder; it must hold task files of the harness (.yaml)"
            raise FileNotFoundError(msg)

    @property
    def chosen(self) -> list[str | dict[str, Any]]:
        """The tasks as a list."""
        return [self.tasks] if isinstance(self.tasks, (str, dict)) else list(self.tasks)


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks with their documents, which can be run repeatedly.

    Attributes:
        request: What was asked for.
        members: Groups, and tasks that are in no group, as objects of the harness.
        names: Names of all tasks.
        hashes: A sha256 over the prompts and answers of each task.
    """

    request: HarnessRequest
    members: tuple[Any, ...]
    names: tuple[str, ...]
    hashes: dict[str, str]

    @classmethod
    def load(cls, model: TransformerLensModel, request: HarnessRequest) -> "LoadedTasks":
        """Load tasks, let them write their documents, and check that no prompt would be cut.

        Raises:
            ImportError: If the harness is not installed.
            ValueError: If a task does not exist, or a prompt would be cut.
        """
        _harness()
        wrapped = _harness_model(model, request.max_length, 1)
        tokenizer = getattr(model.tokenizer, "name_or_path", None)
        metadata = {**({"tokenizer": tokenizer} if tokenizer else {}), **(request.metadata or {})}
        with _seeded(request.seed):
            loaded = _loaded(request, metadata)
        hashes = {}
        for name, task in loaded["tasks"].items():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=request.seed)
            task.build_all_requests(limit=request.limit)
            _refuse_truncation(name, task.instances, wrapped)
            requests = [[one.request_type, one.args] for one in task.instances]
            hashes[name] = hashlib.sha256(json.dumps(requests, sort_keys=True, default=str).encode()).hexdigest()
        grouped = {name for names in loaded["group_map"].values() for name in names}
        members = {**loaded["groups"], **loaded["tasks"]}
        outermost = tuple(member for name, member in members.items() if name not in grouped)
        return cls(request, outermost, tuple(loaded["tasks"]), hashes)

    def run(self, model: TransformerLensModel, batch_size: int) -> dict[str, Any]:
        """The harness's results for the model as it is, heads ablated or not."""
        seed = self.request.seed
        with _seeded(seed), fresh_runs(model), _described_once():
            results: dict[str, Any] = _harness().simple_evaluate(
                model=_harness_model(model, self.request.max_length, batch_size),
                tasks=list(self.members),
                limit=self.request.limit,
                bootstrap_iters=0,
                log_samples=True,
                task_manager=_manager(None, {}, defaults=False),
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        return {**results, "documents": self.hashes}


def _harness() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        msg = f"the lm-evaluation-harness is not installed: {INSTALL}"
        raise ImportError(msg) from error
    return lm_eval


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A block in which the process's random generators, which tasks draw from, have this seed."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _described_once() -> Iterator[None]:
    """A block in which the machine is described as before, which takes seconds, and not anew."""
    describe, collect_env.get_pretty_env_info = collect_env.get_pretty_env_info, _machine
    try:
        yield
    finally:
        collect_env.get_pretty_env_info = describe


def _manager(include_path: Any, metadata: dict[str, Any], *, defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=defaults, metadata=metadata)


def _loaded(request: HarnessRequest, metadata: dict[str, Any]) -> dict[str, Any]:
    own = [] if request.include_path is None else [str(request.include_path)]
    names = {task for task in request.chosen if isinstance(task, str)}
    manager = _manager(own, metadata, defaults=False)
    if not names <= set(manager.all_tasks):
        folders = _folders(names - set(manager.all_tasks))
        manager = _manager([*folders, *own], metadata, defaults=not folders)
    missing = sorted(names - set(manager.all_tasks))
    if missing:
        msg = f"the harness has no task {', '.join(missing)}; include_path= names a folder with task files of your own"
        raise ValueError(msg)
    return dict(manager.load(request.chosen))


def _folders(names: set[str]) -> list[str]:
    """Folders of the harness's own files for these tasks; none if a task has no file of its own, e.g. a group.

    The harness itself would read all of its tasks, which takes most of a minute.
    """
    root = Path(str(_harness().__file__)).parent / "tasks"
    folders = {}
    for file in sorted(root.rglob("*.yaml")):
        match = re.search(r"""^task: *["']?([\w.-]+)["']? *$""", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if match and match[1] in names:
            folders[match[1]] = str(file.parent)
    return sorted(set(folders.values())) if set(folders) == names else []


def _harness_model(model: TransformerLensModel, max_length: int | None, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    if model.tokenizer is None:
        msg = "the model has no tokenizer: the harness gives text, not tokens"
        raise ValueError(msg)
    if batch_size != 1 and follows_length(model):
        msg = (
            f"batch_size {batch_size} pads prompts, and this rotation follows the length of the run, so short "
            "prompts would get the frequencies of the longest: give batch_size=1"
        )
        raise ValueError(msg)
    length = int(model.cfg.n_ctx) if max_length is None else max_length
    kind = _numbered(model, HFLM) if batch_size == 1 else HFLM
    return kind(pretrained=model.original_model, tokenizer=model.tokenizer, batch_size=batch_size, max_length=length)


def _numbered(model: TransformerLensModel, harness_model: Any) -> Any:
    """The harness's model, with each request answered under its document's number, which `resample` needs.

    The harness sorts requests by length, so their order does not give the number.
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
    """Refuse prompts that the harness would cut, by its own count of their tokens."""
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
        else:  # loglikelihood_rolling reads the text in windows, without cutting any
            continue
        if tokens > room:
            msg = (
                f"{name}, document {instance.doc_id}: its prompt has {tokens} tokens, there is room for {room}, and "
                "the harness would cut its beginning: choose a shorter task, or a larger max_length if the model can"
            )
            raise ValueError(msg)
