"""The weights that make the queries and keys of each head, where the bridge shows them."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.core.kernel_score import kernel_scores


def query_key_weights(
    model: TransformerLensModel, rotary: RotaryLayer
) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "kv_head d_model d_head"]] | None:
    """Weights of the queries and keys of one layer, a matrix for each head.

    None where the bridge has none of this shape: where queries come with a gate (Qwen3-Next), layers differ in width
    (Gemma-4), or weights are quantised.
    """
    attention = model.blocks[rotary.layer].attn
    try:
        query, key = attention.W_Q, attention.W_K
    except (AttributeError, RuntimeError, ValueError, NotImplementedError, TypeError):
        return None
    for weight in (query, key):
        if not isinstance(weight, Tensor) or weight.ndim != 3 or weight.shape[2] != rotary.d_head:  # noqa: PLR2004
            return None
        if not weight.dtype.is_floating_point or weight.is_meta:
            return None
    fits = len(query) == rotary.n_heads and rotary.n_heads % len(key) == 0 and query.shape[1] == key.shape[1]
    return (query, key) if fits else None


@torch.no_grad()
def kernel_scores_of_model(
    model: TransformerLensModel, layers: list[RotaryLayer], turns: Float64[Tensor, "layer pair"]
) -> Float64[Tensor, "layer head"]:
    """Kernel score of every head, see `core.kernel_score`; NaN where the bridge shows no weights.

    Norms between the weights and the rotation (Qwen3) are left out.

    Args:
        model: A TransformerBridge.
        layers: The layers that rotate.
        turns: Full rotations of each pair within the training length.
    """
    scores = torch.full((int(model.cfg.n_layers), int(model.cfg.n_heads)), torch.nan, dtype=torch.float64)
    for rotary in layers:
        weights = query_key_weights(model, rotary)
        if weights is None:
            continue
        slow = turns[rotary.layer, : rotary.n_pairs] < 1
        scores[rotary.layer, : rotary.n_heads] = kernel_scores(*weights, rotary.layout, rotary.rotary_dim, slow)
    return scores
