"""The same sums by many workers: Ray carries batches to replicas of the model and their sums back.

A worker that dies is started again and its batches are counted again; since sums are added once per batch, and are
whole numbers, the result is the one that a single process gets.
"""

import math
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from positional_heads.bridge.active import active_extension
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.sequences import Batch
from positional_heads.scoring.counter import EntryCounter
from positional_heads.scoring.sums import ScoreSums, differing

TASKS_PER_WORKER = 8
RESTARTS = 4
"""How often a worker may die, and a task be tried again."""
SECONDS_TO_ANSWER = 10
"""How long an address may take to answer; Ray itself goes on trying for minutes, in silence."""


@dataclass(frozen=True)
class RayExecutor:
    """Counts on the workers of a Ray cluster, one replica of the model each.

    Attributes:
        address: Of the cluster: "auto" for the one that this machine belongs to; None for one on this machine alone,
            started for the run and ended with it.
        workers: Replicas; as many as the cluster's processors (or GPUs) allow when None.
        num_cpus: Processor cores of each worker, also its threads.
        num_gpus: GPUs of each worker; a fraction, or a whole number.
        load: Makes the replica in a worker; loads the model again by its name when None.
        batches_per_task: Batches sent at a time, what a dying worker loses; chosen when None.
        start_seconds: How long all workers may take to start and load their replicas, and no worker more.
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
        for name, value in (("workers", self.workers), ("batches_per_task", self.batches_per_task)):
            if value is not None and value < 1:
                msg = f"{name} {value} must be at least 1, or None to have it chosen"
                raise ValueError(msg)
        if self.num_cpus < 1 or self.num_gpus < 0:
            msg = f"num_cpus {self.num_cpus} must be at least 1, num_gpus {self.num_gpus} at least 0"
            raise ValueError(msg)
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            msg = f"num_gpus {self.num_gpus} must be a whole number where it is above 1, as Ray has it"
            raise ValueError(msg)
        if not (self.start_seconds > 0 and math.isfinite(self.start_seconds)):
            msg = f"start_seconds {self.start_seconds} must be above 0, e.g. 600"
            raise ValueError(msg)

    @contextmanager
    def started(self, model: Any) -> Iterator[None]:
        """Be connected to the cluster; one that was started for the run ends with the block.

        Args:
            model: This process's own.

        Raises:
            ValueError: If the cluster cannot be reached, has not what the workers ask for, or the workers' replicas
                could not be as this model is.
        """
        if active_extension(model) is not None:
            msg = "an extended_rope block holds in this process only: score in it without an executor"
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

    def counted(self, counter: EntryCounter, empty: ScoreSums, numbers: Sequence[int]) -> Iterator[ScoreSums]:
        """Sums over some of the batches at a time, until all are done.

        Args:
            counter: The run, with this process's model.
            empty: Its plans and bins, nothing counted.
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
        load = self.load or Reload(empty.run["provenance"]["model"], self.num_gpus > 0)
        data = [(batch.tokens.cpu().numpy(), _array(batch.attention_mask), batch.first) for batch in counter.data]
        spec = ray.put((data, counter.settings, empty.to_bytes(), counter.kernel.name))
        kind = ray.remote(Replica).options(
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        replicas = [kind.remote(load, [spec], self.num_cpus) for _ in range(workers)]
        tasks = [list(numbers[first : first + size]) for first in range(0, len(numbers), size)]
        try:
            self._wait_for(replicas)
            pool = ActorPool(replicas)
            for sums in pool.map_unordered(lambda replica, task: replica.count.remote(task), tasks):
                yield ScoreSums.from_bytes(sums, counter.model.cfg.device)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except ray.exceptions.RayActorError as error:
            msg = f"a worker could not be kept alive ({' '.join(str(error).split())[:300]}): is there memory for it?"
            raise RuntimeError(msg) from error

    def _workers(self, nodes: list[dict[str, Any]]) -> int:
        """How many workers to start on a cluster: those asked for, or as many as it has room for.

        A worker that there is no room for would wait, and the run with it, without a word.
        """
        have = [node["Resources"] for node in nodes if node["Alive"]]
        needs = {name: need for name, need in (("CPU", self.num_cpus), ("GPU", self.num_gpus)) if need}
        # a worker is on one node; 1e-9 because 0.6 / 0.2 is a little less than 3
        room = sum(min(int(node.get(name, 0) / need + 1e-9) for name, need in needs.items()) for node in have)
        asked = self.workers or 1
        if room < asked:
            cpus, gpus = (sum(node.get(name, 0) for node in have) for name in ("CPU", "GPU"))
            msg = (
                f"{asked} Ray workers of {self.num_cpus} CPUs and {self.num_gpus:g} GPUs were asked for; there are "
                f"{cpus:g} CPUs and {gpus:g} GPUs on {len(have)} nodes, room for {room}: ask for fewer, or give "
                "each of them less"
            )
            raise ValueError(msg)
        return self.workers or room

    def _wait_for(self, replicas: list[Any]) -> None:
        """Wait until every worker has started; workers of one cluster may wait for those of another run.

        Raises:
            TimeoutError: If that takes too long.
        """
        ray = _ray()
        waiting = [replica.ready.remote() for replica in replicas]
        started, missing = ray.wait(waiting, num_returns=len(waiting), timeout=self.start_seconds)
        ray.get(started)  # raises what kept one from starting
        if missing:
            free = ray.available_resources()
            for replica in replicas:
                ray.kill(replica)
            msg = (
                f"{len(missing)} of {len(replicas)} Ray workers had not started after {self.start_seconds:g} s, with "
                f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free: does another run hold the cluster? "
                "Ask for fewer workers, or give RayExecutor(start_seconds=...) more time if the model is slow to load"
            )
            raise TimeoutError(msg)


@dataclass(frozen=True)
class Reload:
    """Loads the model again by the name that it had, on this worker's device."""

    model: dict[str, Any]
    on_gpu: bool

    def __call__(self) -> Any:
        """The replica."""
        from positional_heads.zoo.bundled import load_model

        device = "cuda" if self.on_gpu else "cpu"
        return load_model(self.model["name"], device=device, dtype=self.model["dtype"])


class Replica:
    """One worker: its own model, and sums over the batches that it is sent."""

    def __init__(
        self,
        load: Callable[[], Any],
        spec: list[Any],
        threads: int,
    ) -> None:
        """Load the model and see that it is the one.

        Args:
            load: Makes the model.
            spec: Where the run is: batches, settings, empty sums, name of the kernel.
            threads: For PyTorch.
        """
        import torch

        torch.set_num_threads(threads)
        arrays, settings, empty, kernel = _ray().get(spec[0])
        model = load()
        data = [Batch(torch.tensor(tokens), _tensor(mask), first) for tokens, mask, first in arrays]
        empty = ScoreSums.from_bytes(empty, model.cfg.device)
        resolved = resolve_layers(model)
        rotary = resolved.select(sorted(empty.layers))
        self.counter = EntryCounter(model, data, rotary, settings)
        self.counter.go_on_with({kernel})
        self.empty = empty
        # Kept for `count` to raise: a worker that fails while it starts dies without its reason.
        self.changed = differing(empty.run, self.counter.description(resolved, empty.windows))

    def ready(self) -> None:
        """Return once the replica is there."""

    def count(self, numbers: list[int]) -> bytes:
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


def _array(mask: Any) -> Any:
    return None if mask is None else mask.cpu().numpy()


def _tensor(mask: Any) -> Any:
    import torch

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
    """Knock at an address, because Ray tries for seven minutes to reach one where nothing listens.

    Raises:
        ValueError: If nothing answers in time.
    """
    where = (address or "").removeprefix("ray://")
    host, colon, port = where.rpartition(":")
    if not colon or not port.isdigit():  # "auto", "local", and what Ray knows by other names
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError as error:
        msg = (
            f"nothing answers at the Ray address {address!r} ({error}): start a cluster there with `ray start --head "
            f"--port {port}`, give its address, or leave the address out for workers on this machine"
        )
        raise ValueError(msg) from error
