"""One GPU: the kernels against the device's limit of exponentials, and scoring against the forward pass.

`python -m benchmarks.gpu`, five minutes at most, downloads nothing. The model is a Llama of 1.1 B parameters with
random weights, made on the device. `--device cpu --toy` runs all of it at toy size.
"""

import argparse
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import positional_heads as ph
from benchmarks.device import Device, TimeLimit
from benchmarks.kernel import shuffled_runs
from benchmarks.models import bridged, bridged_llama, llama_config, plain_llama, random_tokens
from benchmarks.timing import RESULTS, markdown_table, write_results
from positional_heads.core.binning import BinLookup, equal_mass_edges
from positional_heads.core.kernels.building import BuildError
from positional_heads.core.kernels.choosing import named_kernel
from positional_heads.core.kernels.tiles import out_of_memory
from positional_heads.core.plan import EntryPlan

FORWARD = "Hugging Face forward, sdpa"
SCORES: dict[str, dict[str, Any]] = {
    "sampled 65536 entries, no null": {"pairs": 65536},
    "sampled 65536 entries, default null of 20": {"pairs": 65536, "null_repeats": 20},
    "exact, no null": {"pairs": "all"},
    "exact, default null of 20": {"pairs": "all", "null_repeats": 20},
}
PROFILE = "head profile, no null"
COMPILE_SECONDS = 40
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        kernel: Heads and tokens of the kernels' queries and keys.
        pairs: Rotary pairs of a head there.
        listed: Entries in a list there.
        model: Layers, heads and channels of a head of the model.
        changed: Other fields of its configuration.
        lengths: Tokens of a sequence, ascending.
        enough: Seconds of calls of one case, of up to five of which the median is taken.
    """

    kernel: tuple[int, int] = (32, 8192)
    pairs: tuple[int, ...] = (32, 64)
    listed: int = 2**18
    model: tuple[int, int, int] = (22, 32, 64)
    changed: tuple[tuple[str, int], ...] = (
        ("num_key_value_heads", 4),
        ("intermediate_size", 5632),
        ("vocab_size", 32000),
    )
    lengths: tuple[int, ...] = (8192, 32768)
    enough: float = 3.0


TOY = Sizes((2, 96), (16,), 2**10, (1, 2, 32), (("num_key_value_heads", 1),), (64, 128), 0.0)


def agreement(device: Device) -> str:
    """Whether scores are the same on the device as on the CPU, on a small model."""
    config, tokens = llama_config(2, 4, 32), random_tokens(2, 256)
    found = []
    for where in ("cpu", device.name):
        model = bridged(plain_llama(config).to(where), where)  # weights drawn on the device would be others
        scores = ph.score_heads(model, tokens, null_repeats=2, temperature="attention")
        found.append(torch.cat([scores.rho.flatten(), scores.null.rho.flatten()]))
    apart = float((found[0] - found[1]).abs().max())
    return f"Scores of a small model in float32 on this device and on the CPU differ by {apart:.1g} in rho at most."


def kernels(device: Device, sizes: Sizes, limit: TimeLimit) -> Iterator[Row]:
    """Terms (query x key x pair) per second of each kernel."""
    for pairs in sizes.pairs:
        heads, length = sizes.kernel
        query, key = torch.randn(2, heads, length, pairs, 2, device=device.name)
        plan, eager = EntryPlan((length,)), named_kernel("eager")
        ranks = plan.rank_grid.to(device.name)
        query_pos = torch.randint(0, length, (sizes.listed,), device=device.name)
        positions = query_pos, (torch.rand_like(query_pos, dtype=torch.float64) * (query_pos + 1)).long()
        few = tuple(part[: 2**14] for part in positions)
        bins = BinLookup(equal_mass_edges(eager.listed_dominant(query, key, few, 1.0), 2048))
        for name in ("eager", "compiled", "triton"):
            try:
                kernel = named_kernel(name)
            except BuildError as error:
                limit.dropped.append(f"{name}, {pairs} pairs: {error}")
                continue
            every = partial(kernel.every_entry, query, key, plan, 1.0, bins, ranks)
            listed = partial(kernel.listed_entries, query, key, positions, 1.0, bins, ranks)
            width = heads * pairs
            works = {"all": (width * length * (length + 1) / 2, every), "listed": (width * sizes.listed, listed)}
            works["shuffled"] = shuffled_runs(kernel, query, key, plan, bins)
            for what, (terms, work) in works.items():
                case = f"{name}, {pairs} pairs, {what} entries"
                if limit.allows(case, COMPILE_SECONDS if name == "compiled" else 10):
                    first = device.seconds(work)
                    row = {
                        "kernel": case,
                        "first call": first,
                        "terms": terms / device.median(work, sizes.enough),
                    }
                    yield row | ({"profile": device.busiest(work)} if what == "all" else {})


def scoring(device: Device, sizes: Sizes, limit: TimeLimit, speeds: list[float]) -> Iterator[Row]:
    """Scoring beside the forward pass, smallest sizes first."""
    taken: dict[tuple[str, int], float] = {}
    layers, heads, d_head = sizes.model
    for number, length in enumerate(sizes.lengths):
        terms = layers * heads * d_head / 2 * length**2 / 2
        growth = (length / sizes.lengths[number - 1]) ** 2 if number else 1.0
        for dtype in (torch.bfloat16, torch.float32):
            config = llama_config(layers, heads, d_head, max(sizes.lengths), **dict(sizes.changed))
            plain, bridge = (make(config, device.name, dtype) for make in (plain_llama, bridged_llama))
            tokens = random_tokens(1, length)
            works: dict[str, Callable[[], Any]] = {FORWARD: partial(forward, plain, tokens.to(device.name))}
            works |= {name: partial(score, bridge, tokens, settings) for name, settings in SCORES.items()}
            works[PROFILE] = partial(profile, bridge, tokens)
            for name, work in works.items():
                # not known yet: as if all entries were counted, twice
                unknown = 1.0 if name == FORWARD else 5.0 + 2 * terms / max(speeds, default=1e9)
                shorter = taken.get((name, sizes.lengths[number - 1]))
                before = taken.get((name, length), unknown if shorter is None else growth * shorter)
                case = f"{name}, {length} tokens, {str(dtype).removeprefix('torch.')}"
                if not limit.allows(case, 2 * before):
                    continue
                try:
                    peak = device.peak(work)
                    taken[name, length] = device.median(work, sizes.enough)
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    limit.dropped.append(f"{case}: out of memory")
                    continue
                over = taken[name, length] / taken.get((FORWARD, length), float("nan"))
                yield {"case": case, "seconds": taken[name, length], "x forward": over, "MiB": peak}
            del plain, bridge, works, work
            gc.collect()


@torch.no_grad()
def forward(model: Any, tokens: torch.Tensor) -> None:
    """A forward pass, with the logits of every token."""
    model(tokens)


def score(model: Any, tokens: torch.Tensor, settings: dict[str, Any]) -> None:
    """Scores of every head."""
    ph.score_heads(model, tokens, beyond_context=True, **settings)


def profile(model: Any, tokens: torch.Tensor) -> None:
    """A profile of every head, which counts all entries too."""
    ph.profile_heads(model, tokens, retrieval=None, pairs="all", beyond_context=True)


def verdict(rows: list[Row], limit: float | None) -> str:
    """Whether the kernels of a GPU reach half of its limit."""
    speeds = {
        name: max(row["terms"] for row in rows if row["kernel"].startswith(name) and "all entries" in row["kernel"])
        for name in ("compiled", "triton")
        if any(row["kernel"].startswith(name) and "all entries" in row["kernel"] for row in rows)
    }
    if not speeds or limit is None:
        return "No limit of exponentials is known for this device, or no kernel of a GPU was measured: no verdict."
    shares = [
        f"{name} reaches {speed / limit:.0%} of the limit of {limit:.3g} exponentials per second, "
        f"{'half of it or more' if speed / limit >= 0.5 else 'less than half of it'}"
        for name, speed in speeds.items()
    ]
    return f"{'; '.join(shares)}."


def text(device: Device, agreed: str, kernel_rows: list[Row], score_rows: list[Row], limit: TimeLimit) -> str:
    """Everything that was measured."""
    most = device.exponentials()
    share = [f"{row['terms'] / most:.1%}" if most else "" for row in kernel_rows]
    speeds = [
        [row["kernel"], f"{row['terms'] / 1e9:.3g}", part, f"{row['first call']:.2g}"]
        for row, part in zip(kernel_rows, share, strict=True)
    ]
    cells = [
        [
            row["case"],
            f"{row['seconds']:.3g}",
            f"{row['x forward']:.2f}",
            "" if row["MiB"] is None else f"{row['MiB']:.0f}",
        ]
        for row in score_rows
    ]
    parts = [
        "# One GPU",
        ", ".join(f"{name} {value}" for name, value in device.facts().items()) + ".",
        agreed,
        "## Kernels",
        markdown_table(["", "G terms/s", "of the limit", "first call, seconds"], speeds),
        verdict(kernel_rows, most),
        "\n".join(f"- {row['kernel']}: {row['profile']}" for row in kernel_rows if "profile" in row),
        "## Scoring",
        "A Llama with random weights, one sequence; the ratio is to the forward pass in the same precision.",
        markdown_table(["", "seconds", "x forward", "MiB at the peak, above the model"], cells),
    ]
    if limit.dropped:
        parts += [f"Left out, to end within {limit.minutes:g} minutes or for lack of memory:"]
        parts += ["\n".join(f"- {case}" for case in limit.dropped)]
    return "\n\n".join(parts)


def main() -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="where to run")
    parser.add_argument("--minutes", type=float, default=5, help="what would end later is left out")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--results", type=Path, help="folder for gpu.md and gpu.json; benchmarks/results")
    given = parser.parse_args()
    device, sizes, limit = Device(given.device), TOY if given.toy else Sizes(), TimeLimit(given.minutes)
    agreed, kernel_rows, score_rows = agreement(device), [], []
    results = given.results or (None if given.toy else RESULTS)
    try:
        for row in kernels(device, sizes, limit):
            kernel_rows.append(row)
            print(row, flush=True)
        for row in scoring(device, sizes, limit, [row["terms"] for row in kernel_rows]):
            score_rows.append(row)
            print(row, flush=True)
    finally:  # what was measured is kept, whatever comes after it
        numbers = {"device": device.facts(), "kernels": kernel_rows, "scoring": score_rows, "left out": limit.dropped}
        said = text(device, agreed, kernel_rows, score_rows, limit)
        write_results("gpu", said, numbers, results)


if __name__ == "__main__":
    main()
