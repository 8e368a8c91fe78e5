"""Choose a kernel: the fastest available one whose compile time pays off for a job of this size.

A name, given or in the environment variable POSITIONAL_HEADS_KERNEL, overrides the choice. If the chosen kernel cannot
be built, the eager kernel is used and a warning says why and what to install.
"""

import os
from collections.abc import Callable

import torch

from positional_heads.core.kernels import building, native
from positional_heads.core.kernels.compiled import CompiledKernel
from positional_heads.core.kernels.eager import EagerKernel
from positional_heads.core.kernels.sums import Kernel
from positional_heads.core.logs import warn_once

NATIVE_PAYS = 2**28
"""Query x key x pair terms that take the eager kernel a second or two, as long as a C++ compiler takes."""
COMPILED_PAYS = 2**40
"""The same on a GPU, where `torch.compile` takes about half a minute: an estimate, not a measurement."""


def choose_kernel(device: torch.device | str, terms: int, name: str | None = None) -> Kernel:
    """The kernel for a job.

    Args:
        device: Where the queries and keys are.
        terms: Query x key x pair terms of the whole job, over all heads, layers and sequences.
        name: One of `KERNELS`; POSITIONAL_HEADS_KERNEL, or by device and size, when None.

    Raises:
        ValueError: If there is no kernel of that name, or none for that device.
    """
    device = torch.device(device)
    chosen = name or os.environ.get("POSITIONAL_HEADS_KERNEL") or _by_size(device, terms)
    if chosen == "native" and device.type != "cpu":
        msg = f"the native kernel runs on the CPU, not on {device.type}: choose eager or compiled"
        raise ValueError(msg)
    try:
        return named_kernel(chosen)
    except building.BuildError as error:
        warn_once(__name__, f"using the slower eager kernel: {error}")
        return EagerKernel()


def named_kernel(name: str) -> Kernel:
    """The kernel of this name, with no fallback, so that processes that share work use the same.

    Args:
        name: One of `KERNELS`.

    Raises:
        BuildError: If the native kernel is wanted and cannot be built.
        ValueError: If there is no kernel of that name.
    """
    if name not in KERNELS:
        msg = f"there is no kernel {name!r}: choose {', '.join(KERNELS)}, or give none to choose by size"
        raise ValueError(msg)
    return KERNELS[name]()


def _by_size(device: torch.device, terms: int) -> str:
    if device.type == "cpu":
        # not whether the library is built already: that would change numbers from one run to the next
        return "native" if terms >= NATIVE_PAYS else "eager"
    return "compiled" if device.type == "cuda" and terms >= COMPILED_PAYS else "eager"


KERNELS: dict[str, Callable[[], Kernel]] = {
    "eager": EagerKernel,
    "native": native.NativeKernel,
    "compiled": CompiledKernel,
}
