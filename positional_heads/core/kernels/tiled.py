"""D of all query-key pairs of one sequence, tile by tile: planes in, tiles of (D, distance) out.

No tensor has size T x T x pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from positional_heads.core.contributions import dominance
from positional_heads.core.plan import EntryPlan
from positional_heads.core.rotary import Planes


@dataclass(frozen=True)
class Tile:
    """How much is held in memory at a time.

    Attributes:
        terms: Head x pair x query x key terms computed at a time, 4 bytes each.
        entries: Entries (query-key pairs) yielded at a time, for all heads.
    """

    terms: int
    entries: int

    def __post_init__(self) -> None:
        if self.terms < 1 or not 1 <= self.entries <= MOST_ENTRIES:
            msg = f"a tile of {self.terms} terms and {self.entries} entries: give 1 or more, entries at most 2^20"
            raise ValueError(msg)


MOST_ENTRIES = 2**20
SATURATED = 0.999
"""Share of the softmax from which on one rotary pair counts as holding all of it."""
CACHE_TILE = Tile(terms=2**19, entries=2**16)
"""2 MiB of float32 terms, which fit in a processor's cache."""


def dominant_tiles(
    query: Planes, key: Planes, plan: EntryPlan, temperature: float, tile: Tile = CACHE_TILE
) -> Iterator[tuple[Float[Tensor, "head n"], Bool[Tensor, "head n"], Int[Tensor, " n"]]]:
    """D, whether it is saturated, and the distance of every entry that counts, a chunk of queries at a time.

    Args:
        query: Rotated queries of one sequence, as planes.
        key: Rotated keys, one per query head.
        plan: Which entries count.
        temperature: Softmax temperature of the dominant dimension.
        tile: How much is computed, and yielded, at a time.
    """
    for queries, keys in chunks(query.shape[1], plan, tile.entries, query.device):
        distance = queries[:, None] - keys
        counted = plan.counts_entry(distance, keys).flatten().nonzero().flatten()
        if counted.numel():
            block = dominant_block(query[:, queries], key[:, keys], temperature, tile.terms)
            dominant, saturated = (values.flatten(1).index_select(1, counted) for values in block)
            yield dominant, saturated, distance.flatten()[counted]


def chunks(
    length: int, plan: EntryPlan, entries: int, device: torch.device
) -> Iterator[tuple[Int[Tensor, " query_pos"], Int[Tensor, " key_pos"]]]:
    """Blocks of query and key positions that hold every entry that counts once, each of at most `entries` entries."""
    positions = torch.arange(length, device=device)
    rows = max(1, entries // length)
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        keys = positions[max(plan.skip_keys, start - plan.furthest) : max(0, stop - plan.min_distance)]
        for part in torch.split(keys, entries // rows):
            if part.numel():
                yield positions[start:stop], part


def dominant_block(
    query: Float[Tensor, "head query_pos pair 2"],
    key: Float[Tensor, "head key_pos pair 2"],
    temperature: float,
    terms: int = CACHE_TILE.terms,
) -> tuple[Float[Tensor, "head query_pos key_pos"], Bool[Tensor, "head query_pos key_pos"]]:
    """Dominant dimension of every query with every key, and whether it is saturated.

    See docs/equations.md, sections 2 and 3.

    The same as `dominant_dimension(plane_contributions(query, key))`, with keys innermost and pairs outside them: a
    contribution is then a product of two channels by two, and the weighted mean a product of two rows by all pairs,
    both of them batched matrix products. At most `terms` terms at a time.
    """
    heads, n_keys, n_pairs, _ = key.shape
    keys = rearrange(key, "head key_pos pair two -> (head pair) two key_pos") / temperature
    queries = rearrange(query, "head query_pos pair two -> (head pair) query_pos two")
    columns = max(1, min(n_keys, terms // (heads * n_pairs)))
    rows = max(1, terms // (heads * n_pairs * columns))
    parts = torch.split(keys, columns, dim=2)
    tiles = [[_tile(some, part, heads) for part in parts] for some in torch.split(queries, rows, dim=1)]
    dominant, saturated = (
        torch.cat([torch.cat([tile[which] for tile in row], dim=2) for row in tiles], dim=1) for which in (0, 1)
    )
    return dominant, saturated


def _tile(
    queries: Float[Tensor, "head_pair query_pos 2"], keys: Float[Tensor, "head_pair 2 key_pos"], heads: int
) -> tuple[Float[Tensor, "head query_pos key_pos"], Bool[Tensor, "head query_pos key_pos"]]:
    n_pairs = len(keys) // heads
    index = torch.arange(n_pairs, dtype=keys.dtype, device=keys.device)
    readout = torch.stack([index, torch.ones_like(index)])  # one product gives the sum by index, and the plain sum
    contributions = torch.bmm(queries, keys).view(heads, n_pairs, -1)
    weights = contributions.sub_(contributions.amax(1, keepdim=True)).exp_()
    largest = weights.floor()  # 1 for the largest and those that round to it, else 0; NaN stays NaN
    index_sum, n_largest = (readout @ largest).unbind(1)
    weighted, others = (readout @ weights.sub_(largest)).unbind(1)
    at, total = index_sum / n_largest, n_largest + others
    dominant = at + (weighted - at * others) / total  # a small deviation would be lost if it were summed with the index
    shape = heads, queries.shape[1], keys.shape[2]
    return dominant.view(shape), (total * SATURATED < 1).view(shape)


def listed_dominant(
    query: Float[Tensor, "head n pair 2"], key: Float[Tensor, "head n pair 2"], temperature: float
) -> tuple[Float[Tensor, "head n"], Bool[Tensor, "head n"]]:
    """Dominant dimension of each query with the key of the same number in the list, and whether it is saturated."""
    dominant, share = dominance((query * key).sum(-1) / temperature)
    return dominant, share > SATURATED
