"""The retrieval score of a head (Wu et al., arXiv 2404.15574): how much of a needle it copies into the answer.

The needle is the tokens that the answer repeats, not the sentence around them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.answer_run import answer_run
from positional_heads.bridge.model import (
    PATTERN,
    TransformerLensModel,
    UnsupportedModelError,
    hook_name,
    layers_with_attention,
)
from positional_heads.bridge.run_lengths import run_lengths

LEAST_CORRECT = 0.5


@torch.no_grad()
def retrieval_scores(
    model: TransformerLensModel,
    prompts: Sequence[Int[Tensor, " _pos"]],
    needles: Sequence[tuple[int, int]],
    answers: Sequence[Int[Tensor, " _answer_pos"]],
) -> Float[Tensor, "layer head"]:
    """The share of the needle that each head copies while the model generates it (docs/equations.md, section 8).

    The model decodes greedily. At each step where the key that a head attends to most is in the needle, and holds the
    token that is generated, the head gets 1 / needle length; the score is the mean over trials. Trials count where more
    than half of the answer's tokens are generated correctly.

    Args:
        model: A TransformerBridge.
        prompts: Token ids up to the answer.
        needles: In each prompt, first and one past the last token of what the answer repeats.
        answers: Token ids of the expected answer.

    Returns:
        Score of each head; NaN in layers without attention, and everywhere if no trial counts.

    Raises:
        UnsupportedModelError: If `hook_pattern` does not fire in the model.
    """
    n_layers, n_heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    sums, n_trials = torch.zeros(n_layers, n_heads, dtype=torch.float64), 0
    for prompt, needle, answer in zip(prompts, needles, answers, strict=True):
        tokens = _greedy_continuation(model, prompt, answer)
        if tokens is None:
            continue
        sums += _copied_share(_most_attended(model, tokens, len(prompt)), tokens, len(prompt), needle)
        n_trials += 1
    if n_trials == 0:
        return torch.full_like(sums, torch.nan)
    attention = layers_with_attention(model)
    sums[[layer for layer in range(n_layers) if layer not in attention]] = torch.nan
    return sums / n_trials


def _greedy_continuation(
    model: TransformerLensModel, prompt: Int[Tensor, " pos"], answer: Int[Tensor, " answer_pos"]
) -> Int[Tensor, " all_pos"] | None:
    """The prompt and as many tokens as the answer has, decoded greedily; None if too few of them are the answer's.

    Each run tries the rest of the answer, too: up to the first token that decoding would not give, it is what decoding
    gives.
    """
    tokens, expected = prompt.to(model.cfg.device), answer.to(model.cfg.device)
    with answer_run(model) as logits_at:
        while (done := len(tokens) - len(prompt)) < len(answer):
            tried = torch.cat([tokens, expected[done:-1]])
            said = logits_at(tried[None], range(len(tokens) - 1, len(tried)))[0].argmax(-1)
            right = int((said == expected[done:]).long().cumprod(0).sum())
            tokens = torch.cat([tokens, said[: right + 1]])
            correct = int((tokens[len(prompt) :] == expected[: len(tokens) - len(prompt)]).sum())
            if correct + len(prompt) + len(answer) - len(tokens) <= LEAST_CORRECT * len(answer):
                return None
    return tokens


def _most_attended(
    model: TransformerLensModel, tokens: Int[Tensor, " pos"], start: int
) -> Int[Tensor, "layer head step"]:
    """The key that each head attends to most, at the steps that generate the tokens from `start` on."""
    missing = torch.full((int(model.cfg.n_heads), len(tokens) - start), -1)  # until the layer's hook fires
    attended = dict.fromkeys(range(int(model.cfg.n_layers)), missing)

    def reader(layer: int) -> Callable[[Tensor, Any], None]:
        def read(pattern: Float[Tensor, "batch head query_pos key_pos"], hook: Any) -> None:  # noqa: ARG001
            attended[layer] = pattern[0, :, start - 1 : -1].argmax(-1).cpu()

        return read

    layers = layers_with_attention(model)
    hooks = [(hook_name(layer, PATTERN), reader(layer)) for layer in layers]
    with run_lengths(model, [len(tokens)]):
        model.run_with_hooks(tokens[None], return_type=None, fwd_hooks=hooks)
    for layer in layers:
        if bool((attended[layer] < 0).any()):
            msg = f"layer {layer}: {PATTERN} does not fire, so its heads have no retrieval score"
            raise UnsupportedModelError(msg)
    return torch.stack([attended[layer] for layer in sorted(attended)])


def _copied_share(
    attended: Int[Tensor, "layer head step"], tokens: Int[Tensor, " pos"], start: int, needle: tuple[int, int]
) -> Float[Tensor, "layer head"]:
    tokens = tokens.cpu()
    inside = (attended >= needle[0]) & (attended < needle[1])
    same = tokens[attended] == tokens[start:]
    return (inside & same).double().sum(-1) / (needle[1] - needle[0])
