"""Plots hold the records' own numbers, name them with their units, and can be drawn whatever a name holds."""

import io
import math
import re
from dataclasses import replace

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter

from positional_heads import views
from positional_heads.core.heads import Head
from positional_heads.results.profile import ContributionProfile
from positional_heads.results.scores import HeadScores, NullScores
from positional_heads.views.figures import Picture, interpolated, readable, token_count, wavelength_axis
from positional_heads.views.scores import NAMED, WIDEST_LABELLED
from tests.support.planted_plans import SHAPE, planted_plans
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_profile import synthetic_profile
from tests.support.synthetic_recommendation import planted_recommendation
from tests.support.synthetic_studies import LAYERS, all_heads, planted_extrapolation, planted_study

HOSTILE = "$x_{$ </svg><script>alert(1)</script>\0\ud800\n\\frac" + "x" * 300


def profile(name: str = "made up", frequencies: torch.Tensor | None = None) -> ContributionProfile:
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(3, 4, 50, generator=generator, dtype=torch.float64)
    mean[1] = torch.nan
    turns = 10.0 ** -torch.arange(4, dtype=torch.float64) if frequencies is None else frequencies
    return ContributionProfile(
        heads=[Head(0, 1), Head(2, 0), Head(1, 1)],
        mean=mean,
        unrotated=torch.zeros(3, 50, dtype=torch.float64),
        pair_counts=torch.arange(50, 0, -1) * torch.tensor([[1], [0], [1]]),
        edges=torch.arange(51),
        frequencies=turns.repeat(3, 1),
        provenance={"model": {"name": name}},
    )


def scores_of(rho: torch.Tensor, null: NullScores | None = None) -> HeadScores:
    """A result with these scores, of any number of layers and heads."""
    layers, heads = rho.shape
    return replace(
        synthetic_scores(null=False, bootstrap=False),
        rho=rho,
        rho_curve=rho,
        bound=rho,
        saturation=rho.abs(),
        curve=torch.zeros(layers, heads, 9).double(),
        pair_counts=torch.ones(layers, 9, dtype=torch.long),
        frequencies=torch.ones(layers, 4).double(),
        null=null,
        reasons={},
    )


def study(name: str = "planted"):
    effects = np.full((LAYERS, 8), -0.1)
    made = planted_study(effects, effects, all_heads(), n_random=3, units=6)
    return replace(made, task=name, provenance=made.provenance | {"model": {"name": name}})


def plans(name: str = "planted"):
    costs = np.arange(24).reshape(SHAPE) / 100
    measures = {"good": costs, f"by {readable(name)}": -costs}
    made = planted_plans(costs, measures, budgets=(0.25, 0.75), units=6, n_random=3)
    return replace(made, task=name, provenance=made.provenance | {"model": {"name": name}})


FIGURES = {
    "rho_heat_map": lambda name: views.rho_heat_map(synthetic_scores(name=name)),
    "allocation_curves": lambda name: views.allocation_curves(synthetic_scores(name=name)),
    "rho_distribution": lambda name: views.rho_distribution(synthetic_scores(name=name)),
    "contribution_by_distance": lambda name: views.contribution_by_distance(profile(name)),
    "profile_maps": lambda name: views.profile_maps(synthetic_profile(name=name)),
    "measure_correlations": lambda name: views.measure_correlations(synthetic_profile(name=name)),
    "pair_curves": lambda name: views.pair_curves(synthetic_profile(name=name)),
    "dose_response": lambda name: views.dose_response(study(name)),
    "loss_by_budget": lambda name: views.loss_by_budget(plans(name)),
    "loss_by_factor": lambda name: views.loss_by_factor(planted_recommendation(name=name)),
    "extrapolation_curves": lambda name: views.extrapolation_curves(planted_extrapolation(name)),
    "method_comparison": lambda name: views.method_comparison(planted_extrapolation(name)),
    "methods_told_apart": lambda name: views.methods_told_apart(planted_extrapolation(name)),
}


def right_axis(panel):
    (axis,) = [child for child in panel.child_axes if child.get_ylabel().startswith("wavelength")]
    return axis


@pytest.mark.parametrize("kind", FIGURES)
def test_every_plot_of_any_model_name_is_written_as_png_and_svg(kind):
    """With a plain name, too: `test_notebooks_show_a_plot_as_one_picture`."""
    figure = FIGURES[kind](HOSTILE)
    for form, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        figure.savefig(buffer := io.BytesIO(), format=form)
        assert buffer.getvalue().startswith(start)
        assert b"<script" not in buffer.getvalue()


@pytest.mark.parametrize("kind", FIGURES)
def test_no_text_is_cut_off_or_covers_the_title(kind):
    figure = FIGURES[kind]("a-model/of-a-long-name-with-many-parts-and-numbers-0123456789")
    figure.draw_without_rendering()
    whole = figure.bbox
    for title in [legend.get_title() for legend in figure.legends] + [axes.title for axes in figure.axes]:
        box = title.get_window_extent()
        if title.get_text():
            assert (box.x0, box.y0) >= (whole.x0, whole.y0)
            assert box.x1 <= whole.x1 + 1
            assert box.y1 <= whole.y1 + 1
    for legend in figure.legends:
        for panel in figure.axes:
            assert not legend.get_window_extent().overlaps(panel.title.get_window_extent()) or not panel.get_title()


@pytest.mark.parametrize("kind", FIGURES)
def test_notebooks_show_a_plot_as_one_picture(kind):
    shown, _ = DisplayFormatter().format(FIGURES[kind]("plain"))
    assert shown["image/png"][:4] == b"\x89PNG" or str(shown["image/png"]).startswith("iVBOR")
    assert "text/html" not in shown


@pytest.mark.parametrize("kind", FIGURES)
def test_every_panel_labels_its_axes(kind):
    figure = FIGURES[kind]("plain")
    assert isinstance(figure, Picture)
    across, up = (
        " ".join([*(getter(axes) for axes in figure.axes), *over])
        for getter, over in (
            (lambda axes: axes.get_xlabel(), [figure.get_supxlabel()]),
            (lambda axes: axes.get_ylabel(), [figure.get_supylabel()]),
        )
    )
    assert across.strip()
    assert up.strip()


def test_null_names_and_long_names_become_one_readable_line():
    shown = readable(HOSTILE)
    assert "\\x00\\ud800\\n" in shown
    assert len(shown) == 60
    assert readable("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


# heat map


def test_large_maps_fit_a_page_and_explain_grey_cells():
    rho = torch.linspace(-0.5, 0.5, 80 * 64, dtype=torch.float64).reshape(80, 64)
    rho[40] = torch.nan
    big = scores_of(rho)
    figure = views.rho_heat_map(big)
    assert max(figure.get_size_inches()) <= 12
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), rho.numpy())
    assert "grey: no score" in figure.get_suptitle()
    assert "grey" not in views.rho_heat_map(scores_of(rho.nan_to_num())).get_suptitle()


def test_maps_of_many_heads_in_few_layers_have_no_numbers_to_overlap():
    wide = scores_of(torch.zeros(2, WIDEST_LABELLED + 1).double())
    assert not views.rho_heat_map(wide).axes[0].texts
    narrow = scores_of(torch.zeros(2, WIDEST_LABELLED).double())
    assert len(views.rho_heat_map(narrow).axes[0].texts) == 2 * WIDEST_LABELLED


# allocation


@pytest.mark.parametrize(
    ("given", "extension", "context", "expected"),
    [
        (None, None, 9, None),
        (None, None, 6, "context of the model, 6 tokens"),
        (None, {"training_length": 5}, 6, "training length, 5 tokens"),
        (4, {"training_length": 5}, 6, "training length, 4 tokens"),
        (12, None, 6, None),
    ],
)
def test_a_dashed_line_marks_the_training_length_if_sequences_go_beyond(given, extension, context, expected):
    scores = synthetic_scores()
    model = scores.provenance["model"] | {"context": context}
    scores = replace(scores, provenance=scores.provenance | {"model": model, "extension": extension})
    panel = views.allocation_curves(scores, [Head(0, 3)], training_length=given).axes[0]
    dashed = [line for line in panel.lines if line.get_linestyle() == "--"]
    assert [line.get_label() for line in dashed] == ([expected] if expected else [])
    if expected:
        assert list(dashed[0].get_xdata()) == [int(expected.split()[-2])] * 2


def test_the_wavelength_axis_is_aligned_with_the_pairs():
    base = replace(synthetic_scores(), frequencies=(10.0 ** -torch.arange(4, dtype=torch.float64)).repeat(3, 1))
    scores = replace(base, curve=base.curve - 3.5)  # about pairs 1 and 2
    panel = views.allocation_curves(scores, [Head(0, 3)]).axes[0]
    axis = right_axis(panel)
    panel.figure.draw_without_rendering()
    ticks = {place: label.get_text() for place, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)}
    inside = {place: text for place, text in ticks.items() if panel.get_ylim()[0] <= place <= panel.get_ylim()[1]}
    assert len(inside) >= 3
    for place, text in inside.items():
        assert text == token_count(2 * math.pi * 10**place)
    assert axis.get_ylabel() == "wavelength of that pair (tokens)"


def test_wavelengths_between_pairs_are_interpolated_geometrically_and_never_invented():
    tokens = np.array([10.0, 1000.0, np.inf])
    assert [interpolated(tokens, pair) for pair in (0, 0.5, 1, -3, 1.4, 1.6, 9)] == pytest.approx(
        [10, 100, 1000, 10, 1000, np.inf, np.inf]
    )
    labels = [token_count(number) for number in (6.283, 62.83, 1000, 35_400, 2.5e6, 3e9, math.inf)]
    assert labels == ["6.28", "62.8", "1k", "35.4k", "2.5M", "3G", "no rotation"]
    for frequencies, axes_drawn in (([torch.nan, 1.0], 0), ([torch.nan, torch.nan], 0), ([1.0, 0.1, torch.nan], 1)):
        axes = Picture().subplots()  # NaN behind the last pair: a layer with fewer of them
        wavelength_axis(axes, torch.tensor(frequencies))
        assert len(axes.child_axes) == axes_drawn


def test_points_of_few_pairs_do_not_set_the_scale():
    scores = synthetic_scores(null=False)
    curve = scores.curve.clone()
    curve[0, 3, -1] = 1000.0
    many = torch.tensor([90, 80, 70, 60, 50, 40, 35, 33, 2]).repeat(3, 1)
    panel = views.allocation_curves(replace(scores, curve=curve, pair_counts=many), [Head(0, 3)]).axes[0]
    assert panel.get_ylim()[1] < 10
    assert panel.lines[0].get_ydata()[-1] == 1000.0
    panel = views.allocation_curves(replace(scores, curve=curve), [Head(0, 3)]).axes[0]  # at most 9 pairs everywhere
    assert panel.get_ylim()[1] > 1000


# distribution


def test_the_distribution_counts_every_head_and_every_shuffle_once():
    scores = synthetic_scores()
    panel, against = views.rho_distribution(scores).axes
    known = scores.rho[~scores.rho.isnan()].numpy()
    bars = [patch for patch in panel.patches if hasattr(patch, "get_height")]
    assert sum(bar.get_height() for bar in bars) == pytest.approx(1)
    null = scores.null.rho[~scores.null.rho.isnan()].numpy()
    for bar in bars:
        inside = (null >= bar.get_x()) & (null < bar.get_x() + bar.get_width())
        assert bar.get_height() == pytest.approx(inside.mean(), abs=1e-9)
    (strip,) = [line for line in panel.lines if line.get_label() == "each head"]
    np.testing.assert_array_equal(np.sort(strip.get_xdata()), np.sort(known))
    points = np.concatenate([container.lines[0].get_xydata() for container in against.containers])
    expected = np.stack([scores.null.mean[:2].flatten(), scores.rho[:2].flatten()], axis=1)
    assert sorted(map(tuple, points)) == sorted(map(tuple, expected))


def test_heads_that_beat_their_null_are_named_and_the_others_not():
    figure = views.rho_distribution(synthetic_scores())
    assert [text.get_text() for text in figure.axes[1].texts] == ["L0H3"]
    assert "1 of 8 heads beat their null (FDR 0.05)" in figure.legends[0].get_title().get_text()
    none = views.rho_distribution(synthetic_scores(), alpha=1e-12)
    assert not none.axes[1].texts
    assert "0 of 8 heads" in none.legends[0].get_title().get_text()


def test_of_many_such_heads_those_with_the_largest_excess_are_named():
    rho = torch.linspace(0.2, 0.6, 40, dtype=torch.float64).reshape(2, 20)
    noise = 0.01 * torch.randn(6, 2, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    null = NullScores(noise - noise.mean(0), torch.zeros(2, 20, 9).double(), torch.zeros(2, 20, 9).double())
    scores = scores_of(rho, null)
    panel = views.rho_distribution(scores).axes[1]
    assert [text.get_text() for text in panel.texts] == [f"L1H{head}" for head in range(19, 19 - NAMED, -1)]
    assert panel.get_title() == f"named: the {NAMED} with the largest excess of the 40 that beat their null"


def test_the_distribution_notes_a_missing_null_or_score():
    figure = views.rho_distribution(synthetic_scores(null=False))
    assert len(figure.axes) == 1
    assert "null_repeats=20" in figure.legends[0].get_title().get_text()
    unknown = torch.full((3, 4), torch.nan).double()
    for null in (True, False):
        scores = replace(synthetic_scores(null=null, bootstrap=False), rho=unknown)
        figure = views.rho_distribution(scores)
        said = [legend.get_title().get_text() for legend in figure.legends] + [figure.get_suptitle()]
        assert any("no head has a score" in one for one in said)


# contributions


def test_the_map_of_contributions_holds_the_profiles_means_centred_on_zero():
    made = profile()
    figure = views.contribution_by_distance(made, bins=12)
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [panel.get_title() for panel in panels] == ["L0H1", "L2H0", "L1H1"]
    for place, panel in enumerate(panels):
        shown = panel.images[0].get_array().filled(np.nan)
        np.testing.assert_allclose(shown, made.binned(12).mean[place].numpy())
        assert isinstance(panel.images[0].norm, matplotlib.colors.CenteredNorm)
        assert panel.images[0].norm.vcenter == 0
        assert panel.images[0].origin == "lower"
    assert np.isnan(panels[1].images[0].get_array().filled(np.nan)).all()
    one = [axes for axes in views.contribution_by_distance(made, [Head(1, 1)]).axes if axes.get_title()]
    assert [panel.get_title() for panel in one] == ["L1H1"]
    with pytest.raises(ValueError, match="L3H3 is not in this profile"):
        views.contribution_by_distance(made, [Head(3, 3)])


def test_columns_are_labelled_with_the_distance_that_they_begin_at():
    made = profile()
    panel = views.contribution_by_distance(made, [Head(0, 1)]).axes[0]
    edges = made.binned(64).edges.tolist()
    labels = {
        int(place): label.get_text() for place, label in zip(panel.get_xticks(), panel.get_xticklabels(), strict=True)
    }
    assert len(labels) >= 4
    assert labels == {place: str(edges[place]) for place in labels}


def test_the_line_of_half_a_turn_passes_where_each_pair_has_turned_by_half():
    made = profile(frequencies=torch.tensor([math.pi / 2, math.pi / 8, math.pi / 32, 0.0], dtype=torch.float64))
    panel = views.contribution_by_distance(made, [Head(0, 1)], bins=1000).axes[0]
    (line,) = panel.lines
    assert line.get_ydata().tolist() == [0, 1, 2]
    assert line.get_xdata() == pytest.approx([2 - 0.5, 8 - 0.5, 32 - 0.5])


# methods


def test_the_comparison_shows_each_method_and_length_once_with_the_links_numbers():
    made = planted_extrapolation(methods=("none", "linear", "ntk", "yarn"))
    figure = views.method_comparison(made)
    table, link = made.to_frame(), made.link().set_index("measure")
    for panel, measure in zip(figure.axes, ("rho_beyond", "jump", "stretch"), strict=True):
        points = {
            (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
            for line in panel.lines
            if len(line.get_xdata()) == 1
        }
        assert points == set(zip(table[measure], table["efficiency"], strict=True))
        row = link.loc[measure]
        assert panel.get_title() == (
            f"rank correlation {row['correlation']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f}), 8 points"
        )
    few = views.method_comparison(planted_extrapolation()).axes[0].get_title()
    assert re.fullmatch(r"rank correlation [+-]0\.\d\d, 6 points", few)  # no interval below eight
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["none", "linear", "ntk", "yarn", "64 tokens", "128 tokens"]


def test_a_method_looks_the_same_in_every_panel_and_no_two_look_alike():
    made = planted_extrapolation(methods=("none", *(f"method {index}" for index in range(8))), lengths=(64,))
    looks = {}
    for panel in views.extrapolation_curves(made).axes:
        for line in panel.lines:
            if line.get_label() in made.labels:
                looks.setdefault(line.get_label(), set()).add((line.get_color(), line.get_linestyle()))
    assert all(len(look) == 1 for look in looks.values())
    assert len({look for (look,) in looks.values()}) == 9


def test_a_single_point_has_an_undefined_correlation():
    made = planted_extrapolation(methods=("linear",), lengths=(64,))
    figure = views.method_comparison(made)
    assert [panel.get_title() for panel in figure.axes] == ["rank correlation undefined"] * 3


def test_curves_have_a_wavelength_axis_only_if_plain_wavelengths_exist():
    plain = views.extrapolation_curves(planted_extrapolation())
    assert [bool(panel.child_axes) for panel in plain.axes] == [False, True, False, True]
    assert "without" in plain.axes[1].child_axes[0].get_ylabel()
    extended = views.extrapolation_curves(planted_extrapolation(methods=("yarn",)))
    assert not any(panel.child_axes for panel in extended.axes)


def test_a_head_of_a_layer_with_another_rotation_has_no_axis_of_the_first_layers_wavelengths():
    made = planted_extrapolation()
    rotary = [{"layer": 0, "frequencies": "local"}, {"layer": 1, "frequencies": "global"}]
    figure = views.extrapolation_curves(replace(made, provenance={**made.provenance, "rotary": rotary}))
    assert [bool(panel.child_axes) for panel in figure.axes] == [False, True, False, False]
    alike = [{**one, "frequencies": "both"} for one in rotary]
    figure = views.extrapolation_curves(replace(made, provenance={**made.provenance, "rotary": alike}))
    assert [bool(panel.child_axes) for panel in figure.axes] == [False, True, False, True]


def test_random_sets_are_drawn_at_their_number_of_heads_with_the_unit_on_the_axis():
    made = study()
    figure = views.dose_response(made)
    each = made.by_set()
    for panel, reach in zip(figure.axes, ("long", "short"), strict=True):
        rows = each[(each["kind"] == "random") & (each["reach"] == reach)]
        expected = [(made.sizes.index(k), effect) for k, effect in zip(rows["k"], rows["effect"], strict=True)]
        np.testing.assert_allclose(panel.collections[0].get_offsets(), expected)
    assert figure.get_supylabel() == "change of log_prob (nats per token)\nnegative is harm"


def test_extensions_are_drawn_at_their_factor_for_long_and_short_texts():
    losses = {"none": 2.0, "yarn 8": 1.4, "yarn 4": 1.2, "ntk 4": 1.5, "self_extend": 1.1}
    made = planted_recommendation(losses, within={"yarn 4": 1.1})
    figure, table = views.loss_by_factor(made), made.to_frame().set_index("candidate")
    for panel, name in zip(figure.axes, ("loss", "within"), strict=True):
        lines = {line.get_label(): line.get_xydata() for line in panel.lines}
        np.testing.assert_allclose(lines["yarn"][:, 0], [4, 8], rtol=0.02)
        np.testing.assert_allclose(lines["yarn"][:, 1], table.loc[["yarn 4", "yarn 8"], f"{name}_change"])
        np.testing.assert_allclose(lines["ntk"][:, 1], table.loc[["ntk 4"], f"{name}_change"])
        np.testing.assert_allclose(lines["self_extend"][:, 0], [256 / 64], rtol=0.02)  # no factor of its own
        np.testing.assert_allclose(lines["target / training length"][:, 0], 256 / 64)
        (drawn,) = panel.collections[1].get_segments()
        np.testing.assert_allclose(drawn[:, 1], table.loc["ntk 4", [f"{name}_low", f"{name}_high"]].astype(float))
        assert panel.get_xlabel() == "factor: tokens of context / tokens of training"
        assert panel.get_xlim()[0] < 4
        assert panel.get_xlim()[1] > 8
    assert figure.get_supylabel() == "change of loss (nats per token)\npositive is harm"
    one = views.loss_by_factor(planted_recommendation({"none": 2.0, "yarn 4": 1.2, "ntk 4": 1.2, "linear 4": 1.3}))
    for panel in one.axes:  # three methods stand around the one tick, not over the whole axis
        drawn = [line.get_xdata()[0] for line in panel.lines if line.get_label() in {"yarn", "ntk", "linear"}]
        low, high = panel.get_xlim()
        assert len({*drawn}) == 3
        assert (max(drawn) - min(drawn)) / (high - low) < 0.05
        assert low < 4 < high
    nothing = planted_recommendation({}, notes=["512 tokens are within the 512 that the model was trained on."])
    with pytest.raises(ValueError, match=r"no candidate was tried.*Nothing to do: 512 tokens are within"):
        views.loss_by_factor(nothing)


def test_plans_are_drawn_at_their_budget_beside_all_random_ones():
    made = plans()
    figure, effects = views.loss_by_budget(made), made.effects()
    for panel, reach in zip(figure.axes, ("long", "short"), strict=True):
        lines = {line.get_label(): line.get_xydata() for line in panel.lines}
        rows = effects[effects["reach"] == reach].set_index(["kind", "by"])
        np.testing.assert_allclose(lines["good"][:, 1], rows.loc[("plan", "good"), "effect"])
        np.testing.assert_allclose(lines["good"][:, 0], [0.25, 0.75], atol=0.01)
        np.testing.assert_allclose(lines["random plans, mean"][:, 1], rows.loc[("chance", "chance"), "effect"])
        np.testing.assert_allclose(lines["windows on all key heads"], [[0, rows.loc[("all", "all"), "effect"].item()]])
        each = made.by_set().query("kind == 'chance' and reach == @reach")["effect"]
        band = panel.collections[0].get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose([band.min(), band.max()], [each.min(), each.max()])


def test_an_interval_far_wider_than_what_was_measured_is_cut_and_marked():
    made = plans()
    units = pd.DataFrame(made.rows)["unit"].to_numpy()
    far = torch.from_numpy(np.where(units == 0, -30.0, np.where(units == 1, 30.0, 0.0)))  # no effect on means
    changed = made.values["log_prob"].clone()
    (last,) = [one for one in made.cells if (one.kind, one.by, one.budget) == ("plan", "good", 0.75)]
    changed[made.sets.index(last.heads)] += far
    wide = replace(made, values={"log_prob": changed})
    row = wide.effects().query("kind == 'plan' and by == 'good' and budget == 0.75 and reach == 'long'")
    assert row["high"].item() - row["low"].item() > 20
    each = made.by_set()["effect"]
    for study, marks in ((made, set()), (wide, {"v", "^"})):
        figure = views.loss_by_budget(study)
        for panel in figure.axes:
            low, high = panel.get_ylim()
            assert low <= each.min() < 0 <= high
            assert high - low < 1.4 * (each.max() - each.min())
        (long, *_) = figure.axes
        edges = {
            line.get_marker(): line.get_ydata()[0]
            for line in long.lines
            if line.get_marker() in {"v", "^"} and len(line.get_ydata()) and not line.get_clip_on()
        }
        assert edges.keys() == marks
        assert all(edges[marker] == pytest.approx(long.get_ylim()[marker == "^"]) for marker in edges)
        legend = {text.get_text() for text in figure.legends[0].get_texts()}
        assert ("interval goes on beyond the axis" in legend) == bool(marks)
