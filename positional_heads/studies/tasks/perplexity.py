"""Log-probability of text by position, with the full context and with a truncated one.

Tokens are measured in blocks: once in the whole window, and once with only the last few tokens before the block as
context. The difference is what the model gains from the tokens farther back. A unit is a section of the text, and no
two units share a token. If the text is too short for one section per window, windows in one section overlap and count
as one unit.
"""

import math
import random
from collections.abc import Sequence

import torch

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.core.arguments import checked, in_range
from positional_heads.studies.tasks.haystack import Haystack, Tokens, grid
from positional_heads.studies.tasks.task import AnswerTask, Example

HELD_OUT = 8


@checked
def perplexity(
    model: TransformerLensModel,
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
        near: Tokens of a block, and of the truncated context before it.
        examples: Windows for every length.
        haystack: The text; the bundled one when None.
        beyond_context: Allow lengths beyond the model's context.
        seed: Seed of the windows' positions in the text.

    Raises:
        ValueError: If a length does not fit the model or the text, or is too short for a block and its context.
    """
    lengths = [tokens for tokens, _ in grid(model, length, (0.0,), beyond_context=beyond_context)]
    source = Haystack(model, haystack)
    for tokens in lengths:
        if near < 1 or tokens < 3 * near + len(source.start):
            msg = f"near {near}: must be at least 1, and a window of {tokens} tokens must hold three times as many"
            raise ValueError(msg)
    in_range("examples", examples, 1)
    units = source.separate(max(lengths) - len(source.start), examples)
    measured, held_out = _measured(source, lengths, near, examples, units, seed), _held_out(source, lengths, near, seed)
    settings = {
        "lengths": sorted(set(lengths)),
        "near": near,
        "examples": examples,
        "units": units,
        "haystack": "bundled" if haystack is None else "own",
        "seed": seed,
    }
    chance = {"log_prob": -math.log(int(model.cfg.d_vocab)), "exact": 0.0}
    return AnswerTask("perplexity", measured, held_out, chance, settings)


def _measured(
    source: Haystack, lengths: Sequence[int], near: int, examples: int, units: int, seed: int
) -> tuple[Example, ...]:
    examples_so_far: list[Example] = []
    for number, tokens in ((number, tokens) for number in range(examples) for tokens in lengths):
        unit, size = number % units, tokens - len(source.start)
        rng = random.Random(f"perplexity-{seed}-measured-{number}-{tokens}")
        examples_so_far += _window(source, source.window_in(unit, units, size, rng), near, unit)
    return tuple(examples_so_far)


def _held_out(source: Haystack, lengths: Sequence[int], near: int, seed: int) -> tuple[Example, ...]:
    held_out: list[Example] = []
    for unit, tokens in enumerate(tokens for _ in range(HELD_OUT) for tokens in lengths):
        rng = random.Random(f"perplexity-{seed}-held out-{unit}")
        window = source.untouched(tokens - len(source.start), rng)
        held_out += [] if window is None else _window(source, window, near, unit)
    return tuple(held_out)


def _window(source: Haystack, window: Tokens, near: int, unit: int) -> list[Example]:
    offset = len(source.start)
    tokens = torch.cat([source.start, window])
    # no earlier: the truncated context of the first blocks is all of their context
    starts = range(offset + 2 * near, len(tokens) - near + 1, near)
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
