"""The record of a plan study: tables from the saved answers, and a verdict that follows what was planted."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text

from positional_heads import views
from positional_heads.core.statistics import mean_interval
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.plan_tables import tried
from positional_heads.views.report.plans import plan_study_files
from tests.support.planted_plans import SHAPE, crossed_plans, planted_plans

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
    said = verdict.split("Better than random plans of as many windows, each tested alone: ")[1]
    better, rest = said.split(" Tested together (Holm for 3 measures), ")
    assert better.startswith("good +")
    assert rest.startswith("none can remain with 20 random plans: 60 are needed. Not shown to be better: noise ")
    assert "Worse than random plans: bad -" in rest
    assert verdict.endswith("Every other measure costs more than good.")


def test_a_verdict_can_be_that_no_measure_is_better() -> None:
    none = planted_plans(COSTS, {"noise": NOISE, "other": -NOISE}, seed=1)
    assert "No measure is shown to choose better than chance." in none.verdict
    free = planted_plans(np.zeros(SHAPE), {"good": COSTS, "other": NOISE}, seed=2)
    assert "No measure is shown to choose better" in free.verdict
    assert "Not told apart from" in free.verdict
    few = planted_plans(COSTS, {"good": COSTS}, n_random=5)
    assert "Undecided whether that is chance: 5 random plans cannot give a p-value below 0.05, 20 can." in few.verdict
    assert "Undecided" in planted_plans(COSTS, {"good": COSTS}, n_random=19).verdict  # 0.05 itself, at best
    unable = planted_plans(COSTS, {"good": COSTS}, baseline=-3.0)
    assert unable.verdict.startswith("The model cannot do planted even without windows (log_prob -3")
    assert "so a plan shows nothing." in unable.verdict
    alone = planted_plans(COSTS, {"good": COSTS}, budgets=(0.5,)).verdict
    assert "Better than random plans of as many windows: good +" in alone
    assert "Holm" not in alone
    assert "each budget" not in alone


def test_without_an_interval_nothing_is_better_or_worse() -> None:
    few = planted_plans(COSTS, {"good": COSTS, "bad": -COSTS}, units=3)
    table = few.contrasts().query("reach == 'long' and budget == 'all'").set_index("by")
    assert table["low"].isna().all()
    assert table.loc["good", "p_chance"] < 0.05
    said = "Open which measures choose better than chance, as that takes an interval above 0: good +"
    assert f"{said}{table.loc['good', 'gain']:.3f} (no interval below 4 units, p = 0.048); bad -" in few.verdict
    for word in ("Better", "better:", "Worse", "Holm", "No measure is shown"):
        assert word not in few.verdict


def test_the_cheapest_at_each_budget_is_named_with_its_cost() -> None:
    study = crossed_plans()
    least = {budget: max(changes(study, "plan", by, budget)[0].mean() for by in study.by) for budget in study.budgets}
    assert least == pytest.approx({0.25: -1.53, 0.75: -0.15}, abs=0.03)  # the sums of the planted costs
    assert study.best == "many"
    said = f" Cheapest at each budget: many {least[0.25]:+.3f} at 0.25, few and same {least[0.75]:+.3f} at 0.75. "
    assert said in study.verdict


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


def holm(p_values: dict[str, float]) -> set[str]:
    """What stays after Holm's correction at 0.05, step by step down from the smallest p-value."""
    left, ordered = set(), sorted(p_values, key=p_values.get)
    for place, name in enumerate(ordered):
        if p_values[name] > 0.05 / (len(ordered) - place):
            break
        left.add(name)
    return left


def test_many_measures_are_corrected_for_and_equal_ones_are_named_together() -> None:
    rng = np.random.default_rng(2)
    measures = {f"m{number}": COSTS + number * rng.normal(0, 0.04, SHAPE) for number in range(6)}
    many = planted_plans(COSTS, measures | {"same": 2 * COSTS}, n_random=140, units=6, seed=3)
    table = many.contrasts().query("reach == 'long' and budget == 'all'").set_index("by")["p_chance"]
    kept = holm(table.to_dict())
    assert 2 < len(kept) < (table <= 0.05).sum()
    said = many.verdict.split(f"Tested together (Holm for 7 measures), {len(kept)} remain: ")[1].split("). ")[0]
    assert {one.split(" (")[0] for one in said.split("), ")} == kept
    assert many.verdict.startswith("Windows on the key heads lowest by m0 and same cost planted least at long range")
    assert " m0 and same cost the same: which comes first is the order in which they were given." in many.verdict
    assert "Not told apart from m0: same" not in many.verdict


def test_the_same_kind_of_question_is_said() -> None:
    study = planted_plans(COSTS, {"retrieval_like": COSTS}, n_random=20)
    named = [replace(one, by="retrieval") if one.kind == "plan" else one for one in study.cells]
    asked = [{**row, "depth": 0.5} for row in study.rows]
    said = "The profile measured retrieval on passkey, the same kind of question as this task asks"
    for cells, rows, profile, expected in (
        (named, asked, {"retrieval": {"task": "passkey"}}, True),
        (named, asked, {}, True),  # earlier files do not say: it is the default
        (study.cells, asked, {}, False),
        (named, study.rows, {}, False),
        (named, [{**row, "depth": None} for row in study.rows], {}, False),  # text
        (named, asked, {"retrieval": "No retrieval scores"}, False),
    ):
        made = replace(study, cells=cells, rows=rows, provenance={**study.provenance, "profile": profile})
        assert (said in made.verdict) == expected


def test_a_study_of_pairs_speaks_of_pairs() -> None:
    study = planted_plans(COSTS, {"good": COSTS, "noise": NOISE})
    sets = {heads: (f"L0K0:{number:x}",) if heads else () for number, heads in enumerate(study.sets)}
    cells = [replace(one, heads=sets[one.heads]) for one in study.cells]
    for planned in ("frozen pairs", "dropped pairs"):
        made = replace(study, planned=planned, cells=cells)
        page, drawn = made._repr_html_(), views.loss_by_budget(made)
        written = plan_study_files(made)
        words = made.verdict + page.split("<details>")[0] + written["plans.md"] + written["effects.csv"]
        words += "".join(text.get_text() for text in drawn.findobj(Text))
        assert "windows" not in words
        assert "key heads that keep all keys" not in words
        assert "share of the pairs of each key head that keep their rotation" in words
    drawn = views.loss_by_budget(study)
    assert drawn.axes[0].get_xlabel() == "share of key heads that keep all keys (no share of the cache)"
