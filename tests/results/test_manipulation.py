"""The record of a manipulation study: tables from the saved answers, and a verdict that follows what was planted."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from positional_heads import views
from positional_heads.cli.printed import PRINTED
from positional_heads.core.heads import Head
from positional_heads.core.statistics import holm, mean_interval
from positional_heads.results.files import MANIPULATION
from positional_heads.results.manipulation import ManipulationStudy
from positional_heads.views.report.manipulation import manipulation_command, manipulation_files, manipulation_section
from tests.support.planted_pairs import planted_manipulation

TOP = (Head(0, 0), Head(1, 0))


def slow_pairs_of_top(head, pair):
    """The slow pairs of the top heads matter, and more at long range."""
    return (0.1, 0.02) if head in TOP and pair >= 12 else (0.001, 0.001)


def slow_pairs_of_all(head, pair):
    """Slow pairs matter in every head, as much at short range."""
    return (0.1, 0.1) if pair >= 12 else (0.001, 0.001)


def nothing(head, pair):
    """No pair matters."""
    return 0.0, 0.0


@pytest.fixture(scope="module")
def study() -> ManipulationStudy:
    return planted_manipulation(slow_pairs_of_top, n_random=80)


def by_hand(study, kind, k, reach="long"):
    """Change of each unit under each set of a kind."""
    chosen = [number for number, row in enumerate(study.rows) if row["reach"] == reach]
    values, index = study.values["log_prob"].numpy()[:, chosen], {heads: at for at, heads in enumerate(study.sets)}
    return np.array([values[index[one.heads]] - values[0] for one in study.cells if (one.kind, one.k) == (kind, k)])


def test_effects_and_contrasts_are_plain_means_of_the_answers(study) -> None:
    effects = study.effects().set_index(["kind", "pairs", "reach"])
    for kind, k in (("slowest", 4), ("fastest", 8), ("random pairs", 4), ("random heads", 8), ("all pairs", 16)):
        changes = by_hand(study, kind, k)
        row = effects.loc[kind, k, "long"]
        assert (row["effect"], row["sets"]) == (pytest.approx(changes.mean()), len(changes))
        low, high = mean_interval(torch.tensor(changes.mean(0))).tolist()
        assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))
    rows = study.contrasts().set_index(["kind", "against", "pairs", "reach"])
    for kind, against, drawn in (
        *((kind, "random pairs", "random pairs") for kind in ("slowest", "fastest", "dominant")),
        ("slowest", "random heads", "permuted heads"),
    ):
        own, control, by_chance = (
            np.mean([by_hand(study, one, k) for k in (4, 8)], axis=0) for one in (kind, against, drawn)
        )
        row, effect = rows.loc[kind, against, "all", "long"], own.mean()
        assert row["effect"] == pytest.approx(effect)
        assert row["contrast"] == pytest.approx((own - control).mean())
        share = (1 + (by_chance.mean(1) <= effect + 1e-12).sum()) / (1 + len(by_chance))
        assert (row["p_value"], row["draws"]) == (pytest.approx(share), len(by_chance))
        one = rows.loc[kind, against, 4, "long"]
        paired = by_hand(study, kind, 4)[0] - by_hand(study, against, 4).mean(0)
        assert one["contrast"] == pytest.approx(paired.mean())
        apart = by_hand(study, kind, 4, "long")[0] - by_hand(study, kind, 4, "short")[0]
        assert rows.loc[kind, against, 4, "long - short"]["effect"] == pytest.approx(apart.mean())


def test_heads_are_judged_by_permuted_rankings_and_pairs_by_random_ones() -> None:
    study = planted_manipulation(slow_pairs_of_all, noise=0.2, seed=1)
    effects = {
        kind: np.mean([by_hand(study, kind, k) for k in (4, 8)], axis=0).mean(-1)
        for kind in ("slowest", "random pairs", "random heads", "permuted heads")
    }
    shares = {kind: (1 + (drawn <= effects["slowest"][0]).sum()) / (1 + len(drawn)) for kind, drawn in effects.items()}
    rows = study.contrasts().query("pairs == 'all' and reach == 'long'").set_index(["kind", "against"])["p_value"]
    assert rows["slowest", "random heads"] == pytest.approx(shares["permuted heads"])
    assert rows["slowest", "random pairs"] == pytest.approx(shares["random pairs"])
    assert len({shares[kind] for kind in ("random pairs", "random heads", "permuted heads")}) == 3, "told apart"


def test_holm_is_that_of_its_definition(study) -> None:
    rng = np.random.default_rng(0)
    for p_values in (rng.random(5), np.array([0.01, 0.01, 0.04]), np.array([0.5]), np.array([0.9, 0.001, 0.6, 0.01])):
        # reject step by step: a claim falls at the first level at which every smaller p-value has fallen before it
        levels = np.linspace(0, 1, 2001)
        rejected = np.zeros((len(levels), len(p_values)), dtype=bool)
        for number, level in enumerate(levels):
            for place, at in enumerate(np.argsort(p_values, kind="stable")):
                if p_values[at] > level / (len(p_values) - place):
                    break
                rejected[number, at] = True
        lowest = [levels[column].min() if column.any() else 1.0 for column in rejected.T]
        assert holm(p_values.tolist()) == pytest.approx(lowest, abs=1e-3)
    assert holm([]) == []
    for _, rows in study.contrasts().groupby(["pairs", "reach"]):
        assert rows["p_holm"].tolist() == pytest.approx(holm(rows["p_value"].tolist()))


def test_the_verdict_says_what_was_planted(study) -> None:
    said = study.verdict
    assert said.startswith("Freezing the slowest pairs of each of the top 2 heads changes log_prob of planted by -0.8")
    assert "at short range, mean over 4, 8 pairs; all 16 of their pairs, by -0.8" in said
    first, rest = said.split("More than random pairs of the same heads, at long range, cost: slowest -0.")[1].split(
        "Not shown to cost more than random pairs: "
    )
    assert "fastest" not in first
    assert rest.startswith("fastest +0.")
    assert (
        "The slowest pairs of these heads cost more than the slowest pairs of random heads in the same layers" in said
    )
    assert "together (Holm for 4 contrasts), there remain: slowest against random pairs (p = " in said
    assert "This excess is larger at long range than at short: -0." in said


def test_the_verdict_claims_no_more_than_was_planted() -> None:
    everywhere = planted_manipulation(slow_pairs_of_all).verdict
    assert "The slowest pairs of these heads are not shown to cost more than" in everywhere
    assert "More than random pairs of the same heads, at long range, cost: slowest -0." in everywhere
    assert "none can remain with 20 draws: n_random=80 is enough" in everywhere
    assert "not shown to be larger at long range" in everywhere
    assert "no short-range control" in planted_manipulation(slow_pairs_of_all, short=False).verdict
    none = planted_manipulation(nothing, noise=0.05).verdict
    assert "cost:" not in none
    assert "Not shown to cost more than random pairs: slowest" in none
    assert "are not shown to cost more than the slowest pairs of random heads" in none
    for units, rough in ((3, False), (4, True), (7, True), (8, False)):
        said = planted_manipulation(slow_pairs_of_all, units=units).verdict
        assert (f"Intervals over {units} units are rough: give 8 or more before you rely on them." in said) is rough
    unmoved = planted_manipulation(lambda *_: (1e-6, 1e-6), noise=0).verdict
    assert "changes log_prob of planted by 0.000 at long range" in unmoved
    assert "-0.000" not in unmoved
    few = planted_manipulation(slow_pairs_of_all, n_random=3).verdict
    assert "Undecided whether any cost more than random pairs" in few
    assert "Undecided whether they cost more than the slowest pairs of random heads" in few
    assert "no interval below 4 units" in planted_manipulation(slow_pairs_of_all, units=3).verdict
    assert planted_manipulation(slow_pairs_of_all, baseline=-3.0).verdict.startswith(
        "The model cannot do planted even as it is"
    )
    alone = planted_manipulation(slow_pairs_of_top, heads=8, top=8)  # no other heads are left
    assert "no random heads to compare with" in alone.verdict


def test_tables_say_where_changes_start_and_which_p_values_are_exact(study) -> None:
    answered = [*zip(study.values["log_prob"][0].tolist(), study.rows, strict=True)]
    answers = {reach: np.mean([one for one, row in answered if row["reach"] == reach]) for reach in ("long", "short")}
    level = f"As it is, it is long {answers['long']:.3f}, short {answers['short']:.3f}."
    drawn = "P-values of pairs are of a sample of 80 random rankings, not exact and at least 0.012; those of heads are "
    few = replace(study, provenance={**study.provenance, "settings": {"n_permuted": 100}})
    for one, said in ((study, "of a sample of 80"), (few, "exact, of all 80 permuted rankings that exist")):
        printed = "\n".join(map(str, PRINTED[MANIPULATION](one._content(), 10)))
        page = manipulation_section(one, 1, 60).paragraphs
        for shown in (printed, "\n".join(page), manipulation_files(one)["manipulation.md"]):
            assert f"Change of log_prob; negative is harm. {level}" in shown
            assert drawn + said in shown


def test_files_keep_everything_and_refuse_what_is_no_study(study, tmp_path) -> None:
    loaded = ManipulationStudy.load(study.save(tmp_path))
    assert (loaded.cells, loaded.heads, loaded.verdict) == (study.cells, study.heads, study.verdict)
    pd.testing.assert_frame_equal(loaded.contrasts(), study.contrasts())
    assert torch.equal(loaded.sizes, study.sizes)
    cells = [one for one in study.cells if one.kind != "dominant"]
    rows = [number for number, heads in enumerate(study.sets) if heads in {one.heads for one in cells}]
    values = {"log_prob": study.values["log_prob"][rows]}
    without = replace(study, sizes=None, cells=cells, values=values)
    assert ManipulationStudy.load(without.save(tmp_path / "without")).sizes is None
    assert "dominant" not in without.verdict
    none, *others = study.cells
    for wrong, message in (
        ({"how": "drop"}, "how must be freeze, zero, scale"),
        ({"how": "scale"}, "only the last has a factor"),
        ({"how": "scale", "factor": float("nan")}, "factor must be a finite number"),
        ({"cells": others}, "cells of no pair, the first"),
        ({"cells": [none, *(one for one in others if one.kind != "slowest")]}, "of the slowest pairs and of all pairs"),
        ({"cells": [*study.cells[:-1], replace(others[-1], heads=("L0H0",))]}, "a set of another kind: 'L0H0'"),
        ({"cells": [*study.cells, replace(others[0], kind="slow")]}, "got 'slow'"),
        ({"cells": [*study.cells, replace(others[-2], k=3)]}, "the numbers of pairs that those of the slowest have"),
        ({"heads": []}, "needs the heads"),
        ({"values": {}}, "a study needs values of a measure"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(study, **wrong)


def test_the_plot_and_the_report_show_every_kind(study) -> None:
    figure = views.dose_response(study)
    long, short = figure.axes[:2]
    assert long.get_title() == f"long range; as it is {float(study.effects()['effect'][0]):.3g}"
    lines = {line.get_label(): line.get_ydata() for line in long.get_lines()}
    effects = study.effects().query("reach == 'long'").set_index(["kind", "pairs"])["effect"]
    assert list(lines["slowest pairs"]) == [effects["slowest", 4], effects["slowest", 8]]
    assert list(lines["all pairs"]) == [effects["all pairs", 16]]
    assert [one.get_text() for one in short.get_xticklabels()] == ["4", "8", "16"]
    points = long.collections[0].get_offsets()
    assert len(points) == 2 * 80
    assert {"fastest pairs", "dominant pairs", "slowest pairs of random heads, mean"} <= lines.keys()
    with pytest.raises(ValueError, match="measure 'exact' is not in this study"):
        views.dose_response(study, "exact")
    text = manipulation_files(study)["manipulation.md"]
    assert study.verdict in text
    assert "| range | pairs | slowest | fastest | dominant | random pairs | random heads | all pairs |" in text
    assert "| kind | against | range |" in text
    section = manipulation_section(study, 1, 60)
    assert (section.title, section.verdict) == ("Rotary pairs frozen: planted", study.verdict)
    assert len(section.tables[0].rows) == 1 + 3 * 3
    command = manipulation_command(study)
    assert "--how=freeze --counts=4,8 --top=2 --n-random=80 --permutations=80 --seed=0 --out manipulation" in command
    own = replace(study, provenance=study.provenance | {"scores": {"rank_by": "mine"}})
    assert "# the command cannot rank heads by a measure of your own, mine" in manipulation_command(own)
    scaled = replace(study, how="scale", factor=0.5)
    assert "--how=scale --factor=0.5" in manipulation_command(scaled)
    assert scaled.verdict.startswith(
        "Scaling the frequencies of the slowest pairs of each of the top 2 heads by 0.5 changes"
    )
