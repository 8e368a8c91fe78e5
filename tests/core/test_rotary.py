"""Rotation turns the right two channels by the right angle, and its frequencies can be read back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from positional_heads.core.bands import Unrotated, unrotated
from positional_heads.core.contributions import head_planes
from positional_heads.core.rotary import (
    LAYOUTS,
    injective_range,
    pair_frequencies,
    rotary_planes,
    rotate,
    told_apart,
    wavelengths,
)
from tests.support import oracles

SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))


@given(SHAPES, st.sampled_from(LAYOUTS), st.integers(0, 2**16))
@settings(deadline=None, max_examples=40)
def test_rotation_is_complex_multiplication(shape, layout, seed):
    batch, pos, head, pairs, rest = shape
    torch.manual_seed(seed)
    x = torch.randn(batch, pos, head, 2 * pairs + rest)
    phase = oracles.plain_phases(torch.arange(pos), 100.0, 2 * pairs)
    turned = rotate(x, phase[None], layout)
    angles = np.outer(np.arange(pos), 100.0 ** (-2 * np.arange(pairs) / (2 * pairs)))
    for index in np.ndindex(batch, pos, head):
        expected = oracles.rotated(x[index].numpy(), angles[index[1]], layout)
        np.testing.assert_allclose(turned[index].numpy(), expected, atol=1e-5)  # a few float32 roundings


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_depend_on_distance_only(layout):
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8)
    phase = oracles.plain_phases(torch.arange(50), 10000.0, 8)[None]
    far = (rotate(q, phase[:, 40:41], layout) * rotate(k, phase[:, 33:34], layout)).sum()
    near = (rotate(q, phase[:, 7:8], layout) * rotate(k, phase[:, 0:1], layout)).sum()
    assert far.item() == pytest.approx(near.item(), abs=1e-5)
    other = (rotate(q, phase[:, 8:9], layout) * rotate(k, phase[:, 0:1], layout)).sum()
    assert other.item() != pytest.approx(near.item(), abs=1e-2)


def test_layouts_agree_after_permuting_channels():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 2, 8)
    phase = oracles.plain_phases(torch.arange(6), 10.0, 8)[None]
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    assert torch.allclose(rotate(x, phase, "half")[..., order], rotate(x[..., order], phase, "adjacent"), atol=1e-6)
    assert not torch.allclose(rotate(x, phase, "half"), rotate(x, phase, "adjacent"), atol=1e-2)


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_moving_equals_rotating_there_in_the_first_place(factor):
    torch.manual_seed(0)
    query, key = torch.randn(1, 30, 4, 10), torch.randn(1, 30, 2, 10)
    phase = factor * oracles.plain_phases(torch.arange(30), 10000.0, 8)[None]
    order = torch.randperm(30)
    before = (head_planes(rotate(x, phase, "half"), "half", 8, x.shape[2])[0] for x in (query, key))
    content = Unrotated(*(unrotated(planes, phase[0]) for planes in before), phase, phase)
    for moved, x in zip(content.rotated(order), (query, key), strict=True):
        expected = head_planes(rotate(x[:, order], phase, "half"), "half", 8, 4)[0]
        assert torch.allclose(moved, expected, atol=1e-5)


def test_phases_by_head_rotate_every_head_by_its_own():
    content = [torch.randn(heads, 5, 3, dtype=torch.complex64) for heads in (4, 2)]
    phase = torch.polar(torch.ones(4, 5, 3), torch.randn(4, 5, 3))
    query, key = Unrotated(*content, phase, phase.conj()).rotated()
    for head in range(4):
        assert torch.allclose(torch.view_as_complex(query[head]), content[0][head] * phase[head])
        assert torch.allclose(torch.view_as_complex(key[head]), content[1][head // 2] * phase[head].conj())


def test_frequencies_are_read_off_phases():
    phase = oracles.plain_phases(torch.arange(512) + 37, 10000.0, 32)
    expected = 10000.0 ** (-torch.arange(0, 32, 2).double() / 32)
    assert torch.allclose(pair_frequencies(phase), expected, rtol=1e-5, atol=0)


def test_frequencies_are_read_off_phases_rounded_to_bfloat16():
    """A rounding turns a phase by 2^-9 at most, two blur 256 tokens by 2^-8, and 256 spans average that out 16-fold."""
    phase = oracles.plain_phases(torch.arange(512) + 37, 10000.0, 32)
    rounded = torch.complex(phase.real.bfloat16().float(), phase.imag.bfloat16().float())
    expected = 10000.0 ** (-torch.arange(0, 32, 2).double() / 32)
    assert (pair_frequencies(rounded) - expected).abs().max() < 2**-8 / 256 / 8


@pytest.mark.parametrize("width", [3, 0, 10])
def test_a_width_that_is_odd_or_too_large_is_refused(width):
    with pytest.raises(ValueError, match=f"rotary_dim {width} must be even and between 2 and d_head = 8"):
        rotary_planes(torch.zeros(1, 8), "half", width)


def test_distances_told_apart_are_counted_by_their_angles():
    frequencies = torch.tensor([math.pi / 2, 2 * math.pi / 50, 1e-3, 0.0])
    assert wavelengths(frequencies)[:2].tolist() == pytest.approx([4, 50])
    assert injective_range(frequencies, 100).tolist() == pytest.approx([4, 50, 100, 100])
    resolution = 0.01
    for frequency, found in zip(frequencies.tolist(), told_apart(frequencies, 100, resolution).tolist(), strict=True):
        span = min(100, 2 * math.pi / frequency) if frequency else 100
        kept: list[float] = []  # angles before the rotation repeats, each at least the resolution from the last
        for distance in range(math.ceil(span - 1e-6)):
            angle = frequency * distance
            if not kept or angle - kept[-1] >= resolution - 1e-9:
                kept.append(angle)
        assert found == pytest.approx(len(kept), abs=1)
    with pytest.raises(ValueError, match="resolution 0 must be positive"):
        told_apart(frequencies, 10, 0)
