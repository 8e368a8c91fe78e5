"""The filler of a task's contexts: a long text as tokens, its windows, and pieces inserted at given depths.

Convention: pieces are tokenised one by one and joined as tokens, never as text. So a context has exactly the requested
length, an answer has the same tokens where it is hidden and where it is asked for, and its span is known.
"""

import logging
import random
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.prefill import refuse_fixed_tables
from positional_heads.bridge.tokenizing import start_token, text_tokens
from positional_heads.core.arguments import in_range, refuse_twice

Tokens = Int[Tensor, " _"]
logger = logging.getLogger(__name__)


class Haystack:
    """A text to hide things in, tokenised once.

    Args:
        model: A TransformerBridge, for its tokenizer.
        text: The text; the bundled one when None.
    """

    def __init__(self, model: TransformerLensModel, text: str | None = None) -> None:
        if text is None:
            from positional_heads.zoo.bundled import bundled_text

            text = bundled_text()
        self.start = start_token(model)
        self.tokens = text_tokens(model, text, 0)
        self.end = len(self.tokens)
        self.taken = torch.zeros(self.end, dtype=torch.bool)

    def window(self, size: int, rng: random.Random) -> Tokens:
        """A window of `size` tokens at a random position.

        Raises:
            ValueError: If the text is shorter.
        """
        if size > self.end:
            msg = f"the haystack has {self.end} tokens, {size} are needed: give a longer text as haystack="
            raise ValueError(msg)
        return self.take(rng.randint(0, self.end - size), size)

    def separate(self, longest: int, examples: int) -> int:
        """Number of sections of the text with a window each; its end is reserved for held-out windows if it can be.

        Args:
            longest: Tokens of the longest window.
            examples: Windows wanted; where the text has no room for them, some share a section, and the log says so.

        Raises:
            ValueError: If the text is shorter than a window.
        """
        self.reserve_end(longest)
        if self.end < longest:
            self.window(longest, random.Random(0))  # raises with the missing length
        units = min(examples, self.end // longest)
        if units < examples:
            logger.warning(
                "the text has room for %d separate windows of %d tokens: %d windows overlap, and are resampled as %d "
                "units; give a longer text as haystack=",
                *(units, longest, examples, units),
            )
        return units

    def window_in(self, section: int, sections: int, size: int, rng: random.Random) -> Tokens:
        """A window of `size` tokens at a random position in one of that many sections of the text."""
        first = rng.randint(section * self.end // sections, (section + 1) * self.end // sections - size)
        return self.take(first, size)

    def untouched(self, size: int, rng: random.Random) -> Tokens | None:
        """`size` consecutive tokens outside all windows, at a random position; None if there are none."""
        starts = self._untouched_starts(size)
        if not len(starts):
            return None
        first = int(starts[rng.randrange(len(starts))])
        return self.tokens[first : first + size]

    def reserve_end(self, size: int) -> bool:
        """Reserve the last `size` tokens for held-out windows, and forget all windows taken so far.

        Returns:
            Whether the text is long enough for that; if not, nothing changes.
        """
        if len(self.tokens) < 2 * size:
            return False
        self.end = len(self.tokens) - size
        self.taken.zero_()
        return True

    def has_untouched(self, size: int) -> bool:
        """Whether `size` consecutive tokens are outside all windows."""
        return len(self._untouched_starts(size)) > 0

    def take(self, first: int, size: int) -> Tokens:
        """The window of `size` tokens that starts at `first`."""
        self.taken[first : first + size] = True
        return self.tokens[first : first + size]

    def _untouched_starts(self, size: int) -> Int[Tensor, " start"]:
        before = torch.cat([torch.zeros(1, dtype=torch.long), self.taken.cumsum(0)])
        return (before[size:] == before[: len(before) - size]).nonzero().flatten()

    def sample(self, size: int, rng: random.Random) -> Tokens:
        """`size` tokens drawn one by one, with the frequencies that they have in the text."""
        return self.tokens[[rng.randrange(len(self.tokens)) for _ in range(size)]]


def piece_tokens(model: TransformerLensModel, text: str) -> Tokens:
    """Tokens of a piece of a sentence with its spaces; none for an empty piece."""
    return text_tokens(model, text, 0) if text.strip() else torch.zeros(0, dtype=torch.long)


def grid(
    model: TransformerLensModel,
    length: int | Sequence[int] | None,
    depths: int | Sequence[float],
    *,
    beyond_context: bool = False,
) -> list[tuple[int, float]]:
    """Every length with every depth, after checking that the model can run them.

    Args:
        model: A TransformerBridge, for its context.
        length: Tokens of a whole sequence, one or several; the model's context when None.
        depths: Number of depths, evenly spaced from 0 to below 1, or the depths.
        beyond_context: Allow lengths beyond the model's context.

    Raises:
        ValueError: If a length does not fit the model, a depth lies outside of [0, 1), or one is given twice.
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
            msg = f"depth {depth} must be at least 0 (start of the context) and below 1 (its end, where the control is)"
            raise ValueError(msg)
    if not len(lengths) or not depths:
        msg = "no length or no depth given: there is nothing to measure"
        raise ValueError(msg)
    refuse_twice("length", lengths)
    refuse_twice("depths", depths)
    return [(one, depth) for one in lengths for depth in depths]


def placed(filler: Tokens, inserts: Sequence[tuple[float, Tokens]]) -> tuple[Tokens, list[int]]:
    """Insert pieces into a filler, each at its depth; pieces at the same depth keep their order.

    Args:
        filler: Tokens of the filler.
        inserts: Depth from 0 (before the filler) to 1 (after it), and tokens of each piece.

    Returns:
        All tokens, and the position at which each piece starts, in the order given.
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
