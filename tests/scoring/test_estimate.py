"""Estimates: amounts of work and bytes against counting them one by one, and against the runs that they are of."""

import json
from dataclasses import asdict, fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_test
from hypothesis import strategies as st
from transformers import AutoConfig
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.bridge.model_size import ModelSize, model_size
from positional_heads.cli import app
from positional_heads.core.kernels.choosing import named_kernel
from positional_heads.scoring import machine as machines
from positional_heads.scoring.estimate import (
    Overhead,
    counted_work,
    estimated,
    run_bytes,
    sums_bytes,
)
from positional_heads.scoring.machine import H100, Machine, measured_machine
from positional_heads.scoring.score import prepared_counter

SIZE = ModelSize("made up", (None, 6, None), 4, 2, 16, 8, 64, 96, 100_000, 60_000, 4096)
UNIT = Machine("unit", 1.0, 1.0, 1.0, 1.0, 1.0)
PLAIN = Overhead(1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
LENGTHS = (9, 5, 30)


def settings(**changed):
    return ph.ScoringSettings(**{"pairs": "all", **changed})


def entries(length, window, chosen):
    """Query-key pairs of one sequence, one by one."""
    return sum(
        key >= chosen.skip_keys
        and chosen.min_distance <= query - key
        and (chosen.max_distance is None or query - key <= chosen.max_distance)
        and (window is None or query - key < window)
        for query in range(length)
        for key in range(query + 1)
    )


@pytest.mark.parametrize(
    "chosen",
    [settings(null_repeats=3), settings(skip_keys=2), settings(min_distance=1, max_distance=7, null_repeats=2)],
)
def test_terms_are_those_counted_one_by_one(chosen):
    work = counted_work(SIZE, LENGTHS, chosen)
    own = sum(4 * 8 * entries(length, window, chosen) for length in LENGTHS for window in SIZE.windows)
    assert work.every == own
    assert work.null_every == chosen.null_repeats * own
    assert work.shuffled == 0
    assert work.heads == 12


def test_terms_of_samples_are_those_that_are_drawn():
    lengths, chosen = (600, 400), settings(pairs=4096, null_repeats=3, null_pairs=2048)
    work, per_entry = counted_work(SIZE, lengths, chosen), 4 * 8
    plans = [chosen.plan(lengths, window) for window in SIZE.windows]
    drawn = [int(plan.entry_counts.sum()) for plan in plans]
    shuffled = [int(chosen.shuffle_plan(plan).entry_counts.sum()) for plan in plans]
    placing = counted_work(SIZE, lengths, settings()).listed
    assert work.every == per_entry * drawn[1]  # the window has fewer than asked for
    assert work.listed - placing == pytest.approx(per_entry * (drawn[0] + drawn[2]), rel=0.01)
    assert work.shuffled + work.null_every == pytest.approx(per_entry * sum(shuffled), rel=0.03)
    assert work.sampled == pytest.approx(
        drawn[0] + shuffled[0] + (shuffled[1] if work.null_every == 0 else 0), rel=0.05
    )


@pytest.mark.parametrize("more", [{}, {"pairs": 4096, "null_pairs": 2048}])
def test_a_control_costs_a_second_score_but_no_second_run_of_the_model(more):
    lengths, chosen = (600, 400), settings(null_repeats=3, **more)
    both, one, alone = (
        asdict(counted_work(SIZE, lengths, changed))
        for changed in (replace(chosen, control_keys=64), chosen, replace(chosen, skip_keys=64))
    )
    run = {"linear", "attention", "visits"}
    assert both == pytest.approx({name: one[name] + (name not in run) * alone[name] for name in one})
    assert alone["every"] < one["every"]
    sums = (sums_bytes(SIZE, lengths, changed) for changed in (chosen, replace(chosen, skip_keys=64)))
    assert sums_bytes(SIZE, lengths, replace(chosen, control_keys=64)) == sum(sums)


def test_work_of_the_model_is_its_arithmetic():
    chosen = settings()
    one = counted_work(SIZE, [512], chosen)
    assert one.linear == 2 * 60_000 * 512
    causal, masked = 512 * 513 / 2, 512**2
    assert one.attention == 4 * 4 * 16 * (2 * causal + masked)
    two = counted_work(SIZE, [512] * 2, chosen)
    assert (two.linear, two.visits) == (2 * one.linear, 2 * one.visits)


@pytest.mark.parametrize("case", [(1, 40), (40, 40), (3, 300), (70, 20)])
def test_the_pilot_runs_as_many_batches_as_a_run_does(case, tiny):
    sequences, length = case
    tokens = torch.randint(256, (sequences, min(256, length)))
    counter = prepared_counter(ph.score_heads, tiny("llama"), tokens, batch_size=1)
    size = replace(SIZE, windows=(None,))
    again = counted_work(size, [tokens.shape[1]] * sequences, settings()).visits - sequences
    assert again == len(counter.pilot_batches) - 1


@pytest.mark.parametrize(
    "chosen",
    [{}, {"null_repeats": 3, "control_keys": 9}, {"pairs": 1024, "null_repeats": 2, "null_pairs": 1024}, {"bins": 512}],
)
def test_bytes_of_sums_are_those_of_a_shards_file(chosen, tiny, tiny_folder, tmp_path):
    tokens = torch.randint(256, (3, 120), generator=torch.Generator().manual_seed(0))
    model, asked = tiny("llama"), {"pairs": "all", **chosen}
    sums = prepared_counter(ph.score_heads, model, tokens, **asked).begin(count_longest=False)
    size = model_size(AutoConfig.from_pretrained(tiny_folder("llama")))
    expected = sums_bytes(size, [120] * 3, ph.ScoringSettings(**asked))
    tensors = sum(
        tensor.nbytes
        for one in [*sums.layers.values(), *sums.control.values()]
        for tensor in [one.frequencies.double(), one.bins.edges, one.bins.displaced, *one.tensors.values()]
    )
    assert expected == tensors
    assert 0 < len(sums.to_bytes()) - expected < 20_000  # the header


@settings_of_test(max_examples=25)
@given(
    st.lists(st.integers(2, 3000), min_size=1, max_size=4),
    st.integers(0, 4),
    st.sampled_from(["all", 1024, None]),
    st.integers(1, 5),
)
def test_more_of_anything_costs_no_less(lengths, repeats, pairs, shards):
    repeats = repeats + (repeats == 1)
    chosen = settings(pairs=pairs, null_repeats=repeats)
    base = estimated(SIZE, lengths, chosen, UNIT, shards=shards)
    larger = [
        estimated(SIZE, [*lengths, max(lengths)], chosen, UNIT, shards=shards),
        estimated(SIZE, lengths, replace(chosen, null_repeats=repeats + 2), UNIT, shards=shards),
        estimated(replace(SIZE, windows=(None,) * 4), lengths, chosen, UNIT, shards=shards),
        estimated(replace(SIZE, heads=8), lengths, chosen, UNIT, shards=shards, batch_size=1),
        estimated(replace(SIZE, used=70_000, parameters=110_000), lengths, chosen, UNIT, shards=shards),
    ]
    base_of_one = estimated(SIZE, lengths, chosen, UNIT, shards=shards, batch_size=1)
    for one in larger:
        assert one.seconds >= base_of_one.seconds or one.seconds >= base.seconds
        assert one.bytes >= base_of_one.bytes
    shared = estimated(SIZE, lengths, chosen, UNIT, shards=shards + 1)
    assert shared.seconds * (shards + 1) >= base.seconds * shards * (1 - 1e-9)


def test_seconds_are_work_over_speed_and_overheads():
    speeds = Machine("known", 2e9, 3e9, 5e6, 7e6, 11e6)
    chosen, sizes = settings(pairs=4096, null_repeats=2), [600]
    work = counted_work(SIZE, sizes, chosen)
    found = estimated(SIZE, sizes, chosen, speeds, overhead=Overhead(2.0, 3.0, 4.0, 0.5, 0.25, 1e-3))
    assert found.forward == pytest.approx(2 * (work.linear / 2e9 + work.attention / 3e9))
    assert found.own == pytest.approx(3 * (work.every / 5e6 + work.listed / 7e6))
    assert found.null == pytest.approx(4 * (work.null_every / 5e6 + work.shuffled / 11e6))
    assert found.rest == pytest.approx(0.5 * work.heads + 0.25 * work.visits + 1e-3 * work.sampled)
    assert found.seconds == found.forward + found.own + found.null + found.rest


def test_memory_has_the_weights_in_their_precision_and_grows_with_tokens():
    one, half = (estimated(SIZE, [100], settings(), UNIT, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert (one.weights, half.weights) == (400_000, 200_000)
    assert run_bytes(SIZE, 200, settings(), torch.float32) == 2 * run_bytes(SIZE, 100, settings(), torch.float32)
    assert one.bytes == one.weights + one.run + one.sums + one.tables


def test_a_machine_is_measured(monkeypatch):
    monkeypatch.setattr(machines, "SECONDS", 0.0)
    for dtype in (torch.float32, torch.float64):
        found = measured_machine(SIZE, named_kernel("eager"), dtype)
        assert all(1e3 < getattr(found, field.name) < 1e15 for field in fields(Machine)[1:-1])
        assert "eager" in found.name


@pytest.fixture
def told(monkeypatch):
    """Run `score ... --estimate` on a machine of known speeds; the output."""
    fixed = Machine("known speeds", 1e9, 1e9, 1e8, 1e7, 1e7, measured=True)
    monkeypatch.setattr(machines, "measured_machine", lambda *_: fixed)

    def run(*arguments):
        done = CliRunner().invoke(app, ["score", *map(str, arguments), "--estimate"])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    return run


def test_the_command_line_tells_the_cost_and_runs_nothing(told, tmp_path, monkeypatch):
    monkeypatch.setattr("positional_heads.cli.score.load_named", lambda *_: pytest.fail("the model was loaded"))
    printed = told("bundled", "--text", "bundled", "--sequences", 9, "--length", 64, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "bundled: 1,181,312 parameters, 4 layers of 8 heads and 16 rotary pairs" in printed
    assert "9 sequences of at most 64 tokens, 576 tokens" in printed
    for line in ("would take about", "known speeds", "shuffles", "look-up tables", "one H100, by an H200's speeds"):
        assert line in printed
    for line in ("--null-repeats 0", "each of 8 shards", "if this machine is busy"):
        assert line in printed
    assert "--pairs 65536" not in printed  # all pairs of 64 tokens are fewer
    assert "8 shards" not in told("bundled", "--text", "bundled", "--sequences", 2)


def test_the_estimate_for_programs_is_that_of_the_run(told, bundled):
    printed = json.loads(told("bundled", "--text", "bundled", "--sequences", 2, "--length", 64, "--json"))
    assert printed["size"]["parameters"] == sum(
        # TransformerLens 3.9 adds a bias to the unembedding
        one.numel()
        for name, one in bundled.original_model.named_parameters()
        if not ("lm_head" in name and "bias" in name)
    )
    size = model_size(bundled.original_model.config, "bundled")
    expected = estimated(size, [64, 64], ph.ScoringSettings(null_repeats=20), Machine(**printed["machine"]))
    assert printed["estimates"]["asked"] == asdict(expected) | {"seconds": expected.seconds, "bytes": expected.bytes}


def test_in_order_the_estimate_is_of_the_first_sequences(told, bundled, tmp_path):
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("a" * 29)  # bytes are tokens, after one that starts the text
    long.write_text("b" * 500)
    arguments = ("--text", short, "--text", long, "--length", 64, "--sequences", 2, "--in-order", "--json")
    printed = json.loads(told("bundled", *arguments))
    size = model_size(bundled.original_model.config, "bundled")
    expected = estimated(size, [30, 64], ph.ScoringSettings(null_repeats=20), Machine(**printed["machine"]))
    assert printed["estimates"]["asked"]["seconds"] == expected.seconds


def test_settings_and_shards_count(told):
    def seconds(*arguments):
        found = json.loads(told("bundled", "--text", "bundled", "--sequences", 8, "--json", *arguments))
        return found["estimates"]["asked"]["seconds"]

    assert seconds("--null-repeats", 0) < seconds() < seconds("--null-repeats", 40)
    assert seconds() < seconds("--control-keys", 64)
    assert seconds("--shard", "1/4") < seconds()
    assert json.loads(told("bundled", "--text", "bundled", "--device", "cuda", "--json"))["machine"] == asdict(H100)


def refused(*arguments):
    done = CliRunner().invoke(app, ["score", *map(str, arguments), "--text", "bundled", "--estimate"])
    assert done.exit_code == 1
    return done.stderr


def test_an_estimate_is_refused_where_a_run_would_be(tiny_folder, tmp_path):
    assert "no query-key pair counts: --skip-keys" in refused("bundled", "--length", 64, "--skip-keys", 64)
    assert "--control-keys 64 leaves fewer than two" in refused("bundled", "--length", 64, "--control-keys", 64)
    assert "device 'cudda' is unknown" in refused("bundled", "--device", "cudda")
    for file in tiny_folder("llama").iterdir():
        if file.name == "config.json" or file.name.startswith("tokenizer"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "config.json"
    good = config.read_text()
    config.write_text(good[:-9])
    said = refused(tmp_path)
    assert f"{config}: not JSON" in said
    config.write_text(good.replace('"hidden_size": ', '"hidden_size": -'))
    said += refused(tmp_path)
    assert "config" in said.splitlines()[-1]
    config.write_text(good.replace('"hidden_act": "silu"', '"hidden_act": "silk"'))
    assert "hidden_act is 'silk', which is unknown" in refused(tmp_path)
    config.write_text(good)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    said += refused(tmp_path)
    assert "no tokenizer in this folder" in said
    assert "hf download" not in said


def test_a_gpus_figures_are_said_to_be_an_h100s(told):
    done = CliRunner().invoke(app, ["score", "bundled", "--text", "bundled", "--device", "cuda", "--estimate"])
    assert "figures of an H100" in done.stderr
    assert "busy" not in done.stdout


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_texts_are_cut_as_for_a_run(family, told, tiny, tiny_folder):
    printed = json.loads(told(tiny_folder(family), "--text", "bundled", "--length", 50, "--json"))
    pieces = ph.cut_text(tiny(family), ph.bundled_text(), 50)
    expected = sum(map(len, pieces))
    # without the bridge it is unknown whether a beginning-of-sequence token is added: one token in 50
    assert printed["tokens"] == pytest.approx(expected, rel=0 if family == "llama" else 0.03)
