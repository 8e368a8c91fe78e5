"""Find out how each layer of a model rotates queries and keys, and prove it on a probe run.

Everything is read from live tensors, never from `model.cfg`, which is wrong or empty for several families. A short
probe run shows, per layer, where rotated queries and keys come from; rotating the unrotated ones shows the pair layout;
and q . k must equal the model's own attention scores. A layer that fails raises `UnsupportedModelError`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.active_edits import edits_named
from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.attention_interface import (
    ROTATED,
    attention_module,
    attention_read,
    relative_error,
    rotation_errors,
)
from positional_heads.bridge.frequency_check import proven_frequencies
from positional_heads.bridge.model import (
    SCORES,
    Record,
    TransformerLensModel,
    UnsupportedModelError,
    layers_with_attention,
    refuse_unsupported,
)
from positional_heads.bridge.plain_capture import Shown, proven_plain
from positional_heads.bridge.recording import record_layers
from positional_heads.bridge.rotary_layer import (
    TOLERANCE,
    RotaryLayer,
    RotaryModel,
    embedded_positions,
    refuse_non_finite,
    table_layout,
    table_phase,
    unrotated_vectors,
)
from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head
from positional_heads.core.rotary import LAYOUTS, Layout, rotate

PROBE_TOKENS = 16
NO_ATTENTION = "it has no attention"
NO_ROTATION = "it has no rotary embedding (NoPE): no dimension has a wavelength there"
SHIFT = 7
"""Tokens by which positions are moved to see which layers rotate: a few radians for the fastest pairs."""


@checked
def resolve_layers(model: TransformerLensModel) -> RotaryModel:
    """Find out and prove, layer by layer, how the model rotates.

    Raises:
        UnsupportedModelError: If the model has no rotary layer, or a layer does not reproduce the model's own scores.
    """
    refuse_unsupported(model)
    extension = active_extension(model)
    if extension is not None and extension.rewrites_scores:
        return extension.resolved  # proven before scores were rewritten; each run is proven band by band
    with edits_named(model):
        return _resolved(model)


def _resolved(model: TransformerLensModel) -> RotaryModel:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(int(model.cfg.d_vocab), (1, PROBE_TOKENS), generator=generator).to(model.cfg.device)
    positions = torch.arange(PROBE_TOKENS, device=tokens.device)[None]
    resolved: dict[int, RotaryLayer | None] = {}
    shown: dict[int, Shown] = {}

    def resolve(layer: int, record: Record, rotary: RotaryLayer | None) -> None:
        resolved[layer] = rotary
        if rotary is not None:
            shown[layer] = (*rotary.rotated_vectors(model, record, positions), rotary.phase(model, record, positions))

    def visit(layer: int, record: Record) -> None:
        if "hook_cos" in record or "hook_rot_q" in record or embedded_positions(model, layer) is not None:
            resolve(layer, record, _resolve_hooked(model, layer, record))

    with_attention = layers_with_attention(model)
    record_layers(model, tokens, with_attention, visit)
    silent = [layer for layer in range(int(model.cfg.n_layers)) if layer not in resolved]
    delegated = [layer for layer in silent if attention_module(model, layer) is not None]
    for layer in set(silent).intersection(with_attention).difference(delegated):
        msg = (
            f"layer {layer}: hook_rot_q, hook_cos, hook_sin or hook_attn_scores do not fire, and its attention does "
            "not use transformers' attention interface: its rotated queries and keys are not accessible"
        )
        raise UnsupportedModelError(msg)
    for layer, record, rotary in _resolve_delegated(model, tokens, delegated):
        resolve(layer, record, rotary)
    layers = {layer: rotary for layer, rotary in sorted(resolved.items()) if rotary is not None}
    _refuse_other_heads(layers, int(model.cfg.n_heads))
    if not layers:
        msg = "no layer of this model rotates queries and keys: dominant dimensions are not defined for it"
        raise UnsupportedModelError(msg)
    return RotaryModel(
        proven_plain(model, tokens, layers, shown),
        {
            layer: NO_ROTATION if layer in resolved else NO_ATTENTION
            for layer in range(int(model.cfg.n_layers))
            if layer not in layers
        },
    )


def layers_of_heads(model: TransformerLensModel, heads: Sequence[Head]) -> list[RotaryLayer]:
    """The layers that these heads are in, which must have the same number of pairs.

    Raises:
        ValueError: If a layer does not rotate, or the numbers of pairs differ.
    """
    layers = resolve_layers(model).select(sorted({head.layer for head in heads}))
    n_pairs = {rotary.n_pairs for rotary in layers}
    if len(n_pairs) > 1:
        msg = f"the heads' layers have {sorted(n_pairs)} pairs: give heads of one kind of layer at a time"
        raise ValueError(msg)
    return layers


def _resolve_hooked(model: TransformerLensModel, layer: int, record: Record) -> RotaryLayer | None:
    """A layer that fires its hooks; None if it does not rotate."""
    own = record[SCORES]
    width = record["hook_q"].shape[-1]
    query, key = unrotated_vectors(record, width if record["hook_q"].ndim == 4 else width // own.shape[1])  # noqa: PLR2004
    refuse_non_finite(layer, query, key, [(0, query.shape[1])])
    table = record.get("hook_cos", embedded_positions(model, layer))
    if table is None:
        if "hook_rot_q" in record and torch.equal(record["hook_rot_q"].float(), query.float()):
            return None
        msg = f"layer {layer}: hook_cos and hook_sin do not fire, so the angles of its rotation are unknown"
        raise UnsupportedModelError(msg)
    is_pattern = bool((own >= 0).all()) and bool(((own.float().sum(-1) - 1).abs() < 0.05).all())  # noqa: PLR2004
    component = model.blocks[layer].attn.original_component
    draft = replace(
        _draft(layer, component, query, key),
        source="hook" if "hook_rot_q" in record else "rebuilt",
        table=table_layout(record["hook_cos"], record["hook_sin"]) if "hook_cos" in record else "embed_positions",
        holds="pattern" if is_pattern else "scores",
    )
    candidates = [
        _with_layout(model, draft, layout, record, *vectors)
        for layout in LAYOUTS
        for vectors in _projected(component, query, key)
    ]
    best = min(candidates, key=lambda candidate: candidate.error)
    positions = torch.arange(query.shape[1], device=query.device)[None]
    phase = best.phase(model, record, positions)[0]
    frequencies = proven_frequencies(model, layer, phase, best.d_head, table.dtype)
    if not best.error <= TOLERANCE[own.dtype]:
        errors = ", ".join(f"{candidate.layout} {candidate.error:.2g}" for candidate in candidates)
        msg = (
            f"layer {layer}: rotated queries and keys do not give the model's own attention scores "
            f"(relative error by pair layout: {errors}); this architecture is not understood, or an "
            "active hook edits its rotated queries or keys, or its scores (ablated_heads in modes uniform, far, near: "
            "open extended_rope or score first, and ablate inside); nothing was scored"
        )
        raise UnsupportedModelError(msg)
    return replace(best, frequencies=frequencies)


def _resolve_delegated(
    model: TransformerLensModel, tokens: Int[Tensor, "1 pos"], layers: list[int]
) -> Iterator[tuple[int, Record, RotaryLayer | None]]:
    """Layers whose attention has no hooks, read twice: with positions from zero, and with all positions moved."""
    if not layers:
        return
    first: dict[int, Record] = {}
    moved: dict[int, Record] = {}
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    with torch.no_grad():
        plain = model(tokens)
        with attention_read(model, layers, first.__setitem__):
            read = model(tokens, position_ids=positions)
        with attention_read(model, layers, moved.__setitem__):
            model(tokens, position_ids=positions + SHIFT)
    if not float((plain - read).abs().amax(-1).median() / plain.abs().max()) <= TOLERANCE[plain.dtype]:
        msg = "reading queries and keys through transformers' attention interface changes this model's output"
        raise UnsupportedModelError(msg)
    for layer in layers:
        if layer not in first or layer not in moved:
            msg = f"layer {layer}: its attention does not call the attention interface that its configuration names"
            raise UnsupportedModelError(msg)
        yield layer, first[layer], _resolve_moved(model, layer, first[layer], moved[layer])


def _resolve_moved(model: TransformerLensModel, layer: int, first: Record, moved: Record) -> RotaryLayer | None:
    query, key = first["hook_rot_q"], first["hook_rot_k"]
    refuse_non_finite(layer, query, key, [(0, query.shape[1])])
    rotates = max(relative_error(first[name], moved[name]) for name in ROTATED) > TOLERANCE[query.dtype]
    if "hook_cos" not in first and rotates:
        msg = f"layer {layer}: its attention is not given cos and sin, so the angles of its rotation are unknown"
        raise UnsupportedModelError(msg)
    if "hook_cos" not in first:
        return None
    table = table_layout(first["hook_cos"], first["hook_sin"])
    phases = [table_phase(record["hook_cos"], record["hook_sin"], table) for record in (first, moved)]
    # NoPE layers get a valid table too: prove it first, because a table of zero frequencies would look like NoPE
    frequencies = proven_frequencies(model, layer, phases[0][0], query.shape[-1], first["hook_cos"].dtype)
    if not rotates:
        return None
    module = attention_module(model, layer)
    draft = replace(_draft(layer, module, query, key), source="interface", table=table, holds="pattern")
    layout, sense, error = min(rotation_errors(first, moved, phases[0], phases[1]), key=lambda candidate: candidate[2])
    hidden = draft.masked_entries(first[SCORES])
    score = draft.score_error(draft.scores(query, key), first[SCORES], hidden)
    if not max(error, score) <= TOLERANCE[query.dtype]:
        msg = (
            f"layer {layer}: moving all positions does not rotate queries and keys by the model's own angles (relative "
            f"error {error:.2g}), or they miss its scores (by {score:.2g}); this architecture is not understood"
        )
        raise UnsupportedModelError(msg)
    return replace(
        draft,
        layout=layout,
        sense=sense,
        rotary_dim=2 * phases[0].shape[-1],
        error=max(error, score),
        frequencies=frequencies,
    )


def _refuse_other_heads(layers: dict[int, RotaryLayer], n_heads: int) -> None:
    """Refuse layers of different numbers of heads: results are [layer head]."""
    for layer, rotary in layers.items():
        if rotary.n_heads != n_heads:
            msg = (
                f"layer {layer} has {rotary.n_heads} heads and the model's configuration {n_heads}: models whose "
                "layers have different numbers of heads cannot be scored"
            )
            raise UnsupportedModelError(msg)


def _draft(
    layer: int,
    module: Any,
    query: Float[Tensor, "batch pos head d_head"],
    key: Float[Tensor, "batch pos kv_head d_head"],
) -> RotaryLayer:
    """A layer as its queries and attention module describe it; layout, table and source are filled in by the probe."""
    d_head = query.shape[-1]
    return RotaryLayer(
        layer=layer,
        source="hook",
        layout="half",
        table="half",
        rotary_dim=0,
        d_head=d_head,
        n_heads=query.shape[2],
        scale=_attention_scale(module, d_head),
        soft_cap=getattr(module, "attn_logit_softcapping", None),
        holds="scores",
        error=torch.inf,
        n_kv_heads=key.shape[2],
    )


def _with_layout(
    model: TransformerLensModel,
    draft: RotaryLayer,
    layout: Layout,
    record: Record,
    query: Float[Tensor, "batch pos head d_head"],
    key: Float[Tensor, "batch pos kv_head d_head"],
) -> RotaryLayer:
    """The layer under one pair layout, with the error of its rotated vectors and scores."""
    positions = torch.arange(query.shape[1], device=query.device)[None]
    phase = draft.phase(model, record, positions)
    rotary = replace(draft, layout=layout, rotary_dim=2 * phase.shape[-1])
    if rotary.rotary_dim > rotary.d_head:
        return rotary
    rot_q, rot_k = rotate(query, phase, layout), rotate(key, phase, layout)
    error = 0.0
    if rotary.source == "hook":
        own = (record["hook_rot_q"].float(), record["hook_rot_k"].float())
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip((rot_q, rot_k), own, strict=True))
        rot_q, rot_k = own
    hidden = rotary.masked_entries(record[SCORES])
    return replace(rotary, error=max(error, rotary.score_error(rotary.scores(rot_q, rot_k), record[SCORES], hidden)))


def _projected(
    component: Any, query: Float[Tensor, "batch pos head d_head"], key: Float[Tensor, "batch pos kv_head d_head"]
) -> list[tuple[Tensor, Tensor]]:
    """Vectors that a layer may rotate, given those of its hooks: clipped (OLMo), keys with a multiplier (Falcon-H1).

    Whether the keys of `hook_k` include the multiplier depends on the version of TransformerLens.
    """
    clip = getattr(getattr(component, "config", None), "clip_qkv", None)
    if clip is not None:
        query, key = query.clamp(-clip, clip), key.clamp(-clip, clip)
    multiplier = getattr(component, "key_multiplier", None)
    return [(query, key)] if multiplier in {None, 1} else [(query, key), (query, key * multiplier)]


def _attention_scale(component: Any, d_head: int) -> float:
    scaling = getattr(component, "scaling", None)
    if isinstance(scaling, (int, float)):
        return float(scaling)
    divisor = getattr(component, "scale_attn", None)
    return 1 / float(divisor) if divisor is not None else d_head**-0.5
