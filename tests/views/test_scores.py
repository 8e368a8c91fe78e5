"""Pictures and tables show the record's own numbers."""

import io
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.text import Text

import positional_heads as ph
from positional_heads.core.heads import Head
from positional_heads.results.scores import NullScores
from positional_heads.views import allocation_curves, rho_distribution, rho_heat_map
from positional_heads.views.comparison import comparison as comparison_view
from positional_heads.views.comparison import stability as stability_view
from positional_heads.views.figures import Picture, name_points
from positional_heads.views.scores import LABELLED_CELLS
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_comparison import planted_nulls


def test_the_heat_map_shows_rho_and_dots_what_is_significant():
    scores = synthetic_scores()
    axes = rho_heat_map(scores).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), scores.rho.numpy())
    dots = axes.collections[0].get_offsets().round()
    assert dots.tolist() == [[3.0, 0.0]]
    assert [text.get_text() for text in axes.texts[-4:]] == ["n/a"] * 4
    assert axes.images[0].norm.vcenter == 0


def test_each_cell_is_labelled_with_its_own_rho_in_a_colour_that_can_be_read():
    axes = rho_heat_map(synthetic_scores()).axes[0]
    labels = {text.get_position(): text for text in axes.texts}
    assert len(labels) == 12
    assert (labels[2, 0].get_text(), labels[3, 0].get_text(), labels[0, 1].get_text()) == ("0.20", "0.40", "0.01")
    assert (labels[2, 0].get_color(), labels[3, 0].get_color()) == ("black", "white")  # 0.4 is the darkest cell


def test_dots_mark_exactly_the_heads_that_beat_their_null():
    scores = synthetic_scores()
    many = replace(
        scores,
        null=NullScores(scores.null.rho - 0.3 * (scores.rho > 0.1), scores.null.curve_mean, scores.null.curve_sd),
    )
    rows, columns = np.nonzero(many.beats_null().numpy())
    assert len(rows) == 3
    figure = rho_heat_map(many)
    axes = figure.axes[0]
    dots = {tuple(map(round, map(float, dot))) for dot in axes.collections[0].get_offsets()}
    assert dots == set(zip(columns.tolist(), rows.tolist(), strict=True))
    assert "dot: 3 of 8 heads beat their null (FDR 0.05)" in figure.get_suptitle()
    assert len(rho_heat_map(many, alpha=1e-12).axes[0].collections[0].get_offsets()) == 0


def test_every_plot_marks_heads_that_stay_and_counts_none_with_a_negative_rho_as_beating_its_null():
    """L0H3 stays, L1H3 does not, and L0H0 is less far below zero than its null."""
    scores = synthetic_scores()
    lower = torch.zeros(3, 4)
    lower[0, 0] = lower[1, 3] = 0.3
    scores = replace(scores, null=replace(scores.null, rho=scores.null.rho - lower))
    settings = scores.provenance["settings"] | {"control_keys": 4}
    control = replace(scores, rho=scores.rho - lower)
    scores = replace(scores, control=control, provenance=scores.provenance | {"settings": settings})
    assert int(scores.significant().sum()) == 3
    figure = rho_heat_map(scores)
    axes = figure.axes[0]
    marks = [[tuple(map(round, map(float, place))) for place in one.get_offsets()] for one in axes.collections]
    assert marks == [[(3, 1)], [(3, 0)]]
    assert "dot: 2 of 8 heads beat their null (FDR 0.05)\ndiamond: 1 of them stays without the" in figure.get_suptitle()
    figure = rho_distribution(scores)
    panel = figure.axes[1]
    points = {box.get_label(): box.lines[0].get_xydata()[:, 1].tolist() for box in panel.containers}
    assert points["beats its null, does not stay"] == [pytest.approx(0.15)]
    assert points["stays without the first 4 keys"] == [pytest.approx(0.4)]
    assert len(points["does not beat its null"]) == 6
    assert [text.get_text() for text in panel.texts] == ["L0H3"]
    assert "2 of 8 heads beat their null (FDR 0.05); 1 of them stays" in figure.legends[0].get_title().get_text()
    curves = allocation_curves(scores)
    assert [one.get_title().split(":")[0] for one in curves.axes if one.get_visible()] == ["L0H3", "L1H3"]
    named = replace(scores, provenance=scores.provenance | {"data": scores.provenance["data"] | {"texts": ["prose"]}})
    assert "made up, text prose" in rho_heat_map(named).get_suptitle()


def test_names_of_close_points_do_not_cover_each_other():
    panel = (figure := Picture(figsize=(4, 3), layout="constrained")).subplots()
    points = 0.001 * np.random.default_rng(0).normal(size=(40, 2))
    panel.plot(*np.concatenate([points, [[1, 1], [-1, -1]]]).T, "o")
    name_points(panel, points, [f"L{index}H11" for index in range(12)])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in panel.texts]  # without the line to its point
    assert len(boxes) == 12
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(panel.bbox.contains(*corner) for box in boxes for corner in (box.p0, box.p1))


def test_without_a_null_there_are_no_dots_and_no_band():
    scores = synthetic_scores(null=False)
    figure = rho_heat_map(scores)
    assert not figure.axes[0].collections
    assert len([axes for axes in figure.axes if axes.images]) == 1
    assert "no null was computed" in figure.get_suptitle()
    panel = allocation_curves(scores).axes[0]
    assert (len(panel.lines), len(panel.collections)) == (1, 0)


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (32, 40)])
def test_models_of_any_size_are_drawn_and_large_ones_without_labels(layers, heads):
    generator = torch.Generator().manual_seed(0)
    rho = torch.rand(layers, heads, generator=generator)
    curve = torch.rand(layers, heads, 5, generator=generator)
    per_layer = {"pair_counts": torch.ones(layers, 5, dtype=torch.long), "frequencies": torch.ones(layers, 4)}
    per_head = {"rho": rho, "rho_curve": rho, "curve": curve, "bound": rho}
    scores = replace(synthetic_scores(null=False, bootstrap=False), **per_layer, **per_head)
    axes = rho_heat_map(scores).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), rho.numpy())
    assert len(axes.texts) == (rho.numel() if rho.numel() <= LABELLED_CELLS else 0)
    assert 1 <= len(axes.get_xticks()) <= 32
    assert len(axes.get_xticks()) == len(set(axes.get_xticks()))
    assert len([panel for panel in allocation_curves(scores).axes if panel.get_visible()]) == min(4, rho.numel())


def test_a_model_without_any_score_is_drawn_as_unknown():
    scores = replace(synthetic_scores(null=False), rho=torch.full((3, 4), torch.nan))
    axes = rho_heat_map(scores).axes[0]
    assert [text.get_text() for text in axes.texts] == ["n/a"] * 12
    assert all(not panel.lines for panel in allocation_curves(scores).axes)


def test_the_band_is_two_standard_deviations_of_the_null():
    scores = synthetic_scores()
    (panel,) = allocation_curves(scores, [Head(0, 3)]).axes
    edge = panel.collections[0].get_paths()[0].vertices
    for distance in range(9):
        mean, sd = (float(part[0, 3, distance]) for part in (scores.null.curve_mean, scores.null.curve_sd))
        heights = edge[edge[:, 0] == distance][:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((mean - 2 * sd, mean + 2 * sd))


def test_curves_are_the_records_curves_with_their_null():
    scores = synthetic_scores()
    figure = allocation_curves(scores, [Head(0, 3), Head(1, 1)])
    for panel, head in zip(figure.axes, [Head(0, 3), Head(1, 1)], strict=True):
        assert panel.get_title().startswith(str(head))
        np.testing.assert_array_equal(panel.lines[0].get_ydata(), scores.curve[head].numpy())
        np.testing.assert_array_equal(panel.lines[1].get_ydata(), scores.null.curve_mean[head].numpy())


@pytest.mark.parametrize("head", [Head(3, 0), Head(0, 4), Head(-1, 0)])
def test_heads_that_do_not_exist_are_refused(head):
    with pytest.raises(ValueError, match=f"{head} does not exist: layers go from 0 to 2, heads to 3"):
        allocation_curves(synthetic_scores(), [head])


def test_heads_without_a_curve_are_refused_with_their_reason():
    with pytest.raises(ValueError, match=r"L2H1 has no curve to draw \(it has no rotary embedding\): leave it out"):
        allocation_curves(synthetic_scores(), [Head(0, 3), Head(2, 1)])


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("name", ["a $broken^{$ name", "<script>alert(1)</script>"])
def test_plots_draw_any_model_name(null, name):
    scores = synthetic_scores(null=null, name=name)
    for figure in (rho_heat_map(scores), allocation_curves(scores)):
        figure.savefig(buffer := io.BytesIO(), format="png")
        assert buffer.getvalue().startswith(b"\x89PNG")
    assert name in rho_heat_map(scores).get_suptitle()


def test_a_comparison_shows_both_sides_and_colours_what_differs():
    comparison = ph.compare(*planted_nulls(), names=["prose", "code"])
    figure = comparison_view(comparison, named=2)
    rho, excess = figure.axes
    shown = {line.get_label(): line for line in rho.lines}
    points = np.concatenate([box.lines[0].get_xydata() for box in rho.containers])
    expected = comparison.rho.flatten(1).T.numpy()
    assert sorted(map(tuple, points)) == sorted(map(tuple, expected))
    differing = next(box for box in rho.containers if box.get_label() == "differs significantly")
    np.testing.assert_allclose(differing.lines[0].get_xydata(), expected[comparison.changed.flatten().numpy()])
    segments = np.concatenate([bar.get_segments() for bar in differing.lines[2]])
    ends = comparison.intervals.flatten(1, 2)[:, comparison.changed.flatten()].numpy()
    np.testing.assert_allclose(segments[: ends.shape[1], :, 0], ends[0])
    np.testing.assert_allclose(segments[ends.shape[1] :, :, 1], ends[1])
    assert {text.get_text() for text in rho.texts} == {"L0H1", "L0H3"}
    x, y = shown["equal in both"].get_data()
    np.testing.assert_array_equal(x, y)
    rings = {ring.get_label(): len(ring.get_offsets()) for ring in excess.collections if ring.get_label()[0] != "_"}
    assert rings == {"beats its null in both": 1, "beats its null in one": 3}
    assert (rho.get_xlabel(), rho.get_ylabel()) == ("rho in prose", "rho in code")


def test_a_comparison_without_nulls_has_one_panel():
    a, b = planted_nulls()
    assert len(comparison_view(ph.compare(replace(a, null=None), b)).axes) == 1


def test_names_of_results_may_hold_anything(tmp_path):
    hostile = "$x_{ \0\ud800 <b>"
    a, b = planted_nulls()
    comparison, stability = ph.compare(a, b, names=["a", hostile]), ph.compare_all({"a": a, hostile: b})
    for result, view in ((comparison, comparison_view), (stability, stability_view)):
        view(result).savefig(io.BytesIO(), format="png")
        assert (tmp_path / result.saved_as.file_name) in ph.views.write_report(result, tmp_path)


def test_results_side_by_side_show_rho_and_dot_the_heads_that_beat_their_null():
    a, b = planted_nulls()
    stability = ph.compare_all({"prose": a, "code": b})
    axes = stability_view(stability).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["L0H0", "L0H2", "L0H1", "L0H3"]
    np.testing.assert_array_equal(axes.images[0].get_array(), stability.rho[:, 0, [0, 2, 1, 3]].T.numpy())
    dots = {tuple(map(round, map(float, dot))) for dot in axes.collections[0].get_offsets()}
    assert dots == {(0, 0), (1, 0), (0, 1), (0, 2), (1, 3)}
    assert "the first 2 of 4" in stability_view(stability, rows=2).axes[0].get_title()


def test_results_side_by_side_ring_the_heads_that_fall_without_the_first_keys():
    a, b = planted_nulls()
    a, b = replace(a, control=replace(a)), replace(b, control=replace(b, rho=b.rho - 0.3))
    axes = stability_view(ph.compare_all({"prose": a, "code": b})).axes[0]
    full, rings = ({tuple(map(round, map(float, dot))) for dot in one.get_offsets()} for one in axes.collections)
    assert full == {(0, 0), (0, 1), (0, 2)}
    assert rings == {(1, 0), (1, 3)}
    assert "ring: only with the first keys" in axes.get_title()
