"""Tracks and the report of an emergence study show what is in it, and a command that makes it again."""

import math
import shlex
from dataclasses import replace
from html import unescape

import pytest
import typer
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.views.report.emergence import emergence_command
from tests.support.synthetic_emergence import STEPS, TRACKS, planted_emergence

RULES = ("half-way", "above chance")


@pytest.fixture(scope="module")
def study():
    return planted_emergence()


def test_tracks_have_every_head_the_births_the_loss_and_the_task(study):
    top, loss, task = ph.views.emergence_tracks(study, "rho", most=3).axes
    lines = {line.get_label(): line for line in top.get_lines()}
    named = [label for label in lines if label.startswith("L")]
    assert named == ["L0H0", "L0H1", "L0H2"]  # the highest at the end
    for name in named:
        assert [*lines[name].get_xdata()] == [*STEPS]
        assert lines[name].get_ydata().tolist() == list(TRACKS[ph.Head.parse(name)])
    markers = {float(line.get_xdata()[0]) for line in top.get_lines() if line.get_markersize() == 7}
    assert markers == {0.0, 100.0, 1000.0}
    tracks = [line for line in top.get_lines() if len(line.get_xdata()) == len(STEPS)]
    assert len(tracks) == 8  # the other five in grey; layer 2 has no score
    frame = study.step_frame()
    assert loss.get_lines()[0].get_ydata().tolist() == frame["loss"].tolist()
    assert task.get_lines()[0].get_ydata().tolist() == frame["log_prob"].tolist()
    births = study.births("rho").query("kind == 'skill'")["step"]
    drawn = {float(line.get_xdata()[0]) for line in task.get_lines()[1:]}
    assert drawn == {step for step in births if math.isfinite(step)}
    assert task.get_xscale() == "symlog"
    assert [label.get_text() for label in task.get_xticklabels()] == [str(step) for step in STEPS]


def test_births_are_not_hidden_by_each_other_or_by_the_frame(study):
    panel = ph.views.emergence_tracks(study).axes[-1]
    width = panel.transAxes.inverted().transform(panel.transData.transform([(step, -1.0) for step in STEPS]))[:, 0]
    assert 0.02 < width[0] < 0.06
    assert 0.94 < width[-1] < 0.98
    below, above = (next(one for one in panel.get_lines() if one.get_label() == f"skill {rule}") for rule in RULES)
    assert below.get_linewidth() > 2 * above.get_linewidth()
    assert below.get_zorder() < above.get_zorder()


def test_the_report_says_which_heads_are_coloured_and_what_births_go_by(study, tmp_path):
    judged = study.judged_by("rho", 0.3)
    assert judged.births("rho", threshold=0.3).equals(judged.own_births())
    assert "4 have a rho of at least 0.3 from some step to the end" in judged.verdict
    ph.views.write_report(judged, tmp_path)
    ph.views.write_report_page(tmp_path)
    figure = ph.views.emergence_tracks(judged)
    named = [line.get_label() for line in figure.axes[0].get_lines() if line.get_label().startswith("L")]
    for page in ("emergence.md", "report.html"):
        text = unescape((tmp_path / page).read_text())
        assert f"In colour, the heads with the highest rho at the last checkpoint: {', '.join(named)}; all" in text
        assert "from which on, to the end, it is among those that have a rho of at least 0.3." in text
        assert judged.verdict in text
    assert "--births=rho --threshold=0.3" in emergence_command(judged)
    shown = CliRunner().invoke(app, ["show", str(tmp_path)]).output
    assert "among those that have a rho of at least 0.3." in shown
    assert judged.verdict in shown
    loaded = ph.EmergenceStudy.load(tmp_path)
    assert (loaded.default_measure, loaded.default_threshold) == ("rho", 0.3)


def test_without_task_or_null_there_are_fewer_panels():
    figure = ph.views.emergence_tracks(planted_emergence(task=False, null=False))
    assert len(figure.axes) == 2
    assert figure.axes[0].get_ylabel() == "rho"
    with pytest.raises(ValueError, match="most -1 must be at least 0"):
        ph.views.emergence_tracks(planted_emergence(task=False), most=-1)


def test_the_report_has_a_section_with_its_verdict_and_tables(study, tmp_path):
    written = {file.name for file in ph.views.write_report(study, tmp_path)}
    assert {"emergence.safetensors", "heads_by_step.csv", "births.csv", "order.csv", "emergence.md"} <= written
    text = (tmp_path / "emergence.md").read_text()
    assert study.verdict in text
    page = unescape(ph.views.write_report_page(tmp_path).read_text())
    assert "Heads through training" in page
    assert study.verdict in page
    assert "A birth lies between two checkpoints" in page
    assert "positional-heads emerge runs" in page


def test_the_command_makes_the_same_study_again(study):
    words = shlex.split(emergence_command(study).splitlines()[0])
    context = typer.main.get_command(app).commands["emerge"].make_context("emerge", words[2:])
    given = {"checkpoints": "runs", "null_repeats": 6, "seed": 0, "task": "passkey", "task_length": [64], "depths": 2}
    given |= {"examples": 4, "retrieval": "passkey", "retrieval_examples": 5, "sequences": 5, "length": 9}
    for name, value in given.items():
        found = context.params[name]
        assert (list(found) if name == "task_length" else found) == value, name
    hub = replace(study, provenance=study.provenance | {"source": {"model": "a/b", "revisions": ["step0", "step100"]}})
    words = shlex.split(emergence_command(hub).splitlines()[0])
    assert words[2:4] == ["a/b", "--revisions=step0,step100"]
    functions = replace(study, provenance=study.provenance | {"source": None})
    assert "# these checkpoints were not of one folder" in emergence_command(functions)
