"""A study of pair plans runs exactly the chosen pairs, resumes, and refuses what cannot be tried."""

import pytest
import torch
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.cli.wording import in_options
from positional_heads.results.pair_plan import PairPlan, pair_plan
from positional_heads.results.plan_study import PlanStudy
from positional_heads.studies.pair_study import pair_study
from positional_heads.studies.tasks.task import AnswerTask

TASK = {"length": 64, "depths": 2, "examples": 2}
QUICK = {"budgets": (0.25, 0.5), "by": ["band_norm", "low"], "n_random": 2, **TASK}


@pytest.fixture(scope="module")
def profile(bundled):
    tokens = ph.cut_text(bundled, ph.bundled_text(), 64)[:2]
    return ph.profile_heads(bundled, tokens, window=8, sinks=2, retrieval=None, null_repeats=0)


@pytest.fixture(scope="module")
def study(bundled, profile):
    return pair_study(bundled, profile, "passkey", **QUICK)


def test_each_plan_has_the_measures_of_its_extension(study, bundled, profile, tmp_path) -> None:
    assert study.planned == "frozen pairs"
    assert [one.kind for one in study.cells] == ["none", *["plan"] * 4, *["chance"] * 4, "all"]
    plans = {
        ("plan", "low", 0.5, 0): pair_plan(profile, 0.5, "low"),
        ("chance", "chance", 0.25, 1): pair_plan(profile, 0.25, "chance", seed=1),
        ("all", "all", 0.0, 0): pair_plan(profile, 0, "high"),
    }
    cells = {(one.kind, one.by, one.budget, one.number): one for one in study.cells}
    for role, plan in plans.items():
        cell, (kept, n) = cells[role], plan.counts
        assert cell.k == n - kept
        with ph.extended_rope(bundled, **plan.extension):
            expected = ph.evaluate(bundled, "passkey", **TASK)
        found = study.values["log_prob"][study.sets.index(cell.heads)]
        torch.testing.assert_close(found, expected.measures["log_prob"], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        study.values["log_prob"][0], ph.evaluate(bundled, "passkey", **TASK).measures["log_prob"], atol=1e-5, rtol=0
    )
    assert (study.values["log_prob"][1:] - study.values["log_prob"][0]).abs().amax(1).min() > 1e-3
    loaded = PlanStudy.load(study.save(tmp_path))
    assert (loaded.cells, loaded.planned, loaded.verdict) == (study.cells, study.planned, study.verdict)
    assert "25%, 50% of the pairs keep their rotation, chosen by band_norm, low" in study.description
    assert set(study.effects().query("kind == 'all'")["edited_pairs"]) == {cells["all", "all", 0.0, 0].k}
    with pytest.raises(ValueError, match="a study of frozen pairs has no control"):
        study.contrasts(control="layers")
    assert study.provenance["pairs"] == {"how": "freeze"}
    assert "ablation" not in study.provenance
    ph.views.loss_by_budget(study)
    written = {file.name for file in ph.views.write_report(study, tmp_path / "report")}
    assert "loss_by_budget.png" in written
    plan = pair_plan(profile)
    assert {file.name for file in ph.views.write_report(plan, tmp_path / "plan")} == {
        "pairs.safetensors",
        "pairs.csv",
        "pairs.md",
    }


def test_an_interrupted_study_is_resumed_with_the_same_result(study, bundled, profile, tmp_path, monkeypatch) -> None:
    measure, measured = AnswerTask.measure, []

    def counted(self, *arguments):
        measured.append(1)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(AnswerTask, "measure", counted)
    with pytest.raises(KeyboardInterrupt, match="3 of 10 parts are finished and saved"):
        pair_study(bundled, profile, "passkey", **QUICK, checkpoint=tmp_path)
    found = pair_study(bundled, profile, "passkey", **QUICK, checkpoint=tmp_path)
    assert len(measured) == 4 + 7
    torch.testing.assert_close(found.values["log_prob"], study.values["log_prob"], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"another study \(different: pairs\)"):
        pair_study(bundled, profile, "passkey", **QUICK, how="drop", checkpoint=tmp_path)


BAD = {
    "all": ({"budgets": (0.001,)}, "budget 0.001 keeps 0 of .* pairs: there is nothing to choose"),
    "none": ({"budgets": ()}, "no budget given"),
    "near": ({"budgets": (0.5, 0.501)}, "two of the budgets 0.5, 0.501 keep as many pairs"),
    "chance": ({"by": ["chance"]}, "chance is always tried, n_random times"),
    "twice": ({"by": ["low", "low"]}, "by has 'low' twice"),
    "unknown": ({"by": ["rho"]}, "by 'rho' is no way to choose pairs"),
    "random": ({"n_random": 0}, "n_random 0 must be at least 1"),
    "misspelt": ({"n_randoms": 3}, "pair_study has no n_randoms; did you mean n_random?"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_studies_are_refused(case, bundled, profile) -> None:
    settings, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        pair_study(bundled, profile, **{"task": "passkey", **QUICK, **settings})


def test_other_models_and_extended_ones_are_refused(bundled, tiny, profile) -> None:
    with pytest.raises(ValueError, match="profile this model, loaded this way, first"):
        pair_study(tiny("llama"), profile, "passkey", **QUICK)
    refused = pytest.raises(RuntimeError, match="the model's rotation is extended, and plans of pairs extend it")
    with ph.extended_rope(bundled, "yarn", 2), refused:
        pair_study(bundled, profile, "passkey", **QUICK)


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.usefixtures("undrawn")
def test_the_command_plans_and_studies_pairs(study, profile, tmp_path) -> None:
    profile.save(tmp_path)
    code, shown, said = run("plan", tmp_path, "--pairs", "--how", "drop", "--out", tmp_path / "plan")
    assert code == 0, said
    plan, expected = PairPlan.load(tmp_path / "plan"), pair_plan(profile, 0.5, "band_norm", "drop")
    assert (plan.digits, plan.how) == (expected.digits, "drop")
    assert in_options(plan.verdict) in shown
    assert run("show", tmp_path / "plan")[1] == shown
    hidden = "holds a PairPlan (pairs.safetensors), which this result would hide"
    assert hidden in run("plan", tmp_path, "--overwrite", "--out", tmp_path / "plan")[2]
    out = tmp_path / "study"
    settings = ("--budget", 0.5, "--by", "band_norm", "--n-random", 1)
    task = ("--length", 64, "--depths", 2, "--examples", 2)
    code, shown, said = run("plan", tmp_path, "--pairs", "--study", "bundled", *settings, *task, "--out", out)
    assert code == 0, said
    found = PlanStudy.load(out)
    assert [one.kind for one in found.cells] == ["none", "plan", "chance", "all"]
    assert set(found.cells) <= set(study.cells)
    expected = study.values["log_prob"][[study.sets.index(heads) for heads in found.sets]]
    torch.testing.assert_close(found.values["log_prob"], expected, atol=1e-5, rtol=0)
    assert "with frozen pairs; negative is harm" in shown
    assert "window" not in shown
    assert "by: what chose the pairs of each key head" in " ".join(shown.split())
    assert f"next: positional-heads plan {tmp_path} --pairs --how freeze --by=band_norm --budget 0.5" in said
    code, _, said = run("plan", tmp_path, "--pairs", "--export", "mha2mla", "--out", tmp_path / "tools")
    assert code == 0, said
    ranks = ph.formats.read_mha2mla_ranks(tmp_path / "tools" / "mha2mla.pth")
    kept = PairPlan.load(tmp_path / "tools").kept
    assert torch.equal(ranks < kept[0, 0].sum(), kept)
    assert run("show", out)[1] == shown
    for wrong, message in (
        (("--pairs", "--window", 8), "--window goes with windows, not with --pairs"),
        (("--how", "drop"), "--how goes with --pairs"),
        (("--pairs", "--how", "zero"), "how"),
        (("--pairs", "--by", "reach"), "is no way to choose pairs"),
    ):
        code, _, said = run("plan", tmp_path, "--out", tmp_path / "new", *wrong)
        assert (code, len(said.splitlines())) == (1, 1), said
        assert message in said
    assert not (tmp_path / "new").exists()
