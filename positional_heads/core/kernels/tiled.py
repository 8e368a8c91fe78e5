"""Dominant dimensions of all pairs of one sequence, tile by tile: never anything of size T x T x pairs.

The tensor core between contributions and correlation: planes in, tiles of (D, distance) out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from positional_heads.core.contributions import dominance
from positional_heads.core.plan import EntryPlan

Planes = Float[Tensor, "head pos pair 2"]


@dataclass(frozen=True)
class Tile:
    """How much is held at once: what sets peak memory.

    Attributes:
        terms: Head x pair x query x key terms computed at a time, 4 bytes each.
        pairs: Query-key pairs handed on at a time, for all heads.
    """

    terms: int
    pairs: int

    def __post_init__(self) -> None:
        if self.terms < 1 or not 1 <= self.pairs <= MOST_PAIRS:
            msg = f"a tile of {self.terms} terms and {self.pairs} pairs: at least 1 of each, and at most 2^20 pairs"
            raise ValueError(msg)


MOST_PAIRS = 2**20
SATURATED = 0.999
"""Share of the softmax above which one rotary pair is said to hold all of it."""
CACHE_TILE = Tile(terms=2**19, pairs=2**16)
"""2 MiB of float32 terms, so that a tile stays in a processor's cache."""


def dominant_tiles(
    query: Planes, key: Planes, plan: EntryPlan, temperature: float, tile: Tile = CACHE_TILE
) -> Iterator[tuple[Float[Tensor, "head n"], Bool[Tensor, "head n"], Int[Tensor, " n"]]]:
    """D, whether it is saturated, and distance of every pair that counts, a chunk of queries at a time.

    Args:
        query: Rotated queries of one sequence, as planes.
        key: Rotated keys, one per query head.
        plan: Which pairs count.
        temperature: Softmax temperature of the dominant dimension.
        tile: How much is computed, and handed on, at a time.
    """
    for queries, keys in chunks(query.shape[1], plan, tile.pairs, query.device):
        counted = _counted_entries(query, key, queries, keys, plan, temperature, terms=tile.terms)
        if counted[2].numel():
            yield counted


def chunks(
    length: int, plan: EntryPlan, pairs: int, device: torch.device
) -> Iterator[tuple[Int[Tensor, " query_pos"], Int[Tensor, " key_pos"]]]:
    """Positions of queries and keys that hold every pair that counts once, at most so many pairs at a time."""
    positions = torch.arange(length, device=device)
    rows = max(1, pairs // length)
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        keys = positions[max(plan.skip_keys, start - plan.furthest) : max(0, stop - plan.min_distance)]
        for part in keys.split(pairs // rows):
            if part.numel():
                yield positions[start:stop], part


def pilot_sample(
    query: Planes, key: Planes, plan: EntryPlan, temperature: float, queries: int = 256
) -> Float[Tensor, "head n"]:
    """D at some queries spread over the sequence, to place bins by."""
    length = query.shape[1]
    chosen = torch.linspace(0, length - 1, min(queries, length), device=query.device).round().long()
    every = torch.arange(length, device=query.device)
    return _counted_entries(query, key, chosen, every, plan, temperature)[0]


def _counted_entries(
    query: Planes,
    key: Planes,
    query_pos: Int[Tensor, " query_pos"],
    key_pos: Int[Tensor, " key_pos"],
    plan: EntryPlan,
    temperature: float,
    *,
    terms: int = CACHE_TILE.terms,
) -> tuple[Float[Tensor, "head n"], Bool[Tensor, "head n"], Int[Tensor, " n"]]:
    distance = query_pos[:, None] - key_pos
    counted = plan.counts_entry(distance, key_pos).flatten().nonzero().flatten()
    block = dominant_block(query[:, query_pos], key[:, key_pos], temperature, terms)
    dominant, saturated = (values.flatten(1).index_select(1, counted) for values in block)
    return dominant, saturated, distance.flatten()[counted]


def dominant_block(
    query: Float[Tensor, "head query_pos pair 2"],
    key: Float[Tensor, "head key_pos pair 2"],
    temperature: float,
    terms: int = CACHE_TILE.terms,
) -> tuple[Float[Tensor, "head query_pos key_pos"], Bool[Tensor, "head query_pos key_pos"]]:
    """Dominant dimension of every query with every key (method sections 2 and 3), and whether one pair holds it all.

    The same as `dominant_dimension(plane_contributions(query, key))`, with keys innermost and pairs outside them: each
    contribution is a product of two channels by two, each weighted mean a product of two rows by all pairs, and both
    are matrix products. So many terms at a time.
    """
    heads, n_keys, pairs, _ = key.shape
    keys = rearrange(key, "head key_pos pair two -> (head pair) two key_pos") / temperature
    queries = rearrange(query, "head query_pos pair two -> (head pair) query_pos two")
    columns = max(1, min(n_keys, terms // (heads * pairs)))
    rows = max(1, terms // (heads * pairs * columns))
    parts = keys.split(columns, dim=2)
    tiles = [[_tile(some, part, heads) for part in parts] for some in queries.split(rows, dim=1)]
    dominant, saturated = (
        torch.cat([torch.cat([tile[which] for tile in row], dim=2) for row in tiles], dim=1) for which in (0, 1)
    )
    return dominant, saturated


def _tile(
    queries: Float[Tensor, "head_pair query_pos 2"], keys: Float[Tensor, "head_pair 2 key_pos"], heads: int
) -> tuple[Float[Tensor, "head query_pos key_pos"], Bool[Tensor, "head query_pos key_pos"]]:
    pairs = len(keys) // heads
    index = torch.arange(pairs, dtype=keys.dtype, device=keys.device)
    readout = torch.stack([index, torch.ones_like(index)])
    contributions = torch.bmm(queries, keys).view(heads, pairs, -1)
    weights = contributions.sub_(contributions.amax(1, keepdim=True)).exp_()
    largest = weights.floor()  # 1 for the largest and those that round to it, else 0; NaN stays NaN
    index_sum, n_largest = (readout @ largest).unbind(1)
    weighted, others = (readout @ weights.sub_(largest)).unbind(1)
    at, total = index_sum / n_largest, n_largest + others
    dominant = at + (weighted - at * others) / total  # the deviation is not lost in a sum with the largest's own index
    shape = heads, queries.shape[1], keys.shape[2]
    return dominant.view(shape), (total * SATURATED < 1).view(shape)


def listed_dominant(
    query: Float[Tensor, "head n pair 2"], key: Float[Tensor, "head n pair 2"], temperature: float
) -> tuple[Float[Tensor, "head n"], Bool[Tensor, "head n"]]:
    """Dominant dimension of each query with the key at its place in the list, and whether one pair holds it all."""
    dominant, share = dominance((query * key).sum(-1) / temperature)
    return dominant, share > SATURATED
