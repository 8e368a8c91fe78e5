"""Add hook points for the contribution of every rotary pair to every attention score, live and editable.

`hook_contributions` has what each pair adds to the attention score, attention scale included, before soft-cap and mask:
with the unrotated remainder they sum to the score, and an edit changes the score by the change of the contribution.
`hook_dominant_dim` has D of the edited contributions, NaN where the key is masked; it cannot be edited.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from positional_heads.bridge.active_extension import active_bands, active_extension
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import SCORES, Record, TransformerLensModel, UnsupportedModelError, hook_name
from positional_heads.bridge.recording import RECORDED
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.core.arguments import Temperature, check_temperature, checked

CONTRIBUTIONS = "hook_contributions"
DOMINANT = "hook_dominant_dim"


@checked
@contextmanager
def contribution_hooks(
    model: TransformerLensModel, layers: Sequence[int] | None = None, *, temperature: Temperature = 1.0
) -> Iterator[TransformerLensModel]:
    """A block inside which layers have `attn.hook_contributions` and `attn.hook_dominant_dim`, like any other hook.

    `hook_contributions` is [batch head query_pos key_pos pair] in units of the attention score; `hook_dominant_dim` is
    [batch head query_pos key_pos]. `run_with_cache`, `run_with_hooks` and patching see both. Contributions take as much
    memory as the attention scores times the number of pairs, so choose few layers, or short text. TransformerLens'
    `generic_activation_patch` takes them one layer at a time, by names like "contributions0attn".

    Args:
        model: A TransformerBridge.
        layers: Layers to add the hooks to; all that rotate when None.
        temperature: Softmax temperature of the dominant dimension, on contributions without the attention scale and
            without an extension's attention factor; "attention" takes the model's attention scale.

    Raises:
        UnsupportedModelError: If a layer's scores cannot be edited, because its `hook_attn_scores` holds the pattern.
        ValueError: If a layer does not exist or does not rotate, or the temperature is not positive; inside the block,
            if a hook changes the shape of the contributions.
        RuntimeError: Inside the block, if the model runs with a key-value cache, or a hook edits `hook_dominant_dim`.
    """
    check_temperature(temperature)
    chosen = resolve_layers(model).select(layers)
    extension = active_extension(model)
    if extension is not None and extension.rewrites_scores and extension.far > 0:
        msg = f"contribution hooks do not work while {extension.name} rotates far keys otherwise; use score_heads there"
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
            _add_readings(model, rotary, temperature, undo)
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


def _add_readings(model: TransformerLensModel, rotary: RotaryLayer, temperature: Temperature, undo: ExitStack) -> None:
    """Record the layer's rotated vectors after the edits of all other hooks, and replace its scores by edited ones.

    Hooks run in the order in which they were added. To run last, the recording hooks are added each time that the layer
    starts, after hooks that a caller has added since the block began, and removed when it has finished.
    """
    attention = model.blocks[rotary.layer].attn
    points = model.hook_dict
    record: Record = {}
    recording: list[tuple[HookPoint, Any]] = []

    def stop_recording() -> None:
        while recording:
            _remove(*recording.pop())

    def store(name: str) -> Any:
        def hook_fn(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001
            record[name] = tensor

        return hook_fn

    def start(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001
        stop_recording()  # a run that raised an error has left them
        record.clear()
        for name in RECORDED:
            point = points.get(hook_name(rotary.layer, name))
            if point is not None:
                recording.append((point, _add(point, store(name))))

    def finish(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        stop_recording()
        # Column numbers serve as positions: padding shifts all positions of a row alike, and contributions depend on
        # distances only.
        positions = torch.arange(tensor.shape[-2], device=tensor.device)[None]
        rot_q, rot_k = rotary.rotated_vectors(model, record, positions)
        length, phases = rot_k.shape[1], rotary.phase(model, record, positions)
        bands = active_bands(model, rotary.layer, length, rot_k.device, length)
        vectors = LayerVectors(rotary, rot_q, rot_k, phases, bands=bands)
        return _edited_scores(attention, vectors, tensor, temperature)

    for name, function in (("hook_in", start), (SCORES, finish)):
        point = points[hook_name(rotary.layer, name)]
        undo.callback(_remove, point, _add(point, function))
    undo.callback(stop_recording)


def _add(point: HookPoint, function: Any) -> Any:
    """Add a hook that `reset_hooks` keeps; TransformerLens 3.9 does not return its handle."""
    point.add_hook(function, is_permanent=True)
    return point.fwd_hooks[-1]


def _remove(point: HookPoint, handle: Any) -> None:
    handle.hook.remove()
    point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]


def _edited_scores(
    attention: Any,
    vectors: LayerVectors,
    scores: Float[Tensor, "batch head query_pos key_pos"],
    temperature: Temperature,
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """The layer's scores plus the change that hooks make to its contributions; masked scores stay."""
    rotary, keys = vectors.rotary, vectors.rot_k.shape[1]
    if keys != scores.shape[-1]:
        msg = (
            f"layer {rotary.layer} attends to {scores.shape[-1]} keys, {keys} of them from this run: contribution "
            "hooks need a run without a key-value cache"
        )
        raise RuntimeError(msg)
    hidden = rotary.masked_entries(scores)
    contributions = torch.stack([vectors.contributions(row) for row in range(len(scores))]) * rotary.scale
    before, shape = contributions.sum(-1), contributions.shape  # read first: hooks may write into the tensor
    # Where gradients flow, hooks get a clone: its gradient is that of the score that it adds to. The gradient of
    # `contributions` itself would be zero, because `before` subtracts them again.
    edited = attention.hook_contributions(contributions.clone() if contributions.requires_grad else contributions)
    if edited.shape != shape:
        msg = f"hook_contributions has shape {tuple(shape)}, a hook returned {tuple(edited.shape)}: keep the shape"
        raise ValueError(msg)
    dominant = torch.stack([vectors.dominant(row / rotary.scale, temperature) for row in edited])
    dominant = dominant.masked_fill(hidden, torch.nan)
    _refuse_edited(attention.hook_dominant_dim(dominant.clone()), dominant)
    change = edited.sum(-1) - before
    if rotary.soft_cap is not None:
        every = torch.arange(keys, device=scores.device)
        uncapped = torch.cat([vectors.scaled_scores(row, every) for row in range(len(scores))])
        change = rotary.soft_capped(uncapped + change) - rotary.soft_capped(uncapped)
    return torch.where(hidden, scores, scores + change.to(scores.dtype))


def _refuse_edited(returned: Tensor, dominant: Tensor) -> None:
    if not torch.equal(returned.nan_to_num(), dominant.nan_to_num()):
        msg = "hook_dominant_dim cannot be edited, since no later computation reads it: edit hook_contributions instead"
        raise RuntimeError(msg)
