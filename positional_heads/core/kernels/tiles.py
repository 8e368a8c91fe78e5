"""How much a kernel holds in memory: what fits in cache on a CPU, a part of free memory on a GPU.

A tile of N MiB has N MiB of query x key x pair terms, and needs about as much for the values of D while they are
binned. Running out of memory halves the tile and logs a warning once.
"""

import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from positional_heads.core.kernels.sums import EntrySums
from positional_heads.core.kernels.tiled import CACHE_TILE, MOST_ENTRIES, Tile
from positional_heads.core.logs import warn_once

logger = logging.getLogger(__name__)

MIB = 2**20
LARGEST_CHOSEN = 2**30
"""Bytes of terms beyond which a GPU is no faster."""
FEWEST_TERMS = 2**12
FEWEST_ENTRIES = 2**12
OUT_OF_MEMORY = (" out of memory.", "CUDNN_STATUS_NOT_SUPPORTED", "DefaultCPUAllocator: can't allocate memory")
"""How PyTorch words it on a GPU, in cuDNN and on a CPU; there is no common error class."""
BYTES_PER_ENTRY = 64
"""Bytes of D, bin, rank, cell and copies of an entry while it is binned, for each head."""


class Tiles:
    """Tile sizes of one kernel: chosen at first use on a device, reduced after running out of memory there."""

    def __init__(self, tile_mb: float | None = None) -> None:
        """Set the size of tiles.

        Args:
            tile_mb: Size in MiB; POSITIONAL_HEADS_TILE_MB, or chosen from cache and free memory, when None.

        Raises:
            ValueError: If it is not a positive number.
        """
        self._asked = _size_in_bytes(os.environ.get("POSITIONAL_HEADS_TILE_MB") or None if tile_mb is None else tile_mb)
        self._tiles: dict[tuple[torch.device, int], Tile] = {}

    def run(self, work: Callable[[Tile], EntrySums], device: torch.device, heads: int) -> EntrySums:
        """The result of the work with the largest tile that fits in memory.

        Args:
            work: Computes sums, a tile at a time; is repeated with a smaller tile.
            device: Where it runs.
            heads: Number of heads of the layer.

        Raises:
            RuntimeError: If memory is too small for the smallest tile, or the work fails otherwise.
            ValueError: If the size asked for is larger than free memory.
        """
        tile = self._tiles.get((device, heads)) or tile_for(device, heads, self._asked)
        while True:
            self._tiles[device, heads] = tile
            try:
                return work(tile)
            except RuntimeError as error:
                if not out_of_memory(error) or tile.terms <= FEWEST_TERMS:
                    raise
            smaller = Tile(max(tile.terms // 2, FEWEST_TERMS), max(tile.entries // 2, FEWEST_ENTRIES))
            warn_once(__name__, f"out of memory on {device.type}: using smaller tiles, which takes a little longer")
            logger.info("out of memory with %d terms and %d entries per tile: halved", tile.terms, tile.entries)
            tile = smaller
            _release_memory(device)


def tile_for(device: torch.device, heads: int, asked: int | None = None) -> Tile:
    """The tile of a given size, or one that fits the device.

    Args:
        device: Where it runs.
        heads: Number of heads of the layer.
        asked: Size in bytes; None to choose one.

    Raises:
        ValueError: If the size asked for is larger than free memory.
    """
    free = free_memory(device)
    if asked is not None and free is not None and asked > free:
        msg = (
            f"a tile of {asked // MIB} MiB does not fit in the {free // MIB} MiB that are free on {device}: give a "
            "smaller one, or omit tile_mb and POSITIONAL_HEADS_TILE_MB to choose by free memory"
        )
        raise ValueError(msg)
    if asked is None and (device.type == "cpu" or free is None):
        return CACHE_TILE
    size = asked if asked is not None else min((free or 0) // 4, LARGEST_CHOSEN)
    entries = size // (BYTES_PER_ENTRY * heads)
    return Tile(max(size // 4, FEWEST_TERMS), min(max(entries, FEWEST_ENTRIES), MOST_ENTRIES))


def free_memory(device: torch.device) -> int | None:
    """Free memory in bytes; None where the device does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else []:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a smaller tile could help."""
    return any(fragment in str(error) for fragment in OUT_OF_MEMORY)


def _size_in_bytes(tile_mb: float | str | None) -> int | None:
    if tile_mb is None:
        return None
    try:
        size = int(float(tile_mb) * MIB)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        msg = f"a tile of {tile_mb} MiB: give a positive number, e.g. 64, or none to choose by free memory"
        raise ValueError(msg)
    return size


def _release_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
