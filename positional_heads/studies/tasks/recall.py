"""Tasks that ask for tokens of the context: passkey, needle, key-value pairs, latest value, and a repeated passage."""

import random
from collections.abc import Callable
from dataclasses import replace

import torch
from typing_extensions import Unpack

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.core.arguments import checked, in_range
from positional_heads.studies.tasks.haystack import Haystack, Tokens, piece_tokens
from positional_heads.studies.tasks.questions import Question, QuestionOptions, question_task
from positional_heads.studies.tasks.task import AnswerTask

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
MOST_DIGITS = 300
MOST_FACTS = 5000
"""Half of the 10 000 values there are to draw."""


@checked
def passkey(model: TransformerLensModel, *, digits: int = 5, **options: Unpack[QuestionOptions]) -> AnswerTask:
    """A random number hidden in a text, asked for at its end.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        digits: Digits of the number.
        **options: Lengths, depths, number of examples, haystack and seed, see `QuestionOptions`.

    Raises:
        ValueError: If lengths, depths or the haystack do not fit.
    """
    in_range("digits", digits, 1, MOST_DIGITS)
    cue, end = piece_tokens(model, " The pass key is"), piece_tokens(model, ". ")

    def draw(rng: random.Random, _: Haystack) -> Question:
        key = piece_tokens(model, " " + random_text(rng, DIGITS, digits))
        return stated(cue, key, end)

    return question_task(model, "passkey", draw, 10.0**-digits, {"digits": digits}, **options)


@checked
def needle(
    model: TransformerLensModel,
    *,
    statement: str = "The best thing to do in San Francisco is {answer}.",
    answer: str = "eat a sandwich and sit in Dolores Park on a sunny day",
    question: str = "The best thing to do in San Francisco is",
    **options: Unpack[QuestionOptions],
) -> AnswerTask:
    """A sentence of your own hidden in a text, asked for at its end.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        statement: The sentence to hide, with `{answer}` in place of the answer.
        answer: The answer.
        question: The end of the sequence, right before the answer.
        **options: Lengths, depths, number of examples, haystack and seed, see `QuestionOptions`.

    Raises:
        ValueError: If the statement has no place for the answer, the answer is empty, or the needle is longer than the
            context.
    """
    if statement.count("{answer}") != 1 or not answer.strip():
        msg = f"statement {statement!r} must hold {{answer}} once, and the answer must not be empty (it is {answer!r})"
        raise ValueError(msg)
    before, after = statement.split("{answer}")
    opening, closing = piece_tokens(model, " " + before.strip()), piece_tokens(model, after.rstrip() + " ")
    asked = piece_tokens(model, " " + question.strip())
    own = replace(stated(opening, piece_tokens(model, " " + answer.strip()), closing), question=asked)

    def draw_held_out(rng: random.Random, source: Haystack) -> Question | None:
        """Another answer of as many tokens, from the haystack: the statement itself is what is measured."""
        other = source.untouched(len(own.answer), rng)
        return None if other is None else replace(stated(opening, other, closing), question=asked)

    settings = {"statement": statement, "answer": answer, "question": question}
    return question_task(model, "needle", lambda *_: own, 0.0, settings, draw_held_out=draw_held_out, **options)


@checked
def kv(model: TransformerLensModel, *, keys: int = 8, **options: Unpack[QuestionOptions]) -> AnswerTask:
    """Many facts `name = number;` spread over a text, one of them asked for at its end.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        keys: Number of facts; those that are not asked for lie at random depths.
        **options: Lengths, depths (of the fact that is asked for), number of examples, haystack and seed, see
            `QuestionOptions`.

    Raises:
        ValueError: If lengths, depths or the haystack do not fit, or there is no key.
    """
    in_range("keys", keys, 1, MOST_FACTS)
    end = piece_tokens(model, "; ")

    def draw(rng: random.Random, _: Haystack) -> Question:
        names = distinct(lambda: random_text(rng, LETTERS, 3), keys)
        values = distinct(lambda: random_text(rng, DIGITS, 4), keys)
        asked, *others = [
            stated(piece_tokens(model, f" {name} ="), piece_tokens(model, f" {value}"), end)
            for name, value in zip(names, values, strict=True)
        ]
        return replace(asked, others=tuple((rng.random(), other.hidden) for other in others))

    return question_task(model, "kv", draw, 1 / keys, {"keys": keys}, **options)


@checked
def latest(model: TransformerLensModel, *, updates: int = 4, **options: Unpack[QuestionOptions]) -> AnswerTask:
    """One fact `name = number;` stated several times with other numbers; the last number is asked for at the end.

    The name is the same each time, so only the order of the statements tells the right number from the outdated ones.
    After PI-LLM (arXiv 2506.08184).

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        updates: Number of statements, at least 2; the outdated ones lie at random depths before the last.
        **options: Lengths, depths (of the last statement), number of examples, haystack and seed, see
            `QuestionOptions`.

    Raises:
        ValueError: If lengths, depths or the haystack do not fit, or there are fewer than two statements.
    """
    in_range("updates", updates, 2, MOST_FACTS)  # a single value is right by chance: that case is passkey
    end = piece_tokens(model, "; ")

    def draw(rng: random.Random, _: Haystack) -> Question:
        name = piece_tokens(model, f" {random_text(rng, LETTERS, 3)} =")
        values = distinct(lambda: random_text(rng, DIGITS, 4), updates)
        *outdated, asked = [stated(name, piece_tokens(model, f" {value}"), end) for value in values]
        return replace(asked, others=tuple((rng.random(), one.hidden) for one in outdated), others_before=True)

    return question_task(model, "latest", draw, 1 / updates, {"updates": updates}, **options)


@checked
def copy(
    model: TransformerLensModel, *, passage: int = 24, cue: int = 8, **options: Unpack[QuestionOptions]
) -> AnswerTask:
    """A passage of random tokens, and at the end again: its beginning is the cue, the rest is the answer.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        passage: Tokens of the passage, drawn one by one from the haystack.
        cue: Leading tokens of its second occurrence that are given.
        **options: Lengths, depths (of the first occurrence), number of examples, haystack and seed, see
            `QuestionOptions`.

    Raises:
        ValueError: If lengths, depths or the haystack do not fit, or nothing of the passage is left to answer.
    """
    if not 1 <= cue < passage:
        msg = f"cue {cue} must be at least 1 and less than the passage of {passage} tokens"
        raise ValueError(msg)

    def draw(rng: random.Random, source: Haystack) -> Question:
        tokens = source.sample(passage, rng)
        return Question(tokens, (cue, passage), tokens[:cue], tokens[cue:])

    return question_task(model, "copy", draw, 0.0, {"passage": passage, "cue": cue}, **options)


RECALL: dict[str, Callable[..., AnswerTask]] = {
    "passkey": passkey,
    "needle": needle,
    "kv": kv,
    "copy": copy,
    "latest": latest,
}
"""Tasks whose answers lie at known distances, by name."""


def stated(cue: Tokens, answer: Tokens, end: Tokens) -> Question:
    """A statement `cue answer end`, asked for by its cue."""
    return Question(torch.cat([cue, answer, end]), (len(cue), len(cue) + len(answer)), cue, answer)


def random_text(rng: random.Random, alphabet: str, size: int) -> str:
    """Characters of an alphabet, drawn one by one."""
    return "".join(rng.choice(alphabet) for _ in range(size))


def distinct(draw: Callable[[], str], count: int) -> list[str]:
    """As many different values as asked for, in the order drawn."""
    values: dict[str, None] = {}
    while len(values) < count:
        values[draw()] = None
    return list(values)
