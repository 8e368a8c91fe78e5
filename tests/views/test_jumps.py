"""Saved jump studies and distance responses are printed by `show`, and have a place on the report's page."""

import ast
import inspect
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.views.jumps import predicted_steps, responses_by_rho
from positional_heads.views.report.lines import jump_lines, response_lines
from tests.laws.test_reprs import distance_response
from tests.support.synthetic_distances import synthetic_distances
from tests.support.synthetic_emergence import planted_emergence
from tests.support.synthetic_studies import planted_jumps

MODEL = {"name": "bundled", "layers": 3, "heads": 4, "context": 512, "weights": "abc"}
DATA = {"sequences": 8, "longest": 80, "sha256": "def"}
USED = {"samples": 1024, "pairs": None, "seed": 3, "measured": 4, "predicting": 4}
TURNED = {"factors": [0.5, 2.0], "pairs": None, "n": 2, "n_random": 2, "sinks": 4, "seed": 3, "layers": [0, 1]}
SECTIONS = {
    "JumpStudy": "Steps of D at the training length",
    "DistanceResponse": "What turning pairs does to the reach",
}


def records():
    jumps, response = planted_jumps(), distance_response()
    return [
        replace(jumps, provenance={"model": MODEL, "data": DATA, "settings": USED}),
        replace(response, provenance={"model": MODEL, "data": DATA, "settings": TURNED}),
    ]


@pytest.mark.parametrize("record", records(), ids=lambda record: type(record).__name__)
def test_a_saved_record_is_shown_and_on_the_page(record, tmp_path):
    record.save(tmp_path)
    for place in (tmp_path, tmp_path / record.saved_as.file_name):
        shown = CliRunner().invoke(app, ["show", str(place), "--top", "3"])
        assert shown.exit_code == 0, shown.output
        assert record.verdict in shown.stdout
    column = {"JumpStudy": "step", "DistanceResponse": "response"}[type(record).__name__]
    frame = record.to_frame()
    size = frame[column].abs() if column == "step" else frame[column]
    largest = frame.loc[size.sort_values(ascending=False).index[:3]]
    lines = shown.stdout.splitlines()
    rows = [line.split() for line in lines if line.split()[:1] and line.split()[0] in set(frame["name"])]
    assert [(row[0], float(row[1])) for row in rows] == [
        (name, pytest.approx(value, abs=5e-4)) for name, value in zip(largest["name"], largest[column], strict=True)
    ]
    written = {file.name for file in ph.views.write_report(record, tmp_path)}
    page = unescape(ph.views.write_report_page(tmp_path).read_text())
    assert {file.name for file in tmp_path.iterdir()} == written | {"report.html"}
    for shown in (page, next(tmp_path.glob("*.md")).read_text()):
        assert SECTIONS[type(record).__name__] in shown
        assert record.verdict in shown
    assert "This folder has no ablation study" not in page


def test_points_are_the_heads():
    jumps, response = records()
    drawn = {line.get_label(): line for line in predicted_steps(jumps).axes[0].get_lines()}
    np.testing.assert_array_equal(drawn["rotation alone"].get_xydata(), jumps.to_frame()[["predicted", "step"]])
    drawn = {line.get_label(): line for line in responses_by_rho(response).axes[0].get_lines()}
    np.testing.assert_array_equal(drawn["dominant pairs"].get_xydata(), response.to_frame()[["rho", "response"]])
    np.testing.assert_array_equal(drawn["other pairs, mean"].get_xydata(), response.to_frame()[["rho", "others"]])


@pytest.mark.parametrize(("lines", "verb"), [(jump_lines, ph.jump_study), (response_lines, ph.distance_response)])
def test_the_lines_call_the_function_with_its_settings(lines, verb):
    jumps, response = records()
    record, used = (jumps, USED) if verb is ph.jump_study else (response, TURNED)
    calls = [one for one in ast.walk(ast.parse(lines(record))) if isinstance(one, ast.Call)]
    (call,) = [one for one in calls if ast.unparse(one.func) == f"ph.{verb.__name__}"]
    given = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    inspect.signature(verb).bind("model", "tokens", **given)
    for name, value in given.items():
        assert value == {**used, "training_length": 64, "null_repeats": 6}.get(name, value), name
    assert set(given) >= ({"training_length", "samples", "seed"} if verb is ph.jump_study else {"factors", "n", "seed"})
    if verb is ph.distance_response:
        assert given.get("heads", [str(head) for head in response.heads]) == [str(head) for head in response.heads]


def test_intervals_over_few_sequences_are_called_rough():
    few = "Intervals over 5 groups of sequences are rough: give 8 or more before you rely on them."
    for verdict in (distance_response().verdict, planted_emergence().verdict, synthetic_distances().verdict):
        assert few in verdict


def test_of_few_heads_nothing_is_said_to_follow():
    assert planted_jumps(heads=6).verdict == "Undecided: 6 heads are too few for intervals, which need 8."
