"""Overhead of scoring over the forward pass, and cost against the usual code.

`python -m benchmarks.scoring`, half an hour on two cores; needs Linux, to read peak memory. CPU time is that of this
process; memory is the peak of a separate process, minus its memory after loading the model.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import positional_heads as ph
from benchmarks.models import llama_shaped, random_tokens
from benchmarks.timing import markdown_table, median_ratio, rounds, setting, write_results

SAMPLED = 8192
TASKS = ("forward", "score")
MEMORY_SHAPE, SHAPE = (4, 8, 64), (8, 16, 64)


@torch.no_grad()
def forward(model: Any, tokens: torch.Tensor) -> None:
    """The model's own run, a sequence at a time."""
    for row in tokens:
        model(row[None], return_type=None)


@torch.no_grad()
def forward_in_chunks(model: Any, tokens: torch.Tensor) -> None:
    """The same without scores of T x T, as scoring runs it."""
    from positional_heads.bridge.prefill import prefilled_logits

    for row in tokens:
        prefilled_logits(model, row[None])


def score(model: Any, tokens: torch.Tensor, **settings: Any) -> Any:
    """Scores of these sequences."""
    return ph.score_heads(model, tokens, batch_size=1, **{"pairs": "all"} | settings)


@torch.no_grad()
def as_written_today(model: Any, tokens: torch.Tensor) -> list[list[float]]:
    """Rho of every head: run_with_cache, einsum, softmax, scipy.stats.spearmanr."""
    from scipy.stats import spearmanr

    _, cache = model.run_with_cache(tokens)
    length = tokens.shape[1]
    below = torch.ones(length, length, dtype=torch.bool).tril()
    distance = (torch.arange(length)[:, None] - torch.arange(length))[below].numpy()
    found = []
    for layer in range(model.cfg.n_layers):
        q, k = (cache[f"blocks.{layer}.attn.hook_rot_{name}"][0] for name in "qk")
        q, k = (x.unflatten(-1, (2, -1)) for x in (q, k))
        contributions = torch.einsum("mhcp,nhcp->hmnp", q, k)
        dominant = contributions.softmax(-1) @ torch.arange(contributions.shape[-1], dtype=torch.float32)
        found.append([float(spearmanr(distance, head[below].numpy()).statistic) for head in dominant])
    return found


def beside_forward(lengths: list[int], sequences: int, repeats: int = 3) -> list[dict[str, float]]:
    """(b) Overhead of exact and sampled scoring, as a share of the forward pass."""
    model, rows = llama_shaped(*SHAPE), []
    for length in lengths:
        tokens = random_tokens(sequences, length)
        scored: dict[str, Any] = {}
        works = {
            "forward": lambda tokens=tokens: forward(model, tokens),
            "in chunks": lambda tokens=tokens: forward_in_chunks(model, tokens),
            "exact": lambda tokens=tokens, scored=scored: scored.update(exact=score(model, tokens)),
            "sampled": lambda tokens=tokens, scored=scored: scored.update(sampled=score(model, tokens, pairs=SAMPLED)),
        }
        seconds = rounds(works, repeats)
        error = (scored["sampled"].rho - scored["exact"].rho).abs()
        row = {"length": length, "sequences": sequences, "within 0.02": float((error <= 0.02).double().mean())}
        row |= {name: median_ratio(seconds[name], seconds["forward"]) - 1 for name in list(works)[1:]}
        rows.append(row)
    return rows


def memory(task: str, length: int) -> float:
    """MiB at the peak of one task in a process of its own, above those held before it."""
    command = [sys.executable, "-m", "benchmarks.scoring", "--memory", task, "--length", str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_memory(task: str, length: int) -> None:
    """The child of `memory`."""
    model = llama_shaped(*(SHAPE if task in {"today", "ours"} else MEMORY_SHAPE))
    tokens = random_tokens(1, length)
    forward(model, tokens[:, :64])
    works: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward_in_chunks(model, tokens),
        "score": lambda: score(model, tokens),
        "ours": lambda: score(model, tokens),
        "today": lambda: as_written_today(model, tokens),
    }
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    works[task]()
    print(json.dumps((resident("VmHWM") - before) / 1024))


def resident(name: str) -> float:
    """KiB of memory of this process, now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def against_today(length: int = 1024) -> dict[str, float]:
    """(d) This library against the usual code, with the same rho."""
    model, tokens = llama_shaped(*SHAPE), random_tokens(1, length)
    score(model, tokens)
    forward(model, tokens)
    wall, found = {}, {}
    for name, work in (("today", as_written_today), ("ours", score), ("forward", forward)):
        started = time.perf_counter()
        found[name] = work(model, tokens)
        wall[name] = time.perf_counter() - started
    apart = float((found["ours"].rho - torch.tensor(found["today"])).abs().max())
    small, large = memory("ours", length), memory("today", length)
    return {
        "times faster": wall["today"] / wall["ours"],
        "seconds ours": wall["ours"],
        "seconds today": wall["today"],
        "seconds of the forward pass": wall["forward"],
        "times smaller": large / small,
        "MiB ours": small,
        "MiB today": large,
        "rho apart": apart,
    }


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of log value over log size."""
    x = torch.tensor([math.log(size) for size in sizes], dtype=torch.float64)
    y = torch.tensor([math.log(value) for value in values], dtype=torch.float64)
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def growth() -> dict[str, float]:
    """(f) How scoring's own CPU time, without the forward pass in the same chunks, grows."""

    def own(heads: int, sequences: int, length: int) -> float:
        model, tokens = llama_shaped(2, heads, 64), random_tokens(sequences, length)
        works = {"forward": lambda: forward_in_chunks(model, tokens), "score": lambda: score(model, tokens)}
        seconds = rounds(works, 3)
        return statistics.median(ours - plain for ours, plain in zip(seconds["score"], seconds["forward"], strict=True))

    lengths, heads, sequences = [2048, 4096, 8192], [4, 8, 16], [4, 8, 16]
    return {
        "length": exponent(lengths, [own(8, 1, length) for length in lengths]),
        "heads": exponent(heads, [own(number, 2, 2048) for number in heads]),
        "sequences": exponent(sequences, [own(8, number, 1024) for number in sequences]),
    }


def write_memory() -> None:
    """(c) Peak memory against length."""
    lengths = [1024, 2048, 4096, 8192, 16384]
    used = {task: [memory(task, length) for length in lengths] for task in TASKS}
    above = [ours - plain for ours, plain in zip(used["score"], used["forward"], strict=True)]
    rows = zip(lengths, used["forward"], used["score"], above, strict=True)
    text = [
        "# (c) Peak memory",
        "MiB above the loaded model: 4 layers, 8 heads x 64, one sequence, exact; both run in the same chunks.",
        markdown_table(
            ["tokens", "forward pass", "scoring, forward pass included", "above it"],
            [[f"{length}", *(f"{value:.0f}" for value in values)] for length, *values in rows],
        ),
        f"Above the forward pass it grows as length to the power {exponent(lengths[2:], above[2:]):.2f}, from 4096 on.",
    ]
    write_results("memory", "\n\n".join(text), {"setting": setting(), "length": lengths, **used})


def write_today() -> None:
    """(d) This library against the usual code."""
    found = against_today()
    text = [
        "# (d) Against run_with_cache, einsum, softmax and scipy.stats.spearmanr",
        f"8 layers, 16 heads x 64, one sequence of 1024 tokens; wall time. {_setting()}",
        markdown_table(["", "value"], [[key, f"{value:.3g}"] for key, value in found.items()]),
    ]
    write_results("today", "\n\n".join(text), {"setting": setting(), **found})


def write_growth() -> None:
    """(f) Fitted exponents."""
    found = growth()
    text = [
        "# (f) Growth of scoring's own CPU time",
        f"Without the forward pass; exponents fitted to three sizes. {_setting()}",
        markdown_table(["with", "exponent"], [[key, f"{value:.2f}"] for key, value in found.items()]),
    ]
    write_results("growth", "\n\n".join(text), {"setting": setting(), **found})


def write_beside() -> None:
    """(b) Overhead of scoring over the forward pass."""
    rows = beside_forward([512, 1024, 2048], 4) + beside_forward([4096], 1)
    text = [
        "# (b) What scoring adds to the forward pass",
        "Llama-shaped, 8 layers, 16 heads x 64; CPU time beyond the plain forward pass, as a share of it. Scoring runs "
        "the model in chunks: what that alone saves is in the third column. "
        f"Sampled: {SAMPLED} pairs a sequence; the last column is the share of heads whose rho is within 0.02 of the "
        f"exact one. {_setting()}",
        markdown_table(
            ["tokens", "sequences", "forward in chunks", "exact", "sampled", "within 0.02"],
            [
                [
                    f"{row['length']}",
                    f"{row['sequences']}",
                    *(f"{row[key]:+.2f}" for key in ("in chunks", "exact", "sampled")),
                    f"{row['within 0.02']:.0%}",
                ]
                for row in rows
            ],
        ),
    ]
    write_results("forward", "\n\n".join(text), {"setting": setting(), "rows": rows})


def _setting() -> str:
    return ", ".join(f"{key} {value}" for key, value in setting().items()) + "."


PARTS = {"memory": write_memory, "today": write_today, "growth": write_growth, "forward": write_beside}


def main() -> None:
    """Measure everything, some parts, or one task's memory for a parent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all when left out")
    parser.add_argument("--memory", help="measure the memory of one task and print it")
    parser.add_argument("--length", type=int, default=1024)
    given = parser.parse_args()
    if given.memory:
        measure_memory(given.memory, given.length)
        return
    score(llama_shaped(1, 16, 64), random_tokens(1, 1024))  # builds the kernel
    for part in given.parts or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
