"""Ray workers, one of them killed, give exactly the numbers of one process; clusters without room are refused."""

import importlib.util
import os
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

import positional_heads as ph
from positional_heads.scoring import ray_executor
from positional_heads.scoring.counter import EntryCounter
from positional_heads.zoo.bundled import load_model
from tests.scoring.test_shards import same
from tests.support.processes import signal_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra, and not installed"),
    # Ray's own: files and sockets of processes that it ends
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*", "ignore::DeprecationWarning:ray.*"),
]
SETTINGS = {"null_repeats": 2, "batch_size": 1, "control_keys": 64}


def noted_load(name, **own):
    """What loads a model by its name in a worker, which leaves the number of its process in a folder.

    The first of them is killed in the middle of its first task, of two batches.
    """
    notes = Path(os.environ["NOTES"])
    (notes / str(os.getpid())).touch()
    with suppress(FileExistsError):
        (notes / "first").touch(exist_ok=False)
        signal_in(EntryCounter, "count", 2)
    return load_model(name, **own)


@pytest.fixture(scope="module")
def data():
    return torch.randint(0, 256, (40, 200), generator=torch.Generator().manual_seed(0))


def test_workers_load_the_model_by_its_name_and_one_killed_in_the_middle_changes_nothing(
    tiny, data, tmp_path, monkeypatch
):
    import ray

    notes = tmp_path / "notes"
    notes.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # workers know the tests, too
    monkeypatch.setenv("NOTES", str(notes))
    monkeypatch.setattr(ray_executor, "load_model", noted_load)
    executor = ph.RayExecutor(workers=2, batches_per_task=2)
    torch.set_num_threads(1)
    model, kept = tiny("llama"), {"checkpoint": tmp_path, "checkpoint_seconds": 0}
    found = ph.score_heads(model, data, **SETTINGS, executor=executor, **kept)
    assert not ray.is_initialized()  # the cluster that was started for it has ended
    assert len(list(notes.glob("[0-9]*"))) == 3  # two workers, and the one that took the dead one's place
    assert same(found, ph.score_heads(model, data, **SETTINGS))


def nodes(*cpus, gpus=0):
    return [{"Alive": True, "Resources": {"CPU": float(one), "GPU": float(gpus)}} for one in cpus]


def test_more_workers_than_there_is_room_for_are_refused():
    """Ray itself would start what fits, and wait for the others forever."""
    with pytest.raises(
        ValueError, match=r"4 Ray workers of 1 CPUs and 0 GPUs .* there are 2 CPUs and 0 GPUs .* room for 2"
    ):
        ph.RayExecutor(workers=4)._workers(nodes(2))
    with pytest.raises(ValueError, match="room for 0"):  # three cores in all, on no node two
        ph.RayExecutor(num_cpus=2)._workers(nodes(1, 1, 1))
    with pytest.raises(ValueError, match=r"1 Ray workers of 1 CPUs and 1 GPUs .* room for 0"):
        ph.RayExecutor(num_gpus=1)._workers(nodes(8))
    with pytest.raises(ValueError, match="room for 0"):
        ph.RayExecutor()._workers([{"Alive": False, "Resources": {"CPU": 8.0}}])
    assert ph.RayExecutor(workers=4)._workers(nodes(2, 2)) == 4
    assert ph.RayExecutor(num_cpus=3)._workers(nodes(7, 2, 3)) == 3
    assert ph.RayExecutor(num_gpus=0.2)._workers(nodes(8, gpus=0.6)) == 3


def test_more_workers_than_cores_are_refused_before_counting(tiny, data, monkeypatch):
    """In a cluster that starts and ends at once: a real one takes seconds."""
    import ray

    called = []
    monkeypatch.setattr(ray, "init", lambda **_: called.append("start"))
    monkeypatch.setattr(ray, "nodes", lambda: nodes(2))
    monkeypatch.setattr(ray, "shutdown", lambda: called.append("end"))
    with pytest.raises(ValueError, match=r"999 Ray workers .* were asked for; there are 2 CPUs"):
        ph.score_heads(tiny("llama"), data[:3], executor=ph.RayExecutor(workers=999), **SETTINGS)
    assert called == ["start", "end"]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}"])
def test_an_address_without_a_listener_is_refused_at_once(form, tiny, data):
    with socket.socket() as taken:  # bound and not listening: no one else can take the port
        taken.bind(("127.0.0.1", 0))
        address = form.format(taken.getsockname()[1])
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"nothing answers at the Ray address .*start a cluster there"):
            ph.score_heads(tiny("llama"), data[:3], executor=ph.RayExecutor(address))
        assert time.monotonic() - began < 60  # Ray itself gives up after seven minutes


def test_an_address_without_a_cluster_is_refused(tiny, data):
    with pytest.raises(ValueError, match=r"no Ray cluster at 'auto' .*start one with `ray start --head`"):
        ph.score_heads(tiny("llama"), data[:3], executor=ph.RayExecutor("auto"))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'positional-heads\[ray\]'"):
        ph.RayExecutor()


def test_executor_settings_out_of_range_are_refused(tiny, data):
    with pytest.raises(ValueError, match="executor must be 'ray'"):
        ph.score_heads(tiny("llama"), data[:3], executor="dask")
    with pytest.raises(ValueError, match="workers 0 must be at least 1"):
        ph.RayExecutor(workers=0)
    with pytest.raises(ValueError, match="num_cpus 0 must be at least 1"):
        ph.RayExecutor(num_cpus=0)
    with pytest.raises(ValueError, match=r"num_gpus 1\.5 must be a whole number"):
        ph.RayExecutor(num_gpus=1.5)
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"start_seconds {seconds} must be above 0"):
            ph.RayExecutor(start_seconds=seconds)
    with (
        ph.extended_rope(tiny("llama"), "linear", factor=2),
        pytest.raises(ValueError, match="the extended_rope block holds in this process only"),
    ):
        ph.score_heads(tiny("llama"), data[:3], executor="ray")
    with (
        ph.ablated_heads(tiny("llama"), "L0H1"),
        pytest.raises(ValueError, match="ablations and hooks act on the model in this process only"),
    ):
        ph.score_heads(tiny("llama"), data[:3], executor="ray")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one core that is there already; the tests below use it, and those above start their own or none."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        yield ray
        ray.shutdown()


def test_a_replica_that_is_another_model_is_refused_and_its_core_is_free_again(cluster, tiny, tiny_folder, data):
    other = tiny_folder("llama", rope_parameters={"rope_type": "default", "rope_theta": 7})
    executor = ph.RayExecutor(workers=1, load=partial(load_model, str(other), device="cpu"))
    with pytest.raises(ValueError, match=r"replica is not the model of this process .*RayExecutor.load=") as refused:
        ph.score_heads(tiny("qwen3"), data[:3], executor=executor, **SETTINGS)
    until = time.monotonic() + 60
    while not (free := cluster.available_resources().get("CPU")) and time.monotonic() < until:
        time.sleep(0.05)
    assert free == 1, refused  # though the error is kept, and with it all that was in use


def test_workers_that_do_not_start_in_time_raise_timeout(cluster, tiny, data):
    """As many as there is room for, on a cluster whose cores another run holds."""

    @cluster.remote(num_cpus=1)
    class Holder:
        def here(self):
            return True

    holder = Holder.remote()
    assert cluster.get(holder.here.remote())
    executor = ph.RayExecutor(workers=1, start_seconds=0.5)
    with pytest.raises(TimeoutError, match=r"1 of 1 Ray workers had not started after 0\.5 s, with 0 CPUs .* free"):
        ph.score_heads(tiny("llama"), data[:3], executor=executor, **SETTINGS)
