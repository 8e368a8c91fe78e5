"""New hook points on a model: the contribution of every rotary pair to every attention score, live and editable.

`hook_contributions` holds what each pair adds to the attention score, attention scale included, before soft-cap and
mask: with the unrotated remainder they sum to the score, and an edit changes the score by exactly as much as it changed
the contribution. `hook_dominant_dim` reads D of the contributions as edits have left them, NaN where the model hides
the key; editing it has no meaning.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from positional_heads.bridge.active import active_extension
from positional_heads.bridge.layer_vectors import LayerVectors, Temperature
from positional_heads.bridge.model import SCORES, TransformerLensModel, UnsupportedModelError, hook_name
from positional_heads.bridge.recording import RECORDED, Record
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.core.arguments import check_temperature, checked

CONTRIBUTIONS = "hook_contributions"
DOMINANT = "hook_dominant_dim"


@checked
@contextmanager
def contribution_hooks(
    model: TransformerLensModel, layers: Sequence[int] | None = None, *, temperature: Temperature = 1.0
) -> Iterator[TransformerLensModel]:
    """A block inside which layers have `attn.hook_contributions` and `attn.hook_dominant_dim`, like any other hook.

    `hook_contributions` is [batch head query_pos key_pos pair] in units of the attention score; `hook_dominant_dim` is
    [batch head query_pos key_pos]. `run_with_cache`, `run_with_hooks` and patching see both. They hold pairs times as
    much as the attention scores: ask for few layers, or short text. TransformerLens' `generic_activation_patch` takes
    them one layer at a time, by names like "contributions0attn".

    Args:
        model: A TransformerBridge.
        layers: Layers to add the hooks to; all that rotate when None.
        temperature: Softmax temperature of the dominant dimension, on contributions without the attention scale and
            without an extension's attention factor; "attention" takes the model's attention scale.

    Raises:
        UnsupportedModelError: If a layer's scores cannot be edited, because its `hook_attn_scores` holds the pattern.
        ValueError: If a layer does not exist or does not rotate, or the temperature is none; inside the block, if a
            hook changes the contributions' shape.
        RuntimeError: Inside the block, if the model runs with a key-value cache, or the readout is edited.
    """
    check_temperature(temperature)
    chosen = resolve_layers(model).select(layers)
    extension = active_extension(model)
    if extension is not None and extension.rewrites_scores:
        msg = f"contribution hooks do not work while {extension.method.name} rewrites scores; use score_heads there"
        raise UnsupportedModelError(msg)
    for rotary in chosen:
        if rotary.holds == "pattern":
            msg = (
                f"layer {rotary.layer}: this architecture's hook_attn_scores holds the attention pattern and ignores "
                "edits, so live contributions are not possible; use dominant_dimension_cache(contributions=True)"
            )
            raise UnsupportedModelError(msg)
    with ExitStack() as undo:
        undo.callback(_rescan_hooks, model)
        for rotary in chosen:
            _add_hook_points(model.blocks[rotary.layer].attn, undo)
        _rescan_hooks(model)
        for rotary in chosen:
            _feed(model, rotary, temperature, undo)
        yield model


def _add_hook_points(attention: Any, undo: ExitStack) -> None:
    for name in (CONTRIBUTIONS, DOMINANT):
        if name in attention._modules:
            msg = "contribution hooks are already on this layer: leave the other contribution_hooks block first"
            raise RuntimeError(msg)
        setattr(attention, name, HookPoint().train(attention.training))
        undo.callback(_drop_hook_point, attention, name)


def _drop_hook_point(attention: Any, name: str) -> None:
    delattr(attention, name)
    attention._hook_registry.pop(name, None)


def _rescan_hooks(model: TransformerLensModel) -> None:
    model.clear_hook_registry()
    model._initialize_hook_registry()


def _feed(model: TransformerLensModel, rotary: RotaryLayer, temperature: Temperature, undo: ExitStack) -> None:
    """Record the layer's rotated vectors as every other hook has left them, and pass contributions through its scores.

    Hooks run in the order in which they were added. So ours are added anew whenever the layer starts, behind those
    that a caller has put there since, and taken off when it is done.
    """
    attention = model.blocks[rotary.layer].attn
    hooks = model.hook_dict
    record: Record = {}
    late: list[Any] = []

    def take_off() -> None:
        while late:
            _remove(*late.pop())

    def keep(name: str) -> Any:
        def hook_fn(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001
            record[name] = tensor

        return hook_fn

    def start(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001
        take_off()
        record.clear()
        for name in RECORDED:
            point = hooks.get(hook_name(rotary.layer, name))
            if point is not None:
                late.append((point, _add(point, keep(name))))

    def finish(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        take_off()
        vectors = _vectors(model, rotary, {**record, SCORES: tensor})
        return _pass_through(attention, vectors, tensor, temperature)

    for name, function in (("hook_in", start), (SCORES, finish)):
        point = hooks[hook_name(rotary.layer, name)]
        undo.callback(_remove, point, _add(point, function))
    undo.callback(take_off)


def _add(point: HookPoint, function: Any) -> Any:
    """Add a hook that resets leave alone; TransformerLens 3.9 does not return its handle."""
    point.add_hook(function, is_permanent=True)
    return point.fwd_hooks[-1]


def _remove(point: HookPoint, handle: Any) -> None:
    handle.hook.remove()
    point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]


def _vectors(model: TransformerLensModel, rotary: RotaryLayer, record: Record) -> LayerVectors:
    """Padding shifts all positions of a sequence alike, which no contribution shows: columns will do."""
    positions = torch.arange(record[SCORES].shape[-2], device=record[SCORES].device)[None]
    rot_q, rot_k = rotary.rotated_vectors(model, record, positions)
    return LayerVectors(rotary, rot_q, rot_k, rotary.phase(model, record, positions))


def _pass_through(
    attention: Any,
    vectors: LayerVectors,
    scores: Float[Tensor, "batch head query_pos key_pos"],
    temperature: Temperature,
) -> Float[Tensor, "batch head query_pos key_pos"]:
    rotary, keys = vectors.rotary, vectors.rot_k.shape[1]
    if keys != scores.shape[-1]:
        msg = (
            f"layer {rotary.layer} attends to {scores.shape[-1]} keys, {keys} of them from this run: contribution "
            "hooks need a run without a key-value cache"
        )
        raise RuntimeError(msg)
    hidden = rotary.masked_entries(scores)
    contributions = torch.stack([vectors.contributions(row) for row in range(len(scores))]) * rotary.scale
    before, shape = contributions.sum(-1), contributions.shape  # hooks may write into the tensor itself
    # a tensor of its own for the hooks: its gradient is the edit's, and what q and k get by it cancels with `before`
    edited = attention.hook_contributions(contributions.clone() if contributions.requires_grad else contributions)
    if edited.shape != shape:
        msg = f"hook_contributions has shape {tuple(shape)}, a hook returned {tuple(edited.shape)}: keep the shape"
        raise ValueError(msg)
    dominant = torch.stack([vectors.dominant(added / rotary.scale, temperature) for added in edited])
    dominant = dominant.masked_fill(hidden, torch.nan)
    _refuse_edited(attention.hook_dominant_dim(dominant.clone()), dominant)
    change = edited.sum(-1) - before
    if rotary.soft_cap is not None:
        uncapped = rotary.scaled_scores(vectors.rot_q, vectors.rot_k)
        change = rotary.soft_capped(uncapped + change) - rotary.soft_capped(uncapped)
    return torch.where(hidden, scores, scores + change.to(scores.dtype))


def _refuse_edited(seen: Tensor, dominant: Tensor) -> None:
    if not torch.equal(seen.nan_to_num(), dominant.nan_to_num()):
        msg = "hook_dominant_dim is a readout, editing it changes nothing: edit hook_contributions instead"
        raise RuntimeError(msg)
