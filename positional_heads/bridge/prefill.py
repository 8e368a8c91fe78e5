"""Long sequences a chunk at a time, so that no attention score of length x length is ever held.

The model continues with its own key-value cache, and every chunk is rotated as the whole run is: what a chunk computes
is what it would have computed in one run. Models that keep another state than keys and values go through in one run.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.active import active_extension
from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError, layers_with_attention
from positional_heads.bridge.run_lengths import run_lengths

SCORES_AT_ONCE = 2**23
"""Attention scores of a layer that are held at a time, 32 MiB of float32: beyond, sequences go through in chunks, which
is also faster."""
SHORTEST_CHUNK, LONGEST_CHUNK = 256, 512
SCORES_IN_ONE_RUN = 2**30
"""Attention scores of a layer, 4 GiB of float32 and several times as much at work, that a model which cannot be run in
chunks may have in one run."""


def chunk_length(model: TransformerLensModel, rows: int, length: int) -> int:
    """How many tokens of such sequences to run at a time: all of them, if they are few or the model needs one run.

    Args:
        model: A TransformerBridge.
        rows: Sequences in the batch.
        length: Tokens of each.

    Raises:
        UnsupportedModelError: If the model needs one run, and that would take too much memory.
    """
    fitting = SCORES_AT_ONCE // (rows * int(model.cfg.n_heads) * length)
    size = max(SHORTEST_CHUNK, min(LONGEST_CHUNK, fitting))
    if size >= length or continues(model):
        return min(length, size)
    scores = rows * int(model.cfg.n_heads) * length**2
    if scores > SCORES_IN_ONE_RUN:
        msg = (
            f"{rows} sequence(s) of {length} tokens need {scores:.2g} attention scores a layer in one run, at most "
            f"{SCORES_IN_ONE_RUN:.2g} are held, and this model cannot be run in chunks (it keeps a state beside keys "
            "and values, or drops keys that an extension needs): give shorter sequences, or batch_size=1"
        )
        raise UnsupportedModelError(msg)
    return length


def continues(model: TransformerLensModel) -> bool:
    """Whether a run that is continued with a key-value cache gives what one whole run gives.

    Not in models with a recurrent state (state-space and linear attention layers, convolutions), whose continuation in
    `transformers` need not be exact; nor where an extension rewrites scores of layers whose cache drops keys.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    original = model.original_model
    if getattr(original, "_is_stateful", False) or len(layers_with_attention(model)) < int(model.cfg.n_layers):
        return False
    kinds = {type(layer) for layer in DynamicCache(config=original.config).layers}
    extension = active_extension(model)
    if extension is not None and extension.rewrites_scores:
        return kinds <= {DynamicLayer}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def run_in_chunks(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    size: int,
    after: Callable[[Float[Tensor, "batch part vocab"]], Any],
) -> None:
    """Run chunks one after the other, each rotated as the whole run is; hooks see each as a run of its own.

    Args:
        model: A TransformerBridge.
        tokens: Token ids, without padding.
        size: Tokens at a time.
        after: Called with the logits of each chunk.
    """
    cache = None
    with run_lengths(model, [tokens.shape[1]]):
        for start in range(0, tokens.shape[1], size):
            arguments: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
            logits, cache = model(
                tokens[:, start : start + size], return_type="logits_and_cache", use_cache=True, **arguments
            )
            after(logits)


@torch.no_grad()
def prefilled_logits(model: TransformerLensModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    """Logits of all tokens, in chunks where they would take too much memory in one run."""
    size = chunk_length(model, *tokens.shape)
    if size >= tokens.shape[1]:
        with run_lengths(model, [tokens.shape[1]]):
            return model(tokens)
    parts: list[Tensor] = []
    run_in_chunks(model, tokens, size, parts.append)
    return torch.cat(parts, dim=1)


def refuse_fixed_tables(model: TransformerLensModel, length: int) -> None:
    """Refuse to run past the context where the table of positions ends with it.

    Raises:
        UnsupportedModelError: If it does.
    """
    limit = int(model.cfg.n_ctx)
    if length <= limit:
        return
    for block in model.blocks:
        component = getattr(getattr(block, "attn", None), "original_component", None)
        if getattr(component, "embed_positions", None) is not None:
            msg = (
                f"{length} tokens are more than this model's context of {limit}, and its table of positions ends "
                "there: this architecture cannot run past its context"
            )
            raise UnsupportedModelError(msg)
