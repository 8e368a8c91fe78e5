"""A study finds what was planted, runs no set twice, resumes after a kill, and refuses scores of another model."""

import json
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.bridge.retrieval import retrieval_scores
from positional_heads.cli import app
from positional_heads.core.head_sets import by_kind
from positional_heads.results.files import FINISHED_FILE_NAME, ResultFileError
from positional_heads.studies import retrieval_trials
from positional_heads.studies.ablation import ablation_study
from positional_heads.views import dose_response
from tests.support.processes import Process, command_line
from tests.support.synthetic_studies import HEADS, LAYERS, all_heads, planted_study

TASK = {"length": 128, "depths": 2, "examples": 1}
QUICK = {"counts": [1, 3], "n_random": 4, **TASK}


@pytest.fixture(scope="module")
def scores(bundled):
    return ph.score_heads(bundled, ph.cut_text(bundled, ph.bundled_text(), 128)[:4], null_repeats=2)


@pytest.fixture(scope="module", autouse=True)
def retrieval_scored_once():
    """Scoring retrieval takes most of a small study's time, and is always of the same examples here."""
    known = {}

    def once(model, prompts, needles, answers):
        key = (model, *(tuple(tokens.tolist()) for tokens in (*prompts, *answers)))
        if key not in known:
            known[key] = retrieval_scores(model, prompts, needles, answers)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval_trials, "retrieval_scores", once)
        yield


@pytest.fixture(scope="module")
def study(bundled, scores):
    return ablation_study(bundled, scores, "passkey", **QUICK)


class CountingTask:
    """A task of the user's own, as a class, that counts how often it is measured and can die."""

    name = "own"
    measures = ("score",)

    def __init__(self, dies_after=None):
        self.measured, self.dies_after = 0, dies_after
        self.settings, self.chance = {}, {}
        self.rows = [{"unit": unit, "reach": "long"} for unit in range(3)]

    def measure(self, model, batch_size=None):
        if self.measured == self.dies_after:
            raise KeyboardInterrupt
        self.measured += 1
        logits = model(torch.arange(20)[None])
        return {"score": logits[0, :3].amax(-1).double().detach()}


def test_every_set_has_the_measures_that_evaluate_returns(study, bundled):
    assert {one.kind for one in study.cells} == {
        *("none", "top", "random", "permuted"),
        *("lowest", "retrieval", "single"),
    }
    frame = study.to_frame()
    for kind in ("none", "top", "random", "permuted", "lowest", "retrieval", "single"):
        one = [one for one in study.cells if one.kind == kind][-1]
        expected = ph.evaluate(bundled, "passkey", heads=one.heads, **TASK).measures["log_prob"]
        rows = frame[(frame["kind"] == kind) & (frame["k"] == one.k) & (frame["number"] == one.number)]
        np.testing.assert_array_equal(rows["log_prob"], expected)
        assert list(rows["heads"].unique()) == [" ".join(map(str, one.heads))]


def test_the_top_heads_are_those_with_the_highest_score(study, scores):
    top = by_kind(study.cells, "top")
    assert {k: set(progress[0].heads) for k, progress in top.items()} == {k: set(scores.top(k)) for k in (1, 3)}
    fetching = by_kind(study.cells, "retrieval")[1][0].heads[0]
    assert float(study.retrieval[fetching]) == float(study.retrieval.max())


def test_effects_and_contrasts_are_plain_means_of_the_saved_answers(study):
    frame = study.to_frame()
    means = frame.groupby(["kind", "k", "number", "reach", "unit"])["log_prob"].mean().reset_index()
    plain = means[means["kind"] == "none"].set_index(["reach", "unit"])["log_prob"]
    means["effect"] = means["log_prob"] - [
        plain[reach, unit] for reach, unit in zip(means["reach"], means["unit"], strict=True)
    ]
    expected = means.groupby(["kind", "k", "reach"])["effect"].mean()
    effects = study.effects().set_index(["kind", "k", "reach"])["effect"]
    for key in [("top", 3, "long"), ("random", 1, "short"), ("lowest", 3, "long"), ("retrieval", 1, "long")]:
        assert effects[key] == pytest.approx(expected[key], abs=1e-12)
    contrasts = study.contrasts().set_index(["k", "reach"])
    both = expected["top", 3, "long"] - expected["random", 3, "long"]
    assert contrasts.loc[(3, "long"), "difference"] == pytest.approx(both, abs=1e-12)
    permuted = means[(means["kind"] == "permuted") & (means["reach"] == "long")].groupby("number")["effect"].mean()
    observed = (expected["top", 1, "long"] + expected["top", 3, "long"]) / 2
    expected_p = (1 + (permuted <= observed).sum()) / (1 + len(permuted))
    assert contrasts.loc[("all", "long"), "p_value"] == pytest.approx(expected_p)


def test_a_saved_study_is_read_back(study, tmp_path):
    study.save(tmp_path)
    back = ph.AblationStudy.load(tmp_path)
    pd.testing.assert_frame_equal(back.to_frame(), study.to_frame())
    pd.testing.assert_frame_equal(back.contrasts(), study.contrasts())
    assert back.verdict == study.verdict
    assert back.provenance == json.loads(json.dumps(study.provenance))
    with pytest.raises(ResultFileError, match=r"not a positional_heads\.HeadScores"):
        ph.HeadScores.load(tmp_path / "study.safetensors")


@pytest.fixture
def one_thread():
    """Sums of several threads are rounded as the machine's load will have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_study_is_resumed_with_the_same_result(bundled, scores, tmp_path):
    settings = {"counts": [1, 2], "n_random": 3, "singles": "none"}
    whole = CountingTask()
    expected = ablation_study(bundled, scores, whole, **settings)
    with pytest.raises(KeyboardInterrupt):
        ablation_study(bundled, scores, CountingTask(dies_after=5), **settings, checkpoint=tmp_path)
    file = tmp_path / FINISHED_FILE_NAME
    file.write_text(file.read_text() + '{"part": "L0H1", "res')  # killed while it was writing
    rest = CountingTask()
    found = ablation_study(bundled, scores, rest, **settings, checkpoint=tmp_path)
    assert rest.measured == whole.measured - 5 == len(expected.sets) - 5
    assert torch.equal(found.values["score"], expected.values["score"])
    again = CountingTask()
    ablation_study(bundled, scores, again, **settings, checkpoint=tmp_path)
    assert again.measured == 0


@pytest.mark.skipif(os.name != "posix", reason="kills a process with SIGKILL")
def test_a_killed_command_is_resumed(tmp_path, scores):
    scores.save(tmp_path / "scores.safetensors")
    command = ["ablate", "bundled", "--scores", str(tmp_path / "scores.safetensors"), "--out", str(tmp_path / "out")]
    command += ["--length", "400", "--depths", "2", "--examples", "1", "--n-random", "2"]
    progress = tmp_path / "out" / FINISHED_FILE_NAME
    process = Process(command_line, *command)
    while process.runs() and (not progress.exists() or progress.read_text().count("log_prob") < 3):
        time.sleep(0.02)
    process.send(signal.SIGKILL)
    process.ended()
    lines = [json.loads(line) for line in progress.read_text().split("\n")[1:-1]]
    sets = {line["part"]: line["result"] for line in lines if not line["part"].startswith("retrieval")}
    assert len(sets) >= 2
    finished = Process(command_line, *command).ended()
    assert finished.returncode == 0, finished.stderr
    assert f"{len(sets)}/" in finished.stderr.decode()  # the bar starts at the finished parts
    assert not progress.exists()
    study = ph.AblationStudy.load(tmp_path / "out")
    numbers = {" ".join(map(str, heads)): number for number, heads in enumerate(study.sets)}
    for name, result in sets.items():
        assert study.values["log_prob"][numbers[name]].tolist() == result["log_prob"]
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "out")])
    assert study.verdict in shown.stdout
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        *("study.safetensors", "effects.csv", "contrasts.csv", "single_heads.csv", "answers.parquet"),
        *("dose_response.png", "ablation.md"),
    }
    saved = pd.read_parquet(tmp_path / "out" / "answers.parquet")
    assert len(saved) == len(study.rows) * len(study.cells)


def test_finished_parts_of_another_study_are_refused(bundled, scores, tmp_path):
    ablation_study(bundled, scores, "passkey", **QUICK | {"singles": "none"}, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"another study \(different: ablation\)"):
        ablation_study(bundled, scores, "passkey", **QUICK, mode="uniform", checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"different: task"):
        ablation_study(bundled, scores, "passkey", **QUICK, haystack="other text. " * 99, checkpoint=tmp_path)


def test_scores_of_another_model_are_refused(scores, bundled, tiny):
    other = ph.load_bundled_model(step=0)
    with pytest.raises(
        ValueError, match=r"these scores are of bundled .* this model is bundled at step 0 .* other weights"
    ):
        ablation_study(other, scores, "passkey", **QUICK)
    with pytest.raises(ValueError, match="and has other layers"):
        ablation_study(tiny("llama"), scores, lambda model: [1.0])


BAD = {
    "n_random": ({"n_random": 0}, "n_random 0 must be at least 1"),
    "rank": ({"rank_by": "size"}, "'rho' or 'excess', got 'size'"),
    "singles": ({"singles": "some"}, "'all' or 'top' or 'none' or None, got 'some'"),
    "mode": ({"mode": "mask"}, "'mask'"),
    "too many": ({"counts": [33]}, "33 heads asked for, 32 have a score"),
    "far": ({"mode": "far"}, "mode 'far' needs distance="),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_studies_are_refused(case, bundled, scores):
    settings, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ablation_study(bundled, scores, "passkey", **QUICK | settings)


def test_heads_can_be_ranked_by_excess(bundled, scores):
    found = ablation_study(bundled, scores, CountingTask(), counts=[1], n_random=1, rank_by="excess", singles="none")
    assert found.ranking[0] == max(scores.heads, key=lambda head: scores.excess[head])
    without = replace(scores, null=None)
    with pytest.raises(ValueError, match="no null was computed"):
        ablation_study(bundled, without, CountingTask(), rank_by="excess")


def test_a_note_says_how_many_random_sets_exist_if_fewer_than_asked_for(bundled, scores):
    found = ablation_study(bundled, scores, CountingTask(), counts=[1], n_random=9, singles="none")
    assert len(by_kind(found.cells, "random")[1]) == 7  # the other heads of the top head's layer
    assert [note for note in found.notes if note.startswith("1 heads: only 7 random sets")]


def planted(effect, share_nearby, **settings):
    effects = np.zeros((LAYERS, HEADS))
    heads = [ph.Head(1, 2), ph.Head(3, 4), ph.Head(0, 5), ph.Head(2, 1)]
    for head in heads:
        effects[head] = effect
    return planted_study(
        effects, share_nearby * effects, heads + [h for h in all_heads() if h not in heads], **settings
    )


def test_the_verdict_follows_from_the_planted_effects():
    assert "the effect of these heads depends on distance" in planted(-0.5, 0.0).verdict
    assert "not specific to distance" in planted(-0.5, 1.0).verdict
    assert planted(0.0, 0.0).verdict.startswith("No effect: ablating these heads hurts planted no more")
    assert "identification of Positional Heads may be flawed" in planted(0.0, 0.0).verdict
    assert "ranking reflects geometry" in planted(0.0, 0.0, significant=0).verdict
    assert planted(0.5, 0.5).verdict.startswith("No effect")  # ablation helps
    assert planted(-0.5, 0.0, n_random=10).verdict.startswith("Undecided: 10 permutations cannot give")
    assert planted(-0.5, 0.0, baseline=-2.5).verdict.startswith("The model cannot do planted even with all heads")


def test_a_correlation_over_the_top_heads_alone_says_so():
    every, top = planted(0.0, 0.0).verdict, planted(0.0, 0.0, singles=5).verdict
    assert "Over single heads, score and harm have a rank correlation of" in every
    assert "says little" not in every
    assert "Over the top 5 of 32 heads alone, score and harm have a rank correlation of" in top
    assert top.endswith("(of scores as close as these, it says little about the others).")


def test_single_heads_are_listed_the_most_harmful_first():
    effects = np.zeros((LAYERS, HEADS))
    effects[3, 7], effects[2, 2] = -2, -1
    study = planted_study(effects, effects / 2, all_heads(), noise=0.01)
    table = study.by_head()
    assert list(table["name"][:2]) == ["L3H7", "L2H2"]
    assert table["long"][0] == pytest.approx(-2, abs=0.02)
    assert table["long - short"][0] == pytest.approx(-1, abs=0.02)
    alone = table.set_index("name").loc[[str(head) for head in all_heads()]]
    expected = stats.spearmanr(alone["score"], -alone["long"]).statistic
    assert study.correlations["score and harm"] == pytest.approx(expected)


def test_effects_split_by_what_is_known_of_the_answers(study):
    table = study.effects(by="depth")
    assert set(table["depth"]) == {0.0, 0.5, 1.0}
    with pytest.raises(ValueError, match="the answers of passkey have no 'topic'"):
        study.effects(by="topic")
    with pytest.raises(ValueError, match="measure 'f1' is not in this study: choose one of log_prob"):
        study.contrasts("f1")


def test_the_plot_shows_the_effects(study):
    effects = study.effects()
    for panel, reach in zip(dose_response(study).axes, ("long", "short"), strict=True):
        lines = {line.get_label(): line.get_ydata() for line in panel.lines}
        rows = effects[(effects["kind"] == "top") & (effects["reach"] == reach)]
        np.testing.assert_array_equal(lines["top heads"], rows["effect"])
        assert len(panel.collections[0].get_offsets()) == sum(map(len, by_kind(study.cells, "random").values()))
        assert reach in panel.get_title()
