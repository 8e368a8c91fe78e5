"""A budget leaves out whole parts in a fixed order before a study starts, says so, and is kept over interruptions.

The clock is the tests' own: a part takes as long as it says, so nothing sleeps and no test depends on the machine.
"""

import json
import zlib
from itertools import pairwise

import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.ablation import Ablation
from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.run_cost import run_costs
from positional_heads.core.head_sets import SetPlan, by_kind, existing_permutations, permuted_sets, smaller_plans
from positional_heads.results.files import FINISHED_FILE_NAME
from positional_heads.scoring.progress import Work, work_bar
from positional_heads.studies import dpe, extrapolation, resume, retrieval_trials
from positional_heads.studies.budget import check_budget
from positional_heads.studies.trials import Trial, TrialPlan, smaller_trial_plans
from positional_heads.views import write_report

SET, TRIAL = 60.0, 30.0
"""Seconds that the task takes under one set of heads, and a retrieval trial."""


class Clock:
    """Time passes when a part says so."""

    def __init__(self):
        self.seconds, self.ablated = 1000.0, ()

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    monkeypatch.setattr(resume, "clock", own)

    def no_hooks(self, heads):
        own.ablated = heads
        return []

    monkeypatch.setattr(Ablation, "hooks", no_hooks)

    def retrieval(model, prompts, needles, answers):
        own.seconds += TRIAL
        seed = zlib.crc32(prompts[0].numpy().tobytes())
        return torch.rand(4, 8, generator=torch.Generator().manual_seed(seed)).double()

    monkeypatch.setattr(retrieval_trials, "retrieval_scores", retrieval)
    return own


@pytest.fixture(scope="module")
def scores(bundled):
    return ph.score_heads(bundled, ph.cut_text(bundled, ph.bundled_text(), 64)[:2], null_repeats=0, resamples=2)


class SlowTask:
    """A task that takes a minute under each set of heads, and scores that only depend on the heads that are ablated."""

    name, measures = "slow", ("score",)

    def __init__(self, clock, *, dies_after=None, seconds=SET):
        self.clock, self.dies_after, self.seconds, self.measured = clock, dies_after, seconds, 0
        self.settings, self.chance = {}, {}
        self.rows = [{"unit": unit, "reach": "long"} for unit in range(4)]

    def measure(self, model, batch_size=None):
        if self.measured == self.dies_after:
            raise KeyboardInterrupt
        self.measured += 1
        self.clock.seconds += self.seconds
        seed = zlib.crc32(str(self.clock.ablated).encode())
        return {"score": torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)}


ASKED = {"counts": [2, 3, 5], "n_random": 22}


def minutes_of(study, trials):
    """What a study costs on the tests' clock."""
    return (len(study.sets) * SET + trials * TRIAL) / 60


SINGLES, FEWER = "all 32 single heads", "2 of 22 permuted rankings"
STEPS = [
    ([], {}),
    (["27 of 32 single heads"], {"singles": "top"}),
    ([SINGLES], {"singles": "none"}),
    (
        [SINGLES, "1 of 22 permuted rankings", "2 of 59 random sets"],
        {"singles": "none", "n_random": 21},
    ),
    ([SINGLES, FEWER, "4 of 59 random sets"], {"singles": "none", "n_random": 20}),
    (
        [SINGLES, FEWER, "2 of 37 random sets", "the sets of 5 heads"],
        {"singles": "none", "n_random": 20, "counts": [2, 3]},
    ),
    (
        [SINGLES, FEWER, "the sets of 3 and 5 heads"],
        {"singles": "none", "n_random": 20, "counts": [2]},
    ),
]
"""What is left out as the budget shrinks, and the settings that ask for the rest. Of 2 heads, 15 random sets exist."""


def test_a_smaller_budget_leaves_out_more_and_always_in_the_same_order(bundled, scores, clock):
    trials = len(retrieval_trials.RetrievalTrials(bundled, SlowTask(clock)).trials)
    assert trials > 1
    before = None
    for left_out, settings in STEPS:
        expected = ph.ablation_study(bundled, scores, SlowTask(clock), **ASKED | settings)
        needed = minutes_of(expected, trials)
        assert before is None or needed < before
        for budget in [needed] if before is None else [needed, (needed + before) / 2]:
            began, task = clock.seconds, SlowTask(clock)
            found = ph.ablation_study(bundled, scores, task, **ASKED, budget=budget)
            assert found.provenance["budget"]["left_out"] == left_out
            assert clock.seconds - began <= 60 * budget
            # it is the study that these settings ask for, so its own command reproduces it without the budget
            assert found.cells == expected.cells
            assert task.measured == len(expected.sets)
            assert torch.equal(found.values["score"], expected.values["score"])
            assert found.provenance["settings"] == expected.provenance["settings"]
            assert found.verdict == expected.verdict
        before = needed


def test_the_retrieval_control_goes_last_and_less_is_refused(bundled, scores, clock, tmp_path):
    least = ph.ablation_study(bundled, scores, SlowTask(clock), counts=[2], n_random=20, singles="none", budget=9999)
    sets = len([one for one in least.sets if one not in {cell.heads for cell in by_kind(least.cells, "retrieval")[2]}])
    alone = (sets * SET + TRIAL) / 60  # one trial is run, to know what they cost
    found = ph.ablation_study(bundled, scores, SlowTask(clock), **ASKED, budget=alone)
    assert found.retrieval is None
    assert found.provenance["budget"]["left_out"][-1] == "the retrieval control"
    assert {cell.kind for cell in found.cells} == {"none", "top", "random", "permuted", "lowest"}
    assert found.contrasts()["permutations"].max() == 20
    task = SlowTask(clock)
    with pytest.raises(
        ValueError, match=r"budget 5 is too small: the top 2 heads and their controls would take"
    ) as said:
        ph.ablation_study(bundled, scores, task, **ASKED, budget=5, checkpoint=tmp_path)
    assert task.measured == 2  # only what shows how long a part takes
    needed = float(str(said.value).split("about ")[1].split()[0])
    assert needed >= alone
    ph.ablation_study(bundled, scores, SlowTask(clock), **ASKED, budget=needed)


def test_the_record_its_report_and_the_log_say_what_was_left_out(bundled, scores, clock, tmp_path, caplog):
    with caplog.at_level("INFO"):
        found = ph.ablation_study(bundled, scores, SlowTask(clock), **ASKED, singles="top", budget=70)
    (said,) = [one.getMessage() for one in caplog.records if one.getMessage().startswith("budget of")]
    everything = found.provenance["budget"]["all_minutes"]
    assert said.startswith(
        f"budget of 70 minutes: about {everything:g} for everything; leaving out all 5 single heads; "
    )
    assert said.endswith(" minutes left to run")
    assert 70 >= float(said.split("about ")[2].split()[0]) > 50
    assert found.notes[0] == (
        f"Left out for a budget of 70 minutes (all would have taken about {everything:g}): "
        + "; ".join(found.provenance["budget"]["left_out"])
        + "."
    )
    assert "left out for a budget of 70 minutes: all 5 single heads" in repr(found)
    write_report(found, tmp_path)
    assert found.notes[0] in (tmp_path / "ablation.md").read_text()
    back = ph.AblationStudy.load(tmp_path)
    assert repr(back) == repr(found)
    assert back.notes == found.notes
    assert found.by_head().empty


def test_a_study_without_a_budget_says_nothing_of_one(bundled, scores, clock):
    found = ph.ablation_study(bundled, scores, SlowTask(clock), counts=[1], n_random=2, singles="none")
    assert "budget" not in found.provenance
    assert "budget" not in repr(found) + " ".join(found.notes)


def test_an_interrupted_study_leaves_out_the_same_with_its_budget_and_less_with_a_larger(
    bundled, scores, clock, tmp_path
):
    expected = ph.ablation_study(bundled, scores, SlowTask(clock), **ASKED, budget=90)
    assert expected.provenance["budget"]["left_out"]
    with pytest.raises(KeyboardInterrupt):
        ph.ablation_study(bundled, scores, SlowTask(clock, dies_after=9), **ASKED, budget=90, checkpoint=tmp_path)
    rest = SlowTask(clock, seconds=SET * 5)  # the machine has become slow: too late to leave out more
    found = ph.ablation_study(bundled, scores, rest, **ASKED, budget=90, checkpoint=tmp_path)
    assert rest.measured == len(expected.sets) - 9
    assert found.cells == expected.cells
    assert torch.equal(found.values["score"], expected.values["score"])
    assert (found.notes, found.provenance) == (expected.notes, expected.provenance)
    less = ph.ablation_study(bundled, scores, SlowTask(clock), **ASKED, budget=0.5, checkpoint=tmp_path)
    assert (less.notes, less.provenance) == (found.notes, found.provenance)  # 90 minutes are what left something out
    more = SlowTask(clock)
    larger = ph.ablation_study(bundled, scores, more, **ASKED, budget=400, checkpoint=tmp_path)
    assert larger.provenance["budget"]["left_out"] == []
    # nine parts took a minute, those that the slow machine ran took five
    trials = len(retrieval_trials.RetrievalTrials(bundled, more).trials)
    expected_minutes = minutes_of(larger, trials) + 4 * rest.measured
    assert larger.provenance["budget"]["all_minutes"] == float(f"{expected_minutes:.2g}")
    assert more.measured == len({*larger.sets} - {*found.sets})
    again = SlowTask(clock)
    ph.ablation_study(bundled, scores, again, **ASKED, budget=0.5, checkpoint=tmp_path)  # all is there already
    assert again.measured == 0
    without = ph.ablation_study(bundled, scores, again, **ASKED, checkpoint=tmp_path)
    assert torch.equal(without.values["score"], larger.values["score"])


def test_parts_of_older_versions_have_no_times_and_are_timed_again(bundled, scores, clock, tmp_path):
    settings = {"counts": [1], "n_random": 2, "singles": "none"}
    ph.ablation_study(bundled, scores, SlowTask(clock), **settings, checkpoint=tmp_path)
    file = tmp_path / FINISHED_FILE_NAME
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
        line.pop("sha256", None)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = SlowTask(clock)
    ph.ablation_study(bundled, scores, task, **settings, budget=9, checkpoint=tmp_path)
    assert task.measured == 2


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf"), "5", True])
def test_budgets_that_are_no_time_are_refused_before_anything_runs(budget, bundled, scores, clock):
    task = SlowTask(clock)
    with pytest.raises((ValueError, TypeError), match="budget"):
        ph.ablation_study(bundled, scores, task, **ASKED, budget=budget)
    assert task.measured == 0
    with pytest.raises((ValueError, TypeError), match="budget"):
        ph.extrapolation_study(bundled, ph.bundled_text(), budget=budget)


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf"), 1e308, 10**400, 10**5000], ids=range(7))
def test_the_command_line_refuses_budgets_in_the_words_of_python(budget, bundled):
    said = []
    for refuses in (
        lambda: check_budget(budget),
        lambda: ph.extrapolation_study(bundled, ph.bundled_text(), budget=budget),
        lambda: dpe.dpe_sweep(bundled, 2048, budget=budget),
    ):
        with pytest.raises(ValueError, match=r"^budget ") as error:
            refuses()
        said.append(str(error.value))
    assert len({*said}) == 1
    assert len(said[0]) < 90


def test_plans_of_sets_shrink_to_one_size_and_its_controls():
    ranking = [ph.Head(0, head) for head in range(30)]
    asked = SetPlan((1, 2), 20, 20, 0, 2, retrieval=True)
    plans = smaller_plans(asked, ranking)
    assert plans == [
        asked,
        SetPlan((1, 2), 20, 20, 0, 0, retrieval=True),
        SetPlan((1,), 20, 20, 0, 0, retrieval=True),
        SetPlan((1,), 20, 20, 0, 0, retrieval=False),
    ]
    assert smaller_plans(SetPlan((3,), 5, 5, 0, 0, retrieval=False), ranking) == [
        SetPlan((3,), 5, 5, 0, 0, retrieval=False)
    ]


def test_sets_of_any_layer_go_first_and_permutations_and_random_sets_to_twenty_each():
    ranking = [ph.Head(0, head) for head in range(30)]
    asked = SetPlan((1, 2), 21, 22, 9, 0, retrieval=False)
    plans = smaller_plans(asked, ranking)
    assert plans == [
        asked,
        SetPlan((1, 2), 21, 22, 0, 0, retrieval=False),
        SetPlan((1, 2), 21, 21, 0, 0, retrieval=False),
        SetPlan((1, 2), 20, 20, 0, 0, retrieval=False),
        SetPlan((1,), 20, 20, 0, 0, retrieval=False),
    ]
    assert plans[1].left_out_of(asked, ranking, 0) == ["18 of 18 sets of any layer"]
    assert plans[2].left_out_of(asked, ranking, 0) == ["18 of 18 sets of any layer", "1 of 22 permuted rankings"]
    few = SetPlan((1,), 3, 99, 0, 0, retrieval=False)
    assert smaller_plans(few, ranking)[-1] == SetPlan((1,), 3, 20, 0, 0, retrieval=False)


def test_single_heads_alone_are_all_run_or_refused(bundled, scores, clock):
    alone = {"counts": [], "singles": "all"}
    task = SlowTask(clock)
    found = ph.ablation_study(bundled, scores, task, **alone, budget=60)
    assert task.measured == len(found.sets) == 33
    assert found.provenance["budget"]["left_out"] == []
    with pytest.raises(ValueError, match="budget 5 is too small: every head alone would take about"):
        ph.ablation_study(bundled, scores, SlowTask(clock), **alone, budget=5)


def test_a_ranking_by_retrieval_counts_its_examples(bundled, scores, clock):
    settings = {"counts": [2], "n_random": 20, "singles": "none", "rank_by": "retrieval"}
    trials = len(retrieval_trials.RetrievalTrials(bundled, SlowTask(clock)).trials)
    began = clock.seconds
    found = ph.ablation_study(bundled, scores, SlowTask(clock), **settings, budget=999)
    assert found.provenance["budget"]["all_minutes"] == float(f"{(clock.seconds - began) / 60:.2g}")
    assert (clock.seconds - began) / 60 == pytest.approx(minutes_of(found, trials))


def test_sizes_stay_without_which_no_p_value_could_be_below_005():
    ranking = [ph.Head(layer, head) for head in range(8) for layer in range(4)]  # every layer in turn
    asked = SetPlan((1, 2, 3), 20, 20, 0, 0, retrieval=False)  # with 7, 63 and 511 permutations other than the ranking
    assert smaller_plans(asked, ranking) == [asked, SetPlan((1, 2), 20, 20, 0, 0, retrieval=False)]
    few = SetPlan((1, 7), 20, 20, 0, 0, retrieval=False)
    assert smaller_plans(few, ranking[::4]) == [few]  # 7 permutations of 1 head, 55 of both sizes


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (2, 4), (1, 3, 6)])
def test_existing_permutations_are_those_that_can_be_drawn(sizes):
    ranking = [ph.Head(layer, head) for layer, head in ((0, 0), (1, 0), (0, 1), (0, 2), (2, 0), (1, 1), (2, 1))]
    assert existing_permutations(ranking, sizes) == len(permuted_sets(ranking, sizes, 500, "0"))


def test_only_sets_that_exist_are_left_out(bundled, scores, clock):
    asked = {"counts": [1], "n_random": 25, "singles": "top"}
    whole = ph.ablation_study(bundled, scores, SlowTask(clock), **asked)
    assert "7 permutations cannot give a p-value of 0.05, no others of these sizes exist" in whole.verdict
    assert "20 can" not in whole.verdict
    assert len(by_kind(whole.cells, "random")[1]) == 7
    plan = SetPlan((1,), 20, 20, 0, 0, retrieval=False)
    assert plan.left_out_of(SetPlan((1,), 25, 25, 0, 1, retrieval=False), whole.ranking, 0) == ["all 1 single heads"]


def trial_plan(labels, lengths):
    return TrialPlan(tuple(Trial(label, ph.rope_method("none"), length) for label in labels for length in lengths))


def test_plans_of_trials_keep_every_method_at_every_length_and_a_correlation():
    plans = smaller_trial_plans(trial_plan("abcde", [20, 10, 30]))
    assert plans == [
        trial_plan("abcde", [20, 10, 30]),
        trial_plan("abcde", [20, 10]),
        trial_plan("abcde", [10]),
        trial_plan("abcd", [10]),
    ]
    assert plans[-1].left_out_of(plans[0]) == ["lengths of 20 and 30 tokens", "the methods e"]
    assert smaller_trial_plans(trial_plan("ab", [10])) == [trial_plan("ab", [10])]
    assert smaller_trial_plans(trial_plan("ab", [10, 20, 30]))[-1] == trial_plan("ab", [10, 20])


@pytest.mark.parametrize("methods", range(1, 7))
@pytest.mark.parametrize("lengths", range(1, 7))
def test_the_least_plan_of_trials_has_four_points_and_costs_least(methods, lengths):
    plans = smaller_trial_plans(trial_plan("abcdef"[:methods], list(range(10, 10 + lengths))))
    assert len(plans[-1].trials) == min(4, methods * lengths)
    assert all({*less.names} < {*more.names} for more, less in pairwise(plans))
    assert all(len(plan.trials) == len(plan.labels) * len(plan.lengths) for plan in plans)


def test_a_refusal_does_not_say_that_a_part_costs_more_than_the_whole(bundled, trials_run):
    with pytest.raises(ValueError, match="too small") as said:
        ph.extrapolation_study(bundled, ph.bundled_text(), ["linear", "self_extend"], FACTORS, **SMALL, budget=1)
    least, everything = (float(part.split()[0].rstrip(";")) for part in str(said.value).split("about ")[1:])
    assert least == everything > 6


METHODS, FACTORS = ["none", "linear", "ntk", "yarn", "self_extend"], [2, 4]
SMALL = {"training_length": 64, "depths": 2, "examples": 1, "sequences": 1, "heads": ["L0H1"]}


@pytest.fixture
def trials_run(bundled, clock, monkeypatch):
    """Lengths of the trials that were run; each takes what the estimate says, the first one minute."""
    costs = [run_costs(bundled, rewritten=rewritten) for rewritten in (False, True)]
    lengths = []

    def allocation(model, extension, rows, followed, trained):
        length = rows.shape[1]
        lengths.append(length)
        clock.seconds += 60 * costs[extension.method.rewrites_scores](length) / costs[0](128)
        values = [float(length)] * len(followed)
        return {
            "method": extension.provenance,
            "curves": [[value] * length for value in values],
            "frequencies": [1.0, 0.1],
            "rho_within": values,
            "rho_beyond": values,
        }

    monkeypatch.setattr(extrapolation, "_allocation", allocation)

    def performance(_model, task, _batch_size):
        return {"exact": 0.5, "log_prob": -max(len(one.tokens) for one in task.examples) / 1000}

    monkeypatch.setattr(extrapolation, "_performance", performance)
    monkeypatch.setattr(extrapolation, "_loss_beyond", lambda *_: 1.5)
    return lengths


def test_an_extrapolation_study_leaves_out_long_lengths_then_the_last_methods(bundled, trials_run, clock, tmp_path):
    def studied(**settings):
        return ph.extrapolation_study(bundled, ph.bundled_text(), METHODS, FACTORS, **SMALL, **settings)

    began = clock.seconds
    whole = studied(budget=60)
    needed = (clock.seconds - began) / 60
    assert whole.provenance["budget"] == {"minutes": 60, "all_minutes": float(f"{needed:.2g}"), "left_out": []}
    assert whole.labels == [label for label in METHODS for _ in FACTORS]
    assert not whole.notes
    expected = {
        needed - 1e-6: (METHODS, ["lengths of 256 tokens"]),
        4.01: (METHODS[:4], ["lengths of 256 tokens", "the methods self_extend"]),
    }
    for budget, (methods, left_out) in expected.items():
        began = clock.seconds
        found = studied(budget=budget)
        assert clock.seconds - began <= 60 * budget
        assert found.provenance["budget"]["left_out"] == left_out
        assert (found.labels, found.lengths) == (methods, [128] * len(methods))
        # every number is that of the whole study
        kept = [2 * METHODS.index(label) for label in methods]
        assert torch.equal(found.performance["log_prob"], whole.performance["log_prob"][kept])
        assert torch.equal(found.curves, whole.curves[kept][..., :128])
        assert found.provenance["data"] == whole.provenance["data"]
    assert f"left out for a budget of 4.01 minutes: {'; '.join(left_out)}" in repr(found)
    write_report(found, tmp_path)
    assert found.notes[0] in (tmp_path / "extrapolation.md").read_text()
    assert ph.ExtrapolationStudy.load(tmp_path).notes == found.notes
    trials_run.clear()
    with pytest.raises(
        ValueError, match=r"none at 128, linear at 128, ntk at 128, yarn at 128 would take about 4(\.1)? minutes"
    ):
        studied(budget=3)
    assert trials_run == [128]


def test_an_interrupted_extrapolation_study_keeps_its_plan(bundled, trials_run, clock, tmp_path, monkeypatch):
    settings = {**SMALL, "budget": 6.0, "checkpoint": tmp_path}
    run = extrapolation._allocation

    def dies(*arguments):
        if len(trials_run) == 3:
            raise KeyboardInterrupt
        return run(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(extrapolation, "_allocation", dies)
        with pytest.raises(KeyboardInterrupt):
            ph.extrapolation_study(bundled, ph.bundled_text(), METHODS, FACTORS, **settings)
    clock.seconds += 9999.0
    found = ph.extrapolation_study(bundled, ph.bundled_text(), METHODS, FACTORS, **settings)
    assert trials_run == [128] * 5
    assert found.provenance["budget"]["left_out"] == ["lengths of 256 tokens"]


@pytest.mark.parametrize(("budget", "ranges"), [(60, 4), (7, 2)])
def test_a_search_for_group_sizes_has_as_many_ranges_as_fit(budget, ranges, bundled, clock, monkeypatch, caplog):
    tried = []

    class Planned:
        measures = ("log_prob",)

        def measure(self, model):
            tried.append(active_extension(model).method.pair_groups)
            clock.seconds += 60
            return {"log_prob": torch.tensor([float(sum(tried[-1]))])}

    monkeypatch.setattr(dpe, "make_task", lambda *_, **__: Planned())
    found = dpe.dpe_sweep(bundled, 2048, window=128, ranges=4, budget=budget)
    assert len(tried) == len({*tried}) == 3 * ranges + 1
    assert found.pair_groups == dpe.dpe_sweep(bundled, 2048, window=128, ranges=ranges).pair_groups
    if ranges < 4:
        assert "leaving out 2 of 4 ranges (the others are wider)" in caplog.text
    with pytest.raises(ValueError, match="budget 2 is too small: a search over 2 ranges would take about 7 minutes"):
        dpe.dpe_sweep(bundled, 2048, window=128, ranges=4, budget=2)


def test_a_run_costs_more_than_its_length_and_more_where_scores_are_rewritten(bundled):
    plain, rewritten = (run_costs(bundled, rewritten=one) for one in (False, True))
    assert plain(1) == pytest.approx(1, rel=1e-2)
    assert 2 * plain(512) < plain(1024) < 4 * plain(512)
    assert plain(512) < rewritten(512) < 4 * plain(512)


def test_the_bar_goes_by_cost_and_counts_each_part_once():
    parts = {"a": Work(6.0, 2), "b": Work(3.0, 1), "c": Work(1.0, 1)}
    with work_bar(parts, ["c", "x"], title="counting", unit="sequences", shown=False) as work:
        assert work._described() == "counting: 1/4 sequences "
        work.finish(["c", "b"])
        assert work._described() == "counting: 2/4 sequences "
        work.finish(["a"])
        assert work._described() == "counting: 4/4 sequences "


def test_the_time_left_is_that_of_the_cost_left(capsys):
    parts = {"a": Work(30.0), "b": Work(60.0), "before": Work(10.0)}
    with work_bar(parts, ["before"], title="t", unit="sets", shown=True) as work:
        work.bar.start_t -= 10.0  # as if ten seconds had passed
        work.finish(["a"])
        assert (work.bar.initial, work.bar.n, work.bar.total) == (10.0, 40.0, 100.0)
        assert "t: 2/3 sets" in str(work.bar)
        assert "[00:10, 00:20 left]" in str(work.bar)
    assert "left]" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "times"), [(20.0, 1), (5.0, 0), (31.0, 1)])
def test_where_parts_are_saved_is_said_once_they_are_worth_it(clock, tmp_path, capsys, seconds, times):
    """At 31 seconds, the first part says it; five seconds a part, no part does; the last one has nothing to say."""

    def wait(part):
        clock.seconds += seconds
        return part

    finished = resume.FinishedParts({"model": {}}, tmp_path)
    run = {"finished": finished, "title": "t", "unit": "parts", "progress": True}
    resume.run_parts({"alone": 0}, wait, **run)
    assert "is saved in" not in capsys.readouterr().err
    for names in (("a", "b", "c"), ("d", "e")):
        resume.run_parts(dict.fromkeys(names, 1), wait, **run)
    assert capsys.readouterr().err.count(f"progress is saved in {finished.file}; rerun the same") == times
