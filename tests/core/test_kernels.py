"""Every kernel computes D as defined, in every split of the work; the native one is built safely."""

import logging
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import positional_heads as ph
from positional_heads.core.bands import Unrotated
from positional_heads.core.binning import BinLookup, equal_mass_edges
from positional_heads.core.contributions import plane_contributions
from positional_heads.core.kernels import building, choosing, compiled, eager, native, tiles
from positional_heads.core.kernels.sums import EntrySums, ShuffleSums, no_sums, tile_sums
from positional_heads.core.kernels.tiled import CACHE_TILE, Tile
from positional_heads.core.logs import warn_once
from positional_heads.core.plan import EntryPlan
from positional_heads.core.shuffles import Runs, Shuffled, ShufflePlan
from tests.support import oracles

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile's own, in some versions

CPU = torch.device("cpu")
SIZES = st.sampled_from([0.0, 0.3, 1.5, 8.0])  # 8 concentrates D so that many edges share a cell, and exceeds bounds
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "window": st.integers(1, 40),
        "skip_keys": st.integers(0, 20),
        "min_distance": st.integers(0, 9),
        "max_distance": st.integers(9, 50),
    },
)


@pytest.fixture(scope="module", autouse=True)
def a_cache_of_our_own(tmp_path_factory):
    """Built once for this file, and apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSITIONAL_HEADS_CACHE", str(folder := tmp_path_factory.mktemp("cache")))
        building.load.cache_clear()
        yield folder / "kernels"
    building.load.cache_clear()


@pytest.fixture(scope="module")
def library(a_cache_of_our_own):
    """The native kernel's library, built."""
    native.NativeKernel()
    (built,) = a_cache_of_our_own.iterdir()
    return built


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache folder, and empty caches in memory."""
    monkeypatch.setenv("POSITIONAL_HEADS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("POSITIONAL_HEADS_KERNEL", raising=False)
    remembered = (building.load, building._compiler, building._version, warn_once)
    for one in (*remembered, compiled._fused):
        one.cache_clear()
    yield tmp_path / "cache" / "kernels"
    for one in (*remembered, compiled._fused):
        one.cache_clear()


@pytest.fixture
def built(library, fresh):
    """As `fresh`, but for the library, which is built already."""
    fresh.mkdir(mode=0o700, parents=True)
    return Path(shutil.copy(library, fresh))


def study(length=60, heads=2, pairs=8, size=1.5, seed=0, **limits):
    """Random planes of one sequence, with a plan over a longer one too, bins and ranks."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (size * torch.randn(heads, length, pairs, 2, generator=generator) for _ in range(2))
    plan = EntryPlan((length + 7, length), **limits)
    sample = dominant_in_float64(query, key, 1.0).flatten(1).float()
    bins = BinLookup(equal_mass_edges(sample, 64))
    return query, key, plan, bins, plan.rank_grid


def in_float64(query, key, temperature):
    """D, and the share that the largest contribution holds."""
    contributed = torch.einsum("hmpt,hnpt->hmnp", query.double(), key.double()).numpy()
    return [torch.from_numpy(values) for values in oracles.dominants(contributed, temperature)]


def dominant_in_float64(query, key, temperature):
    return in_float64(query, key, temperature)[0]


def counted_positions(plan, length):
    positions = oracles.counted_pairs(
        length, skip_keys=plan.skip_keys, min_distance=plan.min_distance, max_distance=plan.furthest
    )
    return torch.tensor(positions, dtype=torch.long).reshape(-1, 2).T


def sums_of(dominant, distance, share, bins, ranks):
    """Sums over listed pairs, from their D and the share of the largest contribution."""
    if not len(distance):
        return no_sums(bins, ranks)
    return tile_sums(dominant.contiguous(), distance, bins, ranks, share > 0.999)


def same(one: EntrySums, other: EntrySums, share=None) -> bool:
    """Whether sums agree; given float64 shares, but for saturation of pairs within rounding of the limit."""
    sums = [field.name for field in fields(EntrySums)]
    if share is not None:
        sums.remove("saturated")
        close = ((share - 0.999).abs() < 1e-6).sum(1)  # a share errs by a thousandth of what weights err by
        if ((one.saturated - other.saturated).abs() > close).any():
            return False
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in sums)


def bound_on_d(query, key, temperature):
    """How far D may be from float64's: a weight's relative error times the pairs' half width, with 2 for the quotient.

    A weight errs by the roundings of its contribution and of its difference from the maximum, six of the largest there
    is, by the polynomial (2^-22) and by adding up as many weights as there are pairs.
    """
    pairs = query.shape[2]
    largest = plane_contributions(query.double().abs(), key.double().abs()).amax() / temperature
    return float((pairs - 1) * (6 * largest * 2**-24 + 2**-22 + (pairs + 3) * 2**-24))


# The native kernel against the definition


@given(
    st.integers(1, 70),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 5, 16, 48, 64, 128]),
    SIZES,
    LIMITS,
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_native_sums_are_those_of_its_own_d_which_is_the_definitions(length, heads, pairs, size, limits, seed):
    query, key, plan, bins, ranks = study(length, heads, pairs, size=size, seed=seed, **limits)
    dominant = torch.full((heads, length, -length % 16 + length), torch.nan)
    sums = native.NativeKernel().every_entry(query, key, plan, 1.7, bins, ranks, dominant=dominant)
    query_pos, key_pos = counted_positions(plan, length)
    exact, share = (values[:, query_pos, key_pos] for values in in_float64(query, key, 1.7))
    found = dominant[:, query_pos, key_pos]
    assert same(sums, sums_of(found, query_pos - key_pos, share, bins, ranks), share)
    error = found.double() - exact
    assert not len(query_pos) or error.abs().max() <= bound_on_d(query, key, 1.7)


@given(
    st.integers(1, 40), st.integers(0, 200), st.sampled_from([1, 2, 3, 5, 16, 48, 64, 128]), SIZES, st.integers(0, 99)
)
@settings(deadline=None, max_examples=40)
def test_native_sums_over_a_list_are_those_of_its_own_d_which_is_the_definitions(length, n, pairs, size, seed):
    query, key, _, bins, ranks = study(length, 2, pairs, size=size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    query_pos = torch.randint(0, length, (n,), generator=generator)
    key_pos = (torch.rand(n, generator=generator) * (query_pos + 1)).long()
    dominant = torch.full((2, n), torch.nan)
    found = native.NativeKernel().listed_entries(query, key, (query_pos, key_pos), 0.6, bins, ranks, dominant=dominant)
    exact, share = (values[:, query_pos, key_pos] for values in in_float64(query, key, 0.6))
    assert same(found, sums_of(dominant, query_pos - key_pos, share, bins, ranks), share)
    error = dominant.double() - exact
    assert not n or error.abs().max() <= bound_on_d(query, key, 0.6)


@pytest.mark.parametrize("name", ["eager", "native", "compiled"])
def test_d_of_listed_entries_is_the_definitions(name):
    query, key, *_ = study(200, 2, 16)
    generator = torch.Generator().manual_seed(0)
    query_pos = torch.randint(0, 200, (5000,), generator=generator)
    key_pos = (torch.rand(5000, generator=generator) * (query_pos + 1)).long()
    found = choosing.named_kernel(name).listed_dominant(query, key, (query_pos, key_pos), 0.6)
    contributions = (query[:, query_pos].double() * key[:, key_pos].double()).sum(-1)
    expected = ph.dominant_dimension(contributions, 0.6)
    assert (found.double() - expected).abs().max() <= bound_on_d(query, key, 0.6)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-3, 100.0, 1e10])
def test_contributions_of_any_size_give_d_as_in_float64(size):
    query, key, plan, bins, ranks = study(40, 2, 16, size=size)
    dominant = torch.zeros(2, 40, 48)
    native.NativeKernel().every_entry(query, key, plan, 1.0, bins, ranks, dominant=dominant)
    query_pos, key_pos = counted_positions(plan, 40)
    expected = dominant_in_float64(query, key, 1.0)
    error = (dominant[:, :, :40] - expected)[:, query_pos, key_pos].abs()
    assert (error <= bound_on_d(query, key, 1.0)).all()
    assert size < 100 or (error < 1e-3).double().mean() > 0.98  # no bound where contributions round by more than 1


def test_the_exponential_errs_by_less_than_its_stated_error():
    """Two pairs, of which one weighs 1 and the other 2^-x: D is w / (1 + w)."""
    gap = torch.linspace(0, 30, 4096, dtype=torch.float64)
    query = torch.zeros(1, 4096, 2, 2)
    query[0, :, 1, 0] = -gap.float()
    key = torch.zeros(1, 4096, 2, 2)
    key[..., 0] = 1
    bins = BinLookup(torch.linspace(0, 1, 63)[None])
    dominant = torch.zeros(1, 4096)
    place = torch.arange(4096)
    native.NativeKernel().listed_entries(
        query, key, (place, place), 1.0, bins, torch.ones(4096).long(), dominant=dominant
    )
    weight = torch.exp(query[0, :, 1, 0].double())
    found = dominant[0].double() / (1 - dominant[0].double())
    relative = (found / weight - 1).abs()
    rounded = gap * 2**-23 + 2**-22  # the contribution, in units of log 2; D, and one minus D, below one half
    assert (relative <= 3e-7 + rounded).all()


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["eager", "native", "compiled"])
def test_a_d_that_is_not_finite_is_refused_and_its_head_named(bad, name):
    query, key, plan, bins, ranks = study(40, 2, 16)
    query[1, 31, 5, 1] = bad  # a query that sees whole blocks of 16 keys only
    kernel = choosing.named_kernel(name)
    with pytest.raises(ValueError, match=r"dimension D of head 1 is not finite: .* load it in float32"):
        kernel.every_entry(query, key, plan, 1.0, bins, ranks)
    positions = torch.tensor([20] + 14 * [31]), torch.arange(15)  # of both signs
    with pytest.raises(ValueError, match=r"dimension D of head 1 is not finite: .* load it in float32"):
        kernel.listed_entries(query, key, positions, 1.0, bins, ranks)


@pytest.mark.parametrize("name", ["eager", "native", "compiled"])
def test_values_that_are_not_finite_are_ignored_where_no_entry_counts_them(name):
    query, key, plan, bins, ranks = study(40, 2, 16, skip_keys=3, min_distance=1)
    key[:, 2] = key[:, 39] = query[:, :4] = torch.nan  # a sink, the last key, queries that see skipped keys alone
    assert (
        choosing.named_kernel(name).every_entry(query, key, plan, 1.0, bins, ranks).distance_counts.sum() == 36 * 37 / 2
    )


def test_a_payload_does_not_turn_nan_into_a_number():
    query, key, plan, bins, ranks = study(20, 1, 4)
    query[0, 7, 2, 0] = torch.tensor([0x7FC00123], dtype=torch.int32).view(torch.float32)[0]
    with pytest.raises(ValueError, match="D of head 0 is not finite"):
        native.NativeKernel().every_entry(query, key, plan, 1.0, bins, ranks)


# The kernels against each other


@pytest.mark.parametrize("name", ["native", "compiled"])
@pytest.mark.parametrize("limits", [{}, {"window": 70, "skip_keys": 1}, {"min_distance": 4, "max_distance": 300}])
def test_kernels_count_like_the_eager_one(name, limits):
    query, key, plan, bins, ranks = study(500, 2, 16, **limits)
    positions = tuple(counted_positions(plan, 500))
    reference = eager.EagerKernel().every_entry(query, key, plan, 2.0, bins, ranks)
    kernel = choosing.named_kernel(name)
    for found in (
        kernel.every_entry(query, key, plan, 2.0, bins, ranks),
        kernel.listed_entries(query, key, positions, 2.0, bins, ranks),
    ):
        assert torch.equal(found.distance_counts, reference.distance_counts)
        assert torch.equal(found.entries.sum(1), reference.entries.sum(1))
        assert torch.equal(found.rank_sums.sum(1), reference.rank_sums.sum(1))
        moved = (found.entries.cumsum(1) - reference.entries.cumsum(1)).abs()
        assert moved.max() <= 20  # pairs within 1e-5 of an edge, of 125 thousand spread over 15
        curve = found.dimension_sums - reference.dimension_sums
        assert (curve.abs() <= 2e-5 * 2**24 * reference.distance_counts).all()
    assert not getattr(kernel, "_fails", False)  # not eager tiles in its stead


@pytest.mark.parametrize("name", ["eager", "native", "compiled"])
def test_saturated_entries_are_counted_by_every_kernel(name):
    query, key, plan, bins, ranks = study(200, 2, 16, size=3.0)
    positions = tuple(counted_positions(plan, 200))
    _, share = (values[:, positions[0], positions[1]] for values in in_float64(query, key, 1.0))
    expected, close = (share > 0.999).sum(1), ((share - 0.999).abs() < 1e-6).sum(1)
    assert ((expected > 1000) & (expected < 15000)).all()
    kernel = choosing.named_kernel(name)
    for found in (
        kernel.every_entry(query, key, plan, 1.0, bins, ranks),
        kernel.listed_entries(query, key, positions, 1.0, bins, ranks),
    ):
        assert ((found.saturated - expected).abs() <= close).all()


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("heads", [1, 5])
def test_the_number_of_threads_changes_nothing(threads, heads, monkeypatch):
    query, key, plan, bins, ranks = study(300, heads, 16, skip_keys=2, max_distance=250)
    positions = tuple(counted_positions(plan, 300))
    monkeypatch.setattr(native, "LEAST_LISTED", 1000)
    monkeypatch.setattr(native, "THREADS_PAY", 0)  # or so few pairs would be counted on one
    sums, used = [], []
    on_threads = native._on_threads
    monkeypatch.setattr(native, "_on_threads", lambda *given: used.append(given[2]) or on_threads(*given))
    for number in (1, threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        kernel = native.NativeKernel()
        sums.append(
            (
                kernel.every_entry(query, key, plan, 1.0, bins, ranks),
                kernel.listed_entries(query, key, positions, 1.0, bins, ranks),
            )
        )
    assert len(list(native._shares(heads, 300, native.LEAST_QUERIES))) > heads
    assert same(sums[0][0], sums[1][0])
    assert same(sums[0][1], sums[1][1])
    assert used == [1, 1, threads, threads]


# Runs of shuffled content


def shuffled_study(length=300, heads=4, kv_heads=2, *, pairs=8, size=1.0, most=2048, by_head=False, **limits):
    """Random content of one sequence, with a plan over a longer one too, and bins in cells of the resolution."""
    generator = torch.Generator().manual_seed(length)
    real, imaginary = (size * torch.randn(heads + kv_heads, length, pairs, generator=generator) for _ in range(2))
    query, key = torch.complex(real, imaginary).split((heads, kv_heads))
    phase = oracles.plain_phases(torch.arange(length), 10000.0, 2 * pairs)[None]
    if by_head:
        phase = phase * torch.polar(torch.ones(heads), torch.arange(heads) * 0.7)[:, None, None]
    plan = ShufflePlan(EntryPlan((320, length), **limits), 3, most)
    shuffled = Shuffled(Unrotated(query, key, phase, phase), plan.orders(1), plan.runs(1))
    planes = shuffled.content.rotated(shuffled.orders[0])
    sample = dominant_in_float64(*planes, 1.0).flatten(1).float()
    bins = BinLookup(equal_mass_edges(sample[:, ::7], 128, 1 / 256), 1 / 256)
    return shuffled, plan.entries, bins


def run_sums(name, shuffled, plan, bins):
    sums = ShuffleSums.zeros(3, 2, plan.distances, bins)
    choosing.named_kernel(name).add_runs(shuffled, plan, 0.8, bins, plan.rank_grid, sums)
    return sums


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"size": 9.0, "pairs": 5, "skip_keys": 3},
        {"by_head": True, "min_distance": 4, "max_distance": 250},
        {"pairs": 1, "heads": 1, "kv_heads": 1, "length": 301},
        {"window": 120, "most": 8192, "heads": 3, "kv_heads": 3, "pairs": 33},
        {"length": 17, "most": 30000},
        {"length": 2, "most": 30000},
    ],
)
def test_runs_are_counted_as_by_the_eager_kernel_entry_by_entry(changed):
    given = shuffled_study(**changed)
    expected, found = run_sums("eager", *given), run_sums("native", *given)
    assert torch.equal(found.distance_counts, expected.distance_counts)
    for part in ("entries", "rank_sums", "half_entries", "half_rank_sums"):
        one, other = getattr(found, part), getattr(expected, part)
        assert torch.equal(one.sum(-1), other.sum(-1))
        entries = part.endswith("entries")
        assert not entries or (one.cumsum(-1) - other.cumsum(-1)).abs().max() <= 3  # D within 1e-5 of an edge
    assert (found.half_entries.sum(1) == found.entries.view(*found.entries.shape[:2], 64, -1).sum(-1)).all()
    error = (found.dimension_sums - expected.dimension_sums).abs()
    assert (error <= 5e-5 * 2**24 * expected.distance_counts[:, None]).all()


@pytest.mark.parametrize("name", ["eager", "native"])
def test_a_d_that_is_not_finite_in_a_run_is_refused_and_its_head_named(name):
    shuffled, plan, bins = shuffled_study()
    shuffled.content.query[2, 100] = torch.nan
    with pytest.raises(ValueError, match="dimension D of head 2 is not finite"):
        run_sums(name, shuffled, plan, bins)


@pytest.mark.parametrize("heads", [1, 4])
def test_the_number_of_threads_changes_no_sum_over_runs(heads, monkeypatch):
    given, sums = shuffled_study(heads=heads, kv_heads=1), []
    for number in (1, 2, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        sums.append(run_sums("native", *given))
    for field in fields(ShuffleSums):
        first, *others = (getattr(one, field.name) for one in sums)
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(("query_pos", "key_pos"), [(16, 17), (304, 3), (16, -16), (8, 4)])
def test_runs_outside_the_sequence_are_refused(query_pos, key_pos):
    (content, orders, _), plan, bins = shuffled_study()
    sizes = torch.tensor([[1, 0]] + 2 * [[0, 0]])
    runs = Runs(torch.tensor([query_pos]), torch.tensor([key_pos]), sizes)
    with pytest.raises(IndexError, match=r"runs must begin at queries 0, 16, .* below 300, at a key no later"):
        run_sums("native", Shuffled(content, orders, runs), plan, bins)


@pytest.mark.parametrize(("resolution", "exact"), [(1 / 256, True), (1 / 1024, True), (0.01, False), (0.0, False)])
def test_entries_are_counted_in_cells_of_the_resolution_and_added_up_to_the_same_bins(resolution, exact):
    query, key, plan, _, ranks = study(400, 2, 6, size=3.0)
    query[1] = 0  # all D are equal: more entries than a cell's count can hold
    dominant = torch.full((2, 400, 400), torch.nan)
    sample = dominant_in_float64(query, key, 1.0).flatten(1).float()[:, ::9]
    bins = BinLookup(equal_mass_edges(sample, 64, resolution), resolution)
    assert (native._cells(bins, 6).bins is not None) == exact
    sums = native.NativeKernel().every_entry(query, key, plan, 1.0, bins, ranks, dominant=dominant)
    query_pos, key_pos = counted_positions(plan, 400)
    _, share = (values[:, query_pos, key_pos] for values in in_float64(query, key, 1.0))
    assert same(sums, sums_of(dominant[:, query_pos, key_pos], query_pos - key_pos, share, bins, ranks), share)
    assert sums.entries.max() > 2**16 - 1


@pytest.mark.parametrize(
    ("positions", "message"),
    [([[5], [6]], "<= query position < 40"), ([[40], [3]], "< 40"), ([[3], [-1]], "0 <= key position")],
)
def test_entries_outside_the_sequence_are_refused(positions, message):
    query, key, _, bins, ranks = study(40)
    with pytest.raises(IndexError, match=message):
        native.NativeKernel().listed_entries(query, key, tuple(torch.tensor(positions)), 1.0, bins, ranks)


def test_planes_that_do_not_fit_are_refused():
    query, key, plan, bins, ranks = study(40)
    kernel = native.NativeKernel()
    with pytest.raises(ValueError, match=r"bins of 2 heads and ranks of 30 distances must fit"):
        kernel.every_entry(query, key, plan, 1.0, bins, ranks[:30])
    with pytest.raises(ValueError, match=r"bins float32, these edges are torch.float64"):
        kernel.every_entry(query, key, plan, 1.0, BinLookup(bins.edges.double()), ranks)


# Building


def test_without_a_compiler_the_eager_kernel_is_used_and_one_warning_says_so(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/nonexistent")
    query, key, plan, bins, ranks = study()
    kernels = [choosing.choose_kernel(CPU, 2**40, name) for name in (None, "native")]
    assert [kernel.name for kernel in kernels] == ["eager", "eager"]
    reference = eager.EagerKernel().every_entry(query, key, plan, 1.0, bins, ranks)
    assert same(kernels[0].every_entry(query, key, plan, 1.0, bins, ranks), reference)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        "slower eager kernel: there is no C++ compiler: CXX is /nonexistent, which is not installed; install one"
        in line
    )


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\necho "unknown flag -O3" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(building.BuildError, match=r"failed \(unknown flag -O3\); install a recent g\+\+"):
        choosing.named_kernel("native")
    assert not list(fresh.iterdir())


def test_the_library_is_built_once_and_the_log_says_so(fresh, caplog):
    caplog.set_level(logging.INFO)
    native.NativeKernel()
    building.load.cache_clear()
    native.NativeKernel()
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["building native.cpp once"]
    (library,) = fresh.iterdir()
    assert (library.stat().st_mode & 0o777, fresh.stat().st_mode & 0o777) == (0o700, 0o700)


def test_another_source_compiler_flag_or_processor_is_another_library(fresh, monkeypatch, tmp_path):
    source = tmp_path / "native.cpp"
    source.write_text("// one")
    names = [building._library(source)[0]]
    source.write_text("// two")
    names.append(building._library(source)[0])
    for name, value in (("_version", "2"), ("_processor", "other"), ("_flags", ["-O1"])):
        monkeypatch.setattr(building, name, lambda *_, value=value: value)
        names.append(building._library(source)[0])
    assert len(set(names)) == 5


@pytest.mark.parametrize("what", ["library", "folder", "link"])
def test_a_library_that_others_could_have_written_is_not_loaded(what, built, tmp_path):
    native.NativeKernel()
    building.load.cache_clear()
    if what == "link":
        built.rename(tmp_path / "elsewhere.so")
        built.symlink_to(tmp_path / "elsewhere.so")
    else:
        (built if what == "library" else built.parent).chmod(0o720)
    with pytest.raises(building.BuildError, match=r"could hold another user's code: .* \(chmod go-w .*\), or set POS"):
        native.NativeKernel()


def test_a_broken_library_is_an_error_of_its_own(fresh):
    library, _ = building._library(native.SOURCE)
    library.parent.mkdir(parents=True, mode=0o700)
    library.write_bytes(b"")
    library.chmod(0o700)
    with pytest.raises(building.BuildError, match=r"cannot be built or loaded: .*; remove it, or set"):
        native.NativeKernel()


def test_two_processes_can_build_at_once(fresh):
    code = (
        "from pathlib import Path; from positional_heads.core.kernels import building;"
        f"print(building.load(Path({str(native.SOURCE)!r})).every_entry is not None)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == [b"True\n", b"True\n"]
    assert len(list(fresh.iterdir())) == 1


# Choosing


def test_small_inputs_never_pay_for_compilation(fresh, monkeypatch):
    assert choosing.choose_kernel(CPU, 1000).name == "eager"
    assert not fresh.exists()
    assert choosing._by_size(CPU, choosing.NATIVE_PAYS) == "native"
    native.NativeKernel()
    assert choosing.choose_kernel("cpu", 1000).name == "eager"  # a library that is built must not change a number
    monkeypatch.setenv("POSITIONAL_HEADS_KERNEL", "eager")
    assert choosing.choose_kernel(CPU, 2**50).name == "eager"
    assert choosing.choose_kernel(CPU, 1, "compiled").name == "compiled"


@pytest.mark.parametrize(
    ("device", "terms", "name"),
    [("cuda", 2**45, "compiled"), ("cuda", 2**30, "eager"), ("mps", 2**45, "eager")],
)
def test_each_device_gets_a_kernel_that_it_can_run(device, terms, name, monkeypatch):
    monkeypatch.delenv("POSITIONAL_HEADS_KERNEL", raising=False)
    assert choosing.choose_kernel(device, terms).name == name
    with pytest.raises(ValueError, match=f"runs on the CPU, not on {device}: choose triton, compiled or eager"):
        choosing.choose_kernel(device, terms, "native")


def test_unknown_kernels_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="no kernel 'cuda': choose eager, native, compiled, triton"):
        choosing.choose_kernel(CPU, 1, "cuda")


# Memory, and failures of torch.compile


@pytest.mark.parametrize("name", ["eager", "compiled"])
def test_out_of_memory_halves_the_tile_until_it_fits_and_warns_once(name, fresh, monkeypatch, caplog):
    query, key, plan, bins, ranks = study(200, 2, 16)
    reference = eager.EagerKernel().every_entry(query, key, plan, 1.0, bins, ranks)
    module, place = (eager, "dominant_tiles") if name == "eager" else (compiled, "_tiles")
    real, seen = getattr(module, place), []

    def short(*arguments):
        tile = arguments[-1]
        seen.append(tile.entries if isinstance(tile, Tile) else tile)
        if seen[-1] > 2**14:
            msg = "CUDA out of memory. Tried to allocate 2.00 GiB."
            raise RuntimeError(msg)
        return real(*arguments)

    monkeypatch.setattr(module, place, short)
    kernel = choosing.named_kernel(name)
    found = [kernel.every_entry(query, key, plan, 1.0, bins, ranks) for _ in range(2)]
    assert seen == [2**16, 2**15, 2**14, 2**14]  # the second time it begins where it ended
    assert torch.equal(found[0].distance_counts, reference.distance_counts)
    assert same(*found)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["out of memory on cpu: using smaller tiles, which takes a little longer"]


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 1 GiB.", "CUDA error: device-side assert"])
def test_errors_that_smaller_tiles_do_not_help_are_raised(message, fresh, monkeypatch):
    def fails(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(eager, "dominant_tiles", fails)
    query, key, plan, bins, ranks = study()
    with pytest.raises(RuntimeError, match=message):
        eager.EagerKernel().every_entry(query, key, plan, 1.0, bins, ranks)


@pytest.mark.parametrize("kernel", [eager.EagerKernel, compiled.CompiledKernel])
def test_a_tile_larger_than_memory_is_refused_before_anything_is_allocated(kernel, monkeypatch):
    query, key, plan, bins, ranks = study()
    message = r"a tile of 1048576000 MiB does not fit in the \d+ MiB that are free on cpu: give a smaller one, or omit"
    with pytest.raises(ValueError, match=message):
        kernel(tile_mb=1048576000).every_entry(query, key, plan, 1.0, bins, ranks)
    monkeypatch.setenv("POSITIONAL_HEADS_TILE_MB", "1048576000")
    with pytest.raises(ValueError, match=message):
        kernel().every_entry(query, key, plan, 1.0, bins, ranks)
    for wrong in ("0", "-3", "many", "nan"):
        monkeypatch.setenv("POSITIONAL_HEADS_TILE_MB", wrong)
        with pytest.raises(ValueError, match=f"a tile of {wrong} MiB: give a positive number"):
            kernel()


def test_tiles_follow_free_memory(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**33))
    assert tiles.tile_for(CPU, 8) == CACHE_TILE
    assert tiles.tile_for(gpu, 8) == Tile(terms=2**26, entries=2**19)  # 256 MiB of terms, and as much for D
    assert tiles.tile_for(gpu, 8, 64 * 2**20) == Tile(terms=2**24, entries=2**17)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**40, 2**40))
    assert tiles.tile_for(gpu, 8) == Tile(terms=2**28, entries=2**20)


def test_where_torch_cannot_compile_the_eager_kernel_is_used_and_one_warning_says_so(fresh, monkeypatch, caplog):
    def fails(*_, **__):
        def broken(*_):
            msg = "Cannot find a working triton installation.\nMore"
            raise RuntimeError(msg)

        return broken

    monkeypatch.setattr(torch, "compile", fails)
    query, key, plan, bins, ranks = study()
    reference = eager.EagerKernel().every_entry(query, key, plan, 1.0, bins, ranks)
    for _ in range(2):
        kernel = choosing.named_kernel("compiled")
        assert same(kernel.every_entry(query, key, plan, 1.0, bins, ranks), reference)
        assert same(kernel.every_entry(query, key, plan, 1.0, bins, ranks), reference)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        "torch.compile failed (RuntimeError: Cannot find a working triton installation. More): using the slower" in line
    )
