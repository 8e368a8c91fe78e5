"""Pairs add up to the score, and the tiles count every pair once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from positional_heads.core.contributions import (
    dominant_dimension,
    expand_key_heads,
    pair_contributions,
    plane_contributions,
    unrotated_remainder,
)
from positional_heads.core.kernels.tiled import Tile, dominant_block, dominant_tiles
from positional_heads.core.plan import EntryPlan
from positional_heads.core.rotary import LAYOUTS
from tests.support import oracles


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rotary_dim", [2, 6, 8])
def test_pairs_and_remainder_add_up_to_the_dot_product(layout, rotary_dim):
    torch.manual_seed(0)
    q, k = torch.randn(2, 5, 4, 8), torch.randn(2, 7, 2, 8)
    pairs = pair_contributions(q, k, layout, rotary_dim)
    total = pairs.sum(-1) + unrotated_remainder(q, k, rotary_dim)
    expected = torch.einsum("bmhd,bnhd->bhmn", q, k.repeat_interleave(2, dim=2))
    assert torch.allclose(total, expected, atol=1e-5)
    assert pairs.shape == (2, 4, 5, 7, rotary_dim // 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_contribution_is_the_product_of_its_own_two_channels(layout):
    torch.manual_seed(0)
    q, k = torch.randn(1, 3, 2, 8), torch.randn(1, 3, 1, 8)
    pairs = pair_contributions(q, k, layout, 6)
    for head, m, n in np.ndindex(2, 3, 3):
        expected = oracles.contributions(q[0, m, head].numpy(), k[0, n, 0].numpy(), layout, 3)
        np.testing.assert_allclose(pairs[0, head, m, n].numpy(), expected, atol=1e-6)


def test_neighbouring_query_heads_share_a_key_head():
    k = torch.arange(2.0).view(1, 1, 2, 1)
    assert expand_key_heads(k, 6).flatten().tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="3 query heads cannot share 2 key heads evenly"):
        expand_key_heads(k, 3)


def test_half_precision_is_summed_in_float32():
    torch.manual_seed(0)
    q, k = torch.randn(1, 4, 1, 64).bfloat16(), torch.randn(1, 4, 1, 64).bfloat16()
    expected = torch.einsum("bmhd,bnhd->bhmn", q.double(), k.double())
    pairs = pair_contributions(q, k, "half")
    assert pairs.dtype == torch.float32
    assert torch.allclose(pairs.sum(-1).double(), expected, atol=1e-5)  # bf16 sums would be off by 1e-1
    remainder = unrotated_remainder(q, k, 32)
    assert remainder.dtype == torch.float32
    assert torch.allclose((pair_contributions(q, k, "half", 32).sum(-1) + remainder).double(), expected, atol=1e-5)


@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=9), st.sampled_from([0.5, 1.0, 8.0]))
@settings(deadline=None)
def test_dominant_dimension_is_a_softmax_weighted_mean(values, temperature):
    found = dominant_dimension(torch.tensor(values), temperature).item()
    assert found == pytest.approx(oracles.dominant(values, temperature), abs=1e-4)
    assert -1e-5 <= found <= len(values) - 1 + 1e-5


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="temperature 0 must be positive"):
        dominant_dimension(torch.zeros(3), 0)


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_fast_block_equals_the_definition(size, temperature):
    torch.manual_seed(0)
    query, key = size * torch.randn(3, 11, 8, 2), size * torch.randn(3, 17, 8, 2)
    expected = dominant_dimension(plane_contributions(query.double(), key.double()), temperature)
    # g reaches 4000 at size 30, where a float32 rounding of g is 2e-4 and moves D by at most that times the pairs
    found = dominant_block(query, key, temperature)[0].double()
    assert torch.allclose(found, expected, atol=5e-3 if size > 1 else 1e-5)


@pytest.mark.parametrize("terms", [1, 3 * 8 * 17 * 4])
def test_the_fast_block_is_the_same_in_pieces(terms):
    torch.manual_seed(0)
    query, key = torch.randn(3, 11, 8, 2), torch.randn(3, 17, 8, 2)
    whole, held = dominant_block(query, key, 1.0)
    # one query and key at a time, then four queries, four and three
    parts, held_in_parts = dominant_block(query, key, 1.0, terms)
    assert torch.allclose(parts, whole, atol=1e-5)  # products of other shapes round otherwise
    assert torch.equal(held_in_parts, held)


LIMITS = [
    {},
    {"window": 5},
    {"skip_keys": 2},
    {"min_distance": 3, "max_distance": 9},
    {"window": 7, "skip_keys": 1, "min_distance": 1},
]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("chunk", [1, 40, 2**16])
def test_tiles_hold_each_pair_that_counts_once(limits, chunk):
    torch.manual_seed(0)
    query, key = torch.randn(2, 14, 3, 2), torch.randn(2, 14, 3, 2)
    plan = EntryPlan((20, 14), **limits)
    tiles = list(dominant_tiles(query, key, plan, 1.0, Tile(terms=30, entries=chunk)))
    assert all(distance.numel() <= chunk for *_, distance in tiles)
    found = sorted(
        (int(t), round(float(d), 4))
        for dominant, _, distance in tiles
        for t, d in zip(distance, dominant[1], strict=True)
    )
    flat_q, flat_k = (x[1].transpose(1, 2).flatten(1).numpy() for x in (query, key))
    expected = sorted(
        (m - n, oracles.dominant(oracles.contributions(flat_q[m], flat_k[n], "half", 3)))
        for m, n in oracles.counted_pairs(14, **limits)
    )
    assert [t for t, _ in found] == [t for t, _ in expected]
    np.testing.assert_allclose([d for _, d in found], [d for _, d in expected], atol=2e-3)  # neighbours may swap


@pytest.mark.parametrize(
    ("length", "limits", "expected"), [(1, {}, [0]), (1, {"min_distance": 1}, []), (3, {"skip_keys": 3}, [])]
)
def test_tiles_of_the_shortest_sequences(length, limits, expected):
    planes = torch.ones(2, length, 3, 2)
    tiles = list(dominant_tiles(planes, planes, EntryPlan((length,), **limits), 1.0))
    assert [distance.tolist() for *_, distance in tiles] == ([expected] if expected else [])
