"""CPU time on a machine with other users: candidates take turns, the median of many rounds counts.

CPU time includes every thread of this process and no other process. It still grows where others share caches, memory
and clock, so candidates take turns and ratios are computed within each round.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of one call, over all threads of this process, in seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def rounds(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each candidate in each round, after one round that does not count.

    Args:
        candidates: What to time, by name.
        repeats: Rounds that count; all candidates take their turn in each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(repeats + 1):
        for name, work in candidates.items():
            taken = cpu_seconds(work)
            if number:
                seconds[name].append(taken)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over rounds of one candidate's time over another's."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def processor() -> str:
    """The processor's name, and its widest vectors as PyTorch sees them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {torch.backends.cpu.get_cpu_capability()}"


def setting() -> dict[str, str]:
    """Processor, threads and versions, to repeat a measurement."""
    return {
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, the first column on the left and numbers on the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(name: str, markdown: str, numbers: Mapping[str, Any]) -> None:
    """Write `results/<name>.md` and `.json`, and show the table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(markdown + "\n")
    (RESULTS / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(markdown)
