"""`positional-heads distances`: what it prints and writes, and its place on the report page."""

import shlex
from html import unescape

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.cli import distances as cli_distances
from positional_heads.results.distance_tables import DISTANCE_COLUMNS, DISTANCE_MEANINGS, SHOWN_AS
from positional_heads.results.tables import MEANINGS, title
from positional_heads.views.report.commands import distance_command
from positional_heads.views.report.lines import distance_lines
from tests.support.synthetic_distances import synthetic_distances

OPTIONS = "--length 64 --sequences 2 --window 16 --sinks 2 --seed 3"


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory, bundled):
    folder = tmp_path_factory.mktemp("cli") / "distances"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_distances, "load_named", lambda *_, **__: bundled)
        done = invoke("distances", "bundled", "--text", "bundled", *OPTIONS.split(), "--out", folder)
    assert done.exit_code == 0, done.output
    return folder, done


def test_the_command_makes_the_record_that_the_function_makes(made, bundled):
    folder, done = made
    tokens = ph.cut_text(bundled, ph.bundled_text(), 64, sequences=2, seed=3)
    profile = ph.distance_profile(bundled, tokens, window=16, sinks=2)
    found = ph.DistanceProfile.load(folder)
    pd.testing.assert_frame_equal(found.to_frame(), profile.to_frame())
    assert found.provenance == profile.provenance
    assert sorted(file.name for file in folder.iterdir()) == [
        *("distance_curves.csv", "distances.csv", "distances.md", "distances.png", "distances.safetensors"),
    ]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "distances.csv"), profile.to_frame(), atol=1e-12)
    curves = pd.read_csv(folder / "distance_curves.csv")
    pd.testing.assert_frame_equal(curves, profile.curves(), atol=1e-12)
    assert profile.verdict in done.output
    assert invoke("show", folder).stdout == done.stdout


def test_the_page_repeats_the_command_and_the_lines(made, bundled, tmp_path):
    folder, _ = made
    profile = ph.DistanceProfile.load(folder)
    command = distance_command(profile.provenance)
    assert shlex.split(command.splitlines()[0])[1:] == [
        *("distances", "bundled", "--text", "bundled:revelation", "--sequences", "2", "--length", "64"),
        *("--window", "16", "--sinks", "2", "--seed", "3", "--out", "distances"),
    ]
    page = unescape(ph.views.write_report_page(folder, tmp_path / "page.html").read_text())
    for said in (profile.verdict, command, distance_lines(profile.provenance), "far content and far positions"):
        assert said in page
    spaces = {"ph": ph, "__name__": "lines"}
    exec(distance_lines(profile.provenance), spaces)
    assert torch.equal(spaces["profile"].mass, profile.mass)


def test_every_column_is_explained():
    frame = synthetic_distances().to_frame()
    known = {*MEANINGS, *DISTANCE_MEANINGS}
    assert {SHOWN_AS.get(name, name) for name in DISTANCE_COLUMNS if name in frame} - {"name"} <= known
    assert title("head_reach") == "reach"


def test_curves_are_drawn_of_the_heads_asked_for():
    profile = synthetic_distances()
    panels = ph.views.distance_curves(profile, "L1H0").axes
    assert [line.get_label() for line in panels[0].lines[:1]] == ["L1H0"]
    drawn = torch.from_numpy(panels[0].lines[0].get_ydata())
    torch.testing.assert_close(drawn, profile.mass[1, 0] / profile.even_mass[1])
    assert len(panels) == 3
    assert len(ph.views.distance_curves(synthetic_distances(dominant=False)).axes) == 2
    with pytest.raises(ValueError, match=r"L2H0 was not profiled \(it has no attention\): leave it out"):
        ph.views.distance_curves(profile, "L2H0")
    with pytest.raises(ValueError, match="no heads to show"):
        ph.views.distance_curves(profile, [])


@pytest.mark.parametrize(
    ("spread", "limits", "labels"),
    [
        (0.001, (0.45, 2.3), ["0.5", "1", "2"]),
        (1.0, (0.09, 11.5), ["0.1", "0.2", "0.5", "1", "2", "5", "10"]),
        (5.0, (0.009, 115_000), ["0.01", "0.1", "1", "10", "100", "1000", "10000", "100000"]),
    ],
)
def test_ratios_have_a_log_axis_that_shows_one_half_to_two_and_readable_ticks(spread, limits, labels):
    profile = synthetic_distances(name="a model with a very long name " * 2)
    decades = spread * torch.tensor([-1, -0.5, 0, 0.5, 1], dtype=torch.float64)
    profile.mass[0, 0] = profile.even_mass[0] * 10**decades
    profile.mass[0, 1] = 0  # a head that attends to sinks alone
    figure = ph.views.distance_curves(profile, ["L0H0", "L0H1"])
    figure.draw_without_rendering()
    panel, last = figure.axes[0], figure.axes[-1]
    low, high = panel.get_ylim()
    assert limits[0] <= low < min(0.5, limits[0] * 1.2)
    assert max(2, limits[1] / 1.2) < high <= limits[1]
    assert [label.get_text() for label in panel.get_yticklabels()] == labels
    assert [label.get_text() for label in last.get_xticklabels()] == ["0", "1", "2", "5", "10"]
    assert panel.lines[0].get_xdata().tolist() == [0.5, 1, 2.5, 5.5, 11.5]
    title = figure.legends[0].get_title().get_window_extent()
    assert figure.bbox.x0 <= title.x0 < title.x1 <= figure.bbox.x1


def test_heads_are_long_range_where_their_whole_interval_is_beyond_even_attention():
    profile = synthetic_distances()
    low = profile.interval("reach")[..., 0]
    expected = {head for head in profile.heads if float(low[head]) > 8.8}
    assert {*profile.long_range} == expected
    few = synthetic_distances(groups=3)
    assert {*few.long_range} == {head for head in few.heads if float(few.values("reach")[head]) > 8.8}
    assert "without an interval, for want of sequences" in few.verdict
