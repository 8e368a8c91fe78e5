"""Long sequences a chunk at a time, so that no attention score of length x length is ever held.

The model continues with its own key-value cache; what a chunk computes is what it would have computed in one run.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.host.admission import UnsupportedModelError

SCORES_AT_ONCE = 2**23
"""Attention scores of a layer that are held at a time, 32 MiB of float32: beyond, sequences go through in chunks, which
is also faster."""
SHORTEST_CHUNK, LONGEST_CHUNK = 256, 512


def chunk_length(model: Any, rows: int, length: int) -> int:
    """How many tokens of such sequences to run at a time: all of them, if they are few."""
    fitting = SCORES_AT_ONCE // (rows * int(model.cfg.n_heads) * length)
    return min(length, max(SHORTEST_CHUNK, min(LONGEST_CHUNK, fitting)))


def chunks(model: Any, tokens: Int[Tensor, "batch pos"], size: int) -> Iterator[Float[Tensor, "batch part vocab"]]:
    """Logits of each chunk, which the caller's hooks see as a run of its own.

    Args:
        model: A TransformerBridge.
        tokens: Token ids, without padding.
        size: Tokens at a time.
    """
    cache = None
    for start in range(0, tokens.shape[1], size):
        arguments: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        logits, cache = model(
            tokens[:, start : start + size], return_type="logits_and_cache", use_cache=True, **arguments
        )
        yield logits


@torch.no_grad()
def prefilled_logits(model: Any, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
    """Logits of all tokens, in chunks where they would take too much memory in one run."""
    size = chunk_length(model, *tokens.shape)
    if size >= tokens.shape[1]:
        return model(tokens)
    return torch.cat(list(chunks(model, tokens, size)), dim=1)


def refuse_fixed_tables(model: Any, length: int) -> None:
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
