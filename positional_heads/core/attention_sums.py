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
    length = len(matches.tokens)
    mass, matched, copyable = AttentionMass(heads, length, sinks), torch.zeros(3, heads, dtype=torch.float64), 0
    for start, stop in query_blocks(heads, length, matches.tokens.device):
        pattern = visible_pattern(scores(start, stop), start, stop, window)
        by_entry, block = pattern.flatten(1), matches.block(start, stop, window)
        matched += torch.stack([by_entry.index_select(1, entries).sum(1) for entries in block[:3]]).cpu().double()
        copyable += block.copyable
        mass.add(pattern, start, stop)
    duplicate, induction, copying = matched
    by_distance, free = mass.by_distance, mass.free
    return AttentionSums(by_distance + free, free, mass.sink, duplicate, induction, copying, copyable)


class AttentionMass:
    """Attention of each head by distance, summed over blocks of queries of one sequence.

    Attributes:
        by_distance: Attention to the first keys, the sinks, at each distance [head distance].
        free: Attention to the other keys.
        sink: Attention to the sinks, of the queries after them [head].
    """

    def __init__(self, heads: int, length: int, sinks: int) -> None:
        """Nothing is summed yet.

        Args:
            heads: Number of heads.
            length: Tokens of the sequence.
            sinks: Number of first keys that are summed apart.
        """
        self._sinks = sinks
        self.by_distance, self.free = (torch.zeros(heads, length, dtype=torch.float64) for _ in range(2))
        self.sink = torch.zeros(heads, dtype=torch.float64)

    def add(self, pattern: PaddedScores, start: int, stop: int) -> None:
        """Add the attention of the queries from one position to another; what it pays to sinks is set to 0 in place."""
        sinks, own = self._sinks, pattern[:, :, stop - start :]
        first = own[:, :, :sinks].clone()
        self.sink += first[:, max(0, sinks - start) :].sum((1, 2)).cpu().double()
        own[:, :, :sinks] = 0
        self.free[:, :stop] += along_distances(pattern, stop).cpu().double()
        for key in range(first.shape[2]):  # the query at position m sees it at distance m - key
            nearest = max(start, key)
            self.by_distance[:, nearest - key : stop - key] += first[:, nearest - start :, key].cpu().double()


def query_blocks(heads: int, length: int, device: torch.device) -> list[tuple[int, int]]:
    """First, and one past the last, query of each block of a sequence.

    Args:
        heads: Number of heads.
        length: Tokens of the sequence.
        device: Where its scores are.
    """
    rows = (BLOCK_ENTRIES if device.type == "cpu" else BLOCK_ENTRIES_OF_GPU) // (heads * length)
    rows = min(length, max(FEWEST_QUERIES, rows))
    return [(start, min(start + rows, length)) for start in range(0, length, rows)]


def visible_pattern(scores: PaddedScores, start: int, stop: int, window: int | None) -> PaddedScores:
    """Softmax over the visible keys, in place where it can be; 0 in the columns before the first key."""
    rows = stop - start
    scores[:, :, :rows] = -torch.inf
    later = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).triu(1)
    scores[:, :, -rows:].masked_fill_(later, -torch.inf)
    if window is not None and window < stop:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).tril(stop - window)
        scores.masked_fill_(hidden, -torch.inf)
    return scores.softmax(-1)


def along_distances(pattern: PaddedScores, stop: int) -> Float[Tensor, "head distance"]:
    """Sums along the diagonals: in a view whose rows are shifted by one each, a column is one distance."""
    heads, rows, width = pattern.shape
    shifted = pattern.as_strided((heads, rows, stop), (rows * width, width + 1, 1), pattern.storage_offset() + 1)
    return shifted.sum(1).flip(-1)
