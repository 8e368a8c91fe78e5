"""The reference kernel: plain PyTorch in tiles, on any device."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.core.binning import BinLookup
from positional_heads.core.kernels.shuffled import add_listed_runs
from positional_heads.core.kernels.sums import EntrySums, Kernel, ShuffleSums, TileValues, summed
from positional_heads.core.kernels.tiled import Tile, dominant_tiles, listed_dominant
from positional_heads.core.kernels.tiles import Tiles
from positional_heads.core.plan import EntryPlan, Positions
from positional_heads.core.rotary import Planes
from positional_heads.core.shuffles import Shuffled

IN_CACHE = 2**11
"""Listed entries whose queries and keys are gathered at a time."""


class EagerKernel(Kernel):
    """Matrix products tile by tile; the reference for the other kernels."""

    name = "eager"

    def __init__(self, tile_mb: float | None = None) -> None:
        """Set the size of tiles.

        Args:
            tile_mb: In MiB; see `tiles.Tiles`.
        """
        self._tiles = Tiles(tile_mb)

    def every_entry(
        self, query: Planes, key: Planes, plan: EntryPlan, temperature: float, bins: BinLookup, ranks: Int[Tensor, " _"]
    ) -> EntrySums:
        """Sums over all entries of the sequence that the plan counts; see `sums.Kernel`."""

        def work(tile: Tile) -> EntrySums:
            return summed(dominant_tiles(query, key, plan, temperature, tile), bins, ranks)

        return self._tiles.run(work, query.device, len(query))

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
        heads, _, n_pairs, _ = query.shape

        def tiles(size: int) -> Iterator[TileValues]:
            for query_pos, key_pos in zip(*(torch.split(part, size) for part in positions), strict=True):
                if query_pos.numel():
                    yield *listed_dominant(query[:, query_pos], key[:, key_pos], temperature), query_pos - key_pos

        def work(tile: Tile) -> EntrySums:
            return summed(tiles(max(1, min(tile.entries, tile.terms // (heads * n_pairs)))), bins, ranks)

        return self._tiles.run(work, query.device, len(query))

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
        """The dominant dimension of each of these entries; see `sums.Kernel`."""
        parts = zip(*(torch.split(part, IN_CACHE) for part in positions), strict=True)
        dominant = [listed_dominant(query[:, rows], key[:, columns], temperature)[0] for rows, columns in parts]
        return torch.cat(dominant, dim=1)
