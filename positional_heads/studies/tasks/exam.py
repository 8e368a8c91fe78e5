"""One context, asked everything: passkey, key-value, copy and the text itself, at long and at short range.

A study of it measures four tasks at both ranges in one forward pass per example. A sequence is text, facts hidden in
its middle, and questions at its end. Questions at long range are about the hidden facts; those at short range are about
facts of the same kind that are stated right before. The text is measured at its beginning, where few tokens precede it,
and right before the questions, where all of it does. No unit shares text with another, as far as the text suffices.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.core.arguments import checked, in_range
from positional_heads.studies.tasks.haystack import Haystack, Tokens, grid, piece_tokens, placed
from positional_heads.studies.tasks.questions import MOST_DRAWS, MOST_EXAMPLES, Question
from positional_heads.studies.tasks.recall import (
    DIGITS,
    LETTERS,
    MOST_DIGITS,
    MOST_FACTS,
    distinct,
    random_text,
    stated,
)
from positional_heads.studies.tasks.task import AnswerTask, Asked, Example, Reach

DEPTHS = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55)
HELD_OUT = 10
TEXT_BLOCKS = 2
"""Measured blocks of text at each range."""
AFTER_FACT = 8
"""Fewest tokens of text between a hidden fact and measured text, which is not about the fact."""
LEAST_MIDDLE = 64
"""Fewest tokens of text among which facts are hidden."""
REACHES: tuple[Reach, Reach] = ("long", "short")
QUESTIONS = ("passkey", "kv", "copy")
NOUNS = (" The pass key is", " The secret number is")


@checked
def exam(
    model: TransformerLensModel,
    *,
    length: int | Sequence[int] | None = None,
    depths: int | Sequence[float] = DEPTHS,
    examples: int = 30,
    digits: int = 5,
    keys: int = 8,
    passage: int = 24,
    cue: int = 8,
    near: int = 32,
    held_out: int = HELD_OUT,
    haystack: str | None = None,
    beyond_context: bool = False,
    seed: int = 0,
) -> AnswerTask:
    """One context, asked everything: passkey, key-value, copy and the text itself, at long and at short range.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        length: Tokens of a sequence, one or several; the model's context when None.
        depths: Where the facts that are asked for lie in the middle of the text, from 0 to below 1, or the number of
            such places; each is used as often as any other.
        examples: Sequences for every length; each has all questions.
        digits: Digits of the numbers of passkey.
        keys: Number of facts `name = number;` hidden in the text, one of which is asked for.
        passage: Tokens of a passage to copy, drawn one by one from the haystack.
        cue: Leading tokens of its second occurrence that are given.
        near: Tokens of a block of measured text, at least 2; half as many precede the first at short range.
        held_out: Further sequences for every length, on which retrieval heads are found, and which are the reference of
            `mean` and `resample`.
        haystack: The text; the bundled one when None.
        beyond_context: Allow lengths beyond the model's context.
        seed: Seed of all that is drawn.

    Raises:
        ValueError: If a length does not fit the model, the text or the questions, or a setting makes no sense.
    """
    check_exam(examples=examples, digits=digits, keys=keys, passage=passage, cue=cue, near=near, held_out=held_out)
    in_range("seed", seed, 0)
    points = grid(model, length, depths, beyond_context=beyond_context)
    lengths, places = list(dict.fromkeys(one for one, _ in points)), list(dict.fromkeys(depth for _, depth in points))
    source = Haystack(model, haystack)
    writer = _Writer(model, source, digits, keys, passage, cue, near)
    papers = [
        (number, tokens, writer.draw(random.Random(f"exam-{seed}-measured-{number}-{tokens}"), number % 2))
        for tokens in lengths
        for number in range(examples)
    ]
    units = source.separate(max(writer.room(paper, tokens) for _, tokens, paper in papers), examples)
    measured, where = [], _depths(places, examples, seed)
    for number, tokens, paper in papers:
        rng = random.Random(f"exam-{seed}-text-{number}-{tokens}")
        text = source.window_in(number % units, units, writer.room(paper, tokens), rng)
        measured.append(writer.laid_out(paper, text, where[number], number % units))
    used = {answer for _, _, paper in papers for answer in paper.answers}
    others = _held_out(writer, lengths, places, held_out, used, seed)
    settings = {
        "lengths": sorted(set(lengths)),
        "depths": sorted(set(places)),
        "examples": examples,
        "units": units,
        "digits": digits,
        "keys": keys,
        "passage": passage,
        "cue": cue,
        "near": near,
        **({} if held_out == HELD_OUT else {"held_out": held_out}),  # studies begun without this setting resume
        "haystack": "bundled" if haystack is None else "own",
        "seed": seed,
    }
    return AnswerTask("exam", tuple(measured), others, _chance(model, measured, digits, keys), settings)


def check_exam(
    *,
    examples: int = 30,
    digits: int = 5,
    keys: int = 8,
    passage: int = 24,
    cue: int = 8,
    near: int = 32,
    held_out: int = HELD_OUT,
    **_: object,
) -> None:
    """Refuse settings of an exam that make no sense for any model.

    Raises:
        ValueError: If a setting makes no sense.
    """
    in_range("examples", examples, 1, MOST_EXAMPLES)
    in_range("digits", digits, 1, MOST_DIGITS)
    in_range("keys", keys, 1, MOST_FACTS - 1)  # one more is stated at short range
    in_range("near", near, 2)
    in_range("held_out", held_out, 1, MOST_EXAMPLES)
    if not 1 <= cue < passage:
        msg = f"cue {cue} must be at least 1 and less than the passage of {passage} tokens"
        raise ValueError(msg)


class _Item(NamedTuple):
    """A question at one range."""

    part: str
    reach: Reach
    question: Question

    @property
    def stated(self) -> Tokens:
        """What stands right before the question."""
        return self.question.hidden if self.reach == "short" else self.question.hidden[:0]


class _Paper(NamedTuple):
    """All questions of a sequence, in their order, and the facts that are not asked for with their depths."""

    items: tuple[_Item, ...]
    others: tuple[tuple[float, Tokens], ...]

    @property
    def answers(self) -> set[tuple[int, ...]]:
        return {tuple(item.question.answer.tolist()) for item in self.items}


@dataclass(frozen=True)
class _Writer:
    """Draws questions, and lays them out in a text."""

    model: TransformerLensModel
    source: Haystack
    digits: int
    keys: int
    passage: int
    cue: int
    near: int

    def draw(self, rng: random.Random, swapped: int, *, first: str | None = None) -> _Paper:
        """Questions in random order; `swapped` exchanges the nouns of passkey, `first` is asked first at long range."""
        drawn = {"passkey": self._numbers(rng, swapped), "kv": self._facts(rng), "copy": self._passages(rng)}
        items = [
            _Item(part, reach, question)
            for part, questions in drawn.items()
            for reach, question in zip(REACHES, questions[:2], strict=True)
        ]
        rng.shuffle(items)
        items.sort(key=lambda item: (item.part, item.reach) != (first, "long"))  # stable
        return _Paper(tuple(items), tuple((rng.random(), fact.hidden) for fact in drawn["kv"][2:]))

    def _numbers(self, rng: random.Random, swapped: int) -> list[Question]:
        numbers = distinct(lambda: random_text(rng, DIGITS, self.digits), 2)
        nouns = NOUNS[::-1] if swapped else NOUNS
        return [self._statement(noun, f" {number}", ". ") for noun, number in zip(nouns, numbers, strict=True)]

    def _facts(self, rng: random.Random) -> list[Question]:
        names = distinct(lambda: random_text(rng, LETTERS, 3), self.keys + 1)
        values = distinct(lambda: random_text(rng, DIGITS, 4), self.keys + 1)
        return [self._statement(f" {name} =", f" {value}", "; ") for name, value in zip(names, values, strict=True)]

    def _passages(self, rng: random.Random) -> list[Question]:
        passages = [self.source.sample(self.passage, rng) for _ in range(2)]
        return [Question(one, (self.cue, self.passage), one[: self.cue], one[self.cue :]) for one in passages]

    def _statement(self, *texts: str) -> Question:
        cue, answer, end = (piece_tokens(self.model, text) for text in texts)
        return stated(cue, answer, end)

    @property
    def early(self) -> int:
        """Tokens of text before the first hidden fact: those measured, and what precedes them."""
        return self.near // 2 + TEXT_BLOCKS * self.near

    @property
    def late(self) -> int:
        """Tokens of text after the last hidden fact."""
        return AFTER_FACT + TEXT_BLOCKS * self.near

    @property
    def stop(self) -> Tokens:
        """What stands before every question."""
        return piece_tokens(self.model, ".")

    def room(self, paper: _Paper, length: int) -> int:
        """Tokens left for the text.

        Raises:
            ValueError: If they are too few.
        """
        pieces = [self.source.start, *(tokens for _, tokens in paper.others)]
        for item in paper.items:  # each fact stands once, in the text or before its question
            pieces += [self.stop, item.question.hidden, item.question.question, item.question.answer]
        taken, least = sum(map(len, pieces)), self.early + LEAST_MIDDLE + self.late
        if length < taken + least:
            msg = (
                f"length {length}: facts and questions take {taken} tokens (keys {self.keys}, digits {self.digits}, "
                f"passage {self.passage}, cue {self.cue}), and the text needs {least} (near {self.near}); give a "
                f"length of at least {taken + least}, or fewer keys or digits, or a smaller passage or near"
            )
            raise ValueError(msg)
        return length - taken

    def laid_out(self, paper: _Paper, text: Tokens, depths: dict[str, float], unit: int) -> Example:
        """The sequence: text with the facts hidden in its middle, and the questions."""
        far = {item.part: item.question for item in paper.items if item.reach == "long"}
        hidden = [*((depths[part], question.hidden) for part, question in far.items()), *paper.others]
        middle, starts = placed(text[self.early : len(text) - self.late], hidden)
        before = len(self.source.start) + self.early
        at = {part: before + start for part, start in zip(far, starts, strict=False)}
        tokens = torch.cat([self.source.start, text[: self.early], middle, text[len(text) - self.late :]])
        asked = {**self._blocks(before, "short"), **self._blocks(len(tokens), "long")}
        for item in paper.items:
            question = item.question
            first = len(tokens) + len(self.stop) if item.reach == "short" else at[item.part]
            tokens = torch.cat([tokens, self.stop, item.stated, question.question, question.answer])
            needle = (first + question.needle[0], first + question.needle[1])
            depth = depths[item.part] if item.reach == "long" else 1.0
            span = (len(tokens) - len(question.answer), len(tokens))
            asked[span] = Asked(item.part, item.reach, depth, needle)
        return Example(tokens, tuple(asked), unit, asked=tuple(asked.values()))

    def _blocks(self, end: int, reach: Reach) -> dict[tuple[int, int], Asked]:
        """The measured blocks of the text up to a position."""
        starts = range(end - TEXT_BLOCKS * self.near, end, self.near)
        return {(start, start + self.near): Asked("text", reach) for start in starts}


def _depths(places: Sequence[float], examples: int, seed: int) -> list[dict[str, float]]:
    """Where the facts of each example lie; over all of them, a kind of fact is as often at one place as at another."""
    columns = {part: [places[index % len(places)] for index in range(examples)] for part in QUESTIONS}
    for part, column in columns.items():
        random.Random(f"exam-{seed}-depths-{part}").shuffle(column)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _held_out(
    writer: _Writer,
    lengths: Sequence[int],
    places: Sequence[float],
    count: int,
    used: set[tuple[int, ...]],
    seed: int,
) -> tuple[Example, ...]:
    """Sequences with new text and new answers, passkey asked first; fewer where the text or the answers run out."""
    examples: list[Example] = []
    where = _depths(places, count, seed)
    for number, tokens in ((number, tokens) for tokens in lengths for number in range(count)):
        rng = random.Random(f"exam-{seed}-held out-{number}-{tokens}")
        draws = (writer.draw(rng, number % 2, first="passkey") for _ in range(MOST_DRAWS))
        paper = next((one for one in draws if not one.answers & used), None)
        text = None if paper is None else writer.source.untouched(writer.room(paper, tokens), rng)
        if paper is not None and text is not None:
            examples.append(writer.laid_out(paper, text, where[number], len(examples)))
    return tuple(examples)


def _chance(model: TransformerLensModel, examples: Sequence[Example], digits: int, keys: int) -> dict[str, float]:
    """What a guess gives, by part: among all numbers, among the facts, or among all tokens."""
    chance = {"exact of copy": 0.0, "exact of text": 0.0, "log_prob of text": -math.log(int(model.cfg.d_vocab))}
    for part, guess in (("passkey", 10.0**-digits), ("kv", 1 / keys)):
        sizes = [
            stop - start
            for example in examples
            for (start, stop), one in zip(example.answers, example.asked, strict=True)
            if one.part == part
        ]
        chance |= {
            f"exact of {part}": guess,
            f"log_prob of {part}": math.log(guess) * sum(1 / size for size in sizes) / len(sizes),
        }
    return chance
