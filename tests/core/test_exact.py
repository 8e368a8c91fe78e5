"""D in float64, which the rounding of the kernels is measured against."""

import functools

import pytest
import torch

import positional_heads as ph
from positional_heads.core.kernels import building, exact
from positional_heads.core.kernels.exact import exact_dominant


def study(length, n_pairs, n, size=3.0):
    generator = torch.Generator().manual_seed(n_pairs)
    query, key = (size * torch.randn(2, length, n_pairs, 2, generator=generator) for _ in range(2))
    query_pos = torch.randint(0, length, (n,), generator=generator)
    return query, key, (query_pos, (torch.rand(n, generator=generator) * (query_pos + 1)).long())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("n_pairs", [1, 2, 7, 8, 9, 32, 37])
def test_d_in_float64_is_the_definitions(compiled, n_pairs):
    query, key, (query_pos, key_pos) = study(300, n_pairs, 2500)
    found = exact_dominant(query, key, (query_pos, key_pos), 0.6, compiled=compiled)
    contributions = (query[:, query_pos].double() * key[:, key_pos].double()).sum(-1)
    # weights err by 1e-12 and indices reach n_pairs: a thousandth of what float32 rounds
    assert found.dtype == torch.float64
    assert (found - ph.dominant_dimension(contributions, 0.6)).abs().max() <= 2e-12 * n_pairs


@pytest.mark.parametrize("size", [0.0, 1e-20, 300.0])
def test_contributions_of_any_size_give_the_same_d(size):
    query, key, positions = study(40, 16, 500, size)
    compiled, plain = (exact_dominant(query, key, positions, 1.0, compiled=compiled) for compiled in (True, False))
    assert torch.allclose(compiled, plain, rtol=0, atol=1e-9)  # contributions of 1e6 round by 1e-10


def test_planes_need_not_be_neighbours_in_memory():
    query, key, positions = study(40, 16, 500)
    moved = (plane.transpose(0, 1).contiguous().transpose(0, 1) for plane in (query, key))
    expected = exact_dominant(query, key, positions, 1.0, compiled=True)
    assert torch.equal(exact_dominant(*moved, positions, 1.0, compiled=True), expected)


def test_no_entries_have_no_d():
    query, key, positions = study(40, 16, 0)
    assert exact_dominant(query, key, positions, 1.0, compiled=True).shape == (2, 0)
    assert exact_dominant(query, key, positions, 1.0, compiled=False).shape == (2, 0)


def test_without_a_compiler_pytorch_computes_it(monkeypatch):
    tried = []

    def fail(source):
        tried.append(source.name)
        raise building.BuildError(str(source))

    query, key, positions = study(40, 16, 500)
    plain = exact_dominant(query, key, positions, 1.0, compiled=False)
    monkeypatch.setattr(building, "load", fail)
    monkeypatch.setattr(exact, "_library", functools.cache(exact._library.__wrapped__))
    for _ in range(2):
        assert torch.equal(exact_dominant(query, key, positions, 1.0, compiled=True), plain)
    assert tried == ["exact.cpp"]
