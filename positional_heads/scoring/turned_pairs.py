"""Scores as they would be if rotary pairs of single heads turned at another frequency, and which pairs dominate a head.

A layer's queries and keys do not depend on how it turns them, so one run of the model gives the scores of its heads
under any frequencies. Each head is turned for itself, as with an own copy of its key head; what later layers would make
of it is left out.
"""

from collections.abc import Callable

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.core.contributions import expand_key_heads, head_planes
from positional_heads.core.rotary import pair_frequencies
from positional_heads.scoring.batches import Row

QUERIES = 16
"""Queries of each sequence, evenly over its second half, on which the dominance of pairs is measured."""


def turned_scores(
    vectors: LayerVectors, row: Row, factors: Float[Tensor, "head pair"]
) -> Callable[[int, int], Float[Tensor, "head query_pos padded_key_pos"]]:
    """Attention scores of a block of queries of one sequence, see `core.attention_sums.PaddedScores`.

    Args:
        vectors: Queries and keys of the layer.
        row: The sequence.
        factors: What the frequency of each pair of each head is multiplied by.
    """
    rotary, span = vectors.rotary, slice(row.start, row.stop)
    frequency = pair_frequencies(vectors.phase(row.number)[span])
    position = torch.arange(row.length, device=frequency.device)
    angle = (factors.to(frequency) - 1)[:, None] * frequency * position[:, None]
    more = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)

    def turned(x: Tensor) -> Float[Tensor, "head pos d_head"]:
        own = expand_key_heads(x[row.number : row.number + 1, span], rotary.n_heads)[0].transpose(0, 1)
        planes = torch.view_as_real(_planes(vectors, row, x) * more).flatten(2)
        return torch.cat([planes, own[..., rotary.rotary_dim :].float()], -1)

    query, key = turned(vectors.rot_q) * rotary.scale, turned(vectors.rot_k)

    def scores(start: int, stop: int) -> Float[Tensor, "head query_pos padded_key_pos"]:
        padded = torch.nn.functional.pad(key[:, :stop], (0, 0, stop - start, 0))
        return rotary.soft_capped(query[:, start:stop] @ padded.mT)

    return scores


def pair_dominance(vectors: LayerVectors, row: Row) -> Float[Tensor, "head pair"]:
    """Mean weight of each pair in the softmax over pairs that defines D, over the keys that some queries see.

    Args:
        vectors: Queries and keys of the layer.
        row: The sequence.
    """
    at = torch.linspace(row.length // 2, row.length - 1, QUERIES, device=vectors.rot_q.device).long().unique()
    query, key = (_planes(vectors, row, x) for x in (vectors.rot_q, vectors.rot_k))
    total = torch.zeros(query.shape[0], query.shape[2], dtype=torch.float64)
    for one in at.tolist():
        first = 0 if vectors.window is None else max(0, one + 1 - vectors.window)
        contributions = (query[:, one, None] * key[:, first : one + 1].conj()).real
        total += vectors.divided(contributions).softmax(-1).mean(1).cpu().double()
    return total / len(at)


def _planes(vectors: LayerVectors, row: Row, x: Tensor) -> Complex[Tensor, "head pos pair"]:
    rotary, span = vectors.rotary, slice(row.start, row.stop)
    planes = head_planes(x[row.number : row.number + 1, span], rotary.layout, rotary.rotary_dim, rotary.n_heads)[0]
    return torch.view_as_complex(planes.float().contiguous())
