"""Where the attention of each head goes, summed over the queries of one sequence, in blocks of queries.

Only a block of the attention pattern exists at a time. Sums are by distance (query position minus key position) and by
what the keys hold: the token itself again, what followed it before, or the token that comes next.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from positional_heads.core.token_matches import TokenMatches

BLOCK_ENTRIES, BLOCK_ENTRIES_OF_GPU = 2**19, 2**26
"""Entries of a block of the pattern, of all heads: 2 MiB of float32 stay in a CPU's cache, 256 MiB keep a GPU busy."""
FEWEST_QUERIES = 8
"""Queries of a block at least, in long sequences: fewer would cost more in calls than in arithmetic."""

PaddedScores = Float[Tensor, "head query_pos padded_key_pos"]
"""Scores of a block of queries, with as many columns before the first key as there are queries."""


class AttentionSums(NamedTuple):
    """Attention of each head, summed over the queries of one sequence.

    Attributes:
        by_distance: Attention at each distance.
        free: The same without the first keys, the sinks.
        sink: Attention to the sinks, of the queries after them.
        duplicate: Attention to earlier occurrences of the query's token.
        induction: Attention to the keys right after earlier occurrences of the query's token.
        copying: Attention to the keys that hold the token that comes next.
        copyable: Number of queries that have such keys before them, whether or not the mask shows one.
    """

    by_distance: Float64[Tensor, "head distance"]
    free: Float64[Tensor, "head distance"]
    sink: Float64[Tensor, " head"]
    duplicate: Float64[Tensor, " head"]
    induction: Float64[Tensor, " head"]
    copying: Float64[Tensor, " head"]
    copyable: int


def attention_sums(
    scores: Callable[[int, int], PaddedScores], heads: int, matches: TokenMatches, window: int | None, sinks: int
) -> AttentionSums:
    """Sums over the causal attention pattern, softmax of the scores over the keys that the mask shows.

    Args:
        scores: Gives the attention scores of the queries from one position to another and every key up to the last of
            them, as a new tensor, see `PaddedScores`.
        heads: Number of heads.
        matches: Which keys hold which tokens.
        window: Distances that the mask lets through, 0 to window - 1; None for all.
        sinks: Number of first keys that are summed apart.
    """
    length, on_cpu = len(matches.tokens), matches.tokens.device.type == "cpu"
    rows = (BLOCK_ENTRIES if on_cpu else BLOCK_ENTRIES_OF_GPU) // (heads * length)
    rows = min(length, max(FEWEST_QUERIES, rows))
    by_distance, free = (torch.zeros(heads, length, dtype=torch.float64) for _ in range(2))
    sink, matched, copyable = torch.zeros(heads, dtype=torch.float64), torch.zeros(3, heads, dtype=torch.float64), 0
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        pattern = _pattern(scores(start, stop), start, stop, window)
        own, by_entry = pattern[:, :, stop - start :], pattern.flatten(1)
        block = matches.block(start, stop, window)
        matched += torch.stack([by_entry.index_select(1, entries).sum(1) for entries in block[:3]]).cpu().double()
        copyable += block.copyable
        first = own[:, :, :sinks].clone()
        sink += first[:, max(0, sinks - start) :].sum((1, 2)).cpu().double()
        own[:, :, :sinks] = 0
        free[:, :stop] += _along_distances(pattern, stop).cpu().double()
        for key in range(first.shape[2]):  # the query at position m sees it at distance m - key
            nearest = max(start, key)
            by_distance[:, nearest - key : stop - key] += first[:, nearest - start :, key].cpu().double()
    duplicate, induction, copying = matched
    return AttentionSums(by_distance + free, free, sink, duplicate, induction, copying, copyable)


def _pattern(scores: PaddedScores, start: int, stop: int, window: int | None) -> PaddedScores:
    """Softmax over the visible keys, in place where it can be; 0 in the columns before the first key."""
    rows = stop - start
    scores[:, :, :rows] = -torch.inf
    later = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).triu(1)
    scores[:, :, -rows:].masked_fill_(later, -torch.inf)
    if window is not None and window < stop:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).tril(stop - window)
        scores.masked_fill_(hidden, -torch.inf)
    return scores.softmax(-1)


def _along_distances(pattern: PaddedScores, stop: int) -> Float[Tensor, "head distance"]:
    """Sums along the diagonals: in a view whose rows are shifted by one each, a column is one distance."""
    heads, rows, width = pattern.shape
    shifted = pattern.as_strided((heads, rows, stop), (rows * width, width + 1, 1), pattern.storage_offset() + 1)
    return shifted.sum(1).flip(-1)
