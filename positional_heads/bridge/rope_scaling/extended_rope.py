"""Extend a model's rotation by a length-extrapolation method, inside a `with` block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from positional_heads.bridge.active_extension import active_block, active_extension
from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError, heads_of_model
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rope_scaling.extension import ChosenHeads, Extension, activated
from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rope_scaling.methods import rope_method
from positional_heads.bridge.rope_scaling.plain_rope import plain_rope
from positional_heads.bridge.rotary_layer import RotaryModel
from positional_heads.bridge.run_lengths import rotary_modules
from positional_heads.core.arguments import checked
from positional_heads.core.heads import Heads


@checked
@contextmanager
def extended_rope(
    model: TransformerLensModel,
    method: str | Method,
    factor: float | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Heads | None = None,
    training_length: int | None = None,
    **settings: Any,
) -> Iterator[Extension]:
    """A block inside which the model's rotation is extended, in every run: plain, cached, ablated, scored, generating.

    Args:
        model: A TransformerBridge.
        method: The name of a method, or a method; `rope_method` lists the names.
        factor: Context length over training length, at least 1.
        layers: Layers to extend; all that rotate when None.
        heads: Query heads to extend, instead of whole layers: one or several, as Head(3, 7), (3, 7) or "L3H7".
        training_length: Tokens that the model was trained on; read from its configuration when None.
        **settings: Settings of a method given by name, see `rope_method`.

    Yields:
        The active extension: its method, frequencies and phases.

    Raises:
        ValueError: If the method or its settings make no sense, or both layers and heads are given.
        UnsupportedModelError: If the model is not rotary, or the hooks that this needs do not fire.
        RuntimeError: If another extension is active.
    """
    if (active := active_extension(model)) is not None:
        block = active_block(model)
        msg = f"the model's rotation is extended already, by {active.name}: leave the other {block} block first"
        raise RuntimeError(msg)
    if layers is not None and heads is not None:
        msg = "give layers or heads, not both: heads name their layers"
        raise ValueError(msg)
    resolved = resolve_layers(model)
    _refuse_dead_hooks(model, resolved)
    rope = plain_rope(model, min(resolved.layers), training_length)
    if isinstance(method, str):
        method = rope_method(method, factor, training_length=rope.training_length, **settings)
    elif factor is not None or settings:
        msg = f"factor and settings go with the name of a method: give them to rope_method, or {method.name!r} alone"
        raise ValueError(msg)
    extension = Extension(
        model, method, resolved, _chosen_heads(resolved, layers, heads, model, method), training_length
    )
    with activated(model, extension):
        yield extension


def _chosen_heads(
    resolved: RotaryModel,
    layers: Sequence[int] | None,
    heads: Heads | None,
    model: TransformerLensModel,
    method: Method,
) -> ChosenHeads:
    if heads is None:
        every = resolved.select(layers)
        changed = [rotary for rotary in every if method.applies(rotary)] if layers is None else every
        return {rotary.layer: None for rotary in changed or every}
    chosen: ChosenHeads = {}
    for layer, head in sorted(set(heads_of_model(model, heads))):
        resolved.select([layer])
        chosen[layer] = [*(chosen.get(layer) or []), head]
    if not chosen:
        msg = "no head given: name at least one, or leave heads= out to extend every layer that rotates"
        raise ValueError(msg)
    return chosen


def _refuse_dead_hooks(model: TransformerLensModel, resolved: RotaryModel) -> None:
    for layer, rotary in resolved.layers.items():
        if rotary.source == "interface":
            msg = (
                f"layer {layer}: TransformerLens leaves its attention to Hugging Face's own module, whose rotation can "
                "be read but not edited, so it cannot be extended"
            )
            raise UnsupportedModelError(msg)
        if rotary.table == "embed_positions" or not rotary_modules(model):
            msg = (
                f"layer {layer}: hook_cos and hook_sin do not fire in this architecture (its table of positions ends "
                "with its context), so its rotation cannot be extended"
            )
            raise UnsupportedModelError(msg)
