"""Dominant dimensions of all pairs of one sequence, tile by tile: never anything of size T x T x pairs.

The tensor core between contributions and correlation: planes in, tiles of (D, distance) out.
"""

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.plan import PairPlan

TILE_TERMS = 2**19
"""Head x pair x query x key terms computed at a time: 2 MiB of float32, so that a tile stays in cache."""
CHUNK_PAIRS = 2**16
"""Query-key pairs handed on at a time."""

Planes = Float[Tensor, "head pos pair 2"]


def dominant_tiles(
    query: Planes, key: Planes, plan: PairPlan, temperature: float
) -> Iterator[tuple[Float[Tensor, "head n"], Int[Tensor, " n"]]]:
    """D and distance of every pair that the plan counts, a chunk of queries at a time.

    Args:
        query: Rotated queries of one sequence, as planes.
        key: Rotated keys, one per query head.
        plan: Which pairs count.
        temperature: Softmax temperature of the dominant dimension.
    """
    length = query.shape[1]
    positions = torch.arange(length, device=query.device)
    rows = max(1, CHUNK_PAIRS // length)
    for start in range(0, length, rows):
        queries, keys = positions[start : start + rows], positions[max(0, start - plan.furthest) : start + rows]
        tile = _counted_pairs(query, key, queries, keys, plan, temperature)
        if tile[1].numel():
            yield tile


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
) -> tuple[Float[Tensor, "head n"], Int[Tensor, " n"]]:
    distance = query_pos[:, None] - key_pos
    counted = plan.counts_pair(distance, key_pos).flatten().nonzero().flatten()
    block = dominant_block(query[:, query_pos], key[:, key_pos], temperature)
    return block.flatten(1).index_select(1, counted), distance.flatten()[counted]


def dominant_block(
    query: Float[Tensor, "head query_pos pair 2"], key: Float[Tensor, "head key_pos pair 2"], temperature: float
) -> Float[Tensor, "head query_pos key_pos"]:
    """Dominant dimension of every query with every key (method sections 2 and 3).

    The same as `dominant_dimension(plane_contributions(query, key))`, with keys innermost and pairs outside them: each
    contribution is a product of two channels by two, each weighted mean a product of two rows by all pairs, and both
    are matrix products.
    """
    heads, n_keys, pairs, _ = key.shape
    keys = rearrange(key, "head key_pos pair two -> (head pair) two key_pos") / temperature
    queries = rearrange(query, "head query_pos pair two -> (head pair) query_pos two")
    index = torch.arange(pairs, dtype=torch.float32, device=key.device)
    readout = torch.stack([index, torch.ones_like(index)])
    dominant = []
    for rows in queries.split(max(1, TILE_TERMS // (heads * pairs * n_keys)), dim=1):
        contributions = torch.bmm(rows, keys).view(heads, pairs, -1)
        weights = contributions.sub_(contributions.amax(1, keepdim=True)).exp_()
        weighted, total = (readout @ weights).unbind(1)
        dominant.append((weighted / total).view(heads, -1, n_keys))
    return torch.cat(dominant, dim=1)


def listed_dominant(
    query: Float[Tensor, "head n pair 2"], key: Float[Tensor, "head n pair 2"], temperature: float
) -> Float[Tensor, "head n"]:
    """Dominant dimension of each query with the key at the same place of the list."""
    weights = torch.softmax((query * key).sum(-1) / temperature, dim=-1)
    return weights @ torch.arange(key.shape[2], dtype=torch.float32, device=key.device)
