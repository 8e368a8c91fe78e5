"""A study finds what was planted, runs no set twice, resumes after a kill, and refuses scores of another model."""

import json
import os
import signal
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
from positional_heads.cli.wording import in_options
from positional_heads.core.head_sets import by_kind
from positional_heads.results.files import FINISHED_FILE_NAME, ResultFileError
from positional_heads.studies import retrieval_trials
from positional_heads.studies.ablation import ablation_study
from positional_heads.views import dose_response, write_report
from positional_heads.views.report.page import report_html
from tests.support.processes import Process, command_line, dying_command_line
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
    command += ["--length", "128", "--depths", "2", "--examples", "1", "--n-random", "2"]
    progress = tmp_path / "out" / FINISHED_FILE_NAME
    assert Process(dying_command_line, 9, *command).ended().returncode == -signal.SIGKILL
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
    assert in_options(study.verdict) in shown.stdout
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
    model = scores.provenance["model"] | {"adapter": "a/lora", "quantization": "torchao", "weights": "0"}
    adapted = replace(scores, provenance=scores.provenance | {"model": model})
    how = r"bundled \(float32, compatibility mode False"
    message = f"{how}, quantised by torchao, with the adapter a/lora.*, this model is {how}\\) and has other weights"
    with pytest.raises(ValueError, match=message):
        ablation_study(bundled, adapted, "passkey", **QUICK)
    with pytest.raises(ValueError, match="and has other layers"):
        ablation_study(tiny("llama"), scores, lambda model: [1.0])


BAD = {
    "n_random": ({"n_random": 0}, "n_random 0 must be at least 1"),
    "rank": ({"rank_by": "size"}, "'rho' or 'excess' or 'rho_curve' or 'retrieval' or a tuple, got 'size'"),
    "rank name": ({"rank_by": ("rho", torch.zeros(4, 8))}, "'rho' is a name of ours"),
    "rank shape": ({"rank_by": ("reach", torch.zeros(8, 4))}, r"reach has shape \[8, 4\], this model \[4, 8\]"),
    "rank infinite": ({"rank_by": ("reach", np.full((4, 8), -np.inf))}, "reach is infinite for a head, or NaN for all"),
    "rank nothing": ({"rank_by": ("reach", torch.full((4, 8), torch.nan))}, "infinite for a head, or NaN for all"),
    "permuted": ({"n_permuted": -1}, "n_permuted -1 must be at least 0"),
    "anywhere": ({"n_anywhere": -1}, "n_anywhere -1 must be at least 0"),
    "nothing": ({"counts": []}, 'there is nothing to ablate; for single heads alone, add singles="all"'),
    "nothing with top": ({"counts": [], "singles": "top"}, "there is nothing to ablate"),
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


def test_a_study_of_an_extended_model_says_so(bundled, scores, tmp_path):
    settings = {"counts": [1], "n_random": 1, "singles": "none", "checkpoint": tmp_path}
    plain = ablation_study(bundled, scores, CountingTask(), **settings)
    assert "extension" not in plain.provenance
    with ph.extended_rope(bundled, "linear", 2.0):
        with pytest.raises(ValueError, match=r"another study \(different: extension\)"):
            ablation_study(bundled, scores, CountingTask(), **settings)
        found = ablation_study(bundled, scores, CountingTask(), **settings | {"checkpoint": None})
        measured = ph.evaluate(bundled, CountingTask())
    assert found.provenance["extension"]["method"] == measured.provenance["extension"]["method"] == "linear"


def test_heads_can_be_ranked_by_excess(bundled, scores):
    found = ablation_study(bundled, scores, CountingTask(), counts=[1], n_random=1, rank_by="excess", singles="none")
    assert found.ranking[0] == max(scores.heads, key=lambda head: scores.excess[head])
    without = replace(scores, null=None)
    with pytest.raises(ValueError, match="no null was computed"):
        ablation_study(bundled, without, CountingTask(), rank_by="excess")


@pytest.mark.parametrize("made", [np.array, torch.tensor])
def test_heads_can_be_ranked_by_a_measure_of_ones_own(made, bundled, scores):
    values = np.linspace(-1, 1, 32).reshape(4, 8)
    values[3, 7] = values[0, 0] = np.nan
    own = ("reach", made(values))
    found = ablation_study(bundled, scores, CountingTask(), counts=[2], n_random=3, rank_by=own, singles="all")
    assert found.ranking == [ph.Head(layer, head) for layer in range(4) for head in range(8)][1:-1][::-1]
    assert found.rank_by == "reach"
    assert np.array_equal(found.ranked_by, values, equal_nan=True)
    assert not {ph.Head(3, 7), ph.Head(0, 0)} & {head for heads in found.sets for head in heads}
    assert "Positional Heads" not in found.verdict


def test_a_measure_of_ones_own_is_a_name_with_numbers(bundled, scores):
    with pytest.raises(TypeError, match="not of a name and values: give "):
        ablation_study(bundled, scores, CountingTask(), rank_by=("reach",))
    with pytest.raises(TypeError, match="the values of reach are no array of numbers"):
        ablation_study(bundled, scores, CountingTask(), rank_by=("reach", ["a"]))


@pytest.mark.parametrize("rank_by", ["rho", "excess", "rho_curve"])
def test_scores_rank_heads(rank_by, bundled, scores):
    found = ablation_study(bundled, scores, CountingTask(), counts=[1], n_random=1, rank_by=rank_by, singles="none")
    values = getattr(scores, rank_by)
    assert found.ranking == sorted(scores.heads, key=lambda head: (-values[head], head))
    assert found.rank_by == found.provenance["scores"]["rank_by"] == rank_by


def test_retrieval_scores_rank_heads_and_are_then_no_control(study, bundled, scores):
    found = ablation_study(bundled, scores, "passkey", **QUICK, rank_by="retrieval")
    assert torch.equal(found.retrieval, study.retrieval)
    assert torch.equal(found.ranked_by, study.retrieval)
    assert by_kind(found.cells, "top")[3][0].heads == by_kind(study.cells, "retrieval")[3][0].heads
    assert not by_kind(found.cells, "retrieval")
    assert "Heads are ranked by retrieval score, so its control is the top set itself." in found.notes
    assert "retrieval" not in found.by_head()
    assert set(found.correlations) == {"score and harm"}


def test_without_retrieval_scores_there_is_nothing_to_rank_by(bundled, scores, monkeypatch):
    monkeypatch.setattr(retrieval_trials, "retrieval_scores", lambda *_: torch.full((4, 8), torch.nan))
    with pytest.raises(ValueError, match=r"nothing to rank by\. .* answers no held-out example .* Rank by rho"):
        ablation_study(bundled, scores, "passkey", **QUICK, rank_by="retrieval")


def test_a_note_says_who_is_in_a_set_only_because_heads_share_a_value(bundled, scores):
    values = np.zeros((4, 8))
    values[2, 3] = 1
    settings = {"counts": [1, 3], "n_random": 1, "singles": "none"}
    found = ablation_study(bundled, scores, CountingTask(), **settings, rank_by=("mine", values))
    (note,) = [note for note in found.notes if "heads by mine" in note]
    assert note == (
        "3 heads by mine: 31 heads share the value 0; 2 of them are in the set, the first by layer and number, for no "
        "other reason."
    )


def test_permutations_are_as_many_as_asked_for_apart_from_random_sets(bundled, scores):
    settings = {"counts": [3], "n_random": 4, "singles": "none"}
    found = ablation_study(bundled, scores, CountingTask(), **settings, n_permuted=25, n_anywhere=6)
    sizes = {kind: len(by_kind(found.cells, kind)[3]) for kind in ("random", "permuted", "anywhere")}
    assert sizes == {"random": 4, "permuted": 25, "anywhere": 6}
    assert set(found.contrasts()["permutations"]) == {25}
    kept = found.provenance["settings"]
    assert (kept["n_random"], kept["n_permuted"], kept["n_anywhere"]) == (4, 25, 6)
    same = ablation_study(bundled, scores, CountingTask(), **settings)
    assert len(by_kind(same.cells, "permuted")[3]) == 4
    none = ablation_study(bundled, scores, CountingTask(), **settings, n_permuted=0)
    assert none.verdict.startswith("Undecided: 0 permutations cannot give a p-value of 0.05, 20 can (n_permuted=20)")
    assert none.contrasts()["difference"].notna().all()


def test_the_verdict_says_what_ranks_the_heads_and_how_many_beat_their_null(bundled, scores):
    found = ablation_study(bundled, scores, CountingTask(), counts=[1, 3], n_random=2, singles="none")
    kept = found.provenance["scores"]
    beating = [str(head) for head in scores.positional_heads(alpha=0.05)]
    assert (kept["beats_null"], kept["stays"], kept["significant"]) == (beating, None, len(beating))
    top = [str(head) for head in found.ranking[:3]]
    for known, said in (
        ({}, f"; {len({*top} & {*beating})} of the top 3 beat their null."),
        ({"beats_null": [top[0], "L9H9"]}, "; 1 of the top 3 beats its null."),
        (
            {"beats_null": top[1:], "stays": [top[0], top[2]], "settings": {"control_keys": 64}},
            "; 2 of the top 3 beat their null, 1 without the first 64 keys as well.",
        ),
        ({"beats_null": None}, "; whether they beat their null is not known (score with null_repeats=20)."),
    ):
        study = replace(found, provenance=found.provenance | {"scores": kept | known})
        assert study.verdict.endswith(f" Heads are ranked by rho{said}")
    earlier = {key: value for key, value in kept.items() if key not in {"beats_null", "stays"}}
    assert replace(found, provenance=found.provenance | {"scores": earlier}).verdict.endswith(
        " Heads are ranked by rho."
    )


def test_too_few_units_are_told_before_anything_runs(bundled, scores, caplog):
    with pytest.raises(KeyboardInterrupt):
        ablation_study(bundled, scores, CountingTask(dies_after=0), counts=[1], n_random=2, rank_by="rho")
    assert "No intervals: they need 4 units" in caplog.text
    assert "own has 3. Give more examples." in caplog.text


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
    assert "(of scores as close as these, it says little about the others)." in top


def in_layer_three(effect=-0.3, top=0.0):
    """The top heads lie in layer 3, in which every head matters; they matter more, or less, by `top`."""
    heads = [ph.Head(3, 2), ph.Head(3, 4), ph.Head(3, 5), ph.Head(3, 7)]
    effects = np.zeros((LAYERS, HEADS))
    effects[3] = effect
    for head in heads:
        effects[head] += top
    ranking = heads + [head for head in all_heads() if head not in heads]
    return planted_study(effects, effects / 2, ranking, sizes=(2,), noise=0.01, n_anywhere=30)


def test_the_control_of_any_layer_shows_a_difference_of_layers():
    study = in_layer_three()
    matched = study.contrasts().set_index(["k", "reach"])
    anywhere = study.contrasts(control="anywhere").set_index(["k", "reach"])
    means = study.by_set().groupby(["kind", "reach"])["effect"].mean()
    for reach in ("long", "short", "long - short"):
        for table, kind in ((matched, "random"), (anywhere, "anywhere")):
            expected = means["top", reach] - means[kind, reach]
            assert table.loc[("all", reach), "difference"] == pytest.approx(expected, abs=1e-12)
    assert abs(matched.loc[("all", "long"), "difference"]) < 0.02
    assert anywhere.loc[("all", "long"), "high"] < -0.3
    assert "p_value" not in anywhere
    assert anywhere.loc[("all", "long"), "random_sets"] == 30
    layers = anywhere.loc[("all", "long"), "difference"] - matched.loc[("all", "long"), "difference"]
    said = "Against random heads of any layer, a weaker control, the difference would be "
    assert study.verdict.startswith("No effect")
    assert said in study.verdict
    assert f"): {layers:+.3f} of it is that of the layers." in study.verdict
    assert said in in_layer_three(top=-0.5).verdict
    effects = study.effects().set_index(["kind", "reach"])["effect"]
    assert effects["anywhere", "long"] == pytest.approx(means["anywhere", "long"], abs=1e-12)
    labels = [line.get_label() for line in dose_response(study).axes[0].lines]
    assert "random sets of any layer, mean" in labels


def test_a_study_without_the_control_of_any_layer_says_how_to_have_it():
    study = planted(0.0, 0.0)
    assert "any layer" not in study.verdict
    assert "anywhere" not in set(study.effects()["kind"])
    with pytest.raises(ValueError, match="no sets of heads of any layer: run it with n_anywhere=20"):
        study.contrasts(control="anywhere")
    with pytest.raises(ValueError, match="control must be 'random' or 'anywhere', got 'all'"):
        study.contrasts(control="all")


def test_a_verdict_on_another_ranking_does_not_judge_positional_heads():
    study = planted(0.0, 0.0, rank_by="retrieval", significant=0)
    assert study.verdict.startswith("No effect: ablating the top heads by retrieval hurts planted no more")
    assert "Positional Heads" not in study.verdict
    assert "geometry" not in study.verdict
    harmful = planted(-0.5, 0.0, rank_by="my measure").verdict
    assert harmful.startswith("Ablating the top heads by my measure hurts planted at long range more")


def predicting_study(**settings):
    """Harm of single heads at long range follows the ranking, at short range nothing."""
    effects = -np.linspace(1, 0, LAYERS * HEADS).reshape(LAYERS, HEADS)
    return planted_study(effects, 0 * effects, all_heads(), noise=0.05, **settings)


def test_measures_are_compared_by_how_well_they_predict_the_harm_of_single_heads():
    study = predicting_study()
    noise = np.random.default_rng(1).normal(size=(LAYERS, HEADS))
    noise[1, 1] = np.nan
    mixed = study.ranked_by.numpy() + 9 * noise
    frame = study.predictors({"rank": study.ranked_by, "noise": noise, "both": mixed})
    assert list(frame["reach"]) == [reach for reach in ("long", "short", "long - short") for _ in range(3)]
    assert set(frame["heads"]) == {31}
    assert set(frame["units"]) == {24}
    alone = study.by_head().set_index("name")
    heads = [head for head in all_heads() if head != ph.Head(1, 1)]
    for row in frame.itertuples():
        harm = [-alone.loc[str(head), row.reach] for head in heads]
        values = {"rank": study.ranked_by, "noise": noise, "both": mixed}[row.measure]
        expected = stats.spearmanr([float(values[head]) for head in heads], harm).statistic
        assert row.correlation == pytest.approx(expected, abs=1e-12)
    table = frame.set_index(["reach", "measure"])
    assert table.loc[("long", "rank"), "low"] > 0.9
    assert table.loc[("long", "rank"), "p_within"] < 0.001
    assert table.loc[("long", "noise"), "difference_high"] < 0
    assert table.loc[("short", "rank"), "p_all"] > 0.01


def test_measures_that_cannot_be_compared_are_refused():
    study = predicting_study()
    for measures, settings, message in (
        ({}, {}, "no measure of the heads given"),
        ({"x": np.zeros((8, 4))}, {}, r"x has shape \[8, 4\], this model \[4, 8\]"),
        ({"x": study.ranked_by}, {"level": 1.0}, "level 1.0 must be between 0 and 1"),
        ({"x": study.ranked_by}, {"measure": "f1"}, "measure 'f1' is not in this study"),
    ):
        with pytest.raises(ValueError, match=message):
            study.predictors(measures, **settings)
    with pytest.raises(ValueError, match="no head was ablated alone: run the study with singles='all'"):
        predicting_study(singles=0).predictors({"x": study.ranked_by})
    with pytest.raises(ValueError, match="2 heads were ablated alone and have a value in every measure: 3 are needed"):
        predicting_study(singles=2).predictors({"x": study.ranked_by})


def test_single_heads_alone_are_a_study(tmp_path):
    study = predicting_study(sizes=())
    assert [one.kind for one in study.cells] == ["none"] + ["single"] * 32
    assert study.contrasts().empty
    own = study.predictors({"rho": study.ranked_by}).iloc[0]
    assert study.verdict.startswith(
        f"Of 32 heads, each ablated alone, L0H0 is missed most by planted at long range (log_prob "
        f"{study.by_head()['long'][0]:+.3f}, the largest of 32 and so likely overstated). Over heads, rho and harm "
        f"have a rank correlation of {own['correlation']:+.2f} (95 % interval {own['low']:+.2f} to {own['high']:+.2f}; "
    )
    assert study.verdict.endswith("and more than others of their layers, is open.")
    assert "heads one by one" in repr(study)
    write_report(study, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        *("study.safetensors", "effects.csv", "contrasts.csv", "single_heads.csv", "answers.parquet", "ablation.md"),
    }
    text = (tmp_path / "ablation.md").read_text()
    assert "# Ablation of single heads" in text
    assert "| L0H0 |" in text
    assert ph.AblationStudy.load(tmp_path).verdict == study.verdict
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert "L0H0" in shown.stdout
    assert in_options(study.verdict) in shown.stdout
    with pytest.raises(ValueError, match="single heads alone"):
        dose_response(study)
    assert "Change of log_prob by ablating one head" in report_html(tmp_path)


def test_a_study_of_earlier_versions_has_as_many_permutations_as_random_sets():
    study = planted(-0.5, 0.0, n_random=10)
    study.provenance["settings"] = {"sizes": [2, 4], "n_random": 50, "seed": 0}
    assert "10 permutations cannot give a p-value of 0.05, no others of these sizes exist" in study.verdict


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
