"""The fast kernel on a GPU: `torch.compile` fuses the whole expression into one loop that stores no term.

Blocks of queries and keys are padded with zeros to one shape for all sequences, so each number of heads and pairs is
compiled once. If compilation fails, the eager kernel takes over and a warning is logged once.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from positional_heads.core.binning import BinLookup
from positional_heads.core.kernels.eager import EagerKernel
from positional_heads.core.kernels.shuffled import add_listed_runs
from positional_heads.core.kernels.sums import EntrySums, Kernel, ShuffleSums, TileValues, summed
from positional_heads.core.kernels.tiled import SATURATED, Tile
from positional_heads.core.kernels.tiles import Tiles, out_of_memory
from positional_heads.core.logs import warn_once
from positional_heads.core.plan import EntryPlan, Positions
from positional_heads.core.rotary import Planes
from positional_heads.core.shuffles import Shuffled

FEWEST_LISTED = 2**10
"""Listed entries computed at a time, at least."""


class CompilationError(RuntimeError):
    """`torch.compile` failed, for whatever reason."""


class CompiledKernel(Kernel):
    """One fused loop over rotary pairs for each query and key; on any device that `torch.compile` supports."""

    name = "compiled"

    def __init__(self, tile_mb: float | None = None) -> None:
        """Set the size of tiles.

        Args:
            tile_mb: In MiB; see `tiles.Tiles`.
        """
        self._tiles = Tiles(tile_mb)
        self._eager = EagerKernel(tile_mb)
        self._fails = False

    def every_entry(
        self, query: Planes, key: Planes, plan: EntryPlan, temperature: float, bins: BinLookup, ranks: Int[Tensor, " _"]
    ) -> EntrySums:
        """Sums over all entries of the sequence that the plan counts; see `sums.Kernel`."""

        def work(tile: Tile) -> EntrySums:
            return summed(_tiles(query, key, plan, temperature, tile.entries), bins, ranks)

        return self._or_eager(
            lambda: self._tiles.run(work, query.device, len(query)),
            lambda: self._eager.every_entry(query, key, plan, temperature, bins, ranks),
        )

    def listed_entries(
        self,
        query: Planes,
        key: Planes,
        positions: Positions,
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
    ) -> EntrySums:
        """Sums over the entries at these query and key positions; see `sums.Kernel`."""

        def tiles(size: int) -> Iterator[TileValues]:
            for query_pos, key_pos in zip(*(torch.split(part, size) for part in positions), strict=True):
                n = len(query_pos)
                if n:
                    rows, columns = (pad(pos, (0, size - n)) for pos in (query_pos, key_pos))
                    padded = _fused(_listed)(query[:, rows], key[:, columns] / temperature)
                    dominant, saturated = (values[:, :n] for values in padded)
                    yield dominant, saturated, query_pos - key_pos

        def work(tile: Tile) -> EntrySums:
            size = max(tile.terms // (4 * query[:, 0, :, 0].numel()), FEWEST_LISTED)
            return summed(tiles(_power_below(size)), bins, ranks)

        return self._or_eager(
            lambda: self._tiles.run(work, query.device, len(query)),
            lambda: self._eager.listed_entries(query, key, positions, temperature, bins, ranks),
        )

    def add_runs(
        self,
        shuffled: Shuffled,
        plan: EntryPlan,
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
        sums: ShuffleSums,
    ) -> None:
        """Add the sampled runs of every shuffle, in place; see `sums.Kernel`."""

        def listed_entries(query: Planes, key: Planes, positions: Positions) -> EntrySums:
            return self.listed_entries(query, key, positions, temperature, bins, ranks)

        add_listed_runs(shuffled, plan, sums, listed_entries)

    def listed_dominant(
        self, query: Planes, key: Planes, positions: Positions, temperature: float
    ) -> Float[Tensor, "head n"]:
        """The dominant dimension of each of these entries, by the eager kernel, because they are few."""
        return self._eager.listed_dominant(query, key, positions, temperature)

    def _or_eager(self, compiled: Callable[[], EntrySums], eager: Callable[[], EntrySums]) -> EntrySums:
        if not self._fails:
            try:
                return compiled()
            except CompilationError as error:
                self._fails = True
                warn_once(
                    __name__,
                    f"torch.compile failed ({error}): using the slower eager kernel; torch.compile needs Triton on a "
                    "GPU, a C++ compiler on a CPU",
                )
        return eager()


def _tiles(query: Planes, key: Planes, plan: EntryPlan, temperature: float, entries: int) -> Iterator[TileValues]:
    """D, whether it is saturated, and the distance of every entry that counts, a square block at a time."""
    length, side = query.shape[1], _power_below(math.isqrt(entries))
    queries, keys = (pad(planes, (0, 0, 0, 0, 0, -length % side)) for planes in (query, key / temperature))
    queries = rearrange(queries, "head (block pos) pair two -> block head pair pos two", pos=side).contiguous()
    keys = rearrange(keys, "head (block pos) pair two -> block head pair two pos", pos=side).contiguous()
    offset = torch.arange(side, device=query.device)
    for row, rows in enumerate(queries):
        for column in range(max(0, row * side - plan.furthest) // side, row + 1):
            query_pos, key_pos = row * side + offset, column * side + offset
            distance = query_pos[:, None] - key_pos
            counts = plan.counts_entry(distance, key_pos) & (query_pos[:, None] < length)
            counted = counts.flatten().nonzero().flatten()
            if counted.numel():
                block = _fused(_block)(rows, keys[column])
                dominant, saturated = (values.flatten(1).index_select(1, counted) for values in block)
                yield dominant, saturated, distance.flatten()[counted]


def _block(
    query: Float[Tensor, "head pair query_pos 2"], key: Float[Tensor, "head pair 2 key_pos"]
) -> tuple[Float[Tensor, "head query_pos key_pos"], Bool[Tensor, "head query_pos key_pos"]]:
    contributions = query[..., 0, None] * key[:, :, None, 0] + query[..., 1, None] * key[:, :, None, 1]
    return _dominant(contributions, 1)


def _listed(
    query: Float[Tensor, "head n pair 2"], key: Float[Tensor, "head n pair 2"]
) -> tuple[Float[Tensor, "head n"], Bool[Tensor, "head n"]]:
    return _dominant(query[..., 0] * key[..., 0] + query[..., 1] * key[..., 1], -1)


def _dominant(contributions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """D over an axis of rotary pairs, computed as in `contributions.dominance`, and whether it is saturated."""
    n_pairs = contributions.shape[dim]
    index = torch.arange(n_pairs, device=contributions.device).view(-1, *[1] * (-1 - dim % -contributions.ndim))
    top = contributions.amax(dim, keepdim=True)
    at = torch.where(contributions == top, index, n_pairs).amin(dim, keepdim=True)  # argmax is slower
    weights = torch.exp(contributions - top)
    total = weights.sum(dim)
    return at.squeeze(dim) + (weights * (index - at)).sum(dim) / total, total * SATURATED < 1


@functools.cache
def _fused(expression: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The compiled expression, which raises `CompilationError` whatever the compiler raises."""
    plain = getattr(expression, "__wrapped__", expression)  # without the checks of shapes that tests put around it
    fused: Any = torch.compile(plain, dynamic=False, fullgraph=True)

    def run(*planes: Tensor) -> tuple[Tensor, Tensor]:
        try:
            with torch.no_grad():
                result: tuple[Tensor, Tensor] = fused(*planes)
        except Exception as error:  # compilers raise anything, and eager tiles always work
            if isinstance(error, RuntimeError) and out_of_memory(error):
                raise
            reason = " ".join(str(error).strip().splitlines()[:2])  # the backend, and what it raised
            msg = f"{type(error).__name__}: {reason}"
            raise CompilationError(msg) from error
        return result

    return run


def _power_below(number: int) -> int:
    """The largest power of two up to a number."""
    return 1 << (number.bit_length() - 1)
