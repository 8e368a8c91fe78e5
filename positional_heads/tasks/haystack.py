"""What do questions lie in? A long text as tokens, cut into windows, and sentences put together token by token.

Convention that bites: pieces are tokenised one by one and joined as tokens, never as text. So a context has exactly the
length asked for, an answer is the same tokens where it is hidden and where it is asked for, and its span is known.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.arguments import in_range
from positional_heads.host.prefill import refuse_fixed_tables
from positional_heads.host.texts import start_token, text_tokens

Tokens = Int[Tensor, " _"]


class Haystack:
    """A text to hide things in, tokenised once.

    Args:
        model: A TransformerBridge, for its tokenizer.
        text: The text; the bundled one when None.
    """

    def __init__(self, model: Any, text: str | None = None) -> None:
        if text is None:
            from positional_heads.zoo.bundled import bundled_text

            text = bundled_text()
        self.start = start_token(model)
        self.tokens = text_tokens(model, text, 0)

    def window(self, size: int, rng: random.Random) -> Tokens:
        """Some `size` tokens in a row, from a random place.

        Raises:
            ValueError: If the text is shorter.
        """
        if size > len(self.tokens):
            msg = f"the haystack has {len(self.tokens)} tokens, {size} are needed: give a longer text as haystack="
            raise ValueError(msg)
        first = rng.randint(0, len(self.tokens) - size)
        return self.tokens[first : first + size]

    def sample(self, size: int, rng: random.Random) -> Tokens:
        """Some `size` tokens drawn one by one: no text, but made of what the text is made of."""
        return self.tokens[[rng.randrange(len(self.tokens)) for _ in range(size)]]


def piece_tokens(model: Any, text: str) -> Tokens:
    """Tokens of a piece of a sentence, blanks included; none for an empty piece."""
    return text_tokens(model, text, 0) if text.strip() else torch.zeros(0, dtype=torch.long)


def grid(
    model: Any, length: int | Sequence[int] | None, depths: int | Sequence[float], *, beyond_context: bool = False
) -> list[tuple[int, float]]:
    """Every length with every depth, checked against the model.

    Args:
        model: A TransformerBridge, for its context.
        length: Tokens of a whole sequence, one or several; the model's context when None.
        depths: How many depths from 0 on, evenly spaced and all below 1, or the depths themselves.
        beyond_context: Allow lengths beyond the model's context.

    Raises:
        ValueError: If a length does not fit the model, or a depth lies outside of [0, 1).
    """
    limit = int(model.cfg.n_ctx)
    lengths = [limit] if length is None else [length] if isinstance(length, int) else list(length)
    for one in lengths:
        if one < 2 or (one > limit and not beyond_context):  # noqa: PLR2004
            msg = (
                f"length {one} must be between 2 and the model's context of {limit} tokens; beyond_context=True runs "
                "past it on purpose"
            )
            raise ValueError(msg)
        refuse_fixed_tables(model, one)
    if isinstance(depths, int):
        in_range("depths", depths, 1, 1000)
        depths = [index / depths for index in range(depths)]
    for depth in depths:
        if not 0 <= depth < 1:
            msg = f"depth {depth} must be at least 0 (start of the context) and below 1 (its end, the nearby control)"
            raise ValueError(msg)
    if not len(lengths) or not depths:
        msg = "no length or no depth given: there is nothing to measure"
        raise ValueError(msg)
    return [(one, depth) for one in lengths for depth in depths]


def placed(filler: Tokens, inserts: Sequence[tuple[float, Tokens]]) -> tuple[Tokens, list[int]]:
    """Put pieces into a filler, each at its depth, in order of depth.

    Args:
        filler: The text around.
        inserts: Depth from 0 (before the filler) to 1 (behind it), and what to put there.

    Returns:
        All tokens, and where each insert starts, in the order given.
    """
    order = sorted(range(len(inserts)), key=lambda index: inserts[index][0])
    parts, starts, used, length = [], [0] * len(inserts), 0, 0
    for index in order:
        depth, insert = inserts[index]
        cut = max(used, round(depth * len(filler)))
        parts += [filler[used:cut], insert]
        starts[index] = length + cut - used
        length, used = starts[index] + len(insert), cut
    return torch.cat([*parts, filler[used:]]), starts
