"""The record of a plan study: tables from the saved answers, and a verdict that follows what was planted."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from positional_heads.core.statistics import mean_interval
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.plan_tables import tried
from tests.support.planted_plans import SHAPE, planted_plans

RNG = np.random.default_rng(5)
COSTS = np.where(RNG.permutation(np.arange(24)).reshape(SHAPE) < 6, 0.2, 0.01)  # a quarter of the key heads matters
NOISE = RNG.normal(0, 1, SHAPE)


@pytest.fixture(scope="module")
def study() -> PlanStudy:
    return planted_plans(COSTS, {"good": COSTS, "noise": NOISE, "bad": -COSTS}, n_matched=3)


def changes(study, kind, by, budget):
    """Change of each unit at long range under each set of a kind, by hand."""
    frame = pd.DataFrame(study.rows)
    long = np.flatnonzero(frame["reach"] == "long")
    values = study.values["log_prob"].numpy()[:, long]
    chosen = [one for one in study.cells if (one.kind, one.by, one.budget) == (kind, by, budget)]
    index = {heads: number for number, heads in enumerate(study.sets)}
    return np.array([values[index[one.heads]] - values[0] for one in chosen])


def test_every_plan_has_as_many_windows_at_its_budget(study) -> None:
    for budget, k in ((0.25, 18), (0.5, 12), (0.75, 6)):
        cells = [one for one in study.cells if one.budget == budget]
        assert {one.k for one in cells} == {k}
        assert {len(one.heads) for one in cells} == {2 * k}
        assert len(cells) == 3 * (1 + 3) + 20
    for number in range(20):  # of one ranking: what gets a window at a large budget gets one at a smaller
        nested = [set(study.cells[0].heads)]
        nested += [
            set(one.heads)
            for budget in (0.75, 0.5, 0.25)
            for one in study.cells
            if (one.kind, one.number, one.budget) == ("chance", number, budget)
        ]
        assert all(small < large for small, large in pairwise(nested))
    for by, budgets in tried(study.cells, "layers").items():
        for budget, plans in budgets.items():
            (own,) = tried(study.cells, "plan")[by][budget]
            for one in plans:
                assert sorted(head.layer for head in one.heads) == sorted(head.layer for head in own.heads)
    assert study.cells[-1].kind == "all"
    assert len(study.cells[-1].heads) == 48


def test_effects_and_contrasts_are_plain_means_of_the_saved_answers(study) -> None:
    effects = study.effects().set_index(["kind", "by", "budget", "reach"])["effect"]
    contrasts = study.contrasts().set_index(["by", "budget", "reach"])
    chance = {budget: changes(study, "chance", "chance", budget) for budget in study.budgets}
    for by in study.by:
        plans = {budget: changes(study, "plan", by, budget)[0] for budget in study.budgets}
        for budget in study.budgets:
            assert effects["plan", by, budget, "long"] == pytest.approx(plans[budget].mean())
            assert effects["chance", "chance", budget, "long"] == pytest.approx(chance[budget].mean())
            row = contrasts.loc[(by, budget, "long")]
            assert row["gain"] == pytest.approx((plans[budget] - chance[budget].mean(0)).mean())
            as_good = (chance[budget].mean(-1) >= plans[budget].mean()).sum()
            assert row["p_chance"] == pytest.approx((1 + as_good) / 21)
        over = np.mean([plans[budget] for budget in study.budgets], axis=0)
        by_number = np.mean([chance[budget] for budget in study.budgets], axis=0)
        row = contrasts.loc[(by, "all", "long")]
        assert row["effect"] == pytest.approx(over.mean())
        assert row["p_chance"] == pytest.approx((1 + (by_number.mean(-1) >= over.mean()).sum()) / 21)
        expected = mean_interval(torch.from_numpy(over - by_number.mean(0))).tolist()
        assert [row["low"], row["high"]] == pytest.approx(expected)
        layers = np.mean([changes(study, "layers", by, budget) for budget in study.budgets], axis=0)
        row = study.contrasts(control="layers").set_index(["by", "budget", "reach"]).loc[(by, "all", "long")]
        assert row["gain"] == pytest.approx((over - layers.mean(0)).mean())
        assert row["plans"] == 3
    assert effects["none", "none", 1.0, "long"] == pytest.approx(study.values["log_prob"][0, ::2].mean())
    assert effects["all", "all", 0.0, "long"] == pytest.approx(-COSTS.sum(), abs=0.03)


def test_measures_are_compared_on_the_same_answers(study) -> None:
    table = study.differences("noise").set_index(["by", "budget", "reach"])
    assert set(study.differences()["to"]) == {"good"}
    for budget in study.budgets:
        paired = changes(study, "plan", "bad", budget)[0] - changes(study, "plan", "noise", budget)[0]
        row = table.loc[("bad", budget, "long")]
        assert row["gain"] == pytest.approx(paired.mean())
        assert [row["low"], row["high"]] == pytest.approx(mean_interval(torch.from_numpy(paired)).tolist())
    with pytest.raises(ValueError, match="no plan by 'chance' was tried: choose one of good, noise, bad"):
        study.differences("chance")


def test_the_verdict_follows_from_the_planted_costs(study) -> None:
    verdict = study.verdict
    assert verdict.startswith("Windows on the key heads lowest by good cost planted least at long range: log_prob -0.")
    better, rest = verdict.split("Better than random plans of as many windows: ")[1].split(" Not shown to be better: ")
    assert better.startswith("good +")
    assert "noise" in rest.split("Worse than random plans: ")[0]
    assert "Worse than random plans: bad -" in rest
    assert "3 measures were tried" in rest
    assert verdict.endswith("Every other measure costs more than good.")


def test_a_verdict_can_be_that_no_measure_is_better() -> None:
    none = planted_plans(COSTS, {"noise": NOISE, "other": -NOISE}, seed=1)
    assert "No measure is shown to choose better than chance." in none.verdict
    free = planted_plans(np.zeros(SHAPE), {"good": COSTS, "other": NOISE}, seed=2)
    assert "No measure is shown to choose better" in free.verdict
    assert "Not told apart from" in free.verdict
    few = planted_plans(COSTS, {"good": COSTS}, n_random=5)
    assert "Undecided whether that is chance: 5 random plans cannot give a p-value of 0.05, 20 can." in few.verdict
    unable = planted_plans(COSTS, {"good": COSTS}, baseline=-3.0)
    assert unable.verdict.startswith("The model cannot do planted even with all heads")
    assert "no interval below 4 units" in planted_plans(COSTS, {"good": COSTS, "noise": NOISE}, units=3).verdict


def test_a_study_is_read_back_and_says_what_it_is(study, tmp_path) -> None:
    loaded = PlanStudy.load(study.save(tmp_path))
    assert loaded.to_frame().equals(study.to_frame())
    assert loaded.cells == study.cells
    assert loaded.verdict == study.verdict
    assert len(study.to_frame()) == len(study.cells) * len(study.rows)
    assert "25%, 50%, 75% of the key heads keep all keys, chosen by good, noise, bad" in study.description
    alone = study.where(reach="long")
    assert alone.reaches == ["long"]
    assert alone.contrasts()["effect"].tolist() == study.contrasts().query("reach == 'long'")["effect"].tolist()
    with pytest.raises(ValueError, match="run it with n_matched=20"):
        planted_plans(COSTS, {"good": COSTS}).contrasts(control="layers")
