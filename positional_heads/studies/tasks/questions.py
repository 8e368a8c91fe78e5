"""Build tasks from questions: each is asked at long range and, in the same filler, at short range as a control.

The two sequences of a unit have the same pieces and the same length. Only the needle's position differs: at some depth
of the context, or right before the question. Held-out examples share no filler and no answer with those that
are measured.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.core.arguments import checked, in_range
from positional_heads.studies.tasks.haystack import Haystack, Tokens, grid, placed
from positional_heads.studies.tasks.task import AnswerTask, Example, Reach

HELD_OUT_ROUNDS = 2
"""Held-out questions for every length and depth."""
MOST_EXAMPLES = 100_000
MOST_DRAWS = 100
"""Draws of a held-out question until its answer is new."""


@dataclass(frozen=True)
class Question:
    """Tokens to hide in a context, and tokens that ask for them.

    Attributes:
        hidden: Tokens to hide, the needle among them.
        needle: Span of the answer within `hidden`.
        question: Tokens at the end of the sequence, right before the answer.
        answer: Tokens of the answer.
        others: More tokens to put into the context, each with its depth.
        others_before: Put the others before the needle: their depths are shares of its depth.
    """

    hidden: Tokens
    needle: tuple[int, int]
    question: Tokens
    answer: Tokens
    others: tuple[tuple[float, Tokens], ...] = ()
    others_before: bool = False


Draw = Callable[[random.Random, Haystack], Question]


class QuestionOptions(TypedDict, total=False):
    """Keywords that all tasks of questions share.

    Attributes:
        length: Tokens of a sequence, answer included, one or several; the model's context when None.
        depths: Number of depths of the needle, evenly spaced from 0 (start of the context) on, or the depths; 5.
        examples: Examples for every length and depth, each at long and at short range; 6.
        haystack: The text around the needle; the bundled one when None.
        beyond_context: Allow lengths beyond the model's context.
        seed: Seed of all that is drawn; 0.
    """

    length: int | Sequence[int] | None
    depths: int | Sequence[float]
    examples: int
    haystack: str | None
    beyond_context: bool
    seed: int


@checked
def question_task(
    model: TransformerLensModel,
    name: str,
    draw: Draw,
    guess: float,
    settings: dict[str, Any],
    *,
    draw_held_out: Callable[[random.Random, Haystack], Question | None] | None = None,
    length: int | Sequence[int] | None = None,
    depths: int | Sequence[float] = 5,
    examples: int = 6,
    haystack: str | None = None,
    beyond_context: bool = False,
    seed: int = 0,
) -> AnswerTask:
    """A task that asks questions; the keywords after `draw_held_out` are those of `QuestionOptions`.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        name: Name of the task.
        draw: A question, drawn with a random generator and, if needed, from the haystack.
        guess: Probability that a guess among the possible answers is right; 0 for free text.
        settings: The task's own settings, for provenance.
        draw_held_out: Draws held-out questions if `draw` must not; it returns None to skip an example.
        length: See `QuestionOptions`.
        depths: See `QuestionOptions`.
        examples: See `QuestionOptions`.
        haystack: See `QuestionOptions`.
        beyond_context: See `QuestionOptions`.
        seed: See `QuestionOptions`.

    Raises:
        ValueError: If lengths, depths, examples or the haystack do not fit.
    """
    in_range("examples", examples, 1, MOST_EXAMPLES)
    in_range("seed", seed, 0)
    grid_points = grid(model, length, depths, beyond_context=beyond_context)
    source = Haystack(model, haystack)
    measured = _measured(name, draw, source, grid_points * examples, seed)
    longest = max(tokens for tokens, _ in grid_points)
    if not source.has_untouched(longest) and source.reserve_end(longest):
        # no text is left for held-out examples: reserve its end for them, and draw again from the rest
        measured = _measured(name, draw, source, grid_points * examples, seed)
    answers = {tuple(example.tokens[slice(*example.answers[0])].tolist()) for example in measured}
    held_out = _held_out(name, draw_held_out or draw, source, grid_points * HELD_OUT_ROUNDS, answers, seed)
    chance = {"exact": guess}
    if guess > 0:
        answer_tokens = [stop - start for example in measured for start, stop in example.answers]
        chance["log_prob"] = math.log(guess) * sum(1 / n for n in answer_tokens) / len(answer_tokens)
    shared = {
        "lengths": sorted({tokens for tokens, _ in grid_points}),
        "depths": sorted({depth for _, depth in grid_points}),
        "examples": examples,
        "haystack": "bundled" if haystack is None else "own",
        "seed": seed,
    }
    return AnswerTask(name, measured, held_out, chance, {**shared, **settings})


def _measured(
    name: str, draw: Draw, source: Haystack, grid_points: Sequence[tuple[int, float]], seed: int
) -> tuple[Example, ...]:
    examples: list[Example] = []
    for unit, (tokens, depth) in enumerate(grid_points):
        rng = random.Random(f"{name}-{seed}-measured-{unit}")
        asked = draw(rng, source)
        examples += _long_and_short(asked, source, source.window(_room(asked, source, tokens), rng), depth, unit)
    return tuple(examples)


def _held_out(
    name: str,
    draw: Callable[[random.Random, Haystack], Question | None],
    source: Haystack,
    grid_points: Sequence[tuple[int, float]],
    answers: set[tuple[int, ...]],
    seed: int,
) -> tuple[Example, ...]:
    """Examples with new filler and new answers; fewer where the text or the answers run out."""
    examples: list[Example] = []
    for unit, (tokens, depth) in enumerate(grid_points):
        rng = random.Random(f"{name}-{seed}-held out-{unit}")
        draws = (draw(rng, source) for _ in range(MOST_DRAWS))
        asked = next((one for one in draws if one is None or tuple(one.answer.tolist()) not in answers), None)
        window = None if asked is None else source.untouched(_room(asked, source, tokens), rng)
        if asked is not None and window is not None:
            examples += _long_and_short(asked, source, window, depth, unit)
    return tuple(examples)


def _room(asked: Question, source: Haystack, length: int) -> int:
    """Tokens left for the filler.

    Raises:
        ValueError: If there are none.
    """
    pieces = [source.start, asked.hidden, asked.question, asked.answer, *(tokens for _, tokens in asked.others)]
    taken = sum(map(len, pieces))
    if taken > length:
        msg = (
            f"needle, question and answer take {taken} tokens, more than the context of {length}: give a longer "
            "length, a shorter needle, or fewer keys or updates"
        )
        raise ValueError(msg)
    return length - taken


def _long_and_short(asked: Question, source: Haystack, filler: Tokens, depth: float, unit: int) -> list[Example]:
    """The long-range and the short-range example: the needle at its depth, and right before the question."""
    scale = depth if asked.others_before else 1.0
    others = [(share * scale, tokens) for share, tokens in asked.others]
    examples = []
    reaches: tuple[tuple[Reach, float], ...] = (("long", depth), ("short", 1.0))
    for reach, needle_depth in reaches:
        context, starts = placed(filler, [*others, (needle_depth, asked.hidden)])
        first = len(source.start) + starts[-1]
        tokens = torch.cat([source.start, context, asked.question, asked.answer])
        examples.append(
            Example(
                tokens=tokens,
                answers=((len(tokens) - len(asked.answer), len(tokens)),),
                unit=unit,
                reach=reach,
                depth=needle_depth,
                needle=(first + asked.needle[0], first + asked.needle[1]),
            )
        )
    if examples[0].needle == examples[1].needle:
        msg = (
            f"depth {depth} of {len(examples[0].tokens)} tokens is right before the question, as in the short-range "
            "control: give a smaller depth or a longer length"
        )
        raise ValueError(msg)
    return examples
