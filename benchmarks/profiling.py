"""Where the time of a call goes: the model, the kernel, or other files of the library.

Every moment counts for the innermost caller on the stack that is a file of the library or of the model's libraries, so
what PyTorch does for the kernel counts as the kernel's. Only the thread that calls is followed: it waits in the kernel
while the kernel's own threads work.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import positional_heads

PACKAGE = Path(positional_heads.__file__).parent
MODEL, KERNEL, OUTSIDE = "model", "kernel", "outside"


def seconds_by_part(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds on the clock in each part: `model`, `kernel`, or a file of the library.

    Args:
        work: What to follow; slowed down by a few per cent.
    """
    spent: dict[str, float] = defaultdict(float)
    stack = [OUTSIDE]
    since = time.perf_counter()

    def follow(frame: Any, event: str, _: Any) -> None:
        nonlocal since
        if event not in {"call", "return"}:
            return
        now = time.perf_counter()
        spent[stack[-1]] += now - since
        since = now
        if event == "return":
            if len(stack) > 1:
                stack.pop()
            return
        stack.append(part_of(frame.f_code.co_filename) or stack[-1])

    sys.setprofile(follow)
    try:
        work()
    finally:
        sys.setprofile(None)
    spent[stack[-1]] += time.perf_counter() - since
    return dict(spent)


@cache
def part_of(name: str) -> str | None:
    """The part that the functions of a file belong to; None where they count for their caller."""
    file = Path(name)
    if file.is_relative_to(PACKAGE):
        inside = file.relative_to(PACKAGE)
        return KERNEL if inside.is_relative_to("core/kernels") else str(inside)
    return MODEL if {"transformers", "transformer_lens"}.intersection(file.parts) else None


def told(spent: dict[str, float], most: int = 6) -> str:
    """One sentence: model, kernel and the rest in per cent, and the files where most of the rest is spent."""
    total = sum(spent.values())
    rest = sorted(((time, name) for name, time in spent.items() if name not in {MODEL, KERNEL}), reverse=True)
    files = ", ".join(f"{name} {taken:.2f} s" for taken, name in rest[:most] if taken >= 0.005 * total)
    shares = {name: spent.get(name, 0) / total for name in (MODEL, KERNEL)}
    return (
        f"{total:.2f} s: model {shares[MODEL]:.0%}, kernel {shares[KERNEL]:.0%}, rest {1 - sum(shares.values()):.0%}"
        + (f" ({files})" if files else "")
    )
