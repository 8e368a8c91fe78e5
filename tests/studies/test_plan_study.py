"""A study of head plans gives windows to exactly the chosen heads, resumes, and refuses what cannot be tried."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.cli.plan import _next_step
from positional_heads.cli.wording import in_options
from positional_heads.results.head_plan import HeadPlan
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.window_plan import window_plan
from positional_heads.studies.plan_study import plan_study
from positional_heads.studies.tasks.task import AnswerTask
from tests.cli.test_cli import heavy_imports
from tests.support.planted_plans import crossed_plans, profile_of

TASK = {"length": 96, "depths": 2, "examples": 1}
QUICK = {"budgets": (0.4, 0.75), "window": 8, "sinks": 2, "by": ["reach", "-rho"], "n_random": 2, **TASK}


@pytest.fixture(scope="module")
def profile(bundled):
    scores = ph.score_heads(bundled, ph.cut_text(bundled, ph.bundled_text(), 96)[:2])
    generator = torch.Generator().manual_seed(0)
    layers, heads = scores.rho.shape
    reach = torch.rand(layers, heads, generator=generator)
    return profile_of(scores, torch.arange(heads).repeat(layers, 1), reach=reach)


@pytest.fixture(scope="module")
def study(bundled, profile):
    return plan_study(bundled, profile, "passkey", **QUICK)


def test_each_plan_has_the_measures_of_its_ablation(study, bundled, profile) -> None:
    assert study.by == ["reach", "-rho"]
    assert [one.kind for one in study.cells] == ["none", *["plan"] * 4, *["chance"] * 4, "all"]
    plans = [window_plan(profile, 0.75, 8, 2, by) for by in ("reach", "-rho")]
    plans.append(window_plan(profile, 0.4, 8, 2, "chance", seed=1))
    cells = [one for one in study.cells if one.budget == 0.75 and one.kind == "plan"]
    cells += [one for one in study.cells if (one.kind, one.budget, one.number) == ("chance", 0.4, 1)]
    for cell, plan in zip(cells, plans, strict=True):
        assert cell.heads == tuple(plan.heads)
        with ph.ablated_heads(bundled, **plan.ablation):
            expected = ph.evaluate(bundled, "passkey", **TASK)
        found = study.values["log_prob"][study.sets.index(cell.heads)]
        torch.testing.assert_close(found, expected.measures["log_prob"], atol=1e-5, rtol=0)
    assert (study.values["log_prob"][1:] - study.values["log_prob"][0]).abs().amax(1).min() > 1e-3
    assert study.provenance["ablation"] == {"mode": "far", "distance": 7, "reference": None, "sinks": 2}
    assert study.provenance["settings"]["windowable"] == 32


def test_an_interrupted_study_is_resumed_with_the_same_result(study, bundled, profile, tmp_path, monkeypatch) -> None:
    measure, measured = AnswerTask.measure, []

    def counted(self, *arguments):
        measured.append(1)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(AnswerTask, "measure", counted)
    with pytest.raises(KeyboardInterrupt, match="3 of 10 parts are finished and saved"):
        plan_study(bundled, profile, "passkey", **QUICK, checkpoint=tmp_path)
    found = plan_study(bundled, profile, "passkey", **QUICK, checkpoint=tmp_path)
    assert len(measured) == 4 + 7
    torch.testing.assert_close(found.values["log_prob"], study.values["log_prob"], atol=1e-5, rtol=0)
    more = QUICK | {"by": ["reach"], "budgets": (0.75,), "n_random": 1}
    plan_study(bundled, profile, "passkey", **more, checkpoint=tmp_path)  # has nothing new to run
    assert len(measured) == 4 + 7
    with pytest.raises(ValueError, match=r"another study \(different: ablation, windows\)"):
        plan_study(bundled, profile, "passkey", **QUICK | {"window": 9}, checkpoint=tmp_path)


BAD = {
    "nothing hidden": ({"window": 94}, "passkey has 96 tokens, and sinks and window show 96: they hide nothing"),
    "all": ({"budgets": (0.001,)}, "budget 0.001 gives windows to 32 of 32 key heads: there is nothing to choose"),
    "none": ({"budgets": ()}, "no budget given"),
    "percent": ({"budgets": (25, 50)}, "budget 25 must be from 0 to 1"),
    "repeated": ({"budgets": (0.5, 0.5)}, r"budgets names 0\.5 twice: give each once"),
    "near": ({"budgets": (0.5, 0.501)}, "two of the budgets 0.5, 0.501 give windows to as many key heads"),
    "chance": ({"by": ["chance"]}, "chance is always tried, n_random times"),
    "twice": ({"by": ["reach", "reach"]}, "by has 'reach' twice"),
    "unknown": ({"by": ["retrieval"]}, "'retrieval' is no measure of this profile"),
    "random": ({"n_random": 0}, "n_random 0 must be at least 1"),
    "task": ({"task": "pass"}, "task 'pass' is unknown"),
    "misspelt": ({"n_randoms": 3}, "plan_study has no n_randoms; did you mean n_random?"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_studies_are_refused(case, bundled, profile) -> None:
    settings, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        plan_study(bundled, profile, **{"task": "passkey", **QUICK, **settings})


def test_layers_with_a_window_of_their_own_are_seen_in_a_real_profile(tiny) -> None:
    model = tiny("gemma3")
    tokens = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))
    profiled = ph.profile_heads(model, tokens, window=8, sinks=2, retrieval=None, null_repeats=0)
    assert profiled.key_heads.tolist() == [[0, 0, 1, 1]] * 2
    plan = window_plan(profiled, 0.5, window=8, sinks=2)
    assert plan.own_windows.tolist() == [12, 0]
    key_head = int(profiled.by_key_head("reach")[1].argmin())
    assert plan.heads == [ph.Head(1, 2 * key_head), ph.Head(1, 2 * key_head + 1)]
    assert plan.kept(40) == 2 * 12 + 40 + 10
    assert plan.notes == ["Layers 0 have a sliding window of their own, and stay as they are."]


def test_a_profile_of_another_model_is_refused(tiny, profile) -> None:
    with pytest.raises(ValueError, match=r"^this profile is of .*: profile this model, loaded this way, first"):
        plan_study(tiny("llama"), profile, "passkey", **QUICK)


def test_a_profile_of_an_edited_model_goes_with_that_model_only(bundled, profile) -> None:
    tokens = ph.cut_text(bundled, ph.bundled_text(), 24)[:2]
    quick = {**QUICK, "by": ["reach"], "budgets": (0.5,), "n_random": 1}
    with ph.ablated_heads(bundled, ["L0H1"]):
        edited = ph.profile_heads(bundled, tokens, window=8, sinks=2, retrieval=None)
        assert plan_study(bundled, edited, "passkey", **quick).by == ["reach"]
        with pytest.raises(ValueError, match="measured under nothing, and zero ablation of L0H1 acts on the model now"):
            plan_study(bundled, profile, "passkey", **quick)
    for plan in (window_plan(edited), ph.pair_plan(edited)):
        assert plan.notes[0].startswith("The profile was measured under zero ablation of L0H1")
    assert "All was measured under zero ablation of L0H1." in edited.verdict
    assert "measured under" not in profile.verdict
    for study_of in (plan_study, ph.pair_study):
        with pytest.raises(ValueError, match="measured under zero ablation of L0H1, and nothing acts on the model now"):
            study_of(bundled, edited, "passkey", **{**quick, "window": 8} if study_of is plan_study else TASK)
    extended = pytest.raises(ValueError, match="measured under nothing, and the extension linear acts on the model now")
    with ph.extended_rope(bundled, "linear", factor=2), extended:
        plan_study(bundled, profile, "passkey", **quick)


def test_the_next_step_is_the_measure_that_is_cheapest_at_its_budget(tmp_path) -> None:
    study = crossed_plans()
    assert study.best == "many"
    assert "--by=few --window 16 --sinks 2 --budget 0.75 --out" in _next_step(study, tmp_path, pairs=False)


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_writes_a_plan(profile, tmp_path) -> None:
    profile.save(tmp_path)
    out = tmp_path / "out"
    given = ("plan", tmp_path, "--budget", 0.75, "--window", 16, "--sinks", 2, "--out", out)
    code, shown, said = run(*given)
    assert code == 0, said
    plan = HeadPlan.load(out)
    expected = window_plan(profile, 0.75, 16, 2)
    assert torch.equal(plan.windowed, expected.windowed)
    assert in_options(plan.verdict) in shown
    assert "run positional-heads plan --study to test" in shown
    assert {file.name for file in out.iterdir()} == {"plan.safetensors", "key_heads.csv", "plan.md"}
    assert run("show", out)[1] == shown
    assert "see a window" in shown
    assert heavy_imports(["show", str(out)]) == set()
    assert json.loads(run("show", out, "--json")[1])["kept"]["512"] == expected.kept(512)
    assert "already holds results" in run(*given)[2]
    tools = ("--export", "kvpress", "--export", "duo-attention")
    code, _, said = run(*given[:-1], tmp_path / "tools", *tools)
    assert code == 0, said
    assert ph.formats.read_kvpress(tmp_path / "tools" / "kvpress.json").values.tolist() == plan.full_attention.tolist()
    read = ph.formats.read_duo_attention(tmp_path / "tools" / "duo_attention")
    assert (read.values.tolist(), read.sinks, read.window) == (plan.full_attention.tolist(), 2, 16)
    for wrong, message in (
        (("--export", "mha2mla"), "--export 'mha2mla': without --pairs it is duo-attention or kvpress"),
        (("--checkpoint", tmp_path / "parts"), "--checkpoint goes with --study MODEL"),
        (("--by", "reach", "--by", "rho"), "one --by and one --budget"),
        (("--budget", "0.2,0.4"), "compare several with --study MODEL"),
        (("--budget", "half"), "--budget 'half' must be numbers separated by commas, e.g. 0.5"),
        (("--by", "lenght"), "no measure of this profile"),
        (("--by", ""), "'' is no measure of this profile"),
    ):
        code, _, said = run("plan", tmp_path, "--out", tmp_path / "new", *wrong)
        assert (code, len(said.splitlines())) == (1, 1)
        assert message in said
    assert not (tmp_path / "new").exists()
    other = tmp_path / "tools2" / "duo_attention" / "config.json"
    other.parent.mkdir(parents=True)
    other.write_text('{"model_type": "llama"}')
    assert "config.json" in run(*given[:-1], tmp_path / "tools2", *tools)[2]
    assert [file for file in (tmp_path / "tools2").rglob("*") if file.is_file()] == [other]


@pytest.mark.usefixtures("undrawn")
def test_the_command_runs_a_study(study, profile, tmp_path) -> None:
    profile.save(tmp_path)
    out = tmp_path / "out"
    settings = ("--budget", "0.4,0.75", "--window", 8, "--sinks", 2, "--by", "reach", "--by=-rho", "--n-random", 2)
    task = ("--length", 96, "--depths", 2, "--examples", 1)
    code, shown, said = run("plan", tmp_path, "--study", "bundled", *settings, *task, "--out", out)
    assert code == 0, said
    found = PlanStudy.load(out)
    assert found.cells == study.cells
    torch.testing.assert_close(found.values["log_prob"], study.values["log_prob"], atol=1e-5, rtol=0)
    assert in_options(found.verdict) in shown
    names = {"effects.csv", "contrasts.csv", "differences.csv", "answers.parquet", "loss_by_budget.png", "plans.md"}
    assert {file.name for file in out.iterdir()} == {"plans.safetensors", *names}
    assert run("show", out)[1] == shown
    at_budget = found.effects().query("kind == 'plan' and reach == 'long' and budget == 0.75").set_index("by")["effect"]
    command = f"--by={at_budget.idxmax()} --window 8 --sinks 2 --budget 0.75 --out NEW_FOLDER writes a plan"
    assert f"next: positional-heads plan {tmp_path} {command}" in said
    assert heavy_imports(["show", str(out)]) == set()
    assert "--export goes with a plan" in run("plan", tmp_path, "--study", "bundled", "--export", "kvpress")[2]


def test_a_study_is_extended_with_another_measure(bundled, profile, tmp_path, monkeypatch) -> None:
    profile.save(tmp_path)
    measure, measured = AnswerTask.measure, []
    monkeypatch.setattr(AnswerTask, "measure", lambda *given: measured.append(1) or measure(*given))
    one = QUICK | {"budgets": (0.5,), "by": ["reach"], "n_random": 1, "depths": 1}
    plan_study(bundled, profile, "passkey", **one, checkpoint=tmp_path / "parts")
    assert len(measured) == 4  # no window, reach, chance, all
    settings = ("--budget", 0.5, "--window", 8, "--sinks", 2, "--n-random", 1)
    task = ("--length", 96, "--depths", 1, "--examples", 1, "--checkpoint", tmp_path / "parts")
    measures = ("--by", "reach", "--by=-reach", "--out", tmp_path / "two")
    code, _, said = run("plan", tmp_path, "--study", "bundled", *settings, *task, *measures)
    assert code == 0, said
    assert len(measured) == 4 + 1
    assert PlanStudy.load(tmp_path / "two").by == ["reach", "-reach"]


def test_window_and_sinks_are_the_profiles_unless_given(bundled, profile) -> None:
    own = replace(profile, provenance={**profile.provenance, "settings": {"window": 12, "sinks": 3}})
    plan = window_plan(own)
    assert (plan.window, plan.sinks, plan.ablation["distance"]) == (12, 3, 11)
    assert not any("was measured with" in note for note in plan.notes)
    other = window_plan(own, window=9, sinks=1)
    assert "reach was measured with sinks=3; this plan has sinks=1." in other.notes
    assert not any("was measured with" in note for note in window_plan(own, window=9).notes)
    assert not any("was measured with" in note for note in window_plan(own, sinks=1, by="rho").notes)
    settings = {name: value for name, value in QUICK.items() if name not in {"window", "sinks"}}
    found = plan_study(bundled, own, "passkey", **settings | {"budgets": (0.5,), "by": ["reach"], "n_random": 1})
    assert (found.provenance["settings"]["window"], found.provenance["settings"]["sinks"]) == (12, 3)
    assert found.provenance["ablation"]["distance"] == 11
