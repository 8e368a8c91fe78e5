"""Compute means over the keys of each query, and the keys that get the most attention, in blocks of queries.

Of the first tokens every query-key pair is kept. Nothing of size T x T is made here.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from positional_heads.bridge.layer_vectors import LayerVectors, contributions_by_distance
from positional_heads.core.arguments import Temperature
from positional_heads.core.heads import Head

BLOCK_TERMS = 2**22
"""Contributions held at a time: 16 MiB of float32."""


KEPT_ENTRIES = 2**18
"""Query-key pairs that are kept of a head: all of a text of 512 tokens, 32 keys of each query in one of 8192."""

Rows = Callable[[Head, slice, int], Float[Tensor, "query_pos key_pos"]]
"""Attention of some queries of a head to so many first keys, which are all that these queries see."""


def rebuilt_rows(vectors: LayerVectors, head: Head, queries: slice, keys: int) -> Float[Tensor, "query_pos key_pos"]:
    """Attention of some queries, as the softmax of scores rebuilt from a layer's rotated queries and keys.

    Args:
        vectors: Rotated queries and keys of one sequence. A plain run has proven that the softmax of their scores gives
            the output of the model's own attention, see `bridge.plain_capture`.
        head: A head of this layer.
        queries: Which queries.
        keys: Number of first keys, which are all that these queries see.
    """
    rotary = vectors.rotary
    if vectors.bands is None:
        key_head = head.head * vectors.rot_k.shape[2] // rotary.n_heads
        key = vectors.rot_k[:1, :keys, key_head : key_head + 1]
        scores = rotary.scores(vectors.rot_q[:1, queries, head.head : head.head + 1], key)[0, 0]
    else:
        position = torch.arange(queries.start, queries.stop, device=vectors.rot_q.device)
        scores = vectors.scores(0, position)[0, head.head, :, :keys]
    return scores.masked_fill(~_visible(vectors, queries, keys), -torch.inf).softmax(-1)


def layer_parts(
    vectors: LayerVectors, heads: Sequence[Head], rows: Rows, detailed: int, temperature: Temperature
) -> dict[Head, dict[str, Tensor]]:
    """The tensors of `HeadExamples` for some heads of one layer, computed a block of queries at a time.

    Args:
        vectors: Rotated queries and keys of one sequence.
        heads: Which heads; all of this layer.
        rows: Gives their attention.
        detailed: Number of leading tokens of which every query-key pair is kept.
        temperature: Softmax temperature of the dominant dimension.
    """
    rotary, length = vectors.rotary, vectors.rot_q.shape[1]
    parts = {}
    ranges = list(vectors.by_distance(0))
    step = max(1, BLOCK_TERMS // (length * rotary.n_pairs))
    for head in heads:
        blocks, only = [], slice(head.head, head.head + 1)
        for start in range(0, length, step):
            block = slice(start, min(start + step, length))
            keys = max(block.stop, detailed)  # later ones are hidden; of the first tokens contributions are kept anyway
            seen = [one._replace(planes=(one.planes[0], one.planes[1][:, :keys])) for one in ranges]
            contributions, hidden = contributions_by_distance(seen, only, block), ~_visible(vectors, block, keys)
            dominant = vectors.dominant(contributions, temperature, only)[0].masked_fill(hidden, torch.nan)
            scaled, pattern = contributions[0] * rotary.scale, rows(head, block, keys).masked_fill(hidden, 0)
            means = key_means(pattern, dominant, scaled, start)
            means |= kept_entries(pattern, dominant, kept_keys(length))
            by_entry = {"pattern": pattern, "dominant": dominant, "contributions": scaled}
            end = max(0, detailed - start)
            blocks.append(means | {name: part[:end, :detailed].clone() for name, part in by_entry.items()})
        parts[head] = {name: torch.cat([block[name] for block in blocks]).cpu() for name in blocks[0]}
    return parts


def _visible(vectors: LayerVectors, queries: slice, keys: int) -> Bool[Tensor, "query_pos {keys}"]:
    position = torch.arange(max(keys, queries.stop), device=vectors.rot_q.device)
    distance = position[queries, None] - position[:keys]
    return (distance >= 0) & (distance < (keys if vectors.window is None else vectors.window))


def kept_keys(length: int) -> int:
    """Number of keys that are kept of each query of a text of so many tokens."""
    return min(length, max(1, KEPT_ENTRIES // length))


def kept_entries(
    pattern: Float[Tensor, "query_pos key_pos"], dominant: Float[Tensor, "query_pos key_pos"], kept: int
) -> dict[str, Tensor]:
    """The keys that get the most attention of each query, most first, with their attention and dominant dimension.

    Args:
        pattern: Attention of some queries to every key, 0 where masked.
        dominant: Dominant dimensions, NaN where masked.
        kept: How many keys.
    """
    hidden = dominant.isnan()
    found = pattern.masked_fill(hidden, -1).topk(min(kept, pattern.shape[1]))
    missing = found.values < 0
    entries = {
        "kept_keys": found.indices.masked_fill(missing, -1).short(),
        "kept_pattern": found.values.clamp(min=0).half(),
        "kept_dominant": dominant.gather(1, found.indices).half(),
    }
    padding = {"kept_keys": -1, "kept_pattern": 0.0, "kept_dominant": torch.nan}
    more = kept - missing.shape[1]
    return {name: pad(values, (0, more), value=padding[name]) for name, values in entries.items()}


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
