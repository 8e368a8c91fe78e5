"""How fast a machine is at what scoring does: measured here in a second or two, or given for a GPU that is not here."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from positional_heads.bridge.model_size import ModelSize
from positional_heads.core.bands import Unrotated
from positional_heads.core.binning import BinLookup, equal_mass_edges
from positional_heads.core.kernels.sums import Kernel, ShuffleSums
from positional_heads.core.plan import EntryPlan
from positional_heads.core.rotary import Planes
from positional_heads.core.shuffles import HALVES, Shuffled, ShufflePlan

TOKENS, HEADS, ENTRIES = 1024, 4, 2**16
"""Sizes of a measurement: large enough for the speed of a long run, small enough for a fraction of a second."""
WIDEST, WIDEST_MLP = 2048, 8192
SECONDS = 0.15
"""Time given to each measurement, of which the fastest repetition counts."""


@dataclass(frozen=True)
class Machine:
    """Speeds, of all cores or of one GPU.

    Attributes:
        name: What it is, and whether it was measured.
        linear: FLOP per second of a layer's matrix products and what lies between them.
        attention: FLOP per second of attention, of visible query-key pairs.
        every: Terms per second where all entries of a sequence count; a term is query x key x rotary pair.
        listed: Terms per second of entries in a list, as a sample takes them.
        shuffled: Terms per second of the samples of a null.
        measured: Whether these were measured here.
    """

    name: str
    linear: float
    attention: float
    every: float
    listed: float
    shuffled: float
    measured: bool = False


H100 = Machine(
    "one H100, by an H200's speeds",
    linear=0.4 * 989e12,
    attention=0.3 * 989e12,
    every=8.2e11,
    listed=3.3e10,
    shuffled=2.5e10,
)
"""The Triton kernel with 32 pairs, which is slower than with 64, and the forward pass of a 1.1 B Llama in bf16, which
reached 40 % of the peak (benchmarks/results/gpu.md). The share of the peak in attention alone was not measured."""


def measured_machine(size: ModelSize, kernel: Kernel, dtype: torch.dtype = torch.float32, clock: Any = None) -> Machine:
    """The speeds of this machine at the widths of a model, on as many threads as PyTorch uses.

    Args:
        size: The model's size.
        kernel: What counts terms.
        dtype: Precision of D.
        clock: A clock in seconds; wall-clock time when None.
    """
    clock = clock or time.perf_counter
    generator = torch.Generator().manual_seed(0)
    planes = [torch.randn(HEADS, TOKENS, size.pairs, 2, generator=generator, dtype=dtype) for _ in range(2)]
    linear, flop = _layer(size, generator)
    attention, attended = _attention(size, generator)
    terms = {name: (run, count * HEADS * size.pairs) for name, (run, count) in _counting(kernel, *planes).items()}
    works = {"linear": (linear, flop), "attention": (attention, attended), **terms}
    return Machine(
        f"this machine, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}, "
        f"{kernel.name} kernel",
        **{name: amount / _fastest(work, clock) for name, (work, amount) in works.items()},
        measured=True,
    )


@torch.no_grad()
def _fastest(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Seconds of the fastest repetition, after one that does not count."""
    work()
    taken: list[float] = []
    started = time.perf_counter()
    while not taken or time.perf_counter() - started < SECONDS:
        begun = clock()
        work()
        taken.append(clock() - begun)
    return min(taken)


def _layer(size: ModelSize, generator: torch.Generator) -> tuple[Callable[[], Any], float]:
    """A feed-forward layer with its norm, and its FLOP; wide layers are cut, which hardly changes the speed."""
    width, inner = min(size.d_model, WIDEST), min(size.d_mlp, WIDEST_MLP)
    hidden = torch.randn(TOKENS, width, generator=generator)
    up, gate, down = (torch.randn(inner, width, generator=generator) for _ in range(3))

    def run() -> torch.Tensor:
        normed = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)
        linear = torch.nn.functional.linear
        return hidden + linear(torch.nn.functional.silu(linear(normed, gate)) * linear(normed, up), down.T)

    return run, 6.0 * TOKENS * width * inner


def _attention(size: ModelSize, generator: torch.Generator) -> tuple[Callable[[], Any], float]:
    query, key, value = (torch.randn(1, HEADS, TOKENS, size.d_head, generator=generator) for _ in range(3))

    def run() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    return run, 4.0 * HEADS * size.d_head * TOKENS * (TOKENS + 1) / 2


def _counting(kernel: Kernel, query: Planes, key: Planes) -> dict[str, tuple[Callable[[], Any], float]]:
    """What the kernel does for all entries, for a list of them, and for the runs of a null; with numbers of entries."""
    plan, shuffles = EntryPlan((TOKENS,), most_entries=ENTRIES), ShufflePlan(EntryPlan((TOKENS,)), 2, ENTRIES)
    every, ranks = EntryPlan((TOKENS,)), plan.rank_grid
    sample = torch.cat([torch.stack(positions) for positions in plan.entry_positions(0)], dim=1)
    positions = (sample[0], sample[1])
    bins = BinLookup(equal_mass_edges(kernel.listed_dominant(query, key, positions, 1.0), 2048, 1 / 256))
    runs, phase = shuffles.runs(0), torch.ones(1, TOKENS, query.shape[2], dtype=query.dtype.to_complex())
    assert runs is not None
    content = Unrotated(torch.view_as_complex(query), torch.view_as_complex(key), phase, phase)
    shuffled = Shuffled(content, shuffles.orders(0), runs)
    sums = ShuffleSums.zeros(shuffles.repeats, HALVES, TOKENS, bins)
    counted = float(shuffles.half_entry_counts.sum())
    return {
        "every": (lambda: kernel.every_entry(query, key, every, 1.0, bins, ranks), float(every.entry_counts.sum())),
        "listed": (lambda: kernel.listed_entries(query, key, positions, 1.0, bins, ranks), float(sample.shape[1])),
        "shuffled": (lambda: kernel.add_runs(shuffled, shuffles.entries, 1.0, bins, ranks, sums), counted),
    }
