"""How much does the model gain from text far back? Loss by position, and the same tokens with a truncated context.

Each unit is one window of the text. Its tokens are measured in blocks: once in the whole window, where a block at
position p has p tokens before it, and once each block alone behind the last few tokens before it. The difference is
what the model gains from everything farther back.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from positional_heads.arguments import checked
from positional_heads.tasks.examples import AnswerTask, Example
from positional_heads.tasks.haystack import Haystack, grid

HELD_OUT = 8


@checked
def perplexity(
    model: Any,
    *,
    length: int | Sequence[int] | None = None,
    near: int = 32,
    examples: int = 30,
    haystack: str | None = None,
    beyond_context: bool = False,
    seed: int = 0,
) -> AnswerTask:
    """Log-probability of text by position, with the full context and with a truncated one.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        length: Tokens of a window, one or several; the model's context when None.
        near: Tokens of a block, and how many before it the truncated context keeps.
        examples: Windows for every length.
        haystack: The text; the bundled one when None.
        beyond_context: Allow lengths beyond the model's context.
        seed: Seed of places in the text.

    Raises:
        ValueError: If a length does not fit the model or the text, or has no room for a block and its context.
    """
    cells = grid(model, length, (0.0,), beyond_context=beyond_context)
    source = Haystack(model, haystack)
    for tokens, _ in cells:
        if near < 1 or tokens < 3 * near + len(source.start):
            msg = f"near {near}: must be at least 1, and a window of {tokens} tokens must hold three times as many"
            raise ValueError(msg)
    if examples < 1:
        msg = f"examples {examples}: give at least 1 for every length"
        raise ValueError(msg)

    def drawn(purpose: str, per_cell: int) -> tuple[Example, ...]:
        made: list[Example] = []
        for unit, (tokens, _) in enumerate(cell for _ in range(per_cell) for cell in cells):
            rng = random.Random(f"perplexity-{seed}-{purpose}-{unit}")
            made += _window(source, tokens, near, unit, rng)
        return tuple(made)

    settings = {
        "lengths": sorted({tokens for tokens, _ in cells}),
        "near": near,
        "examples": examples,
        "haystack": "bundled" if haystack is None else "own",
        "seed": seed,
    }
    chance = {"log_prob": -math.log(int(model.cfg.d_vocab)), "exact": 0.0}
    return AnswerTask("perplexity", drawn("measured", examples), drawn("held out", HELD_OUT), chance, settings)


def _window(source: Haystack, length: int, near: int, unit: int, rng: random.Random) -> list[Example]:
    offset = len(source.start)
    tokens = torch.cat([source.start, source.window(length - offset, rng)])
    # the first blocks have nothing farther back than the truncated context keeps
    starts = range(offset + 2 * near, length - near + 1, near)
    whole = Example(tokens, tuple((start, start + near) for start in starts), unit, "long")
    alone = [
        Example(
            torch.cat([source.start, tokens[start - near : start + near]]),
            ((offset + near, offset + 2 * near),),
            unit,
            "short",
        )
        for start in starts
    ]
    return [whole, *alone]
