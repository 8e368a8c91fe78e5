"""The control is the score without the first keys, to the bit, however a run is read, drawn, stopped or shared out."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.results.files import PARTIAL
from positional_heads.scoring.shards import shard_file
from positional_heads.scoring.sums import ScoreSums
from tests.support.family_table import hooked
from tests.support.watching import watch

KEYS = 7
SETTINGS = {"null_repeats": 2, "batch_size": 2, "skip_keys": 1, "resamples": 20}
LENGTHS = (24, 31, 31, 5, 40)


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(3)
    return [torch.from_numpy(rng.integers(0, 256, length)) for length in LENGTHS]


@pytest.fixture(scope="module")
def whole(tiny, sequences):
    return ph.score_heads(tiny("mistral"), sequences, **SETTINGS, control_keys=KEYS)


def same(found, expected):
    ours, theirs = found._tensors(), expected._tensors()
    return (
        found.provenance == expected.provenance
        and found.reasons == expected.reasons
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name].nan_to_num(7), theirs[name].nan_to_num(7)) for name in ours)
    )


RUNS = {
    "plain runs": ("llama", LENGTHS, {}),
    "hooks, a window": ("mistral", LENGTHS, {}),
    "plain runs, sampled": ("mistral", (200, 150), {"pairs": 1024, "null_pairs": 1024}),
    "hooks, layers without rotation, float64, no null": ("smollm3", (30,), {"resolution": 0.0, "null_repeats": 0}),
    "plain runs, limits": ("neox", (40,), {"min_distance": 2, "max_distance": 20, "temperature": "attention"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_control_is_the_score_without_the_first_keys(name, tiny):
    family, lengths, changed = RUNS[name]
    rng = np.random.default_rng(0)
    rows = [torch.from_numpy(rng.integers(0, 256, length)) for length in lengths]
    settings, model = {**SETTINGS, **changed}, tiny(family)
    with hooked(model) if name.startswith("hooks") else nullcontext():
        scores = ph.score_heads(model, rows, **settings, control_keys=KEYS)
        alone = ph.score_heads(model, rows, **settings | {"skip_keys": KEYS})
        without = ph.score_heads(model, rows, **settings)
    assert same(scores.control, alone)
    ours, theirs = scores._tensors(), without._tensors()
    assert all(torch.equal(one.nan_to_num(7), ours[key].nan_to_num(7)) for key, one in theirs.items())
    assert ours.keys() - theirs.keys() == {f"control.{key}" for key in theirs}
    assert not torch.equal(scores.rho.nan_to_num(7), alone.rho.nan_to_num(7))


def test_shards_with_a_control_add_up_to_the_whole(tiny, sequences, whole, tmp_path):
    for number in (2, 1):
        ph.score_shard(tiny("mistral"), sequences, (number, 2), tmp_path, **SETTINGS, control_keys=KEYS)
    part = ScoreSums.load(tmp_path / shard_file(1, 2))
    added = ScoreSums.from_bytes(part.empty().to_bytes())  # as a Ray worker begins
    assert added.to_bytes() != part.to_bytes()
    added.absorb(part)
    assert added.to_bytes() == part.to_bytes()
    merged = ph.merge_shards(tmp_path)
    assert same(merged, whole)
    assert same(merged.control, whole.control)


def test_a_run_with_a_control_resumes(tiny, sequences, whole, tmp_path):
    late = []

    def stop(module, *_):
        late.extend([module] if (tmp_path / PARTIAL.file_name).exists() else [])
        if len(late) > 1:
            raise KeyboardInterrupt

    settings = {**SETTINGS, "control_keys": KEYS, "checkpoint": tmp_path, "checkpoint_seconds": 0}
    handle = watch(tiny("mistral").blocks[1].ln1.original_component, stop)
    with pytest.raises(KeyboardInterrupt):
        ph.score_heads(tiny("mistral"), sequences, **settings)
    handle.remove()
    assert ScoreSums.load(tmp_path).missing
    with pytest.raises(ValueError, match="different: settings control_keys"):
        ph.score_heads(tiny("mistral"), sequences, **settings | {"control_keys": KEYS + 1})
    assert same(ph.score_heads(tiny("mistral"), sequences, **settings), whole)


def test_a_file_holds_the_control(whole, tmp_path):
    loaded = ph.HeadScores.load(whole.save(tmp_path / "scores.safetensors"))
    assert same(loaded, whole)
    assert same(loaded.control, whole.control)
    assert loaded.control.provenance["settings"]["skip_keys"] == KEYS
    assert loaded.control_keys == KEYS
    assert loaded.verdict == whole.verdict


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"skip_keys": 4, "control_keys": 4}, "control_keys 4 must be more than skip_keys 4.*64 is usual"),
        ({"control_keys": -1}, "control_keys -1"),
        ({"control_keys": 39}, "control_keys 39 leaves fewer than two distances in sequences of at most 40 tokens"),
        ({"control_keys": 30, "min_distance": 9}, "control_keys 30 leaves fewer than two distances"),
    ],
)
def test_controls_that_make_no_sense_are_refused(settings, words, tiny):
    with pytest.raises(ValueError, match=words):
        ph.score_heads(tiny("llama"), torch.arange(40), **settings)


def test_the_shortest_sequence_that_has_a_control(tiny):
    scores = ph.score_heads(tiny("llama"), torch.arange(40), control_keys=38)
    assert scores.control.pair_counts[0, :3].tolist() == [2, 1, 0]
