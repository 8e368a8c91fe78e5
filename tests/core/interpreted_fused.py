"""The Triton kernel counts as defined, and steps back where it is wrong; run by test_fused in Triton's interpreter."""

import logging
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from positional_heads.core.binning import BinLookup
from positional_heads.core.kernels import choosing, fused
from positional_heads.core.kernels.building import BuildError
from positional_heads.core.logs import warn_once
from positional_heads.core.plan import EntryPlan
from tests.core.test_kernels import (
    LIMITS,
    SIZES,
    bound_on_d,
    counted_positions,
    in_float64,
    run_sums,
    shuffled_study,
    study,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy warns of what is not finite
STEP = 2**24


@pytest.fixture(autouse=True)
def unchosen(monkeypatch):
    """As where nobody has chosen a kernel, or been warned."""
    monkeypatch.delenv("POSITIONAL_HEADS_KERNEL", raising=False)
    warn_once.cache_clear()


def at_first(sums):
    """Sums as `_summed` returns them: its callers count distances into them."""
    return replace(sums, distance_counts=torch.zeros_like(sums.distance_counts))


@pytest.fixture(scope="module", autouse=True)
def compared():
    """All sums of the comparison with the eager kernel, which finds no problem; it takes seconds in the interpreter."""
    real, found = fused._summed, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_summed", lambda *given, **named: found.append(real(*given, **named)) or found[-1])
        assert fused._problem() is None
    return found


@pytest.fixture
def unchecked():
    """As in a new process, where the kernel has not been compared with the eager one."""
    fused._problem.cache_clear()
    yield
    fused._problem.cache_clear()


def assert_right(sums, planes, positions, temperature, bins, ranks):
    """Sums are those of D in float64, but for what rounding may move: entries next to an edge, or to the share."""
    query_pos, key_pos = positions
    distance, error = query_pos - key_pos, bound_on_d(*planes, temperature)
    exact, share = (values[:, query_pos, key_pos] for values in in_float64(*planes, temperature))
    assert torch.equal(sums.distance_counts, torch.bincount(distance, minlength=len(ranks)))
    for head, (d, edges) in enumerate(zip(exact, bins.edges.double(), strict=True)):
        below, close = d <= edges[:, None], (d - edges[:, None]).abs() <= error
        entries, rank_sums = (values[head].cumsum(0) for values in (sums.entries, sums.rank_sums))
        assert ((entries[:-1] - below.sum(1)).abs() <= close.sum(1)).all()
        assert ((rank_sums[:-1] - (below * ranks[distance]).sum(1)).abs() <= (close * ranks[distance]).sum(1)).all()
        assert (entries[-1], rank_sums[-1]) == (len(distance), ranks[distance].sum())
        dimensions = torch.zeros(len(ranks), dtype=torch.float64).index_add_(0, distance, d)
        assert (
            (sums.dimension_sums[head] / STEP - dimensions).abs() <= (error + 1 / STEP) * sums.distance_counts
        ).all()
    uncertain = ((share - 0.999).abs() < 1e-6).sum(1)
    assert ((sums.saturated - (share > 0.999).sum(1)).abs() <= uncertain).all()


@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from([1, 7, 16]), SIZES, LIMITS, st.integers(0, 99))
@settings(deadline=None, max_examples=8)
def test_all_entries_are_counted_as_defined(length, heads, pairs, size, limits, seed):
    query, key, plan, bins, ranks = study(length, heads, pairs, size=size, seed=seed, **limits)
    sums = fused.FusedKernel().every_entry(query, key, plan, 1.7, bins, ranks)
    assert_right(sums, (query, key), counted_positions(plan, length), 1.7, bins, ranks)


@given(st.integers(1, 40), st.integers(0, 200), st.sampled_from([1, 7, 16]), SIZES, st.integers(0, 99))
@settings(deadline=None, max_examples=5)
def test_listed_entries_are_counted_as_defined(length, n, pairs, size, seed):
    query, key, _, bins, ranks = study(length, 2, pairs, size=size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    query_pos = torch.randint(0, length, (n,), generator=generator)
    key_pos = (torch.rand(n, generator=generator) * (query_pos + 1)).long()
    key = key.transpose(0, 1).contiguous().transpose(0, 1)  # strides of keys need not be those of queries
    sums = fused.FusedKernel().listed_entries(query, key, (query_pos, key_pos), 0.6, bins, ranks)
    assert_right(sums, (query, key), (query_pos, key_pos), 0.6, bins, ranks)


@pytest.mark.parametrize("limits", [{"min_distance": 4}, {"window": 170, "skip_keys": 130}])
def test_many_programs_in_many_launches_count_each_entry_once(limits, monkeypatch):
    monkeypatch.setattr(fused, "MOST_KEYS", 128)
    monkeypatch.setattr(fused, "SCRATCH", 8 * 2 * 64 * 5)  # five rows for each head
    query, key, plan, bins, ranks = study(261, 2, 3, **limits)
    positions = counted_positions(plan, 261)
    for sums in (
        fused.FusedKernel().every_entry(query, key, plan, 1.0, bins, ranks),
        fused.FusedKernel().listed_entries(query, key, tuple(positions), 1.0, bins, ranks),
    ):
        assert_right(sums, (query, key), positions, 1.0, bins, ranks)


def test_a_row_of_bins_holds_all_entries_of_a_program():
    programs = fused._blocks(900, EntryPlan((900,)))
    most = int((programs[:, 2] - programs[:, 1]).max()) * fused.QUERIES
    assert 50_000 < most < 2**16
    planes, plan, ranks = torch.zeros(1, 900, 1, 2), EntryPlan((900,)), torch.full((900,), 2**31)
    sums = fused.FusedKernel().every_entry(planes, planes, plan, 1.0, BinLookup(torch.tensor([[-1.0, 1.0]])), ranks)
    assert sums.entries.tolist() == [[0, 450 * 901, 0]]
    assert sums.rank_sums.tolist() == [[0, 450 * 901 * 2**31, 0]]


def test_ties_at_an_edge_are_counted_below_it():
    query, key, plan, _, ranks = study(33, 1, 5)
    bins = BinLookup(torch.tensor([[1.0, 2.0, 2.0, 3.0]]))
    sums = fused.FusedKernel().every_entry(query, torch.zeros_like(key), plan, 1.0, bins, ranks)
    assert sums.entries.tolist() == [[0, 33 * 17, 0, 0, 0]]
    assert (sums.dimension_sums == 2 * STEP * plan.entries_at(33)).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_d_that_is_not_finite_is_refused_and_its_head_named(bad):
    query, key, plan, bins, ranks = study(40, 3, 7)
    query[1, 31, 5, 1] = bad
    kernel, message = fused.FusedKernel(), r"dimension D of head 1 is not finite: .* load it in float32"
    with pytest.raises(ValueError, match=message):
        kernel.every_entry(query, key, plan, 1.0, bins, ranks)
    with pytest.raises(ValueError, match=message):
        kernel.listed_entries(query, key, (torch.tensor(15 * [31]), torch.arange(15)), 1.0, bins, ranks)


def test_values_that_are_not_finite_are_ignored_where_no_entry_counts_them():
    query, key, plan, bins, ranks = study(40, 2, 7, skip_keys=3, min_distance=1)
    key[:, 2] = key[:, 39] = query[:, :4] = torch.nan
    sums = fused.FusedKernel().every_entry(query, key, plan, 1.0, bins, ranks)
    assert sums.entries.sum(1).tolist() == 2 * [36 * 37 / 2]


@pytest.mark.parametrize("listed", [([5], [6]), ([40], [3]), ([3], [-1])])
def test_entries_outside_the_sequence_are_refused(listed):
    query, key, _, bins, ranks = study(40)
    with pytest.raises(IndexError, match="must have 0 <= key position <= query position < 40"):
        fused.FusedKernel().listed_entries(query, key, tuple(map(torch.tensor, listed)), 1.0, bins, ranks)


def test_planes_that_do_not_fit_are_refused():
    query, key, plan, bins, ranks = study(40)
    with pytest.raises(ValueError, match="ranks of 30 distances must fit"):
        fused.FusedKernel().every_entry(query, key, plan, 1.0, bins, ranks[:30])


def test_runs_of_shuffled_content_are_counted_as_by_the_eager_kernel():
    given = shuffled_study(40, 2, 1, pairs=3, most=1024)
    expected, found = run_sums("eager", *given), run_sums("triton", *given)
    assert torch.equal(found.distance_counts, expected.distance_counts)
    for part in ("entries", "half_entries"):
        one, other = getattr(found, part), getattr(expected, part)
        assert torch.equal(one.sum(-1), other.sum(-1))
        assert (one.cumsum(-1) - other.cumsum(-1)).abs().max() <= 2  # D within 1e-5 of an edge
    assert found.half_entries.sum() > 0


# Before its first use


@pytest.mark.parametrize(
    "changed",
    [
        lambda sums: replace(sums, entries=sums.entries.roll(1, 1)),
        lambda sums: replace(sums, rank_sums=sums.rank_sums.flip(1)),
        lambda sums: replace(sums, dimension_sums=sums.dimension_sums + 2**13),
        lambda sums: replace(sums, saturated=sums.saturated + 3),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_kernel_that_is_wrong_is_not_used_and_one_warning_says_so(changed, compared, monkeypatch, caplog):
    found = iter(compared)
    monkeypatch.setattr(fused, "_summed", lambda *_, **__: changed(at_first(next(found))))
    assert [choosing.choose_kernel("cuda", 2**45).name for _ in range(2)] == ["compiled", "compiled"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line == (
        "using the slower compiled kernel: the triton kernel cannot be used: its sums differ from the eager kernel's"
    )


@pytest.mark.usefixtures("unchecked")
def test_a_kernel_that_does_not_compile_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(fused, "add_entries", None)
    assert choosing.choose_kernel("cuda", 2**37).name == "eager"
    assert "using the slower eager kernel: the triton kernel cannot be used: TypeError: 'NoneType'" in caplog.text


@pytest.mark.usefixtures("unchecked")
def test_a_kernel_that_is_right_is_chosen_for_large_jobs_on_a_gpu_and_compared_once(compared, monkeypatch):
    found = map(at_first, compared)
    monkeypatch.setattr(fused, "_summed", lambda *_, **__: next(found))
    assert choosing.choose_kernel("cuda", choosing.TRITON_PAYS).name == "triton"
    monkeypatch.setattr(fused, "_summed", None)
    assert choosing.choose_kernel("cuda", 2**45).name == "triton"
    assert choosing.choose_kernel("cuda", 2**30).name == "eager"
    assert choosing.choose_kernel("cpu", 2**45).name != "triton"


def test_without_a_gpu_it_cannot_be_built(monkeypatch):
    monkeypatch.setattr(fused, "INTERPRETED", False)
    with pytest.raises(BuildError, match="cannot be used: there is no CUDA or ROCm GPU"):
        choosing.named_kernel("triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="runs on a GPU, not on cpu: choose native"):
        choosing.choose_kernel("cpu", 2**45, "triton")


def test_without_triton_another_kernel_is_chosen(monkeypatch):
    monkeypatch.delitem(sys.modules, "positional_heads.core.kernels.fused")
    monkeypatch.delitem(sys.modules, "positional_heads.core.kernels.fused_block")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(BuildError, match="needs Triton, which comes with PyTorch for GPUs on Linux"):
        choosing.named_kernel("triton")
    monkeypatch.setattr(choosing, "find_spec", lambda _: None)
    assert choosing.choose_kernel("cuda", 2**45).name == "compiled"
