"""How much may a kernel hold at once? As much as stays in cache on a CPU, a part of free memory on a GPU.

A tile of N MiB means N MiB of query x key x pair terms, and about as much for the values of D while they are binned.
Running out of memory halves it, and is said once.
"""

import functools
import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from positional_heads.core.kernels.sums import EntrySums
from positional_heads.core.kernels.tiled import CACHE_TILE, MOST_PAIRS, Tile

logger = logging.getLogger(__name__)

MIB = 2**20
LARGEST_CHOSEN = 2**30
"""Bytes of terms beyond which a GPU gains nothing."""
FEWEST_TERMS = 2**12
FEWEST_PAIRS = 2**12
BYTES_PER_PAIR = 64
"""What D, bin, rank, cell and copies of a query-key pair take while it is binned, for each head."""


class Tiles:
    """Tile sizes of one kernel: chosen at first use on a device, smaller after running out of memory there."""

    def __init__(self, tile_mb: float | None = None) -> None:
        """Keep what was asked for.

        Args:
            tile_mb: Size in MiB; that of POSITIONAL_HEADS_TILE_MB, or chosen from cache and free memory, when None.

        Raises:
            ValueError: If it is not a positive number.
        """
        self._asked = _bytes_of(os.environ.get("POSITIONAL_HEADS_TILE_MB") or None if tile_mb is None else tile_mb)
        self._found: dict[tuple[torch.device, int], Tile] = {}

    def run(self, work: Callable[[Tile], EntrySums], device: torch.device, heads: int) -> EntrySums:
        """What the work hands back with the largest tile that memory allows.

        Args:
            work: Makes sums, a tile at a time, and can be done again.
            device: Where.
            heads: Number of heads of the layer.

        Raises:
            RuntimeError: If memory is too small for the smallest tile, or the work fails otherwise.
            ValueError: If the size asked for is larger than free memory.
        """
        tile = self._found.get((device, heads)) or tile_for(device, heads, self._asked)
        while True:
            self._found[device, heads] = tile
            try:
                return work(tile)
            except RuntimeError as error:
                if not out_of_memory(error) or tile.terms <= FEWEST_TERMS:
                    raise
            smaller = Tile(max(tile.terms // 2, FEWEST_TERMS), max(tile.pairs // 2, FEWEST_PAIRS))
            _say_once(device.type)
            logger.info("out of memory with %d terms and %d pairs at once: halved", tile.terms, tile.pairs)
            tile = smaller
            _give_back(device)


def tile_for(device: torch.device, heads: int, asked: int | None = None) -> Tile:
    """The tile of so many bytes, or one that fits the device.

    Args:
        device: Where.
        heads: Number of heads of the layer.
        asked: Size in bytes, if somebody asked for one.

    Raises:
        ValueError: If the size asked for is larger than free memory.
    """
    free = free_memory(device)
    if asked is not None and free is not None and asked > free:
        msg = (
            f"a tile of {asked // MIB} MiB does not fit in the {free // MIB} MiB that are free on {device}: give a "
            "smaller one, or leave tile_mb and POSITIONAL_HEADS_TILE_MB away to have it chosen"
        )
        raise ValueError(msg)
    if asked is None and (device.type == "cpu" or free is None):
        return CACHE_TILE
    size = asked if asked is not None else min((free or 0) // 4, LARGEST_CHOSEN)
    pairs = size // (BYTES_PER_PAIR * heads)
    return Tile(max(size // 4, FEWEST_TERMS), min(max(pairs, FEWEST_PAIRS), MOST_PAIRS))


def free_memory(device: torch.device) -> int | None:
    """Free memory in bytes; None where the device does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    told = Path("/proc/meminfo")
    for line in told.read_text().splitlines() if told.exists() else []:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a smaller tile could help."""
    from accelerate.utils.memory import should_reduce_batch_size  # type: ignore[import-untyped]

    return bool(should_reduce_batch_size(error))


def _bytes_of(tile_mb: float | str | None) -> int | None:
    if tile_mb is None:
        return None
    try:
        size = int(float(tile_mb) * MIB)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        msg = f"a tile of {tile_mb} MiB: give a positive number, e.g. 64, or none to have it chosen"
        raise ValueError(msg)
    return size


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@functools.cache
def _say_once(device: str) -> None:
    logger.warning("out of memory on %s: going on with smaller tiles, which takes a little longer", device)
