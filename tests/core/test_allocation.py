"""Jumps and stretches are found on curves that were built with them."""

import numpy as np
import pytest
import torch

from positional_heads.core.allocation import jump_at, running_means, stretch_between


def noisy(values, seed=0, noise=0.02):
    rng = np.random.default_rng(seed)
    return torch.tensor(values + rng.normal(0, noise, np.shape(values)))


def test_a_planted_jump_is_found_and_none_where_there_is_none():
    distance = np.arange(400)
    step = np.where(distance < 256, 5.0, 6.5)
    curves = torch.stack([noisy(step), noisy(np.full(400, 5.0), 1), noisy(5 + distance / 400, 2)])
    step, flat, rising = jump_at(curves, 256, window=16).tolist()
    assert step > 20
    assert abs(flat) < 4
    rises = 16 / 400  # within as beyond: the steps differ by noise only
    assert abs(rising - rises / (0.02 * (2 / 16) ** 0.5)) < 4


def test_a_jump_by_brute_force():
    curve = torch.tensor(np.random.default_rng(3).normal(size=(1, 300)))
    values, width, at = curve[0].numpy(), 12, 200

    def step(place):
        return values[place : place + width].mean() - values[place - width : place].mean()

    within = [step(place) for place in range(2 * width, at - width + 1)]
    assert float(jump_at(curve, at, width)) == pytest.approx(step(at) / np.std(within, ddof=1))


@pytest.mark.parametrize("stretch", [1.0, 1.7, 4.0])
def test_a_planted_stretch_is_found(stretch):
    def curve(t):
        return 4 + 3 * np.tanh(t / 60) + 0.8 * np.sin(t / 25)

    plain, extended = curve(np.arange(128)), curve(np.arange(512) / stretch)
    found = stretch_between(torch.tensor(plain)[None], torch.tensor(extended)[None], 8.0)
    assert float(found.factor) == pytest.approx(stretch, rel=0.03 if stretch == 4 else 0.1)
    if stretch == 4:  # all distances are covered
        assert float(found.explained) > 0.99


def test_nothing_explains_noise():
    rng = np.random.default_rng(5)
    found = stretch_between(torch.tensor(rng.normal(size=(1, 100))), torch.tensor(rng.normal(size=(1, 400))), 8.0)
    assert float(found.explained) < 0.2


def test_too_short_curves_are_refused():
    with pytest.raises(ValueError, match="a jump at 256 tokens needs a curve of at least 272"):
        jump_at(torch.zeros(1, 260, dtype=torch.float64), 256)
    with pytest.raises(ValueError, match="must be at least 1"):
        stretch_between(torch.zeros(1, 9, dtype=torch.float64), torch.zeros(1, 9, dtype=torch.float64), 0.5)


def test_distances_without_query_key_pairs_are_left_out():
    """As at the end of a long run, where pairs are sampled."""
    rng = np.random.default_rng(2)
    plain = np.sin(np.arange(128) / 9) + np.arange(128) / 20
    extended = np.interp(np.arange(512) / 4, np.arange(128), plain) + rng.normal(size=512) / 50
    plain[-3], extended[-40::3], extended[100] = np.nan, np.nan, np.nan
    found = stretch_between(torch.tensor(plain)[None], torch.tensor(extended)[None], 8.0)
    assert float(found.factor) == pytest.approx(4, rel=0.03)
    assert float(found.explained) > 0.98
    means = running_means(torch.tensor(extended)[None], 16)
    assert np.allclose(means[0], np.nanmean(np.lib.stride_tricks.sliding_window_view(extended, 16), axis=1))
    steps = [np.nanmean(extended[i : i + 8]) - np.nanmean(extended[i - 8 : i]) for i in range(16, 249)]
    jump = np.nanmean(extended[256:264]) - np.nanmean(extended[248:256])
    assert float(jump_at(torch.tensor(extended)[None], 256, 8)) == pytest.approx(jump / np.std(steps, ddof=1))


def test_curves_of_nothing_have_no_stretch():
    curve = torch.linspace(0, 5, 40, dtype=torch.float64)[None]
    nothing = torch.full_like(curve, torch.nan)
    for plain, extended in ((nothing, curve), (curve, nothing)):
        found = stretch_between(plain, extended, 4)
        assert found.factor.isnan().all()
        assert found.explained.isnan().all()
