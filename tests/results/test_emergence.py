"""Births of heads and of a skill, and their order, as plain Python and SciPy find them in planted tracks."""

import math
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from positional_heads.core.heads import Head
from positional_heads.core.statistics import bootstrap_weights
from positional_heads.results.emergence import EmergenceStudy
from positional_heads.results.emergence_checks import check_emergence
from positional_heads.results.files import ResultFileError, write_result
from tests.support.synthetic_emergence import LEVELS, STEPS, TRACKS, UNITS, planted_emergence

BORN = {"L0H0": 0.0, "L0H1": 100.0, "L0H2": 1000.0, "L1H0": 4000.0, "L1H1": math.inf}
STEP_OF = [*map(float, STEPS), math.inf]
"""Steps of the planted births, by hand."""


@pytest.fixture(scope="module")
def study():
    return planted_emergence()


def born(track):
    return next((first for first in range(len(track)) if all(track[first:])), len(track))


def ends(drawn, level=0.95):
    """Ends of an interval, without interpolation, outwards."""
    ordered, last = sorted(drawn), len(drawn) - 1
    return ordered[math.floor(last * (1 - level) / 2 + 1e-9)], ordered[math.ceil(last * (1 + level) / 2 - 1e-9)]


def resampled_rho(study, head):
    """rho of one head in each resample and step, with a spread as over samples."""
    for one in study.scores.values():
        rho, groups = float(one.rho[head]), 5
        yield [
            rho + (float(x) - rho) * math.sqrt(groups / (groups - 1))
            for x in one.bootstrap_rho[:, head.layer, head.head]
        ]


@pytest.mark.parametrize("measure", ["excess", "rho"])
def test_planted_births_are_found(study, measure):
    found = study.births(measure).query("kind == 'head'").set_index("name")
    assert list(found.index) == [str(Head(layer, head)) for layer in range(2) for head in range(4)]
    for name, row in found.iterrows():
        assert row["step"] == BORN.get(name, math.inf), name
        assert row["low"] <= row["step"] <= row["high"], name
    assert found.loc["L0H1", "born"] == 1
    assert found.loc["L1H1", "born"] < 0.05


def test_the_interval_of_a_birth_by_rho_holds_the_births_of_resamples(study):
    found = study.births("rho", threshold=0.47).query("kind == 'head'").set_index("name")
    wide = 0
    for head in TRACKS:
        drawn = [*zip(*resampled_rho(study, head), strict=True)]
        births = [born([x >= 0.47 for x in track]) for track in drawn]
        low, high = ends(births)
        row = found.loc[str(head)]
        assert (row["low"], row["high"]) == (STEP_OF[low], STEP_OF[high]), head
        assert row["born"] == pytest.approx(sum(one < 4 for one in births) / len(births))
        wide += row["low"] != row["high"]
    assert wide >= 3  # the threshold is within the spread of rho


def beats_null(rho, null, variance, groups):
    """Heads that beat their null in one resample: Welch's t, then Benjamini and Hochberg, one head at a time."""
    p_values = {}
    for head, x in rho.items():
        shuffles, sequences = np.var(null[head], ddof=1) * (1 + 1 / len(null[head])), variance[head]
        freedom = (shuffles + sequences) ** 2 / (shuffles**2 / (len(null[head]) - 1) + sequences**2 / (groups - 1))
        p_values[head] = stats.t.sf((x - np.mean(null[head])) / math.sqrt(shuffles + sequences), freedom)
    ordered = sorted(p_values, key=p_values.get)
    passing = [rank for rank, head in enumerate(ordered, 1) if p_values[head] <= 0.05 * rank / len(ordered)]
    kept = ordered[: max(passing, default=0)]
    return {head for head in kept if rho[head] > 0 and rho[head] > np.mean(null[head])}


def test_the_interval_of_a_birth_by_excess_holds_the_births_of_resamples():
    made = planted_emergence(seed=3)
    weak = {
        step: replace(one, rho=0.2 * one.rho, bootstrap_rho=one.bootstrap_rho - 0.8 * one.rho)
        for step, one in made.scores.items()
    }
    study = replace(made, scores=weak)
    heads = [Head(layer, head) for layer in range(2) for head in range(4)]
    beating = []
    for one in study.scores.values():
        null = {head: one.null.rho[:, head.layer, head.head].double().numpy() for head in heads}
        resampled = {head: one.bootstrap_rho[:, head.layer, head.head].double().numpy() for head in heads}
        variance = {head: resampled[head].var(ddof=1) * 5 / 4 for head in heads}
        drawn = []
        for index in range(len(one.bootstrap_rho)):
            rho = {}
            for head in heads:
                mean = float(one.rho[head])
                rho[head] = mean + (resampled[head][index] - mean) * math.sqrt(5 / 4)
            drawn.append(beats_null(rho, null, variance, 5))
        beating.append(drawn)
    found = study.births().query("kind == 'head'").set_index("name")
    several = 0
    for head in heads:
        births = [born([head in step[index] for step in beating]) for index in range(200)]
        low, high = ends(births)
        row = found.loc[str(head)]
        assert (row["low"], row["high"]) == (STEP_OF[low], STEP_OF[high]), head
        assert row["born"] == pytest.approx(sum(one < 4 for one in births) / 200)
        several += len(set(births)) > 1
    assert several >= 4


def unit_means(study):
    long = [index for index, row in enumerate(study.rows) if row["reach"] == "long"]
    return [
        [np.mean([values[index] for index in long if study.rows[index]["unit"] == unit]) for unit in range(UNITS)]
        for values in study.values["log_prob"].tolist()
    ]


def test_the_skill_is_born_half_way_from_chance_and_above_it(study):
    found = study.births().query("kind == 'skill'").set_index("name")
    assert list(found.index) == ["passkey, half-way", "passkey, above chance"]
    means = [np.mean(units) - -2.0 for units in unit_means(study)]
    half = born([mean >= means[-1] / 2 for mean in means])
    assert found.loc["passkey, half-way", "step"] == STEP_OF[half] == 1000  # of LEVELS, -0.9 is past -1.05
    weights = bootstrap_weights(UNITS, 200, 1).tolist()
    drawn = [
        [sum(w * (x + 2) for w, x in zip(weight, units, strict=True)) / UNITS for units in unit_means(study)]
        for weight in weights
    ]
    low, high = ends([born([x >= track[-1] / 2 for x in track]) for track in drawn])
    assert (STEP_OF[low], STEP_OF[high]) == tuple(found.loc["passkey, half-way", ["low", "high"]])
    frame = study.step_frame().set_index("step")
    above = born([low > -2 for low in frame["log_prob_low"]])
    assert found.loc["passkey, above chance", "step"] == STEP_OF[above]
    exact = study.births(skill="exact").query("kind == 'skill'").set_index("name")
    assert exact.loc["passkey, half-way", "step"] in {1000, 4000}
    with pytest.raises(ValueError, match=r"skill 'x' is no measure of this study: choose one of log_prob, exact"):
        study.births(skill="x")


def test_a_skill_at_chance_is_not_born_however_it_moves(study):
    flat = replace(
        study,
        values={
            "log_prob": study.values["log_prob"] * 0
            - 2
            + torch.randn(4, 24, generator=torch.Generator().manual_seed(1)).double()
        },
    )
    found = flat.births().query("kind == 'skill'")
    assert found["step"].tolist() == [math.inf, math.inf]
    assert "is not born by the last checkpoint" in flat.verdict
    right = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)[:, None].expand(4, 24)
    ones = replace(study, values={"exact": right})
    certain = ones.births().query("kind == 'skill'")
    assert certain["step"].tolist() == [1000, 1000]
    assert certain[["low", "high", "born"]].isna().all(axis=None)  # all units say the same
    assert set(ones.order()["first"]) == {"unknown"}
    unknown = replace(study, chance={})  # then it is compared with the first checkpoint, by unit
    assert unknown.births().query("kind == 'skill'")["step"].tolist()[0] == 1000


def test_order_compares_each_head_with_the_skill(study):
    order = study.order().set_index("name")
    assert list(order.index) == ["L0H0", "L0H1", "L0H2", "L1H0"]  # the earliest first; L1H1 is not born
    assert order["difference"].tolist() == [-1000, -900, 0, 3000]
    assert order["first"].tolist() == ["head", "head", "undecided", "skill"]
    assert set(study.order(rule="above chance")["skill_step"]) <= {100, 1000}
    never = replace(study, values={"log_prob": study.values["log_prob"] * 0 - 3})
    assert set(never.order()["first"]) <= {"head", "unknown"}
    assert never.order()["difference"].tolist() == [-math.inf] * 4
    with pytest.raises(ValueError, match="has no task"):
        planted_emergence(task=False).order()


def test_retrieval_heads_are_born_where_the_mean_over_answered_examples_is_high_enough(study):
    found = study.births("retrieval").query("kind == 'head'").set_index("name")
    assert found.loc["L1H2", "step"] == 1000
    assert (found["step"].drop("L1H2") == math.inf).all()
    everything = study.births("retrieval", threshold=0.0).query("kind == 'head'")
    assert set(everything["step"]) == {100}  # not 0, where nothing is answered
    with pytest.raises(ValueError, match="no retrieval scores: run it with retrieval='passkey'"):
        replace(study, retrieval=None).births("retrieval")


def test_without_resamples_or_null_it_says_what_is_not_known(study):
    single = replace(study, scores={step: replace(one, bootstrap_rho=None) for step, one in study.scores.items()})
    assert single.births("rho").query("kind == 'head'")[["low", "high", "born"]].isna().all(axis=None)
    assert set(single.order()["first"]) == {"unknown"}
    assert "is not known: there are fewer than four units" in single.verdict
    plain = planted_emergence(null=False)
    with pytest.raises(ValueError, match="null_repeats=20"):
        plain.births()
    assert plain.verdict.startswith("Which heads are more than geometry is not known")
    assert "have a rho of at least 0.2 from some step to the end" in plain.verdict
    with pytest.raises(ValueError, match="threshold goes with rho and retrieval"):
        study.births(threshold=0.1)


def test_the_verdict_says_what_is_inherent_and_what_came_first(study):
    said = study.verdict
    beating = [int(one.beats_null().sum()) for one in study.scores.values()]
    assert (beating[0], beating[-1]) == (3, 4)
    assert said.startswith(
        "3 of 8 heads beat their null at step 0, 4 at step 4000 (false discovery rate 0.05 in each)."
    )
    assert "What step 0 shows is not learned" in said
    assert "4 beat their null from some step to the end, 1 of them from the first checkpoint on; the first at" in said
    assert "Of the 4 heads that are born, 2 came before half of the skill did, 1 after it, 1 cannot be told" in said
    assert "An order in time shows no cause." in said
    later = replace(study, scores={step + 5: one for step, one in study.scores.items()})
    assert "not untrained" in later.verdict


def test_the_loss_of_a_step_is_the_mean_over_tokens(study):
    frame = study.step_frame()
    weights = [8, 8, 8, 5, 3]
    for row, losses in zip(frame.to_dict("records"), study.loss.tolist(), strict=True):
        expected = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
        assert row["loss"] == pytest.approx(expected)
        assert row["loss_low"] < expected < row["loss_high"]
    assert frame["log_prob"].tolist() == pytest.approx([np.mean(units) for units in unit_means(study)])
    assert frame["log_prob"].tolist() == pytest.approx(LEVELS, abs=0.1)
    table = study.to_frame()
    assert len(table) == len(STEPS) * 12
    assert table.query("step == 1000 and name == 'L1H2'")["retrieval"].item() == pytest.approx(
        study.retrieval[2, :, 1, 2].mean().item()
    )


EDITED = {
    "steps": (lambda content: content | {"steps": content["steps"][::-1]}, "steps must be ascending whole numbers"),
    "rows": (lambda content: content | {"rows": [{"unit": "a"}] * 24}, "each answer has a unit and a reach"),
    "task": (lambda content: content | {"task": ""}, "a study with a task has its name, answers and measures"),
}


@pytest.mark.parametrize("case", EDITED)
def test_a_file_that_somebody_edited_is_refused(case, study, tmp_path):
    import safetensors.torch

    change, message = EDITED[case]
    tensors = {name: tensor.contiguous().clone() for name, tensor in study._tensors().items()}
    write_result(
        tmp_path / "emergence.safetensors", safetensors.torch.save(tensors), change(study._content()), study.saved_as
    )
    with pytest.raises(ResultFileError, match=message):
        EmergenceStudy.load(tmp_path)


CHANGED = {
    "loss": ({"tokens": torch.ones(4).long()}, r"loss \(4, 5\) does not fit 4 checkpoints and 4 sequences"),
    "retrieval": ({"retrieval": torch.zeros(4, 5, 2, 4)}, r"retrieval .* does not fit 4 checkpoints"),
    "values": ({"values": {"exact": torch.zeros(2, 24).double()}}, "values of exact must be 4 x 24 float64"),
    "notes": ({"notes": "none"}, "notes must be a list of sentences"),
    "chance": ({"chance": {"exact": "x"}}, "chance of 'exact' must be a finite number, got 'x'"),
    "scores": ({"scores": {}}, "steps must be ascending whole numbers"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_shapes_that_do_not_fit_are_refused(case, study):
    changed, message = CHANGED[case]
    own = {field.name: getattr(study, field.name) for field in fields(study)}
    check_emergence(SimpleNamespace(**own))
    with pytest.raises(ValueError, match=message):
        check_emergence(SimpleNamespace(**own | changed))
