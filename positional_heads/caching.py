"""Dominant dimensions and contributions as a TransformerLens `ActivationCache`, to compose with other analyses."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from positional_heads.arguments import check_temperature, checked
from positional_heads.bands import banded_contributions, unrotated
from positional_heads.contributions import dominant_dimension, head_planes, pair_contributions
from positional_heads.host.capture import LayerVectors, capture, visible_pairs
from positional_heads.host.contribution_hooks import CONTRIBUTIONS, DOMINANT
from positional_heads.host.layers import resolve_layers
from positional_heads.host.model import TransformerLensModel
from positional_heads.host.records import hook_name
from positional_heads.host.sequences import Mask, Text, as_sequences, batches, real_spans


@checked
def dominant_dimension_cache(
    model: TransformerLensModel,
    tokens: Text,
    *,
    layers: Sequence[int] | None = None,
    attention_mask: Mask | None = None,
    contributions: bool = False,
    temperature: float = 1.0,
) -> ActivationCache:
    """Dominant dimension of every query-key pair, as `cache["dominant_dim", layer, "attn"]`, NaN where masked.

    Entries are `blocks.{l}.attn.hook_dominant_dim` [batch head query_pos key_pos] and, if asked for,
    `hook_contributions` [batch head query_pos key_pos pair] in units of the attention score before soft-cap and mask.
    Merge them into a run's own cache with `run_cache.cache_dict.update(cache.cache_dict)`, and stack them with
    `cache.stack_activation("dominant_dim", sublayer_type="attn")`.

    Args:
        model: A TransformerBridge.
        tokens: One text, or token ids of sequences of one length. Memory grows with length squared.
        layers: Layers to include; all that rotate when None.
        attention_mask: 1 for real tokens, 0 for padding.
        contributions: Also keep every pair's contribution.
        temperature: Softmax temperature of the dominant dimension; an extension's attention factor is divided out of
            it, not out of contributions.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
        ValueError: If a layer does not exist or does not rotate, or the input makes no sense.
    """
    rotary = resolve_layers(model).select(None if layers is None else list(layers), int(model.cfg.n_layers))
    check_temperature(temperature)
    rows = len(as_sequences(model, tokens, attention_mask))
    batch, *others = batches(model, tokens, attention_mask, rows)
    if others:
        msg = f"the {rows} sequences differ in length: cut them to one length, or pad them and give attention_mask="
        raise ValueError(msg)
    spans = real_spans(batch.tokens, batch.attention_mask)
    entries: dict[str, Tensor] = {}

    def visit(vectors: LayerVectors) -> None:
        pairs = _contributions(vectors)
        divided = temperature * vectors.attention_factor**2
        dominant = torch.full(pairs.shape[:-1], torch.nan, device=pairs.device)
        for row, (start, stop) in enumerate(spans):
            visible = visible_pairs(stop - start, vectors.window, pairs.device)
            inner = dominant_dimension(pairs[row, :, start:stop, start:stop], divided)
            dominant[row, :, start:stop, start:stop] = inner.masked_fill(~visible, torch.nan)
        layer = vectors.rotary.layer
        entries[hook_name(layer, DOMINANT)] = dominant
        if contributions:
            entries[hook_name(layer, CONTRIBUTIONS)] = pairs * vectors.rotary.scale

    capture(model, batch.tokens, rotary, visit, batch.attention_mask)
    return ActivationCache(entries, model, has_batch_dim=True)


def _contributions(vectors: LayerVectors) -> Float[Tensor, "batch head query_pos key_pos pair"]:
    rotary = vectors.rotary
    if vectors.bands is None:
        return pair_contributions(vectors.rot_q, vectors.rot_k, rotary.layout, rotary.rotary_dim)
    planes = [head_planes(x, rotary.layout, rotary.rotary_dim, rotary.n_heads) for x in (vectors.rot_q, vectors.rot_k)]
    rows = []
    for row, (query, key) in enumerate(zip(*planes, strict=True)):
        phase = vectors.phase[min(row, len(vectors.phase) - 1)]
        rows.append(banded_contributions(vectors.bands, unrotated(query, phase), unrotated(key, phase)))
    return torch.stack(rows)
