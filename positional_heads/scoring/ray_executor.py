"""Count batches on a Ray cluster: workers with a replica of the model each take batches and return their sums.

A worker that dies is restarted and counts its batches again. Sums are whole numbers and each batch is added once, so
the result is that of a single process.
"""

import math
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from positional_heads.bridge.active_edits import model_edits
from positional_heads.bridge.active_extension import active_block, active_extension
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.sequences import Batch
from positional_heads.core.arguments import in_range
from positional_heads.scoring.counter import EntryCounter
from positional_heads.scoring.sums import ScoreSums, differences
from positional_heads.zoo.bundled import load_model

TASKS_PER_WORKER = 8
RESTARTS = 4
"""How often a worker may die, and a task be tried again."""
SECONDS_TO_ANSWER = 10
"""How long an address may take to answer; Ray itself retries for minutes without a message."""


@dataclass(frozen=True)
class RayExecutor:
    """Counts on the workers of a Ray cluster, each with a replica of the model.

    Attributes:
        address: Address of the cluster; "auto" for the one that this machine belongs to. When None, a cluster on this
            machine alone, started for the run.
        workers: Number of workers; as many as the cluster's CPU cores (or GPUs) allow when None.
        num_cpus: CPU cores of each worker, also its threads.
        num_gpus: GPUs of each worker; a fraction, or a whole number.
        load: Makes the replica in a worker; loads the model by its name when None.
        batches_per_task: Batches sent at a time, which are lost when a worker dies; chosen when None.
        start_seconds: How long the workers may take to start and load their replicas.
    """

    address: str | None = None
    workers: int | None = None
    num_cpus: int = 1
    num_gpus: float = 0
    load: Callable[[], Any] | None = None
    batches_per_task: int | None = None
    start_seconds: float = 600

    def __post_init__(self) -> None:
        _ray()
        in_range("workers", self.workers, 1)
        in_range("batches_per_task", self.batches_per_task, 1)
        in_range("num_cpus", self.num_cpus, 1)
        in_range("num_gpus", self.num_gpus, 0)
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            msg = f"num_gpus {self.num_gpus} must be a whole number where it is above 1, as Ray requires"
            raise ValueError(msg)
        if not (self.start_seconds > 0 and math.isfinite(self.start_seconds)):
            msg = f"start_seconds {self.start_seconds} must be above 0, e.g. 600"
            raise ValueError(msg)

    @contextmanager
    def started(self, model: TransformerLensModel) -> Iterator[None]:
        """Connect to the cluster for a block; one that was started for the run ends with it.

        Args:
            model: The model of this process.

        Raises:
            ValueError: If the cluster cannot be reached or has no room for the workers, or an extension, an ablation
                or a hook is active, which replicas would lack.
        """
        if active_extension(model) is not None:
            msg = f"the {active_block(model)} block holds in this process only: score in it without an executor"
            raise ValueError(msg)
        if model_edits(model):
            msg = "ablations and hooks act on the model in this process only: score under them without an executor"
            raise ValueError(msg)
        ray = _ray()
        if ray.is_initialized():
            self._workers(ray.nodes())
            yield
            return
        _connect(self.address)
        try:
            self._workers(ray.nodes())
            yield
        finally:
            ray.shutdown()

    def sums(self, counter: EntryCounter, empty: ScoreSums, numbers: Sequence[int]) -> Iterator[ScoreSums]:
        """Sums over a few of the batches at a time, in any order, until all are done.

        Args:
            counter: The run, with the model of this process.
            empty: Plans and bins of the run, nothing counted.
            numbers: Which batches.

        Raises:
            ValueError: If a worker's replica is another model.
            RuntimeError: If a worker cannot be kept alive.
            TimeoutError: If the workers do not start in time.
        """
        from ray.util import ActorPool

        if not numbers:
            return
        ray = _ray()
        workers = min(self._workers(ray.nodes()), len(numbers))
        size = self.batches_per_task or max(1, len(numbers) // (workers * TASKS_PER_WORKER))
        tasks = [list(numbers[first : first + size]) for first in range(0, len(numbers), size)]
        data = [(_array(batch.tokens), _array(batch.attention_mask), batch.first) for batch in counter.data]
        # A restarted worker reads the run again, so `run` must live to the end: Ray deletes objects without references.
        run = ray.put((data, counter.settings, empty.to_bytes(), counter.kernel.name))
        replicas = self._replicas(workers, [run], empty.run["provenance"]["model"])
        try:
            self._wait_for(replicas)
            pool = ActorPool(replicas)
            for sums in pool.map_unordered(lambda replica, task: replica.sums.remote(task), tasks):
                yield ScoreSums.from_bytes(sums)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except ray.exceptions.RayActorError as error:
            msg = f"a worker could not be kept alive ({' '.join(str(error).split())[:300]}): check its memory"
            raise RuntimeError(msg) from error
        finally:  # an error keeps them, and the cores that they hold, for as long as anyone keeps the error
            for replica in replicas:
                ray.kill(replica)

    def _replicas(self, workers: int, run: list[Any], model: dict[str, Any]) -> list[Any]:
        """Start the workers. The run's reference is in a list, in which Ray passes it on instead of its content."""
        device = "cuda" if self.num_gpus else "cpu"
        own = {"dtype": model["dtype"], "adapter": model.get("adapter")}
        load = self.load or partial(load_model, model["name"], device=device, **own)
        restarts = {"max_restarts": RESTARTS, "max_task_retries": RESTARTS}
        kind = _ray().remote(Replica).options(num_cpus=self.num_cpus, num_gpus=self.num_gpus, **restarts)
        return [kind.remote(load, run, self.num_cpus) for _ in range(workers)]

    def _workers(self, nodes: list[dict[str, Any]]) -> int:
        """How many workers to start: those asked for, or as many as the cluster has room for.

        Ray would let a worker without room wait, and the run with it, without a message.
        """
        resources = [node["Resources"] for node in nodes if node["Alive"]]
        needs = {name: need for name, need in (("CPU", self.num_cpus), ("GPU", self.num_gpus)) if need}
        # a worker is on one node; 1e-9 because 0.6 / 0.2 is a little less than 3
        room = sum(min(int(node.get(name, 0) / need + 1e-9) for name, need in needs.items()) for node in resources)
        asked = self.workers or 1
        if room < asked:
            cpus, gpus = (sum(node.get(name, 0) for node in resources) for name in ("CPU", "GPU"))
            msg = (
                f"{asked} Ray workers of {self.num_cpus} CPUs and {self.num_gpus:g} GPUs were asked for; there are "
                f"{cpus:g} CPUs and {gpus:g} GPUs on {len(resources)} nodes, room for {room}: ask for fewer, or give "
                "each of them less"
            )
            raise ValueError(msg)
        return self.workers or room

    def _wait_for(self, replicas: list[Any]) -> None:
        """Wait until every worker has started: those of another run may hold the cluster.

        Raises:
            TimeoutError: If that takes too long.
        """
        ray = _ray()
        waiting = [replica.ready.remote() for replica in replicas]
        started, missing = ray.wait(waiting, num_returns=len(waiting), timeout=self.start_seconds)
        ray.get(started)  # raises the error of a worker that could not start
        if missing:
            free = ray.available_resources()
            msg = (
                f"{len(missing)} of {len(replicas)} Ray workers had not started after {self.start_seconds:g} s, with "
                f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free: does another run hold the cluster? "
                "Ask for fewer workers, or give RayExecutor(start_seconds=...) more time if the model is slow to load"
            )
            raise TimeoutError(msg)


class Replica:
    """One worker: its own model, and sums over the batches that it is sent."""

    def __init__(self, load: Callable[[], Any], run: list[Any], threads: int) -> None:
        """Load the model and compare it with the run's.

        Args:
            load: Makes the model.
            run: Reference to batches, settings, empty sums and the kernel's name.
            threads: For PyTorch.
        """
        torch.set_num_threads(threads)
        arrays, settings, empty, kernel = _ray().get(run[0])
        model = load()
        data = [Batch(torch.tensor(tokens), _tensor(mask), first) for tokens, mask, first in arrays]
        self.empty = ScoreSums.from_bytes(empty)
        self.counter = EntryCounter(model, data, resolve_layers(model), sorted(self.empty.layers), settings)
        self.counter.use_kernel(kernel)
        # `sums` raises if there are any: a worker that fails in its constructor dies without reporting the reason.
        self.changed = differences(self.empty.run, self.counter.description(self.empty.windows))

    def ready(self) -> None:
        """Return once the replica is loaded."""

    def sums(self, numbers: list[int]) -> bytes:
        """Sums over these batches, as bytes.

        Raises:
            ValueError: If the replica is another model.
        """
        if self.changed:
            msg = (
                f"the worker's replica is not the model of this process (different: {', '.join(self.changed)}): give "
                "RayExecutor(load=...) a function that makes it"
            )
            raise ValueError(msg)
        sums = self.empty.empty()
        for number in numbers:
            self.counter.count(number, sums)
        return sums.to_bytes()


def _array(tensor: Any) -> Any:
    return None if tensor is None else tensor.cpu().numpy()


def _tensor(mask: Any) -> Any:
    return None if mask is None else torch.tensor(mask)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        msg = "Ray is not installed: pip install 'positional-heads[ray]'"
        raise ModuleNotFoundError(msg) from error
    return ray


def _connect(address: str | None) -> None:
    ray = _ray()
    _refuse_silent(address)
    try:
        if address is None:  # reachable from this machine alone
            ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        else:
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        msg = (
            f"no Ray cluster at {address!r} ({' '.join(str(error).split())[:200]}): start one with `ray start --head`, "
            "give its address, or leave the address out for workers on this machine"
        )
        raise ValueError(msg) from error


def _refuse_silent(address: str | None) -> None:
    """Try an address first, because Ray tries for seven minutes to reach one where nothing listens.

    Raises:
        ValueError: If nothing answers in time.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():  # "auto", "local", and other names that Ray knows
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError as error:
        msg = (
            f"nothing answers at the Ray address {address!r} ({error}): start a cluster there with `ray start --head "
            f"--port {port}`, give its address, or leave the address out for workers on this machine"
        )
        raise ValueError(msg) from error
