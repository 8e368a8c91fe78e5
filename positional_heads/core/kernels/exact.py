"""D of listed entries in float64, by formulas of its own: what the D of the kernels is compared with."""

import ctypes
import functools
import logging
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float64, Int
from torch import Tensor
from torch.nn.functional import pad

from positional_heads.core.kernels import building
from positional_heads.core.plan import Positions
from positional_heads.core.rotary import Planes

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("exact.cpp")
WIDE = 8
IN_CACHE = 2**10
"""Entries of a head whose channels in float64 fit in a processor's cache."""


def exact_dominant(
    query: Planes, key: Planes, positions: Positions, temperature: float, *, compiled: bool
) -> Float64[Tensor, "head n"]:
    """D of listed entries in float64.

    Args:
        query: Rotated queries of one sequence, as planes, in float32.
        key: Rotated keys, one per query head.
        positions: Position of each entry's query and key.
        temperature: Softmax temperature of D.
        compiled: On a CPU, by exact.cpp, five times as fast, if it can be built.
    """
    library = _library() if compiled and query.device.type == "cpu" else None
    if library is not None:
        return _compiled(library, query, key, positions, math.log2(math.e) / temperature)
    # the two channels of a plane apart: sums over them, and over pairs, then run along neighbours in memory
    queries, keys = (rearrange(plane.double(), "head pos pair two -> head pos (two pair)") for plane in (query, key))
    return torch.stack([_head(*planes, positions, temperature) for planes in zip(queries, keys, strict=True)])


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled library; None if it cannot be built, which is tried once."""
    try:
        return building.load(SOURCE)
    except building.BuildError as error:
        logger.info("D in float64 is computed by PyTorch, which is slower: %s", error)
        return None


def _head(
    query: Float64[Tensor, "pos channel"],
    key: Float64[Tensor, "pos channel"],
    positions: tuple[Int[Tensor, " n"], Int[Tensor, " n"]],
    temperature: float,
) -> Float64[Tensor, " n"]:
    n_pairs = query.shape[1] // 2
    index = torch.arange(n_pairs, dtype=query.dtype, device=query.device)
    readout = torch.stack([torch.ones_like(index), index], dim=1)
    size = IN_CACHE if query.device.type == "cpu" else max(len(positions[0]), 1)

    def parts() -> Iterator[Float64[Tensor, " part"]]:
        for query_pos, key_pos in zip(*(torch.split(part, size) for part in positions), strict=True):
            products = query.index_select(0, query_pos).mul_(key.index_select(0, key_pos))
            exponents = products[:, :n_pairs].add_(products[:, n_pairs:]).div_(temperature)
            weights = exponents.sub_(exponents.amax(1, keepdim=True)).exp_()
            total, weighted = (weights @ readout).unbind(1)
            yield weighted / total

    return torch.cat(list(parts()))


def _compiled(
    library: ctypes.CDLL, query: Planes, key: Planes, positions: Positions, scale: float
) -> Float64[Tensor, "head n"]:
    heads, _, n_pairs, _ = query.shape
    listed = len(positions[0])
    query_pos, key_pos = (part.contiguous() for part in positions)
    missing = -n_pairs % WIDE
    queries, keys = (
        (pad(plane.float(), (0, 0, 0, missing)) if missing else plane.float()).contiguous() for plane in (query, key)
    )
    dominant = torch.empty((heads, listed), dtype=torch.float64)
    exponents = torch.empty((heads, queries.shape[2]), dtype=torch.float64)

    def count(head: int) -> None:
        pointers = [ctypes.c_void_p(one[head].data_ptr()) for one in (queries, keys, exponents, dominant)]
        lists = [ctypes.c_void_p(part.data_ptr()) for part in (query_pos, key_pos)]
        sizes = ctypes.c_int64(n_pairs), ctypes.c_double(scale)
        library.exact_dominant(*pointers[:2], *sizes, *lists, ctypes.c_int64(listed), *pointers[2:])

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(count, range(heads)):
            pass  # an exception in a thread is raised here
    return dominant
