"""Jumps and stretches are found on curves that were built with them."""

import numpy as np
import pytest
import torch

from positional_heads.core.allocation import jump_at, stretch_between


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
