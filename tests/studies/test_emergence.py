"""A study of checkpoints measures each as alone, resumes with the same bits, and refuses what it cannot follow."""

import json
import logging
import os
import shutil
import signal
import weakref
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.results.unfinished import unfinished
from positional_heads.studies import checkpoint_sources, emergence
from positional_heads.studies.checkpoint_sources import training_checkpoints
from positional_heads.studies.emergence import emergence_study
from tests.support.processes import Process, signal_in
from tests.support.tiny_models import boot, save_tiny_model

TOKENS = [torch.randint(97, 122, (size,), generator=torch.Generator().manual_seed(size)) for size in (24, 24, 31, 20)]
QUICK = {"null_repeats": 3, "retrieval": None}
PLAIN = {"null_repeats": 0, "retrieval": None, "settings": ph.ScoringSettings(resamples=2)}
TASK = {"task": "passkey", "length": 64, "depths": 1, "examples": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of three checkpoints, whose names are of three kinds, and what else such a folder has."""
    folder = tmp_path_factory.mktemp("run")
    for seed, name in enumerate(("checkpoint-0", "step_50", "200")):
        save_tiny_model("llama", folder / name, seed=seed)
    (folder / "runs").mkdir()
    (folder / "trainer_state.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def study(run):
    return emergence_study(run, TOKENS, **QUICK, **TASK)


def test_each_checkpoint_is_measured_as_it_is_alone(study, run):
    assert study.steps == [0, 50, 200]
    for number, name in enumerate(("checkpoint-0", "step_50", "200")):
        bridge = ph.load_model(str(run / name))
        alone = ph.score_heads(bridge, TOKENS, null_repeats=3)
        found = study.scores[study.steps[number]]
        torch.testing.assert_close(found.rho, alone.rho.float(), atol=0, rtol=0)
        torch.testing.assert_close(found.rho_curve, alone.rho_curve.float(), atol=0, rtol=0)
        torch.testing.assert_close(found.null.mean.float(), alone.null.mean.float(), atol=5e-4, rtol=0)
        assert found.provenance["model"]["weights"] == alone.provenance["model"]["weights"]
        own = AutoModelForCausalLM.from_pretrained(run / name)
        with torch.no_grad():
            losses = [own(input_ids=row[None], labels=row[None]).loss.item() for row in TOKENS]
        assert study.loss[number].tolist() == pytest.approx(losses, abs=1e-5)
        answers = ph.evaluate(bridge, **TASK, seed=0)
        torch.testing.assert_close(study.values["log_prob"][number], answers.measures["log_prob"], atol=1e-5, rtol=0)
        assert study.rows == answers.rows
    assert study.tokens.tolist() == [23, 23, 30, 19]
    assert (study.loss[0] - study.loss[1]).abs().max() > 0.01
    assert study.model_name == str(run)


def test_retrieval_is_that_of_a_profile(bundled):
    tokens = ph.cut_text(bundled, ph.bundled_text(), 64)[:1]
    given = {"retrieval_examples": 2}
    study = emergence_study({0: lambda: bundled, 6000: lambda: bundled}, tokens, null_repeats=0, **given)
    profile = ph.profile_heads(bundled, tokens, **given)
    torch.testing.assert_close(study.retrieval[1].nanmean(0), profile.values("retrieval"), atol=1e-6, rtol=0)
    assert float(study.retrieval.max()) > 0.5


def test_checkpoints_are_given_in_any_of_four_ways(run, study):
    at = {0: run / "checkpoint-0", 200: run / "200"}
    ways = {
        "paths": {200: str(at[200]), 0: at[0]},
        "pairs": [
            (200, partial(ph.load_model, str(at[200]))),
            (0, partial(AutoModelForCausalLM.from_pretrained, at[0])),
        ],
    }
    for way, checkpoints in ways.items():
        made = emergence_study(checkpoints, TOKENS, **PLAIN)
        assert made.steps == [0, 200], way
        assert torch.equal(made.loss, study.loss[[0, 2]]), way
        for step, scores in made.scores.items():
            assert torch.equal(scores.rho, study.scores[step].rho), way


def test_one_model_is_in_memory_at_a_time(run, monkeypatch):
    alive = []
    monkeypatch.setattr(emergence, "LARGE", 0)

    def loaded(name):
        assert not [one for one in alive if one() is not None]
        bridge = boot(run / name)
        alive.append(weakref.ref(bridge))
        return bridge

    names = {0: "checkpoint-0", 50: "step_50", 200: "200"}
    emergence_study({step: partial(loaded, name) for step, name in names.items()}, TOKENS[:1], **PLAIN)
    assert len(alive) == 3


def test_a_finished_checkpoint_is_not_loaded_again(run, study, tmp_path, monkeypatch, caplog):
    loads, load = [], checkpoint_sources.Checkpoint.load
    monkeypatch.setattr(checkpoint_sources.Checkpoint, "load", lambda self: loads.append(self.step) or load(self))
    own = tmp_path / "run"
    shutil.copytree(run, own)
    shutil.move(own / "200", tmp_path / "200")  # not there yet
    call = partial(emergence_study, own, TOKENS, **QUICK, **TASK, checkpoint=tmp_path / "kept")
    call()
    shutil.move(tmp_path / "200", own / "200")
    made = call()
    assert loads == [0, 50, 200]
    assert call().to_bytes() == made.to_bytes()
    assert loads == [0, 50, 200]
    assert torch.equal(made.loss, study.loss)
    for step, scores in made.scores.items():
        assert torch.equal(scores.bootstrap_rho, study.scores[step].bootstrap_rho)
    weights = own / "step_50" / "model.safetensors"
    os.utime(weights, ns=(1, 1))  # loaded to see that its weights are the same, and not measured
    monkeypatch.setattr(emergence, "score_heads", None)
    assert call().to_bytes() == made.to_bytes()
    assert loads == [0, 50, 200, 50]
    monkeypatch.undo()
    shutil.copy(own / "200" / "model.safetensors", weights)
    with caplog.at_level(logging.WARNING):
        changed = call()
    assert "the checkpoint of step 50" in caplog.text
    assert "has changed since, so it is measured again" in caplog.text
    assert torch.equal(changed.loss[1], changed.loss[2])
    with pytest.raises(ValueError, match=r"another study \(different: emergence\)"):
        call(null_repeats=4)
    with pytest.raises(ValueError, match=r"another study \(different: text\)"):
        emergence_study(own, TOKENS[:2], **QUICK, **TASK, checkpoint=tmp_path / "kept")


def test_models_of_functions_are_known_by_weights_and_edits(run, tmp_path, caplog):
    bridge = boot(run / "200")
    call = partial(emergence_study, {1: lambda: bridge, 2: lambda: bridge}, TOKENS[:1], **PLAIN, checkpoint=tmp_path)
    made = call()
    file = tmp_path / "finished.jsonl"
    kept = file.read_bytes()
    assert call().to_bytes() == made.to_bytes()
    assert file.read_bytes() == kept
    with ph.ablated_heads(bridge, "L0H1"), caplog.at_level(logging.WARNING):
        ablated = call()
    assert "has changed since" in caplog.text
    assert not torch.equal(ablated.loss, made.loss)
    with (
        bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda tensor, hook: tensor)]),
        pytest.raises(ValueError, match=r"hooks act on blocks\.1\.attn\.hook_z"),
    ):
        emergence_study(dict.fromkeys((1, 2), lambda: bridge), TOKENS[:1], **PLAIN, checkpoint=tmp_path / "other")


def killed(run, kept):
    """The study, killed while it measures its second checkpoint."""
    logging.disable()
    signal_in(emergence, "text_losses", 2)
    emergence_study(run, TOKENS, **QUICK, **TASK, checkpoint=kept)


@pytest.mark.skipif(os.name != "posix", reason="kills a process with SIGKILL")
def test_a_killed_study_ends_with_the_same_bits(run, study, tmp_path):
    file = tmp_path / "finished.jsonl"
    assert Process(killed, run, tmp_path).ended().returncode == -signal.SIGKILL
    assert [json.loads(line).get("part") for line in file.read_text().splitlines()] == [None, "step 0"]
    file.write_bytes(file.read_bytes() + b'{"part": "step 50", "resu')  # killed while it wrote a line
    assert "unfinished study, 1 of its parts done" in unfinished(tmp_path)
    assert "positional-heads emerge command, or emergence_study call" in unfinished(tmp_path)
    assert emergence_study(run, TOKENS, **QUICK, **TASK, checkpoint=tmp_path).to_bytes() == study.to_bytes()


def test_a_checkpoint_that_fails_in_the_middle_leaves_the_others_saved(run, study, tmp_path):
    own = tmp_path / "run"
    shutil.copytree(run, own)
    good = (own / "200" / "model.safetensors").read_bytes()
    (own / "200" / "model.safetensors").write_bytes(good[:100])
    with pytest.raises(ValueError, match=r"step 200 .* cannot be loaded: .*; 2 of 3 checkpoints are finished"):
        emergence_study(own, TOKENS, **PLAIN, checkpoint=tmp_path / "kept")
    parts = (tmp_path / "kept" / "finished.jsonl").read_text().splitlines()
    assert [json.loads(part).get("part") for part in parts] == [None, "step 0", "step 50"]
    (own / "200" / "model.safetensors").write_bytes(good)
    made = emergence_study(own, TOKENS, **PLAIN, checkpoint=tmp_path / "kept")
    assert torch.equal(made.loss, study.loss)


def test_checkpoints_that_cannot_be_compared_are_refused(run, tiny_folder):
    wide, plain = tiny_folder("llama", num_hidden_layers=3), tiny_folder("gpt2")
    with pytest.raises(ValueError, match=r"step 9 .*: it is of another shape than step 0: step 9 has .*3.* step 0 .*2"):
        emergence_study({0: run / "checkpoint-0", 9: wide}, TOKENS[:1], **PLAIN)
    with pytest.raises(ph.UnsupportedModelError, match=r"checkpoint of step 9 \(.*\): .*(rotary|RoPE|positions)"):
        emergence_study({9: plain, 10: plain}, TOKENS[:1], **PLAIN)
    with pytest.raises(ValueError, match=r"step 1 \(broken\) cannot be loaded: no weights here"):
        emergence_study({1: broken, 2: broken}, TOKENS, **PLAIN)


def broken():
    raise RuntimeError("no weights here")


def test_another_tokenizer_is_refused(run, tiny_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run / "200", other)
    state = json.loads((other / "tokenizer.json").read_text())
    state["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(state))
    text = "In The Beginning God created the heaven and the earth"
    with pytest.raises(ValueError, match="its tokenizer cuts the text into other tokens than that of step 0"):
        emergence_study({0: run / "checkpoint-0", 9: other}, text, **PLAIN)


BAD = {
    "no folder": ("nowhere", r"no such folder of checkpoints; for a model of the hub give \(name, \[revisions\]\)"),
    "none": ({}, "needs at least two checkpoints, got 0: add some, or run score_heads for one"),
    "one": ({5: broken}, r"needs at least two checkpoints, got 1 \(broken\): add some, or run score_heads for one"),
    "one pair": ([(5, broken)], "needs at least two checkpoints, got 1"),
    "bundled": ("bundled", r"no such folder .* give \{step: partial\(ph.load_bundled_model, step\) for step in ph.b"),
    "revisions": (("bundled", ["final", "step0"]), r"'bundled' has no revisions: .* give \{step: partial\(ph.load_b"),
    "revision": ({0: broken, 5: ("bundled", "step5")}, r"'bundled' has no revisions: .*from functools import partial"),
    "steps": ([0, 1500], r"steps alone: .* \{step: path\}; .* give \{step: partial\(ph.load_bundled_model, step\)"),
    "a word": ({"a": "b"}, "step 'a' must be a whole number"),
    "negative": ({-1: "b"}, "step -1 must be a whole number"),
    "twice": ([(5, broken), (5, broken)], "step 5 is given twice, as broken and as broken"),
    "no step": (("owner/name", ["main"]), "revision 'main' does not end in a step"),
    "not here": (("owner/name", ["step0", "step9"]), "revision 'step0' of 'owner/name' is not on this machine"),
    "a number": (5, "checkpoints must be a folder"),
    "a source": ({5: 7}, "step 5 must be a path"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_names_no_checkpoints_is_refused_before_anything_is_loaded(case, tmp_path):
    checkpoints, message = BAD[case]
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        emergence_study(checkpoints, TOKENS, checkpoint=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_folder_says_what_it_understands_and_what_it_found(run, tmp_path, caplog):
    for name in ("best", "final"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder named by a step, such as.*found best, final"):
        training_checkpoints(tmp_path, {})
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(FileNotFoundError, match=r"checkpoint-7: no config.json in it.*\(step 7\)"):
        training_checkpoints(tmp_path, {})
    for name in ("checkpoint-7", "global_step0030", "Step8", "ckpt_9", "iter-10", "11", "best"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text("{}")
    found = training_checkpoints(tmp_path, {})
    assert [one.step for one in found] == [7, 8, 9, 10, 11, 30]
    assert "best not named by a step" in caplog.text
    (tmp_path / "step-7").mkdir()
    (tmp_path / "step-7" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="step 7 is given twice"):
        training_checkpoints(tmp_path, {})
    with pytest.raises(TypeError, match="step 1 is a loaded model"):
        training_checkpoints({1: torch.nn.Linear(1, 1)}, {})


def test_settings_that_make_no_sense_are_refused(run):
    call = partial(emergence_study, run, TOKENS)
    with pytest.raises(TypeError, match=r"emergence_study has no nul_repeats; did you mean null_repeats"):
        call("passkey", nul_repeats=3)
    with pytest.raises(TypeError, match="has no setting examples"):
        call(examples=3)
    with pytest.raises(TypeError, match=r"load_model has no setting devise; .*did you mean device"):
        call(load_options={"devise": "cpu"})
    with pytest.raises(ValueError, match="retrieval 'exam' has no needle"):
        call(retrieval="exam")
    with pytest.raises(TypeError, match="cannot read None as text or tokens"):
        emergence_study(run, None)


def test_revisions_of_the_hub_are_read_from_its_cache(run, study, tmp_path, monkeypatch):
    """The layout of the hub's cache: a file for each revision that names a commit, and a folder for each commit."""
    home = tmp_path / "models--owner--name"
    for commit, (revision, name) in enumerate({"step0": "checkpoint-0", "step50": "step_50"}.items(), 1):
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / revision).write_text(str(commit) * 40)
        shutil.copytree(run / name, home / "snapshots" / (str(commit) * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "kept"
    made = emergence_study(("owner/name", ["step50", "step0"]), TOKENS, **PLAIN, checkpoint=kept)
    assert made.steps == [0, 50]
    assert torch.equal(made.loss, study.loss[:2])
    assert made.model_name == "owner/name"
    assert [one["name"] for one in made.provenance["checkpoints"]] == ["owner/name at step0", "owner/name at step50"]
    monkeypatch.setattr(checkpoint_sources.Checkpoint, "load", None)
    assert emergence_study(("owner/name", ["step0", "step50"]), TOKENS, **PLAIN, checkpoint=kept).steps == [0, 50]
    with pytest.raises(FileNotFoundError, match="first run `hf download owner/name --revision step7`"):
        emergence_study(("owner/name", ["step0", "step7"]), TOKENS, **PLAIN)


def test_the_command_writes_a_report_that_show_and_report_read(run, tmp_path):
    text, out, other = tmp_path / "text.txt", tmp_path / "out", tmp_path / "other"
    text.write_text(ph.bundled_text()[:400])
    words = ["emerge", str(run), "--text", str(text), "--length", "64", "--sequences", "2", "--in-order"]
    words += ["--null-repeats", "2", "--retrieval", "none", "--task", "passkey", "--task-length", "64", "--depths", "1"]
    words += ["--examples", "1", "--births", "rho", "--threshold", "0.3", "--out", str(out)]
    made = CliRunner().invoke(app, words)
    assert made.exit_code == 0, made.output
    names = {"heads_by_step.csv", "steps.csv", "births.csv", "order.csv", "emergence.png", "emergence.md"}
    assert {file.name for file in out.iterdir()} == names | {"emergence.safetensors"}
    loaded = ph.EmergenceStudy.load(out)
    assert loaded.verdict in made.output
    assert "a rho of at least 0.3" in made.output
    assert (loaded.task, loaded.rows[0]["length"], len(loaded.tokens)) == ("passkey", 64, 2)
    shown = CliRunner().invoke(app, ["show", str(out)])
    assert f"{run}: 3 checkpoints, steps 0 to 200, passkey" in shown.output
    table = json.loads(CliRunner().invoke(app, ["show", str(out), "--json"]).stdout)["table"]
    assert [row["step"] for row in table] == [0, 50, 200]
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 1
    assert "already holds results" in again.output
    text_and_out = ["--text", str(text), "--out", str(other)]
    wrong = CliRunner().invoke(app, ["emerge", str(run), *text_and_out, "--examples", "3"])
    assert "--examples: for a task, name one with --task" in wrong.output
    wrong = CliRunner().invoke(app, ["emerge", "x/y", *text_and_out, "--revisions", ","])
    assert "names none: separate them by commas" in wrong.output
    wrong = CliRunner().invoke(app, ["emerge", "bundled", *text_and_out, "--revisions", "step0,step1000"])
    assert "--revisions step0,step1000: 'bundled' has none; leave it out to follow all" in wrong.output
    for by, message in (
        (["--births", "beta"], "--births 'beta' is unknown: choose one of excess, rho, retrieval"),
        (["--threshold", "0.3"], "threshold goes with rho and retrieval"),
        (["--births", "rho", "--threshold", "1.5"], "threshold 1.5 must be at most 1"),
        (["--births", "rho", "--threshold", "nan"], "threshold must be a number, not nan"),
        (["--births", "excess", "--null-repeats", "0"], "--births excess needs a null"),
        (["--births", "retrieval", "--retrieval", "none"], "--births retrieval needs retrieval scores"),
    ):
        wrong = CliRunner().invoke(app, ["emerge", str(run), *text_and_out, *by])
        assert wrong.exit_code == 1
        assert message in wrong.output
    wrong = CliRunner().invoke(app, ["emerge", "x/y", *text_and_out])
    assert "for a model of the hub add --revisions, e.g. --revisions step0,step1000" in wrong.output
    wrong = CliRunner().invoke(app, ["emerge", "x/y", *text_and_out, "--revisions", "main"])
    assert "name one that does, or in Python give its step" in wrong.output
    alone = shutil.copytree(run / "200", tmp_path / "alone" / "200").parent
    wrong = CliRunner().invoke(app, ["emerge", str(alone), *text_and_out])
    assert "add some, or run positional-heads score for one" in wrong.output
    assert not other.exists()
