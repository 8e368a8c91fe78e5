"""Choose a kernel: the fastest available one whose compile time pays off for a job of this size.

A name, given or in the environment variable POSITIONAL_HEADS_KERNEL, overrides the choice. If the chosen kernel cannot
be built, a slower one is used and a warning says why and what to install.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec

import torch

from positional_heads.core.kernels import building, native
from positional_heads.core.kernels.compiled import CompiledKernel
from positional_heads.core.kernels.eager import EagerKernel
from positional_heads.core.kernels.sums import Kernel
from positional_heads.core.logs import warn_once

NATIVE_PAYS = 2**28
"""Query x key x pair terms that take the eager kernel a second or two, as long as a C++ compiler takes."""
TRITON_PAYS = 2**36
"""The same on a GPU, where Triton takes a few seconds to compile and be compared: an estimate, not a measurement."""
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
        msg = f"the native kernel runs on the CPU, not on {device.type}: choose triton, compiled or eager"
        raise ValueError(msg)
    if chosen == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        msg = f"the triton kernel runs on a GPU, not on {device.type}: choose native, compiled or eager"
        raise ValueError(msg)
    try:
        return named_kernel(chosen)
    except building.BuildError as error:
        slower = "compiled" if chosen == "triton" and terms >= COMPILED_PAYS else "eager"
        warn_once(__name__, f"using the slower {slower} kernel: {error}")
        return named_kernel(slower)


def named_kernel(name: str) -> Kernel:
    """The kernel of this name, with no fallback, so that processes that share work use the same.

    Args:
        name: One of `KERNELS`.

    Raises:
        BuildError: If it cannot be built, or is wrong on this machine.
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
    if device.type != "cuda":
        return "eager"
    if terms >= TRITON_PAYS and find_spec("triton"):
        return "triton"
    return "compiled" if terms >= COMPILED_PAYS else "eager"


def _triton() -> Kernel:
    """The Triton kernel, imported only if wanted, because Triton need not be installed."""
    try:
        from positional_heads.core.kernels.fused import FusedKernel
    except ImportError as error:
        msg = f"the triton kernel needs Triton, which comes with PyTorch for GPUs on Linux: {error}"
        raise building.BuildError(msg) from error
    return FusedKernel()


KERNELS: dict[str, Callable[[], Kernel]] = {
    "eager": EagerKernel,
    "native": native.NativeKernel,
    "compiled": CompiledKernel,
    "triton": _triton,
}
