"""Training data of the bundled model: natural text, mixed with passages, facts and passkeys to recall from far back.

Every example is made from (seed, index) alone, so an interrupted run resumes with the same data.
"""

import random
from dataclasses import dataclass

import numpy as np

from positional_heads.zoo.architecture import BOS_ID

ANSWER_WEIGHT = 4.0
"""Weight in the loss of a byte that can only be recalled, e.g. a digit of a passkey."""

_TEXT_SHARE = 0.5
_LETTERS = b"abcdefghijklmnopqrstuvwxyz"
_DIGITS = b"0123456789"


@dataclass(frozen=True)
class Example:
    """One training sequence: a beginning-of-sequence token and byte ids, with a loss weight per token."""

    tokens: np.ndarray
    weights: np.ndarray


def make_example(text: bytes, length: int, rng: random.Random) -> Example:
    """Draw one sequence of `length` tokens: plain text, a repeated passage, key-value facts, or a passkey.

    Args:
        text: Natural text to draw passages and filler from, at least `length` bytes.
        length: Tokens in the sequence, the beginning-of-sequence token included; at least 64.
        rng: Random generator of all choices.
    """
    kind = rng.choices((plain, repeated_passage, key_value_facts, passkey), weights=(0.3, 0.3, 0.2, 0.2))[0]
    body, spans = kind(text, length - 1, rng)
    tokens = np.concatenate([[BOS_ID], np.frombuffer(body, dtype=np.uint8)]).astype(np.int64)
    weights = np.ones(length, dtype=np.float32)
    for start, stop in spans:
        weights[1 + start : 1 + stop] = ANSWER_WEIGHT
    return Example(tokens, weights)


Spans = list[tuple[int, int]]


def plain(text: bytes, length: int, rng: random.Random) -> tuple[bytes, Spans]:
    """A passage of the text."""
    return random_passage(text, length, rng), []


def repeated_passage(text: bytes, length: int, rng: random.Random) -> tuple[bytes, Spans]:
    """A passage (half of the time random letters), other text, and the passage again."""
    size = rng.randint(8, length // 3)
    passage = random_passage(text, size, rng) if rng.random() < _TEXT_SHARE else draw(_LETTERS, size, rng)
    before = rng.randint(0, length - 2 * size)
    between = rng.randint(0, length - 2 * size - before)
    after = length - 2 * size - before - between
    parts = [
        random_passage(text, before, rng),
        passage,
        random_passage(text, between, rng),
        passage,
        random_passage(text, after, rng),
    ]
    return b"".join(parts), []


def key_value_facts(text: bytes, length: int, rng: random.Random) -> tuple[bytes, Spans]:
    """Some facts `<name> = <number>;` spread over the text, each stated again later."""
    n_facts = rng.randint(1, max(1, min(6, length // 40)))
    facts = [(fact_name(rng), fact_value(rng)) for _ in range(n_facts)]
    asked = rng.sample(facts, k=min(n_facts, rng.randint(1, 3)))
    statements = [_fact(*fact) for fact in facts] + [_fact(*fact) for fact in asked]
    body, starts = _interleave(text, length, statements, rng)
    last = len(statements) - len(asked)
    # in ` abc = 1234; ` the number is bytes 7 to 10
    return body, [(start + 7, start + 11) for start in starts[last:]]


def passkey(text: bytes, length: int, rng: random.Random) -> tuple[bytes, Spans]:
    """A passkey at a random depth of the text, and the question for it at the end."""
    key = draw(_DIGITS, 5, rng)
    hidden, answer = passkey_statement(key), passkey_question() + key + b"."
    filler = length - len(hidden) - len(answer)
    if filler < 0:
        return plain(text, length, rng)
    depth = rng.randint(0, filler)
    body = random_passage(text, depth, rng) + hidden + random_passage(text, filler - depth, rng) + answer
    return body, [(length - 6, length - 1)]  # five digits before the full stop


def passkey_statement(key: bytes) -> bytes:
    """The sentence that states a passkey."""
    return b" The pass key is " + key + b". "


def passkey_question() -> bytes:
    """The sentence that asks for it; the key's digits follow."""
    return b" The pass key is "


def fact_name(rng: random.Random) -> bytes:
    """A made-up name of three letters."""
    return draw(_LETTERS, 3, rng)


def fact_value(rng: random.Random) -> bytes:
    """A number of four digits."""
    return draw(_DIGITS, 4, rng)


def _fact(name: bytes, value: bytes) -> bytes:
    return b" " + name + b" = " + value + b"; "


def _interleave(text: bytes, length: int, statements: list[bytes], rng: random.Random) -> tuple[bytes, list[int]]:
    filler = length - sum(map(len, statements))
    cuts = sorted(rng.randint(0, filler) for _ in statements)
    body, starts, used = b"", [], 0
    for cut, statement in zip(cuts, statements, strict=True):
        body += random_passage(text, cut - used, rng)
        starts.append(len(body))
        body, used = body + statement, cut
    return body + random_passage(text, filler - used, rng), starts


def random_passage(text: bytes, size: int, rng: random.Random) -> bytes:
    """`size` bytes of the text from a random position."""
    start = rng.randint(0, len(text) - size)
    return text[start : start + size]


def draw(alphabet: bytes, size: int, rng: random.Random) -> bytes:
    """`size` random letters of an alphabet."""
    return bytes(rng.choice(alphabet) for _ in range(size))
