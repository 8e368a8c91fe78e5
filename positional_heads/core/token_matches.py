"""Which keys hold the token of a query, what followed it before, or what comes next: the same for every layer and head.

The first two are the detection patterns of TransformerLens' `detect_head` for duplicate-token and induction heads.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

KEPT_ENTRIES = 2**24
"""Matches of a sequence that are kept for the next layer, at most: 64 MiB."""

BlockEntries = Int32[Tensor, " entry"]
"""Entries of a block of queries, numbered row by row; before the first key are as many columns as there are queries."""


class BlockMatches(NamedTuple):
    """Matching keys of some queries in a row, among the keys up to the last of them.

    Attributes:
        duplicate: Entries whose key is an earlier occurrence of the query's token.
        induction: Entries whose key comes right after one.
        copying: Entries whose key holds the token that comes next after the query.
        copyable: Number of queries with such a key before them, whether or not the mask shows it.
    """

    duplicate: BlockEntries
    induction: BlockEntries
    copying: BlockEntries
    copyable: int


class TokenMatches:
    """The matches of one sequence, found block by block, and kept as long as they are few enough."""

    def __init__(self, tokens: Int[Tensor, " pos"]) -> None:
        """Nothing is searched yet.

        Args:
            tokens: Real tokens of the sequence, on the device on which entries are wanted.
        """
        self.tokens = tokens
        self._kept: dict[tuple[int, int, int | None], BlockMatches] = {}
        self._free = KEPT_ENTRIES

    def block(self, start: int, stop: int, window: int | None) -> BlockMatches:
        """The matches of the queries from one position to another, among the keys that the mask shows.

        Args:
            start: First query.
            stop: One past the last query, and one past the last key.
            window: Distances that the mask lets through, 0 to window - 1; None for all.
        """
        key = start, stop, window
        if key in self._kept:
            return self._kept[key]
        matches = self._found(start, stop, window)
        size = sum(len(entries) for entries in matches[:3])
        if size <= self._free:
            self._kept[key] = matches
            self._free -= size
        return matches

    def _found(self, start: int, stop: int, window: int | None) -> BlockMatches:
        tokens = self.tokens
        query, key = tokens[start:stop, None], tokens[:stop]
        before = torch.full_like(key, -1)
        before[1:] = key[:-1]
        following = torch.full_like(query, -1)  # the last token of a sequence has none
        following[: len(tokens[start + 1 : stop + 1])] = tokens[start + 1 : stop + 1, None]
        position = torch.arange(stop, device=tokens.device)
        distance = position[start:, None] - position
        visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        next_token = (following == key) & (distance >= 0)
        copying = next_token & visible
        duplicate, induction = (query == key) & visible & (distance > 0), (query == before) & visible
        copyable = int(next_token.any(-1).sum())
        return BlockMatches(_numbers(duplicate), _numbers(induction), _numbers(copying), copyable)


def _numbers(entries: Bool[Tensor, "query_pos key_pos"]) -> BlockEntries:
    return torch.nn.functional.pad(entries, (len(entries), 0)).flatten().nonzero().flatten().int()
