"""Shards, checkpoints and resumed runs give exactly the numbers of one run; shards of different runs are refused."""

import os
import random
import re
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.core.kernels import choosing
from positional_heads.core.kernels.eager import EagerKernel
from positional_heads.results.files import PARTIAL
from positional_heads.results.unfinished import unfinished
from positional_heads.scoring.checkpoint import interrupt_delayed
from positional_heads.scoring.counter import EntryCounter
from positional_heads.scoring.shards import shard_file
from positional_heads.scoring.sums import ScoreSums
from tests.support.processes import Process, signal_in
from tests.support.tiny_models import boot
from tests.support.watching import watch

SETTINGS = {"null_repeats": 2, "batch_size": 2, "skip_keys": 1}


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(0, 256, length)) for length in (24, 24, 31, 31, 31, 12, 40, 40, 9)]


@pytest.fixture(scope="module")
def whole(tiny, sequences):
    return ph.score_heads(tiny("mistral"), sequences, **SETTINGS)


def same(found, expected):
    ours, theirs = found._tensors(), expected._tensors()
    return found.provenance == expected.provenance and all(
        torch.equal(ours[name].nan_to_num(7), theirs[name].nan_to_num(7)) for name in {*ours, *theirs}
    )


@pytest.fixture
def runs(tiny):
    """How many sequences have gone through the model."""
    rows = []
    handle = watch(tiny("mistral").embed.original_component, lambda module, args, output: rows.append(len(output)))
    yield rows
    handle.remove()


@pytest.mark.parametrize(("total", "more"), [(1, {}), (3, {}), (7, {}), (2, {"pairs": 1024})])
def test_shards_add_up_to_the_whole(total, more, tiny, sequences, whole, tmp_path):
    """Also where there are more shards than batches, and where pairs are sampled."""
    for number in reversed(range(1, total + 1)):
        file = ph.score_shard(tiny("mistral"), sequences, (number, total), tmp_path, **SETTINGS, **more)
        assert file == tmp_path / shard_file(number, total)
    expected = ph.score_heads(tiny("mistral"), sequences, **SETTINGS, **more) if more else whole
    assert same(ph.merge_shards(tmp_path), expected)
    assert sorted(file.name for file in tmp_path.iterdir()) == [shard_file(one + 1, total) for one in range(total)]


def test_a_finished_shard_is_not_counted_again(tiny, sequences, tmp_path, runs):
    ph.score_shard(tiny("mistral"), sequences, "1/2", tmp_path, **SETTINGS)
    before, content = sum(runs), (tmp_path / shard_file(1, 2)).read_bytes()
    (tmp_path / "shard-0001-of-0002.unfinished.safetensors").write_bytes(content)  # killed before this was removed
    assert unfinished(tmp_path) is None
    ph.score_shard(tiny("mistral"), sequences, "1/2", tmp_path, **SETTINGS)
    probes = sum(runs) - before
    assert 0 < probes < 6  # only the look at the layers
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {shard_file(1, 2): content}


def test_missing_and_foreign_shards_are_named(tiny, sequences, tmp_path):
    model = tiny("mistral")
    with pytest.raises(FileNotFoundError, match="--shard 1/8"):
        ph.merge_shards(tmp_path)
    for number in (1, 3):
        ph.score_shard(model, sequences, (number, 5), tmp_path, **SETTINGS)
    with pytest.raises(FileNotFoundError, match="missing: 2, 4, 5"):
        ph.merge_shards(tmp_path)
    for number in (2, 4):
        ph.score_shard(model, sequences, (number, 5), tmp_path, **SETTINGS)
    (tmp_path / "elsewhere").mkdir()
    other = ph.score_shard(model, sequences, (5, 5), tmp_path / "elsewhere", **SETTINGS, seed=1)
    other.rename(tmp_path / shard_file(5, 5))
    with pytest.raises(ValueError, match=r"shard-0005-of-0005.*shard-0001.*settings seed"):
        ph.merge_shards(tmp_path)
    with pytest.raises(ValueError, match=r"another run .different: settings seed"):
        ph.score_shard(model, sequences, (5, 5), tmp_path, **SETTINGS)
    ph.score_shard(model, sequences, (1, 2), tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="of 2, 5 shards"):
        ph.merge_shards(tmp_path)
    (tmp_path / shard_file(1, 2)).unlink()
    damaged = bytearray((tmp_path / shard_file(2, 5)).read_bytes())
    damaged[-3] ^= 1
    (tmp_path / shard_file(2, 5)).write_bytes(damaged)
    with pytest.raises(ph.ResultFileError, match="does not match its checksum"):
        ph.merge_shards(tmp_path)


@pytest.mark.parametrize("batch_size", [2, 9])  # all in one batch: the second shard counts nothing
def test_shards_of_other_kernels_are_refused_with_the_way_out(batch_size, tiny, tmp_path, monkeypatch):
    sequences = torch.arange(6 * 24).view(6, 24) * 7 % 256
    settings = {**SETTINGS, "batch_size": batch_size}

    class OtherKernel(EagerKernel):
        name = "other"

        def listed_dominant(self, *arguments):
            return super().listed_dominant(*arguments) * (1 + 1e-6)  # places bins a little elsewhere

    monkeypatch.setitem(choosing.KERNELS, "other", OtherKernel)
    monkeypatch.setenv("POSITIONAL_HEADS_KERNEL", "eager")
    ph.score_shard(tiny("mistral"), sequences, (1, 2), tmp_path, **settings)
    monkeypatch.setenv("POSITIONAL_HEADS_KERNEL", "other")
    file = ph.score_shard(tiny("mistral"), sequences, (2, 2), tmp_path, **settings)
    with pytest.raises(ValueError, match=r"kernel other here, eager there.*POSITIONAL_HEADS_KERNEL=eager"):
        ph.merge_shards(tmp_path)
    file.unlink()
    monkeypatch.setenv("POSITIONAL_HEADS_KERNEL", "eager")
    ph.score_shard(tiny("mistral"), sequences, (2, 2), tmp_path, **settings)
    assert ph.merge_shards(tmp_path).provenance["kernels"] == ["eager"]


def test_a_copy_of_a_shard_is_named_with_its_original(tiny, sequences, tmp_path):
    for number in (1, 2):
        ph.score_shard(tiny("mistral"), sequences, (number, 3), tmp_path, **SETTINGS)
    (tmp_path / shard_file(3, 3)).write_bytes((tmp_path / shard_file(2, 3)).read_bytes())
    with pytest.raises(ValueError, match=r"shard-0003-of-0003.*same batches as shard-0002-of-0003"):
        ph.merge_shards(tmp_path)


@pytest.mark.parametrize(
    ("shard", "words"), [("8", "must be one of how many"), ("0/3", "no shard 0"), ((4, 3), "4 of")]
)
def test_a_shard_number_out_of_range_is_refused(shard, words, tiny, sequences, tmp_path):
    with pytest.raises(ValueError, match=words):
        ph.score_shard(tiny("mistral"), sequences, shard, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_first_ctrl_c_reports_at_once_that_the_batch_is_finished(capfd):
    printed = []

    def pressed():
        with interrupt_delayed():
            signal.raise_signal(signal.SIGINT)
            printed.append(capfd.readouterr().err)  # what comes behind the signal still runs

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            pressed()
    finally:
        signal.signal(signal.SIGINT, before)
    assert printed == ["\nfinishing this batch; press again to stop at once\n"]


def test_an_interrupted_run_resumes(tiny, sequences, whole, tmp_path, runs):
    late = []

    def stop(module, *_):
        late.extend([module] if (tmp_path / PARTIAL.file_name).exists() else [])
        if len(late) > 1:
            raise KeyboardInterrupt

    model = tiny("mistral")
    settings = {**SETTINGS, "checkpoint": tmp_path, "checkpoint_seconds": 0}
    handle = watch(model.blocks[1].ln1.original_component, stop)
    with pytest.raises(KeyboardInterrupt):
        ph.score_heads(model, sequences, **settings)
    handle.remove()
    assert (tmp_path / PARTIAL.file_name).exists()
    whole.save(tmp_path)
    assert "unfinished, 3 of 6" in unfinished(tmp_path)  # whatever lies beside it
    stopped_at = sum(runs)
    assert same(ph.score_heads(model, sequences, **settings), whole)
    assert sum(runs) - stopped_at < 9  # fewer than all sequences
    finished = sum(runs)
    assert same(ph.score_heads(model, sequences, **settings), whole)  # all of it is on disk
    assert sum(runs) - finished < 6
    assert unfinished(tmp_path) is None
    for part, other in (("data", "sha256"), ("model", "dtype"), ("settings", "seed"), ("extension", "method")):
        changed = {part: (whole.provenance[part] or {}) | {other: "other"}}
        replace(whole, provenance=whole.provenance | changed).save(tmp_path)
        assert "to resume, repeat" in unfinished(tmp_path), part
    (tmp_path / "scores.safetensors").write_bytes(b"damaged")
    assert "to resume, repeat" in unfinished(tmp_path)


def test_a_resumed_run_keeps_its_kernel(tiny, sequences, tmp_path, monkeypatch):
    class OtherKernel(EagerKernel):
        name = "other"

    monkeypatch.setitem(choosing.KERNELS, "other", OtherKernel)
    monkeypatch.setenv("POSITIONAL_HEADS_KERNEL", "other")
    ph.score_shard(tiny("mistral"), sequences, "1/1", tmp_path, **SETTINGS)
    (tmp_path / shard_file(1, 1)).rename(tmp_path / PARTIAL.file_name)
    monkeypatch.delenv("POSITIONAL_HEADS_KERNEL")
    begun = ScoreSums.load(tmp_path)
    for number in sorted(begun.done)[1:]:
        begun.done.discard(number)  # as if these were still to be counted
    begun.save(tmp_path)
    counter_used = []
    monkeypatch.setattr(EntryCounter, "count", lambda self, number, sums: counter_used.append(self.kernel.name))
    with pytest.raises(RuntimeError, match="batches have not been counted"):
        ph.score_heads(tiny("mistral"), sequences, **SETTINGS, checkpoint=tmp_path)
    assert set(counter_used) == {"other"}


@pytest.mark.skipif(os.name != "posix", reason="without locks nobody knows who is alive")
def test_a_run_clears_what_a_dead_one_left_and_not_what_another_is_saving(tiny, sequences, tmp_path):
    import fcntl

    dead, alive = (tmp_path / f".{PARTIAL.file_name}.{name}.partial" for name in ("written_", "writing_"))
    dead.write_bytes(b"")
    with alive.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        ph.score_heads(tiny("mistral"), sequences[:1], **SETTINGS, checkpoint=tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {PARTIAL.file_name, alive.name}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 3}, "settings seed"),
        ({"null_repeats": 3}, "settings null_repeats"),
        ({"max_distance": 9}, "settings max_distance"),
        ({"batch_size": 1}, "batch size"),
        ({"layers": [1]}, "rotary"),
        ({"pairs": 1024}, "settings pairs"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_kept(changed, named, tiny, sequences, tmp_path):
    ph.score_heads(tiny("mistral"), sequences, **SETTINGS, checkpoint=tmp_path)
    before = (tmp_path / PARTIAL.file_name).read_bytes()
    with pytest.raises(ValueError, match=f"sums of another run .different: {named}"):
        ph.score_heads(tiny("mistral"), sequences, **{**SETTINGS, **changed}, checkpoint=tmp_path)
    assert (tmp_path / PARTIAL.file_name).read_bytes() == before


def test_a_checkpoint_of_another_model_text_or_extension_is_refused(tiny, sequences, tmp_path):
    model = tiny("mistral")
    ph.score_heads(model, sequences, **SETTINGS, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="different: data sha256"):
        ph.score_heads(model, [*sequences[:-1], sequences[-1].flip(0)], **SETTINGS, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="different: model architecture"):
        ph.score_heads(tiny("llama"), sequences, **SETTINGS, checkpoint=tmp_path)
    with ph.extended_rope(model, "linear", factor=2), pytest.raises(ValueError, match="different: rotary, extension"):
        ph.score_heads(model, sequences, **SETTINGS, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="checkpoint_seconds -1 must not be negative"):
        ph.score_heads(model, sequences, **SETTINGS, checkpoint=tmp_path, checkpoint_seconds=-1)


def killed_at_ten_moments(model_folder, folder):
    torch.set_num_threads(1)  # so that forked processes may go on with it
    model = boot(model_folder)
    data = torch.randint(0, 256, (12, 96), generator=torch.Generator().manual_seed(0))
    ph.score_heads(model, data[:1], null_repeats=2)  # imports and builds once, before any process is forked

    def child(place, dies_counting=None, dies_saving=None):
        if (pid := os.fork()) == 0:
            if dies_counting:
                signal_in(*dies_counting)
            scores = ph.score_heads(model, data, null_repeats=2, batch_size=1, checkpoint=place, checkpoint_seconds=0)
            if dies_saving:
                signal_in(*dies_saving)
            scores.save(place / "scores.safetensors")
            os._exit(0)
        return pid

    def resumed(place):
        assert os.waitpid(child(place), 0)[1] == 0

    sums, unfinished_sums, unfinished_scores = PARTIAL.file_name, f".{PARTIAL.file_name}", ".scores.safetensors"
    for name, dies, left in (
        ("in the first save", {"dies_counting": (os, "fsync", 1)}, [unfinished_sums]),
        ("in a later save", {"dies_counting": (os, "fsync", 9)}, [unfinished_sums, sums]),
        ("between two saves", {"dies_counting": (EntryCounter, "count", 9)}, [sums]),
        ("in the last save", {"dies_saving": (os, "fsync", 1)}, [unfinished_scores, sums]),
    ):
        place = folder / name
        assert os.waitpid(child(place, **dies), 0)[1] == signal.SIGKILL
        assert sorted(re.sub(r"\.\w{8}\.partial$", "", file.name) for file in place.iterdir()) == left
        resumed(place)
    started = time.monotonic()
    resumed(folder / "whole")
    takes, moments = time.monotonic() - started, random.Random(0)
    for number in range(6):
        pid = child(folder / str(number))
        time.sleep(moments.uniform(0, takes))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        resumed(folder / str(number))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills processes with SIGKILL")
def test_killed_at_ten_moments_a_run_ends_ten_times_the_same(tiny_folder, tmp_path):
    done = Process(killed_at_ten_moments, tiny_folder("llama"), tmp_path / "runs").ended()
    assert done.returncode == 0, done.stderr
    expected = (tmp_path / "runs" / "whole" / "scores.safetensors").read_bytes()
    runs = list((tmp_path / "runs").iterdir())
    assert len(runs) == 11
    for run in runs:
        assert (run / "scores.safetensors").read_bytes() == expected
        # what was being written is cleared away
        assert {file.name for file in run.iterdir()} == {"scores.safetensors", PARTIAL.file_name}


@pytest.mark.parametrize(("seconds", "times"), [(0, 1), (60, 0)])
def test_it_is_said_once_where_progress_is_saved_when_it_is(tiny, sequences, tmp_path, capsys, seconds, times):
    kept = {"checkpoint": tmp_path, "checkpoint_seconds": seconds}
    ph.score_heads(tiny("mistral"), sequences, **SETTINGS, **kept, progress=True)
    said = capsys.readouterr().err
    assert said.count(f"progress is saved in {tmp_path / PARTIAL.file_name}; rerun the same command to resume") == times
