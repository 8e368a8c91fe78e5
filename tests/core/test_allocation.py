"""Jumps, stretches and what a pair can tell apart, on curves and frequencies whose truth is known."""

import math

import numpy as np
import pytest
import torch

from positional_heads.core.allocation import jump_at, stretch_between
from positional_heads.core.wavelengths import injective_range, told_apart, wavelengths


def noisy(values, seed=0, noise=0.02):
    rng = np.random.default_rng(seed)
    return torch.tensor(values + rng.normal(0, noise, np.shape(values)))


def test_a_planted_jump_is_found_and_none_where_there_is_none():
    distance = np.arange(400)
    step = np.where(distance < 256, 5.0, 6.5)
    curves = torch.stack([noisy(step), noisy(np.full(400, 5.0), 1), noisy(5 + distance / 400, 2)])
    jump = jump_at(curves, 256, window=16)
    assert float(jump.size[0]) == pytest.approx(1.5, abs=0.02)
    assert float(jump.relative[0]) > 20
    assert abs(float(jump.relative[1])) < 4
    assert abs(float(jump.size[2]) - 16 / 400) < 0.02  # a steady rise is no jump


def test_a_jump_by_brute_force():
    curve = torch.tensor(np.random.default_rng(3).normal(size=(1, 300)))
    values, width, at = curve[0].numpy(), 12, 200

    def step(place):
        return values[place : place + width].mean() - values[place - width : place].mean()

    within = [step(place) for place in range(2 * width, at - width + 1)]
    found = jump_at(curve, at, width)
    assert float(found.size) == pytest.approx(step(at))
    assert float(found.relative) == pytest.approx(step(at) / np.std(within, ddof=1))


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


def test_what_a_pair_tells_apart_by_counting_angles():
    frequencies = torch.tensor([math.pi / 2, 2 * math.pi / 50, 1e-3, 0.0])
    assert wavelengths(frequencies)[:2].tolist() == pytest.approx([4, 50])
    assert injective_range(frequencies, 100).tolist() == pytest.approx([4, 50, 100, 100])
    resolution = 0.01
    for frequency, found in zip(frequencies.tolist(), told_apart(frequencies, 100, resolution).tolist(), strict=True):
        span = min(100, 2 * math.pi / frequency) if frequency else 100
        kept: list[float] = []  # angles met before the rotation comes round, each at least the resolution from the last
        for distance in range(math.ceil(span - 1e-6)):
            angle = frequency * distance
            if not kept or angle - kept[-1] >= resolution - 1e-9:
                kept.append(angle)
        assert found == pytest.approx(len(kept), abs=1)
    with pytest.raises(ValueError, match="resolution 0 must be positive"):
        told_apart(frequencies, 10, 0)
