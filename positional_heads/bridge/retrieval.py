"""Which heads fetch what the model says next? The retrieval score of Retrieval_Head (Wu et al., arXiv 2404.15574).

Convention that bites: the needle is the tokens that the answer repeats, not the sentence around them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.model import UnsupportedModelError, hook_name, layers_with_attention
from positional_heads.bridge.prefill import prefilled_logits
from positional_heads.bridge.run_lengths import run_lengths

PATTERN = "hook_pattern"
COUNTED_FROM = 0.5


@torch.no_grad()
def retrieval_scores(
    model: Any,
    prompts: Sequence[Int[Tensor, " pos"]],
    needles: Sequence[tuple[int, int]],
    answers: Sequence[Int[Tensor, " answer_pos"]],
) -> Float[Tensor, "layer head"]:
    """How much of the needle each head fetches while the model says it (method section 8).

    The model decodes greedily. At every step at which a head attends most to a token of the needle, and that is the
    very token the model says, the head gets 1 / needle length; the score is the mean over trials. A trial counts if the
    model says more than half of the answer's tokens right.

    Args:
        model: A TransformerBridge.
        prompts: Token ids up to the answer.
        needles: In each prompt, first and one past the last token of what the answer repeats.
        answers: What should be said.

    Returns:
        Score of each head; NaN in layers without attention, and everywhere if no trial counts.

    Raises:
        UnsupportedModelError: If the model does not show its attention pattern.
    """
    layers, heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    sums, counted = torch.zeros(layers, heads, dtype=torch.float64), 0
    for prompt, needle, answer in zip(prompts, needles, answers, strict=True):
        said = _greedy(model, prompt, len(answer))
        right = float((said[len(prompt) :] == answer.to(said.device)).double().mean())
        if right <= COUNTED_FROM:
            continue
        sums += _fetched(_attended(model, said, len(prompt)), said, len(prompt), needle)
        counted += 1
    if counted == 0:
        return torch.full_like(sums, torch.nan)
    attention = layers_with_attention(model)
    sums[[layer for layer in range(layers) if layer not in attention]] = torch.nan
    return sums / counted


def _greedy(model: Any, prompt: Int[Tensor, " pos"], steps: int) -> Int[Tensor, " said_pos"]:
    tokens = prompt[None].to(model.cfg.device)
    for _ in range(steps):
        following = prefilled_logits(model, tokens)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, following], dim=1)
    return tokens[0]


def _attended(model: Any, tokens: Int[Tensor, " pos"], start: int) -> Int[Tensor, "layer head step"]:
    """The key that each head attends to most, at the steps that say the tokens from `start` on."""
    unseen = torch.full((int(model.cfg.n_heads), len(tokens) - start), -1)
    found = dict.fromkeys(range(int(model.cfg.n_layers)), unseen)

    def reader(layer: int) -> Callable[[Tensor, Any], None]:
        def read(pattern: Float[Tensor, "batch head query_pos key_pos"], hook: Any) -> None:  # noqa: ARG001
            found[layer] = pattern[0, :, start - 1 : -1].argmax(-1).cpu()

        return read

    layers = layers_with_attention(model)
    hooks = [(hook_name(layer, PATTERN), reader(layer)) for layer in layers]
    with run_lengths(model, [len(tokens)]):
        model.run_with_hooks(tokens[None], return_type=None, fwd_hooks=hooks)
    for layer in layers:
        if bool((found[layer] < 0).any()):
            msg = f"layer {layer} does not show its attention pattern, so that no retrieval score can be had"
            raise UnsupportedModelError(msg)
    return torch.stack([found[layer] for layer in sorted(found)])


def _fetched(
    attended: Int[Tensor, "layer head step"], tokens: Int[Tensor, " pos"], start: int, needle: tuple[int, int]
) -> Float[Tensor, "layer head"]:
    tokens = tokens.cpu()
    inside = (attended >= needle[0]) & (attended < needle[1])
    same = tokens[attended] == tokens[start:]
    return (inside & same).double().sum(-1) / (needle[1] - needle[0])
