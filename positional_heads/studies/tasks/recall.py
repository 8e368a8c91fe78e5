"""Can the model say again what stands far back? Passkey, needle, key-value pairs, and a repeated passage.

Each question is asked twice of the same filler: once with what it depends on hidden at some depth of the context, once
with it right before the question. Both sequences have the same length, so that only the distance differs.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from positional_heads.core.arguments import checked, in_range
from positional_heads.studies.tasks.haystack import Haystack, Tokens, grid, piece_tokens, placed
from positional_heads.studies.tasks.task import AnswerTask, Example

LETTERS = "abcdefghijklmnopqrstuvwxyz"
HELD_OUT_PER_CELL = 2
MOST_DIGITS = 300
MOST_KEYS = 5000
"""There are 10 000 values to draw."""
MOST_EXAMPLES = 100_000
MOST_DRAWS = 100
"""Of a question for a held-out example, until its answer is none of those that are measured."""


@dataclass(frozen=True)
class _Question:
    """What is hidden, what is asked, and what else lies about.

    `needle` is the span of the answer's tokens within `hidden`; `question` is followed by `answer`.
    """

    hidden: Tokens
    needle: tuple[int, int]
    question: Tokens
    answer: Tokens
    others: tuple[tuple[float, Tokens], ...] = ()


@dataclass(frozen=True)
class _Where:
    """Lengths, depths and text that all these tasks share."""

    length: int | Sequence[int] | None
    depths: int | Sequence[float]
    examples: int
    haystack: str | None
    beyond_context: bool
    seed: int


@checked
def passkey(
    model: Any,
    *,
    length: int | Sequence[int] | None = None,
    depths: int | Sequence[float] = 5,
    examples: int = 6,
    digits: int = 5,
    haystack: str | None = None,
    beyond_context: bool = False,
    seed: int = 0,
) -> AnswerTask:
    """A random number hidden in a text, asked for at its end.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        length: Tokens of a sequence, answer included, one or several; the model's context when None.
        depths: How many depths, from 0 (start of the context) on, or the depths themselves.
        examples: Examples for every length and depth; each is also asked nearby.
        digits: Digits of the number.
        haystack: The text around; the bundled one when None.
        beyond_context: Allow lengths beyond the model's context.
        seed: Seed of numbers and places in the text.

    Raises:
        ValueError: If lengths, depths or the haystack do not fit.
    """
    in_range("digits", digits, 1, MOST_DIGITS)
    statement, asked, end = (piece_tokens(model, text) for text in (" The pass key is", " The pass key is", ". "))

    def question(rng: random.Random) -> _Question:
        key = piece_tokens(model, " " + "".join(rng.choice("0123456789") for _ in range(digits)))
        needle = (len(statement), len(statement) + len(key))
        return _Question(torch.cat([statement, key, end]), needle, asked, key)

    settings = {"digits": digits}
    where = _Where(length, depths, examples, haystack, beyond_context, seed)
    return _recall_task("passkey", model, question, where, settings, 10.0**-digits)


@checked
def needle(
    model: Any,
    *,
    statement: str = "The best thing to do in San Francisco is {answer}.",
    answer: str = "eat a sandwich and sit in Dolores Park on a sunny day",
    question: str = "The best thing to do in San Francisco is",
    length: int | Sequence[int] | None = None,
    depths: int | Sequence[float] = 5,
    examples: int = 6,
    haystack: str | None = None,
    beyond_context: bool = False,
    seed: int = 0,
) -> AnswerTask:
    """A sentence of your own hidden in a text of your own, asked for at its end.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        statement: What is hidden, with `{answer}` where the answer stands.
        answer: What must be said.
        question: What stands right before the answer, at the end.
        length: Tokens of a sequence, answer included, one or several; the model's context when None.
        depths: How many depths, from 0 (start of the context) on, or the depths themselves.
        examples: Examples for every length and depth, at other places of the haystack.
        haystack: The text around; the bundled one when None.
        beyond_context: Allow lengths beyond the model's context.
        seed: Seed of places in the text.

    Raises:
        ValueError: If the statement has no place for the answer, the answer is empty, or the needle is longer than the
            context.
    """
    if statement.count("{answer}") != 1 or not answer.strip():
        msg = f"statement {statement!r} must hold {{answer}} once, and the answer must not be empty (it is {answer!r})"
        raise ValueError(msg)
    before, after = statement.split("{answer}")
    said = piece_tokens(model, " " + answer.strip())
    opening, closing = piece_tokens(model, " " + before.strip()), piece_tokens(model, after.rstrip() + " ")
    fixed = _Question(
        torch.cat([opening, said, closing]),
        (len(opening), len(opening) + len(said)),
        piece_tokens(model, " " + question.strip()),
        said,
    )

    def other_answer(rng: random.Random, source: Haystack) -> _Question | None:
        """Held-out examples hide another text of as many tokens, because the answer is what is measured."""
        other = source.untouched(len(said), rng)
        return None if other is None else replace(fixed, hidden=torch.cat([opening, other, closing]), answer=other)

    settings = {"statement": statement, "answer": answer, "question": question}
    where = _Where(length, depths, examples, haystack, beyond_context, seed)
    return _recall_task("needle", model, lambda _: fixed, where, settings, 0.0, held_out_question=other_answer)


@checked
def kv(
    model: Any,
    *,
    keys: int = 8,
    length: int | Sequence[int] | None = None,
    depths: int | Sequence[float] = 5,
    examples: int = 6,
    haystack: str | None = None,
    beyond_context: bool = False,
    seed: int = 0,
) -> AnswerTask:
    """Many facts `name = number;` spread over a text, one of them asked for at its end.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        keys: How many facts; the others lie at random depths.
        length: Tokens of a sequence, answer included, one or several; the model's context when None.
        depths: Depths of the fact that is asked for: how many, from 0 on, or the depths themselves.
        examples: Examples for every length and depth; each is also asked nearby.
        haystack: The text around; the bundled one when None.
        beyond_context: Allow lengths beyond the model's context.
        seed: Seed of facts, depths and places in the text.

    Raises:
        ValueError: If lengths, depths or the haystack do not fit, or there is no key.
    """
    in_range("keys", keys, 1, MOST_KEYS)

    def question(rng: random.Random) -> _Question:
        names = _distinct(lambda: "".join(rng.choice(LETTERS) for _ in range(3)), keys)
        values = _distinct(lambda: "".join(rng.choice("0123456789") for _ in range(4)), keys)
        facts = [
            (piece_tokens(model, f" {name} ="), piece_tokens(model, f" {value}"))
            for name, value in zip(names, values, strict=True)
        ]
        end = piece_tokens(model, "; ")
        (asked, answer), *others = facts
        about = tuple((rng.random(), torch.cat([name, value, end])) for name, value in others)
        needle = (len(asked), len(asked) + len(answer))
        return _Question(torch.cat([asked, answer, end]), needle, asked, answer, about)

    where = _Where(length, depths, examples, haystack, beyond_context, seed)
    return _recall_task("kv", model, question, where, {"keys": keys}, 1 / keys)


@checked
def copy(
    model: Any,
    *,
    passage: int = 24,
    cue: int = 8,
    length: int | Sequence[int] | None = None,
    depths: int | Sequence[float] = 5,
    examples: int = 6,
    haystack: str | None = None,
    beyond_context: bool = False,
    seed: int = 0,
) -> AnswerTask:
    """A passage of tokens without sense, and at the end again: its beginning is the cue, the rest is the answer.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        passage: Tokens of the passage, drawn one by one from the haystack.
        cue: Leading tokens of its second occurrence that are given.
        length: Tokens of a sequence, answer included, one or several; the model's context when None.
        depths: Depths of the first occurrence: how many, from 0 on, or the depths themselves.
        examples: Examples for every length and depth; each is also asked nearby.
        haystack: The text around; the bundled one when None.
        beyond_context: Allow lengths beyond the model's context.
        seed: Seed of passages and places in the text.

    Raises:
        ValueError: If lengths, depths or the haystack do not fit, or nothing of the passage is left to answer.
    """
    if not 1 <= cue < passage:
        msg = f"cue {cue} must be at least 1 and less than the passage of {passage} tokens"
        raise ValueError(msg)
    source = Haystack(model, haystack)

    def question(rng: random.Random) -> _Question:
        tokens = source.sample(passage, rng)
        return _Question(tokens, (cue, passage), tokens[:cue], tokens[cue:])

    settings = {"passage": passage, "cue": cue}
    where = _Where(length, depths, examples, haystack, beyond_context, seed)
    return _recall_task("copy", model, question, where, settings, 0.0)


def _recall_task(
    name: str,
    model: Any,
    question: Callable[[random.Random], _Question],
    where: "_Where",
    settings: dict[str, Any],
    guess: float,
    *,
    held_out_question: Callable[[random.Random, Haystack], _Question | None] | None = None,
) -> AnswerTask:
    in_range("examples", where.examples, 1, MOST_EXAMPLES)
    in_range("seed", where.seed, 0)
    cells = grid(model, where.length, where.depths, beyond_context=where.beyond_context)
    source = Haystack(model, where.haystack)

    def drawn() -> tuple[Example, ...]:
        made: list[Example] = []
        for unit, (tokens, depth) in enumerate(cell for _ in range(where.examples) for cell in cells):
            rng = random.Random(f"{name}-{where.seed}-measured-{unit}")
            asked = question(rng)
            made += _asked_twice(asked, source, source.window(_room(asked, source, tokens), rng), depth, unit)
        return tuple(made)

    measured = drawn()
    longest = max(tokens for tokens, _ in cells)
    if not source.has_untouched(longest) and source.keep_end(longest):
        measured = drawn()
    answers = {_answer(example) for example in measured}
    held_out: list[Example] = []
    for unit, (tokens, depth) in enumerate(cell for _ in range(HELD_OUT_PER_CELL) for cell in cells):
        rng = random.Random(f"{name}-{where.seed}-held out-{unit}")
        for _ in range(MOST_DRAWS):
            other = question(rng) if held_out_question is None else held_out_question(rng, source)
            if other is None or tuple(other.answer.tolist()) not in answers:
                break
        else:  # there are too few answers to have another one
            continue
        window = None if other is None else source.untouched(_room(other, source, tokens), rng)
        if other is not None and window is not None:
            held_out += _asked_twice(other, source, window, depth, unit)
    tokens_of_answer = [stop - start for example in measured for start, stop in example.answers]
    chance = {"exact": guess}
    if guess > 0:
        chance["log_prob"] = math.log(guess) * sum(1 / n for n in tokens_of_answer) / len(tokens_of_answer)
    shared = {
        "lengths": sorted({tokens for tokens, _ in cells}),
        "depths": sorted({depth for _, depth in cells}),
        "examples": where.examples,
        "haystack": "bundled" if where.haystack is None else "own",
        "seed": where.seed,
    }
    return AnswerTask(name, measured, tuple(held_out), chance, {**shared, **settings})


def _answer(example: Example) -> tuple[int, ...]:
    return tuple(example.tokens[slice(*example.answers[0])].tolist())


def _room(asked: _Question, source: Haystack, length: int) -> int:
    """Tokens left for the filler.

    Raises:
        ValueError: If there are none.
    """
    taken = sum(map(len, (source.start, asked.hidden, asked.question, asked.answer)))
    taken += sum(len(other) for _, other in asked.others)
    if taken > length:
        msg = (
            f"what is hidden and asked takes {taken} tokens, more than the context of {length}: give a longer length, "
            "a shorter needle, or fewer keys"
        )
        raise ValueError(msg)
    return length - taken


def _asked_twice(asked: _Question, source: Haystack, filler: Tokens, depth: float, unit: int) -> list[Example]:
    """The same filler and question, with what is asked for at its depth, and right before the question."""
    pair = []
    for reach, where in (("long", depth), ("short", 1.0)):
        others = [(other_depth, other) for other_depth, other in asked.others]
        context, starts = placed(filler, [*others, (where, asked.hidden)])
        first = len(source.start) + starts[-1]
        tokens = torch.cat([source.start, context, asked.question, asked.answer])
        pair.append(
            Example(
                tokens=tokens,
                answers=((len(tokens) - len(asked.answer), len(tokens)),),
                unit=unit,
                reach="long" if reach == "long" else "short",
                depth=where,
                needle=(first + asked.needle[0], first + asked.needle[1]),
            )
        )
    if pair[0].needle == pair[1].needle:
        msg = (
            f"depth {depth} of {len(pair[0].tokens)} tokens is right before the question, where the near control has "
            "it too: give a smaller depth or a longer length"
        )
        raise ValueError(msg)
    return pair


def _distinct(draw: Callable[[], str], count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)
