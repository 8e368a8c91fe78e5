"""What a device can do at most, how long and how much memory work takes there, and how much time is left."""

import gc
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

EXPONENTIALS_PER_CLOCK = 16
"""Of one multiprocessor, by its special function units: CUDA's table of throughputs, capability 7.0 to 10.0."""


@dataclass(frozen=True)
class Device:
    """Where work runs.

    Attributes:
        name: As in PyTorch, `cuda` or `cpu`.
    """

    name: str

    @property
    def is_gpu(self) -> bool:
        """Whether it is one with CUDA."""
        return torch.device(self.name).type == "cuda"

    def facts(self) -> dict[str, str]:
        """Name, driver, versions, and what the limit of exponentials is computed from."""
        facts = {"torch": torch.__version__, "device": self.name}
        if not self.is_gpu:
            return facts
        found = torch.cuda.get_device_properties(self.name)
        clock, source = self.clock()
        return facts | {
            "device": found.name,
            "memory": f"{found.total_memory / 2**30:.0f} GiB",
            "capability": f"{found.major}.{found.minor}",
            "cuda": str(torch.version.cuda),
            "driver": asked("driver_version") or "unknown",
            "multiprocessors": str(found.multi_processor_count),
            "clock": "unknown" if clock is None else f"{clock / 1e9:.2f} GHz ({source})",
            "assumed": f"{EXPONENTIALS_PER_CLOCK} exponentials per clock and multiprocessor",
        }

    def clock(self) -> tuple[float | None, str]:
        """Highest clock of the multiprocessors in Hz, and who says so."""
        if megahertz := asked("clocks.max.sm"):
            return 1e6 * float(megahertz), "highest, by nvidia-smi"
        kilohertz = getattr(torch.cuda.get_device_properties(self.name), "clock_rate", None)
        return (None, "") if kilohertz is None else (1e3 * kilohertz, "by torch.cuda")

    def exponentials(self) -> float | None:
        """Exponentials per second at most; None where that is not known."""
        clock = self.clock()[0] if self.is_gpu else None
        if clock is None:
            return None
        return EXPONENTIALS_PER_CLOCK * torch.cuda.get_device_properties(self.name).multi_processor_count * clock

    def seconds(self, work: Callable[[], Any]) -> float:
        """Time on the clock until the device has finished the work."""
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def median(self, work: Callable[[], Any], enough: float) -> float:
        """Median time of calls of work that has been done before: up to five, until they took `enough` seconds."""
        taken = [self.seconds(work)]
        while sum(taken) < enough and len(taken) < 5:
            taken.append(self.seconds(work))
        return statistics.median(taken)

    def peak(self, work: Callable[[], Any]) -> float | None:
        """MiB of the device's memory at the peak of the work, above those held before; None on a CPU."""
        if not self.is_gpu:
            work()
            return None
        gc.collect()  # what earlier work left behind would count as held before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.name)
        before = torch.cuda.memory_allocated(self.name)
        work()
        self._wait()
        return (torch.cuda.max_memory_allocated(self.name) - before) / 2**20

    def busiest(self, work: Callable[[], Any], most: int = 6) -> str:
        """Where the device spends the time of this work, by PyTorch's profiler."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.is_gpu) as found:
            taken = self.seconds(work)
        by = "self_device_time_total" if self.is_gpu else "self_cpu_time_total"
        rows = sorted(found.key_averages(), key=lambda row: -getattr(row, by))
        busy = sum(getattr(row, by) for row in rows) / 1e6
        named = ", ".join(f"{row.key[:60]} {getattr(row, by) / 1e6 / busy:.0%}" for row in rows[:most])
        return f"busy for {busy:.3f} s of {taken:.3f} s: {named}"

    def _wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.name)


def asked(field_name: str) -> str | None:
    """What nvidia-smi says of the first GPU; None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={field_name}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")
    return lines[0].strip() or None


@dataclass
class TimeLimit:
    """Drops what would end too late, and remembers it.

    Attributes:
        minutes: From its creation on.
        dropped: What was dropped, and why.
    """

    minutes: float
    dropped: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Seconds."""
        return 60 * self.minutes - (time.perf_counter() - self.started)

    def allows(self, name: str, expected: float) -> bool:
        """Whether work of so many seconds fits; if not, it is noted as dropped."""
        if expected <= self.left:
            return True
        self.dropped.append(f"{name}: about {expected:.0f} s, {max(self.left, 0):.0f} s were left")
        return False
