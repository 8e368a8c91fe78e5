"""Which kernel for these pairs? The fastest that is there, and none whose building costs more than it saves.

A choice by name, or by the environment variable POSITIONAL_HEADS_KERNEL, is kept; where it cannot be had, the eager
kernel steps in, and one line in the log says why and what to install.
"""

import functools
import logging
import os
from collections.abc import Callable

import torch

from positional_heads.core.kernels import building, native
from positional_heads.core.kernels.compiled import CompiledKernel
from positional_heads.core.kernels.eager import EagerKernel
from positional_heads.core.kernels.sums import Kernel

logger = logging.getLogger(__name__)

NATIVE_PAYS = 2**28
"""Query x key x pair terms that take the eager kernel longer than a second or two: what a C++ compiler takes."""
COMPILED_PAYS = 2**40
"""The same on a GPU, for the half minute or so that `torch.compile` takes there: an estimate, not a measurement."""


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
        _say_once(f"scoring goes on with the slower eager kernel: {error}")
        return EagerKernel()


def named_kernel(name: str) -> Kernel:
    """The kernel of this name and no other, so that processes that share work can use the same.

    Args:
        name: One of `KERNELS`.

    Raises:
        BuildError: If the native kernel is wanted and cannot be built.
        ValueError: If there is no kernel of that name.
    """
    if name not in KERNELS:
        msg = f"there is no kernel {name!r}: choose {', '.join(KERNELS)}, or none to have it chosen by size"
        raise ValueError(msg)
    return KERNELS[name]()


def _by_size(device: torch.device, terms: int) -> str:
    if device.type == "cpu":
        return "native" if terms >= NATIVE_PAYS else "eager"  # whether it is built already must not change a number
    return "compiled" if device.type == "cuda" and terms >= COMPILED_PAYS else "eager"


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


KERNELS: dict[str, Callable[[], Kernel]] = {
    "eager": EagerKernel,
    "native": native.NativeKernel,
    "compiled": CompiledKernel,
}
