"""Dominant dimensions and contributions as a TransformerLens `ActivationCache`."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformer_lens import ActivationCache

from positional_heads.bridge.capture import capture
from positional_heads.bridge.contribution_hooks import CONTRIBUTIONS, DOMINANT
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.masks import visible_entries
from positional_heads.bridge.model import TransformerLensModel, hook_name
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.sequences import Mask, Text, as_sequences, batches, real_spans
from positional_heads.core.arguments import Temperature, check_temperature, checked


@checked
def dominant_dimension_cache(
    model: TransformerLensModel,
    tokens: Text,
    *,
    layers: Sequence[int] | None = None,
    attention_mask: Mask | None = None,
    contributions: bool = False,
    temperature: Temperature = 1.0,
    beyond_context: bool = False,
) -> ActivationCache:
    """Dominant dimension of every query-key pair, as `cache["dominant_dim", layer, "attn"]`, NaN where masked.

    Its activations are `blocks.{l}.attn.hook_dominant_dim` [batch head query_pos key_pos] and, if asked for,
    `hook_contributions` [batch head query_pos key_pos pair] in units of the attention score before soft-cap and mask.
    Merge them into a run's own cache with `run_cache.cache_dict.update(cache.cache_dict)`, and stack them with
    `cache.stack_activation("dominant_dim", sublayer_type="attn")`.

    Args:
        model: A TransformerBridge.
        tokens: One text, or token ids of sequences of one length. Memory grows with length squared.
        layers: Layers to include; all that rotate when None.
        attention_mask: 1 for real tokens, 0 for padding.
        contributions: Also keep the contribution of every pair.
        temperature: Softmax temperature of the dominant dimension; "attention" takes the model's attention scale. An
            extension's attention factor is divided out of the dominant dimension, not out of contributions.
        beyond_context: Allow sequences longer than the model's context.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
        ValueError: If a layer does not exist or does not rotate, or the input makes no sense.
    """
    check_temperature(temperature)
    rotary = resolve_layers(model).select(layers)
    rows = len(as_sequences(model, tokens, attention_mask))
    batch, *others = batches(model, tokens, attention_mask, rows, beyond_context=beyond_context)
    if others:
        msg = f"the {rows} sequences differ in length: cut them to one length, or pad them and give attention_mask="
        raise ValueError(msg)
    spans = real_spans(batch.tokens, batch.attention_mask)
    activations: dict[str, Tensor] = {}

    def visit(vectors: LayerVectors) -> None:
        added = torch.stack([vectors.contributions(row) for row in range(len(spans))])
        dominant = torch.full(added.shape[:-1], torch.nan, device=added.device)
        for row, (start, stop) in enumerate(spans):
            visible = visible_entries(stop - start, vectors.window, added.device)
            inner = vectors.dominant(added[row, :, start:stop, start:stop], temperature)
            dominant[row, :, start:stop, start:stop] = inner.masked_fill(~visible, torch.nan)
        layer = vectors.rotary.layer
        activations[hook_name(layer, DOMINANT)] = dominant
        if contributions:
            activations[hook_name(layer, CONTRIBUTIONS)] = added * vectors.rotary.scale

    capture(model, batch.tokens, rotary, visit, batch.attention_mask)
    return ActivationCache(activations, model, has_batch_dim=True)
