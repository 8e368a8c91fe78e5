"""Dominant dimensions of all pairs of one sequence, tile by tile: never anything of size T x T x pairs.

The tensor core between contributions and correlation: planes in, tiles of (D, distance) out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.plan import PairPlan

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
CACHE_TILE = Tile(terms=2**19, pairs=2**16)
"""2 MiB of float32 terms, so that a tile stays in a processor's cache."""


def dominant_tiles(
    query: Planes, key: Planes, plan: PairPlan, temperature: float, tile: Tile = CACHE_TILE
) -> Iterator[tuple[Float[Tensor, "head n"], Int[Tensor, " n"]]]:
    """D and distance of every pair that the plan counts, a chunk of queries at a time.

    Args:
        query: Rotated queries of one sequence, as planes.
        key: Rotated keys, one per query head.
        plan: Which pairs count.
        temperature: Softmax temperature of the dominant dimension.
        tile: How much is computed, and handed on, at a time.
    """
    for queries, keys in chunks(query.shape[1], plan, tile.pairs, query.device):
        counted = _counted_pairs(query, key, queries, keys, plan, temperature, terms=tile.terms)
        if counted[1].numel():
            yield counted


def chunks(
    length: int, plan: PairPlan, pairs: int, device: torch.device
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
    query: Planes, key: Planes, plan: PairPlan, temperature: float, queries: int = 256
) -> Float[Tensor, "head n"]:
    """D at some queries spread over the sequence, to place bins by."""
    length = query.shape[1]
    chosen = torch.linspace(0, length - 1, min(queries, length), device=query.device).round().long()
    every = torch.arange(length, device=query.device)
    return _counted_pairs(query, key, chosen, every, plan, temperature)[0]


def _counted_pairs(
    query: Planes,
    key: Planes,
    query_pos: Int[Tensor, " query_pos"],
    key_pos: Int[Tensor, " key_pos"],
    plan: PairPlan,
    temperature: float,
    *,
    terms: int = CACHE_TILE.terms,
) -> tuple[Float[Tensor, "head n"], Int[Tensor, " n"]]:
    distance = query_pos[:, None] - key_pos
    counted = plan.counts_pair(distance, key_pos).flatten().nonzero().flatten()
    block = dominant_block(query[:, query_pos], key[:, key_pos], temperature, terms)
    return block.flatten(1).index_select(1, counted), distance.flatten()[counted]


def dominant_block(
    query: Float[Tensor, "head query_pos pair 2"],
    key: Float[Tensor, "head key_pos pair 2"],
    temperature: float,
    terms: int = CACHE_TILE.terms,
) -> Float[Tensor, "head query_pos key_pos"]:
    """Dominant dimension of every query with every key (method sections 2 and 3), so many terms at a time.

    The same as `dominant_dimension(plane_contributions(query, key))`, with keys innermost and pairs outside them: each
    contribution is a product of two channels by two, each weighted mean a product of two rows by all pairs, and both
    are matrix products.
    """
    heads, n_keys, pairs, _ = key.shape
    keys = rearrange(key, "head key_pos pair two -> (head pair) two key_pos") / temperature
    queries = rearrange(query, "head query_pos pair two -> (head pair) query_pos two")
    columns = max(1, min(n_keys, terms // (heads * pairs)))
    rows = max(1, terms // (heads * pairs * columns))
    parts = keys.split(columns, dim=2)
    return torch.cat(
        [torch.cat([_tile(some, part, heads) for part in parts], dim=2) for some in queries.split(rows, dim=1)], dim=1
    )


def _tile(
    queries: Float[Tensor, "head_pair query_pos 2"], keys: Float[Tensor, "head_pair 2 key_pos"], heads: int
) -> Float[Tensor, "head query_pos key_pos"]:
    pairs = len(keys) // heads
    index = torch.arange(pairs, dtype=torch.float32, device=keys.device)
    readout = torch.stack([index, torch.ones_like(index)])
    contributions = torch.bmm(queries, keys).view(heads, pairs, -1)
    weights = contributions.sub_(contributions.amax(1, keepdim=True)).exp_()
    weighted, total = (readout @ weights).unbind(1)
    return (weighted / total).view(heads, queries.shape[1], keys.shape[2])


def listed_dominant(
    query: Float[Tensor, "head n pair 2"], key: Float[Tensor, "head n pair 2"], temperature: float
) -> Float[Tensor, "head n"]:
    """Dominant dimension of each query with the key at the same place of the list."""
    weights = torch.softmax((query * key).sum(-1) / temperature, dim=-1)
    return weights @ torch.arange(key.shape[2], dtype=torch.float32, device=key.device)
