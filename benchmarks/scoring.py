"""Memory and growth of scoring, and its cost against the usual code; `benchmarks.real` has its cost on a real model.

`python -m benchmarks.scoring`, a quarter of an hour on two cores; needs Linux, to read peak memory. CPU time is that of
this process; memory is the peak of a separate process, minus its memory after loading the model.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import positional_heads as ph
from benchmarks.memory import peak_of_child, print_peak
from benchmarks.models import llama_config, llama_shaped, plain_llama, random_tokens
from benchmarks.timing import markdown_table, rounds, setting, write_results

TASKS = ("forward", "score")
MEMORY_SHAPE, SHAPE = (4, 8, 64), (8, 16, 64)


@torch.no_grad()
def forward(model: Any, tokens: torch.Tensor) -> None:
    """Hugging Face's own run, a sequence at a time."""
    for row in tokens:
        model(row[None])


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


def memory(task: str, length: int) -> float:
    """MiB at the peak of one task in a process of its own, above those held before it."""
    return peak_of_child("benchmarks.scoring", "--memory", task, "--length", str(length))["peak"]


def measure_memory(task: str, length: int) -> None:
    """The child of `memory`."""
    shape, tokens = SHAPE if task in {"today", "ours"} else MEMORY_SHAPE, random_tokens(1, length)
    model = plain_llama(llama_config(*shape)) if task == "forward" else llama_shaped(*shape)
    forward(model, tokens[:, :64])
    works: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(model, tokens),
        "score": lambda: score(model, tokens),
        "ours": lambda: score(model, tokens),
        "today": lambda: as_written_today(model, tokens),
    }
    print_peak(works[task])


def against_today(length: int = 1024) -> dict[str, float]:
    """(d) This library against the usual code, with the same rho."""
    model, plain, tokens = llama_shaped(*SHAPE), plain_llama(llama_config(*SHAPE)), random_tokens(1, length)
    score(model, tokens)
    forward(plain, tokens)
    wall, found = {}, {}
    for name, work, runs in (("today", as_written_today, model), ("ours", score, model), ("forward", forward, plain)):
        started = time.perf_counter()
        found[name] = work(runs, tokens)
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
    """(f) How scoring's own CPU time, without the forward pass, grows."""

    def own(heads: int, sequences: int, length: int) -> float:
        model, plain = llama_shaped(2, heads, 64), plain_llama(llama_config(2, heads, 64))
        tokens = random_tokens(sequences, length)
        seconds = rounds({"forward": lambda: forward(plain, tokens), "score": lambda: score(model, tokens)}, 3)
        both = zip(seconds["score"].cpu, seconds["forward"].cpu, strict=True)
        return statistics.median(ours - forward_only for ours, forward_only in both)

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
        "MiB above the loaded model: 4 layers, 8 heads x 64, one sequence, exact; the forward pass is Hugging Face's.",
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


def _setting() -> str:
    return ", ".join(f"{key} {value}" for key, value in setting().items()) + "."


PARTS = {"memory": write_memory, "today": write_today, "growth": write_growth}


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
