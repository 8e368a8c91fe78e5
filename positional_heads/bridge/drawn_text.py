"""Sequences drawn at random places of texts, of which only what is near these places is read and tokenised.

A sequence begins at the first word after its place and has the tokens that the text has from there on: those of
tokenising the text from that word to its end. Beside the tokens of the whole text, its first word has no space before
it, which some tokenizers make part of a word; from the second word on they are equal.

Convention: a place is a number of bytes from the beginning of a text. Sequences do not overlap, and every arrangement
of them is equally likely: what is left of the text is divided at random among the gaps before, between and behind them.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.text_sources import TextSource, first_character, refuse_blank, text_between, whole_text
from positional_heads.bridge.tokenizing import encoded

BEHIND = 32
"""Tokens that are read behind a sequence, so that the end of what was read does not change its last tokens."""
WORD = 256
"""Bytes in which the next word is looked for; some scripts have no spaces."""
PROBES, PROBE = 4, 1024
"""How many parts of a text, and how many bytes of each, tell how long its tokens are before a sequence is read."""
TRIES = 3
"""Arrangements that are tried before the texts count as too short for sequences at random places."""


class CutSequences(list[Tensor]):
    """Sequences of token ids that know which texts they are of; the first few of them know it too.

    Attributes:
        texts: For each text its `name`, None unless it is a file, and its `sha256`, None if it is; all JSON.
    """

    def __init__(self, sequences: Sequence[Tensor], texts: list[dict[str, str | None]]) -> None:
        super().__init__(sequences)
        self.texts = texts

    def __getitem__(self, index: Any) -> Any:
        chosen = super().__getitem__(index)
        return CutSequences(chosen, self.texts) if isinstance(index, slice) else chosen


class DrawnSequences(CutSequences):
    """Sequences of token ids that know where they were drawn.

    Attributes:
        drawn: How many were asked for, of which length, the seed, sizes and hashes of the texts, and for each sequence
            its text and the bytes between which it lies (`places`), or its number among all sequences of the texts
            where these were cut as a whole (`numbers`); all JSON.
    """

    def __init__(self, sequences: Sequence[Tensor], texts: list[dict[str, str | None]], drawn: dict[str, Any]) -> None:
        super().__init__(sequences, texts)
        self.drawn = drawn


class TooShortError(Exception):
    """The texts do not hold as many sequences at random places."""


@dataclass(frozen=True)
class Piece:
    """Tokens of one sequence, and where they lie.

    Attributes:
        tokens: Token ids, without special ones.
        start: Place of the first character.
        stop: Place behind the last one.
        text: What was read for it.
    """

    tokens: Int[Tensor, " pos"]
    start: int
    stop: int
    text: str


class Drawing:
    """Draws pieces of `room` tokens.

    Args:
        model: A TransformerBridge, for its tokenizer.
        room: Tokens of a piece.
        plain_text: As in `text_tokens`.
        random: Where chance comes from; only `random()` is asked, which is the same in all versions of Python.
    """

    def __init__(self, model: TransformerLensModel, room: int, *, plain_text: bool, random: Random) -> None:
        self.model = model
        self.room = room
        self.plain_text = plain_text
        self.random = random
        self.token_size = 0.0  # bytes

    def pieces(self, sources: Sequence[TextSource], count: int) -> list[tuple[int, Piece]]:
        """Pieces in the order of the texts, each with the number of its text.

        Texts get pieces in proportion to their sizes. A text that is shorter than a piece is taken whole.

        Raises:
            TooShortError: If there is no room for as many.
            ValueError: If what is read is empty or not text.
        """
        ends = list(accumulate(source.size for source in sources))
        step = ends[-1] / count
        first = self.random.random() * step
        owners = [min(bisect_right(ends, first + number * step), len(ends) - 1) for number in range(count)]
        found = []
        for index in sorted({*owners}):
            arranged = self._arranged(sources[index], owners.count(index))
            refuse_blank(sources[index], [piece.text for piece in arranged])
            found += [(index, piece) for piece in arranged]
        return found

    def _arranged(self, source: TextSource, count: int) -> list[Piece]:
        for _ in range(TRIES):
            found = self._arrangement(source, count)
            if found is not None:
                return found
        raise TooShortError

    def _arrangement(self, source: TextSource, count: int) -> list[Piece] | None:
        """Pieces from left to right: with `n` still to come, the next gap is the least of `n` random shares.

        None where they do not fit; where there is space that is seldom: the last ones were longer than those before.
        """
        self._probe(source)
        found: list[Piece] = []
        place, taken = 0, 0
        for left in range(count, 0, -1):
            expected = taken / len(found) if found else self.room * self.token_size
            spare = source.size - place - left * expected
            if spare < 0 and count > 1:
                return None
            gap = int(max(spare, 0) * (1 - (1 - self.random.random()) ** (1 / left)))
            piece = self._piece(source, place, place + gap, alone=count == 1)
            if piece is None:
                return None
            found.append(piece)
            taken += piece.stop - min(place + gap, piece.start)
            place = piece.stop
        return found

    def _probe(self, source: TextSource) -> None:
        """Measure how long the tokens of a text are, at a few places of it."""
        places = [source.size * (2 * part + 1) // (2 * PROBES) for part in range(PROBES)]
        self._encoded("".join(text_between(source, place, place + PROBE) for place in places) or whole_text(source))

    def _piece(self, source: TextSource, least: int, place: int, *, alone: bool) -> Piece | None:
        """The piece from the first word after a place on, or from before, if the text ends too soon."""
        while True:
            piece = self._read(source, first_word(source, place))
            missing = self.room - len(piece.tokens)
            if missing <= 0:
                return piece
            if place == least:
                return piece if alone and len(piece.tokens) else None
            place = max(least, place - math.ceil((missing + BEHIND) * self.token_size))

    def _read(self, source: TextSource, start: int) -> Piece:
        """The piece that begins at a place; shorter at the end of the text."""
        stop, wanted = start, self.room + BEHIND
        while True:
            guess = start + math.ceil(wanted * self.token_size * 1.1)
            stop = min(source.size, max(guess, stop + (stop - start) // 4 + WORD))
            text = text_between(source, start, stop)
            ids, ends = self._encoded(text)
            if len(ids) >= wanted or stop == source.size:
                break
        # without the ends of tokens, all that was read counts as the piece's: others then keep off a little more
        used = text if ends is None or len(ids) <= self.room else text[: ends[self.room - 1]]
        return Piece(torch.tensor(ids[: self.room], dtype=torch.long), start, start + len(used.encode()), used)

    def _encoded(self, text: str) -> tuple[list[int], list[int] | None]:
        ids, ends = encoded(self.model, text, plain_text=self.plain_text)
        if ids:
            self.token_size = len(text.encode()) / len(ids)
        return ids, ends


def first_word(source: TextSource, place: int) -> int:
    """Where the first word after a place begins; the place's next character where there is no word near.

    The beginning of the text is one, whatever is there.
    """
    if place == 0:
        return 0
    text = text_between(source, place, place + WORD)
    space = re.search(r"\s(?=\S)", text)
    return first_character(source, place) + (0 if space is None else len(text[: space.end()].encode()))
