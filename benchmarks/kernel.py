"""Terms per second on one core, a term being query x key x pair: `python -m benchmarks.kernel`, about two minutes.

Kernels are timed with everything they do (contributions, softmax, D, its bin, all sums); only their causal terms count.
The plain expression stops at D, and all its terms of T x T count, as do those of the exponential alone.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch

import positional_heads as ph
from benchmarks.timing import markdown_table, median_ratio, rounds, setting, write_results
from positional_heads.core.bands import Unrotated
from positional_heads.core.binning import BinLookup, equal_mass_edges
from positional_heads.core.kernels.choosing import named_kernel
from positional_heads.core.kernels.sums import Kernel, ShuffleSums
from positional_heads.core.plan import EntryPlan
from positional_heads.core.shuffles import HALVES, Shuffled, ShufflePlan

HEADS, LENGTH, BINS, LISTED, SHUFFLES = 4, 1024, 2048, 2**16, 20
NAIVE = "naive expression, whole T x T x pairs of a head"
SHARP = "native, one pair dominates: maxima needed, many bins close together"
EXP = "torch.exp alone, of such a tensor"
EXP_INTO, EXP_IN_CACHE = f"{EXP}, into memory at hand", "torch.exp alone, in cache: the processor's limit"
Candidates = dict[str, tuple[float, Callable[[], Any]]]


def candidates(pairs: int) -> Candidates:
    """Terms and function of each candidate, by name.

    Args:
        pairs: Rotary pairs of a head.
    """
    torch.manual_seed(0)
    rot_q, rot_k = torch.randn(2, 1, LENGTH, HEADS, 2 * pairs)
    query, key = (x[0].unflatten(-1, (2, pairs)).permute(1, 0, 3, 2).contiguous() for x in (rot_q, rot_k))
    plan = EntryPlan((LENGTH,))
    query_pos = torch.randint(0, LENGTH, (LISTED,))
    key_pos = (torch.rand(LISTED) * (query_pos + 1)).long()
    sample, sharp_sample = (
        named_kernel("eager").listed_dominant(size * query, size * key, (query_pos, key_pos), 1.0) for size in (1, 6)
    )
    bins, sharp_bins = (BinLookup(equal_mass_edges(one, BINS)) for one in (sample, sharp_sample))
    causal, listed = HEADS * pairs * LENGTH * (LENGTH + 1) / 2, HEADS * pairs * float(LISTED)
    found: Candidates = {}
    for name in ("native", "eager", "compiled"):
        kernel = named_kernel(name)
        found[f"{name}, runs of {SHUFFLES} shuffles"] = shuffled_runs(kernel, query, key, plan, bins)
        found[name] = causal, lambda kernel=kernel: kernel.every_entry(query, key, plan, 1.0, bins, plan.rank_grid)
        found[f"{name}, {LISTED} entries listed"] = (
            listed,
            lambda kernel=kernel: kernel.listed_entries(query, key, (query_pos, key_pos), 1.0, bins, plan.rank_grid),
        )
    sharp = 6 * query, 6 * key
    found[SHARP] = causal, lambda: named_kernel("native").every_entry(*sharp, plan, 1.0, sharp_bins, plan.rank_grid)
    small, whole = -torch.rand(2**14), -torch.rand(pairs * LENGTH**2)
    into, cached = torch.empty_like(whole), torch.empty_like(small)
    return found | {
        NAIVE: (pairs * LENGTH**2, lambda: naive(rot_q[:, :, :1], rot_k[:, :, :1])),
        EXP: (whole.numel(), whole.exp),
        EXP_INTO: (whole.numel(), lambda: torch.exp(whole, out=into)),
        EXP_IN_CACHE: (2**24, lambda: [torch.exp(small, out=cached) for _ in range(2**10)]),
    }


def shuffled_runs(
    kernel: Kernel, query: torch.Tensor, key: torch.Tensor, plan: EntryPlan, bins: BinLookup
) -> tuple[float, Callable[[], Any]]:
    """Terms of the default sample of a null of 20, and a function that counts them.

    Args:
        kernel: The kernel.
        query: Planes, taken as not rotated yet.
        key: The same of keys.
        plan: Which entries count.
        bins: Bins of D.
    """
    heads, length, pairs = query.shape[:3]
    angles = torch.outer(torch.arange(length), 1e4 ** (-torch.arange(pairs) / pairs))
    phase = torch.polar(torch.ones_like(angles), angles).to(query.device)[None]
    content = Unrotated(torch.view_as_complex(query), torch.view_as_complex(key), phase, phase)
    shuffles = ShufflePlan(plan, SHUFFLES, 32 * length)
    shuffled, ranks = Shuffled(content, shuffles.orders(0), shuffles.runs(0)), plan.rank_grid.to(query.device)
    return float(heads * pairs * shuffles.entry_counts.sum()), lambda: kernel.add_runs(
        shuffled, plan, 1.0, bins, ranks, ShuffleSums.zeros(SHUFFLES, HALVES, length, bins)
    )


def naive(rot_q: torch.Tensor, rot_k: torch.Tensor) -> torch.Tensor:
    """D of one head by the plain PyTorch expression."""
    return ph.dominant_dimension(ph.pair_contributions(rot_q, rot_k, "half"))


def measured(pairs: int, repeats: int) -> dict[str, dict[str, float]]:
    """Terms per CPU second in units of 1e9, and ratios of time per term within rounds, by name.

    Args:
        pairs: Rotary pairs of a head.
        repeats: Rounds.
    """
    work = candidates(pairs)
    seconds = rounds({name: run for name, (_, run) in work.items()}, repeats)
    per_term = {name: [taken / work[name][0] for taken in times.cpu] for name, times in seconds.items()}
    return {
        name: {
            "G terms/s": 1e-9 / statistics.median(times),
            "times naive": median_ratio(per_term[NAIVE], times),
            "times exp": median_ratio(per_term[EXP], times),
            "times exp in cache": median_ratio(per_term[EXP_IN_CACHE], times),
        }
        for name, times in per_term.items()
    }


def table(numbers: dict[int, dict[str, dict[str, float]]]) -> str:
    """One row per candidate, three columns per number of pairs.

    Args:
        numbers: What was measured, by pairs and name.
    """
    header = ["one core", *(f"{pairs} pairs: {unit}" for pairs, named in numbers.items() for unit in named[NAIVE])]
    names = list(next(iter(numbers.values())))
    rows = [[name, *(f"{value:.2f}" for named in numbers.values() for value in named[name].values())] for name in names]
    return markdown_table(header, rows)


def main() -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="rounds, of which medians are taken")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    numbers = {pairs: measured(pairs, repeats) for pairs in (32, 64)}
    told = ", ".join(f"{name} {value}" for name, value in setting().items())
    text = (
        f"# Terms per second of CPU time\n\nT = {LENGTH}, {HEADS} heads, {BINS} bins; medians of {repeats} rounds in "
        f"which all take turns, on a machine that others used too. {told}.\n\n{table(numbers)}"
    )
    write_results("kernel", text, {"setting": setting() | {"repeats": repeats}, "by pairs": numbers})


if __name__ == "__main__":
    main()
