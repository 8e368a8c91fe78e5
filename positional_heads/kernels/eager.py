"""The reference kernel: plain PyTorch in cache-sized tiles, on any device."""

from jaxtyping import Int
from torch import Tensor

from positional_heads.binning import BinLookup
from positional_heads.dominance import dominant_tiles, listed_dominant
from positional_heads.kernels.sums import PairSums, Planes, no_sums, tile_sums
from positional_heads.plan import PairPlan

LISTED_AT_ONCE = 2**14


class EagerKernel:
    """Matrix products tile by tile; what the others are held against."""

    name = "eager"

    def every_pair(
        self, query: Planes, key: Planes, plan: PairPlan, temperature: float, bins: BinLookup, ranks: Int[Tensor, " _"]
    ) -> PairSums:
        """Sums over all pairs of the sequence that the plan counts; see `sums.Kernel`."""
        total = no_sums(bins, ranks)
        for dominant, distance in dominant_tiles(query, key, plan, temperature):
            total = total + tile_sums(dominant, distance, bins, ranks)
        return total

    def listed_pairs(
        self,
        query: Planes,
        key: Planes,
        places: tuple[Int[Tensor, " n"], Int[Tensor, " n"]],
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
    ) -> PairSums:
        """Sums over the pairs of these query and key positions; see `sums.Kernel`."""
        total = no_sums(bins, ranks)
        for query_pos, key_pos in zip(*(place.split(LISTED_AT_ONCE) for place in places), strict=True):
            dominant = listed_dominant(query[:, query_pos], key[:, key_pos], temperature)
            total = total + tile_sums(dominant, query_pos - key_pos, bins, ranks)
        return total
