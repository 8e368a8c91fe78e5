"""Peak memory of one task, measured in a process of its own; needs Linux."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_of_child(module: str, *arguments: str) -> dict[str, float]:
    """What a benchmark that was started with these arguments, in a process of its own, gave to `print_peak`."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_peak(work: Callable[[], Any]) -> None:
    """MiB at the peak of this work above those held before it, and the part that is still held after it."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    work()
    print(json.dumps({"peak": (resident("VmHWM") - before) / 1024, "held": (resident("VmRSS") - before) / 1024}))


def resident(name: str) -> float:
    """KiB of memory of this process, now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
