"""Two measurements of how well a byte-level model recalls from far back, on examples that it was not trained on.

Both take any callable from token ids to logits, so they work in training and on a finished model.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.zoo import curriculum
from positional_heads.zoo.architecture import BOS_ID

Logits = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos vocab"]]


def passkey_recall(
    logits: Logits, text: bytes, *, length: int = 512, examples: int = 64, seed: int = 0, batch_size: int = 16
) -> float:
    """Fraction of passkey digits that the model predicts, with the passkey at depths spread over the context.

    Each digit is predicted from the true ones before it, so one mistake does not cause the next. Chance is 0.1.

    Args:
        logits: The model, from token ids to logits.
        text: Filler, best not seen in training.
        length: Tokens per example.
        examples: Number of examples, their depths spread evenly over the context.
        seed: Seed of keys and filler.
        batch_size: Sequences per forward pass.
    """
    rng = random.Random(f"passkey-{seed}")
    right = 0
    rows = torch.stack([_passkey_at(text, length, index / examples, rng) for index in range(examples)])
    for batch in rows.split(batch_size):
        # a sequence ends with five digits and a full stop: digits are the tokens -6 to -2, each predicted one before
        predicted = logits(batch)[:, -7:-2].argmax(-1)
        right += int((predicted == batch[:, -6:-1]).sum())
    return right / (5 * examples)


def repeat_gain(
    logits: Logits, text: bytes, *, length: int = 512, passage: int = 100, examples: int = 32, seed: int = 0
) -> tuple[float, float]:
    """Mean loss in nats per byte on the first and on the second occurrence of a repeated passage of the text."""
    rng = random.Random(f"repeat-{seed}")
    first, second = [], []
    for _ in range(examples):
        parts = [curriculum.random_passage(text, size, rng) for size in (0, passage, length - 1 - 2 * passage)]
        tokens = _tokens(parts[0] + parts[1] + parts[2] + parts[1])[None]
        losses = torch.nn.functional.cross_entropy(logits(tokens)[0, :-1].float(), tokens[0, 1:], reduction="none")
        # the first 8 bytes of the second occurrence do not yet tell what is repeated
        first.append(losses[8:passage].mean().item())
        second.append(losses[-passage + 8 :].mean().item())
    return float(np.mean(first)), float(np.mean(second))


def _passkey_at(text: bytes, length: int, depth: float, rng: random.Random) -> Int[Tensor, " pos"]:
    key = curriculum.draw(b"0123456789", 5, rng)
    hidden, answer = curriculum.passkey_statement(key), curriculum.passkey_question() + key + b"."
    filler = length - 1 - len(hidden) - len(answer)
    before = int(depth * filler)
    head, tail = curriculum.random_passage(text, before, rng), curriculum.random_passage(text, filler - before, rng)
    return _tokens(head + hidden + tail + answer)


def _tokens(body: bytes) -> Int[Tensor, " pos"]:
    return torch.tensor([BOS_ID, *body])
