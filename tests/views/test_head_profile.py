"""Plots of a head profile hold the record's own numbers."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.colors import CenteredNorm

from positional_heads import views
from positional_heads.core.heads import Head
from positional_heads.results.pair_statistics import PairStatistics
from positional_heads.results.profile_tables import UNITS
from positional_heads.views.head_profile import MAPPED
from tests.support.synthetic_profile import synthetic_profile


def maps(figure):
    return {axes.get_title().split("\n")[0]: axes for axes in figure.axes if axes.images and axes.get_title()}


def test_a_map_holds_its_measure_and_names_its_unit():
    profile = synthetic_profile()
    shown = maps(views.profile_maps(profile))
    assert len(shown) == len(MAPPED)
    for name, panel in (("rho", shown["rho"]), ("reach", shown["reach"]), ("distant_mass", shown["distant mass"])):
        np.testing.assert_array_equal(panel.images[0].get_array().filled(np.nan), profile.values(name).numpy())
        assert panel.get_title().endswith(UNITS[name])
        assert isinstance(panel.images[0].norm, CenteredNorm) == (name == "rho")
    assert {*UNITS} >= {*profile.names}
    assert [*maps(views.profile_maps(profile, ["kernel"]))] == ["kernel"]
    with pytest.raises(ValueError, match="no measures asked for: give at least one of rho, "):
        views.profile_maps(profile, [])
    with pytest.raises(ValueError, match="'lenght' is no measure of this profile"):
        views.profile_maps(profile, ["lenght"])


def test_measures_that_no_head_has_are_left_out():
    profile = synthetic_profile(null=False)
    weights = profile.weights | {"distant_mass": torch.zeros_like(profile.weights["distant_mass"])}
    sums = profile.sums | {"distant_mass": torch.zeros_like(profile.sums["distant_mass"])}
    shown = maps(views.profile_maps(short := replace(profile, weights=weights, sums=sums)))
    assert "reach" in shown
    assert not {"distant mass", "excess"} & {*shown}
    (panel,) = maps(views.profile_maps(short, ["distant_mass"])).values()
    assert panel.images[0].get_array().mask.all()


def test_names_and_numbers_of_thirty_layers_do_not_overlap():
    profile = synthetic_profile()
    tall = {
        name: torch.rand(5, 30, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for name in profile.sums
    }
    zeros = torch.zeros(30, 9).double()
    scores = replace(
        profile.scores.without_curves(),
        **dict.fromkeys(("rho", "rho_curve", "bound"), zeros),
        frequencies=torch.ones(30, 4).double(),
        null=None,
        bootstrap_rho=None,
        reasons={},
    )
    big = replace(
        profile,
        scores=scores,
        sums=tall,
        weights=tall,
        others={},
        key_heads=torch.zeros(30, 9).long(),
        mass=zeros[..., None].expand(30, 9, 3),
        reached=zeros[..., None].expand(30, 9, 3),
        pairs=large_pairs(),
    )
    figure = views.profile_maps(big, ["rho", "reach", "sink_mass", "duplicate_token", "induction", "retrieval"])
    figure.draw_without_rendering()
    for panel in maps(figure).values():
        labels = [
            text.get_window_extent() for text in panel.get_yticklabels() if text.get_text() and text.get_visible()
        ]
        assert not any(one.overlaps(other) for one, other in pairwise(labels))
    titles = [panel.title.get_window_extent() for panel in maps(figure).values()]
    assert not any(one.overlaps(other) for at, one in enumerate(titles) for other in titles[:at])


def large_pairs() -> PairStatistics:
    flat, ranges = torch.ones(30, 9, 4).double(), torch.ones(30, 9, 3).double()
    return PairStatistics(
        frequencies=flat[:, 0],
        **dict.fromkeys(("query_norm", "key_norm", "agreement"), flat),
        **dict.fromkeys(("query_center", "key_center"), flat[..., None].expand(30, 9, 4, 2)),
        contribution=ranges[:, :, None].expand(30, 9, 4, 3),
        unrotated=ranges,
        counts=torch.ones(30, 3).long(),
    )


def test_the_matrix_holds_the_rank_correlations_and_their_numbers():
    profile = synthetic_profile()
    axes = views.measure_correlations(profile).axes[0]
    table = profile.correlations()
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), table.to_numpy())
    assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (-1, 1)
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts[3, 0] == f"{table.iloc[0, 3]:.2f}".replace("0.", ".")
    assert [label.get_text() for label in axes.get_yticklabels()][:5] == [
        *("rho", "rho of curve", "excess", "mean distance", "reach")
    ]
    assert "8 heads" in axes.get_title()


def test_curves_of_pairs_are_the_records_at_their_wavelengths():
    profile = synthetic_profile()
    head = Head(1, 2)
    figure = views.pair_curves(profile, [head, Head(0, 0)], training_length=100)
    norms, agreement, contribution = figure.axes
    tokens = 2 * np.pi * 10000 ** (np.arange(4) / 4)
    expected = {
        norms: (profile.pairs.query_norm * profile.pairs.key_norm)[head],
        agreement: profile.pairs.agreement[head],
    }
    for panel, values in expected.items():
        np.testing.assert_allclose(panel.lines[0].get_xdata(), tokens)
        np.testing.assert_allclose(panel.lines[0].get_ydata(), values.numpy())
    counts = np.array([45, 60, 120])
    weighed = profile.pairs.contribution[head].numpy() * counts
    near, far = contribution.lines[:2]  # the window of 4 ends where the last range begins
    np.testing.assert_allclose(near.get_ydata(), weighed[:, :2].sum(1) / 105)
    np.testing.assert_allclose(far.get_ydata(), weighed[:, 2] / 120)
    limit = [line for line in norms.lines if line.get_label() == "training length, 100 tokens"]
    assert [list(line.get_xdata()) for line in limit] == [[100, 100]]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"L1H2, {profile.name(head)}" in labels
    assert {"distances below 4", "distances from 4"} <= {*labels}


def test_a_pair_without_rotation_stands_behind_the_others_and_missing_pairs_are_left_out():
    profile = synthetic_profile()
    frequencies = profile.pairs.frequencies.clone()
    frequencies[0, 2:] = torch.tensor([0.0, torch.nan])
    changed = replace(profile, pairs=replace(profile.pairs, frequencies=frequencies))
    line = views.pair_curves(changed, "L0H1").axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), 2 * np.pi * np.array([1, 10, 40]))


def test_heads_without_pairs_are_refused_and_the_clearest_of_each_name_are_the_default():
    profile = synthetic_profile()
    with pytest.raises(ValueError, match=r"L2H1 was not profiled \(it has no rotary embedding\): leave it out"):
        views.pair_curves(profile, [Head(2, 1)])
    with pytest.raises(ValueError, match="no heads to show"):
        views.pair_curves(profile, [])
    labels = [text.get_text() for text in views.pair_curves(profile).legends[0].get_texts()]
    names = sorted(profile.by_name, key=lambda name: -len(profile.by_name[name]))
    assert labels[: len(names)] == [f"{profile.by_name[name][0]}, {name}" for name in names]


def test_mean_contributions_weigh_ranges_by_their_counts_and_know_none_without_keys():
    profile = synthetic_profile()
    values = profile.mean_contribution()[1, 2].numpy()
    expected = np.average(profile.pairs.contribution[1, 2].numpy(), axis=-1, weights=[45, 60, 120])
    np.testing.assert_allclose(values, expected)
    assert bool(profile.mean_contribution(3).isnan().all())
    assert bool(profile.mean_contribution()[2].isnan().all())
    with pytest.raises(ValueError, match="first 4 must be at most 3"):
        profile.mean_contribution(4)
