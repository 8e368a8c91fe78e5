"""What does a head do with each query? Means over its keys, and every pair of the first tokens, in blocks of queries.

Of size T x T there is only the attention pattern of the heads asked for.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from positional_heads.bands import Band, rotated_in, unrotated
from positional_heads.contributions import dominant_dimension, head_planes, plane_contributions
from positional_heads.heads import Head
from positional_heads.host.capture import LayerVectors, visible_pairs

BLOCK_TERMS = 2**22
"""Contributions held at a time: 16 MiB of float32."""


def layer_parts(
    vectors: LayerVectors, heads: Sequence[Head], patterns: dict[Head, Tensor], detailed: int, temperature: float
) -> dict[Head, dict[str, Tensor]]:
    """Everything that a record keeps of some heads of one layer, a block of queries at a time.

    Args:
        vectors: Rotated queries and keys of one sequence.
        heads: Which heads; all of this layer.
        patterns: Attention of each.
        detailed: Number of leading tokens of which every query-key pair is kept.
        temperature: Softmax temperature of the dominant dimension.
    """
    rotary = vectors.rotary
    parts = {}
    planes = [
        head_planes(x, rotary.layout, rotary.rotary_dim, rotary.n_heads)[0] for x in (vectors.rot_q, vectors.rot_k)
    ]
    length, pairs = planes[0].shape[1:3]
    visible = visible_pairs(length, vectors.window, planes[0].device)
    rows = max(1, BLOCK_TERMS // (length * pairs))
    divided = temperature * vectors.attention_factor**2
    for head in heads:
        blocks = []
        for start in range(0, length, rows):
            block = slice(start, min(start + rows, length))
            added = _row_contributions(vectors, head.head, planes, block)
            dominant = dominant_dimension(added, divided).masked_fill(~visible[block], torch.nan)
            scaled, pattern = added * rotary.scale, patterns[head][block].masked_fill(~visible[block], 0)
            summary = key_means(pattern, dominant, scaled, start)
            first = {"pattern": pattern, "dominant": dominant, "contributions": scaled}
            end = max(0, detailed - start)
            blocks.append(summary | {name: part[:end, :detailed].clone() for name, part in first.items()})
        parts[head] = {name: torch.cat([block[name] for block in blocks]).cpu() for name in blocks[0]}
    return parts


def _row_contributions(
    vectors: LayerVectors, head: int, planes: Sequence[Tensor], rows: slice
) -> Float[Tensor, "query_pos key_pos pair"]:
    """What each pair adds to q . k for some queries of one head, each key in the band of its distance."""
    query, key = planes[0][head : head + 1], planes[1][head : head + 1]
    if vectors.bands is None:
        return plane_contributions(query[:, rows], key)[0]
    phase = vectors.phase[0]
    free_query, free_key = unrotated(query, phase), unrotated(key, phase)
    position = torch.arange(key.shape[1], device=key.device)
    back = (position[rows, None] - position)[..., None]
    found = torch.zeros(1, device=key.device)
    for band in vectors.bands:
        phases = (phase if len(phase) == 1 else phase[head : head + 1] for phase in (band.query_phase, band.key_phase))
        own = Band(band.nearest, band.furthest, *phases).first(key.shape[1])
        inside = (back >= band.nearest) & (back <= (len(position) if band.furthest is None else band.furthest))
        turned_query, turned_key = rotated_in(own, free_query, free_key)
        added = plane_contributions(turned_query[:, rows], turned_key)[0]
        found = torch.where(inside, added, found)
    return found


def key_means(
    pattern: Float[Tensor, "query_pos key_pos"],
    dominant: Float[Tensor, "query_pos key_pos"],
    contributions: Float[Tensor, "query_pos key_pos pair"],
    first: int,
) -> dict[str, Tensor]:
    """Means over the keys that each query sees; NaN where it sees none, or attends to none.

    Args:
        pattern: Attention of some queries to every key, 0 where masked.
        dominant: Dominant dimensions, NaN where masked.
        contributions: Contributions in units of the attention score.
        first: Position of the first of these queries.
    """
    weights = pattern / pattern.sum(-1, keepdim=True)
    position = torch.arange(pattern.shape[-1], device=pattern.device)
    distance = (first + torch.arange(len(pattern), device=pattern.device))[:, None] - position
    return {
        "weighted_dominant": (weights * dominant.nan_to_num()).sum(-1),
        "plain_dominant": dominant.nanmean(-1),
        "mean_distance": (weights * distance.clamp(min=0)).sum(-1),
        "mean_contributions": torch.einsum("qk,qkp->qp", weights, contributions),
    }
