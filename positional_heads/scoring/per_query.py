"""Compute means over the keys of each query, and every query-key pair of the first tokens, in blocks of queries.

Only the attention pattern of the heads asked for is of size T x T.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from positional_heads.bridge.layer_vectors import LayerVectors, contributions_by_distance
from positional_heads.bridge.masks import visible_entries
from positional_heads.core.arguments import Temperature
from positional_heads.core.heads import Head

BLOCK_TERMS = 2**22
"""Contributions held at a time: 16 MiB of float32."""


def layer_parts(
    vectors: LayerVectors, heads: Sequence[Head], patterns: dict[Head, Tensor], detailed: int, temperature: Temperature
) -> dict[Head, dict[str, Tensor]]:
    """The tensors of `HeadExamples` for some heads of one layer, computed a block of queries at a time.

    Args:
        vectors: Rotated queries and keys of one sequence.
        heads: Which heads; all of this layer.
        patterns: Attention of each.
        detailed: Number of leading tokens of which every query-key pair is kept.
        temperature: Softmax temperature of the dominant dimension.
    """
    rotary, length = vectors.rotary, vectors.rot_q.shape[1]
    parts = {}
    ranges = list(vectors.by_distance(0))
    visible = visible_entries(length, vectors.window, vectors.rot_q.device)
    rows = max(1, BLOCK_TERMS // (length * rotary.n_pairs))
    for head in heads:
        blocks, only = [], slice(head.head, head.head + 1)
        for start in range(0, length, rows):
            block = slice(start, min(start + rows, length))
            contributions = contributions_by_distance(ranges, only, block)
            dominant = vectors.dominant(contributions, temperature, only)[0].masked_fill(~visible[block], torch.nan)
            scaled, pattern = contributions[0] * rotary.scale, patterns[head][block].masked_fill(~visible[block], 0)
            means = key_means(pattern, dominant, scaled, start)
            by_entry = {"pattern": pattern, "dominant": dominant, "contributions": scaled}
            end = max(0, detailed - start)
            blocks.append(means | {name: part[:end, :detailed].clone() for name, part in by_entry.items()})
        parts[head] = {name: torch.cat([block[name] for block in blocks]).cpu() for name in blocks[0]}
    return parts


def key_means(
    pattern: Float[Tensor, "query_pos key_pos"],
    dominant: Float[Tensor, "query_pos key_pos"],
    contributions: Float[Tensor, "query_pos key_pos pair"],
    first: int,
) -> dict[str, Tensor]:
    """Means over the keys that each query sees; NaN if it sees none, or attends to none.

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
