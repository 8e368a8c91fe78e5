"""Run long sequences in chunks, so that attention scores of length x length never exist at once.

The model continues from its own key-value cache, and each chunk is rotated as in the whole run, so it computes the same
values. Models with another state than keys and values run in one pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError, layers_with_attention
from positional_heads.bridge.run_lengths import run_lengths

CHUNK_SCORES = 2**23
"""Most attention scores of a layer in one pass, 32 MiB of float32; longer sequences run in chunks, which is faster
too."""
SHORTEST_CHUNK, LONGEST_CHUNK = 256, 512
WHOLE_RUN_SCORES = 2**30
"""Most attention scores of a layer in one pass of a model that cannot run in chunks: 4 GiB of float32, and several
times as much while they are computed."""


def chunk_length(model: TransformerLensModel, rows: int, length: int) -> int:
    """Tokens per forward pass: all of a sequence if it is short, or if the model cannot run in chunks.

    Args:
        model: A TransformerBridge.
        rows: Sequences in the batch.
        length: Tokens of each.

    Raises:
        UnsupportedModelError: If the model cannot run in chunks, and one pass would take too much memory.
    """
    fitting = CHUNK_SCORES // (rows * int(model.cfg.n_heads) * length)
    size = max(SHORTEST_CHUNK, min(LONGEST_CHUNK, fitting))
    if size >= length or exact_in_chunks(model):
        return min(length, size)
    scores = rows * int(model.cfg.n_heads) * length**2
    if scores > WHOLE_RUN_SCORES:
        msg = (
            f"{rows} sequence(s) of {length} tokens need {scores:.2g} attention scores per layer in one pass, more "
            f"than the limit of {WHOLE_RUN_SCORES:.2g}, and this model cannot run in chunks (it has a state other "
            "than keys and values): give shorter sequences, or batch_size=1"
        )
        raise UnsupportedModelError(msg)
    return length


def exact_in_chunks(model: TransformerLensModel) -> bool:
    """Whether a run continued from a key-value cache computes the same as one whole run.

    False for models with a recurrent state (state-space and linear attention layers, convolutions), which
    `transformers` need not continue exactly.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    original = model.original_model
    if getattr(original, "_is_stateful", False) or len(layers_with_attention(model)) < int(model.cfg.n_layers):
        return False
    kinds = {type(layer) for layer in DynamicCache(config=original.config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def run_in_chunks(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    size: int,
    visit: Callable[[Float[Tensor, "batch chunk_pos vocab"]], Any],
) -> None:
    """Run chunks one after the other, each rotated as in the whole run; hooks fire once per chunk.

    Args:
        model: A TransformerBridge.
        tokens: Token ids, without padding.
        size: Tokens per chunk.
        visit: Called with the logits of each chunk.
    """
    cache: dict[str, Any] = {}
    with run_lengths(model, [tokens.shape[1]]):
        for start in range(0, tokens.shape[1], size):
            chunk = tokens[:, start : start + size]
            logits, past_key_values = model(chunk, return_type="logits_and_cache", use_cache=True, **cache)
            cache = {"past_key_values": past_key_values}
            visit(logits)


@torch.no_grad()
def prefilled_logits(model: TransformerLensModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    """Logits of all tokens, in chunks where one pass would take too much memory."""
    size = chunk_length(model, *tokens.shape)
    if size >= tokens.shape[1]:
        with run_lengths(model, [tokens.shape[1]]):
            return model(tokens)
    logits: list[Tensor] = []
    run_in_chunks(model, tokens, size, logits.append)
    return torch.cat(logits, dim=1)


def refuse_fixed_tables(model: TransformerLensModel, length: int) -> None:
    """Refuse sequences beyond the context of a model with a fixed table of positions.

    Raises:
        UnsupportedModelError: If the table is too short.
    """
    limit = int(model.cfg.n_ctx)
    if length <= limit:
        return
    for block in model.blocks:
        component = getattr(getattr(block, "attn", None), "original_component", None)
        if getattr(component, "embed_positions", None) is not None:
            msg = (
                f"{length} tokens are more than this model's context of {limit}, where its table of positions ends: "
                "this architecture cannot run past its context"
            )
            raise UnsupportedModelError(msg)
