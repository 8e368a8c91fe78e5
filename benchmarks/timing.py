"""Time candidates in turns: CPU time for a machine with other users, wall time for a quiet one; medians count.

CPU time includes every thread of this process and no other process. It still grows where others share caches, memory
and clock, so candidates take turns and ratios are computed within each round.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Seconds:
    """Seconds of one candidate in each round.

    Attributes:
        cpu: CPU time over all threads of this process.
        wall: Time on the clock.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def time(self, work: Callable[[], Any]) -> None:
        """Time one call more."""
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def rounds(candidates: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: bool = True) -> dict[str, Seconds]:
    """Time of each candidate in each round.

    Args:
        candidates: What to time, by name.
        repeats: Rounds that count; all candidates take their turn in each.
        warm_up: Begin with one round that does not count.
    """
    if warm_up:
        rounds(candidates, 1, warm_up=False)
    seconds = {name: Seconds() for name in candidates}
    for _ in range(repeats):
        for name, work in candidates.items():
            seconds[name].time(work)
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


def write_results(name: str, markdown: str, numbers: Mapping[str, Any], folder: Path | None = RESULTS) -> None:
    """Show the table, and write `<name>.md` and `.json`.

    Args:
        name: Of the files.
        markdown: The table and what is said about it.
        numbers: What was measured.
        folder: Where the files go; nothing is written when None.
    """
    if folder is not None:
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.md").write_text(markdown + "\n")
        (folder / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(markdown)
