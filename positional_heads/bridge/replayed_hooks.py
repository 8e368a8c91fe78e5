"""Hooks of ours that act in plain runs where the bridge would call them.

A plain run passes by the bridge's hook points. Those of an extension that replaces cos and sin are called on the tables
that attention is given, by `plain_model` itself; those of an ablation on its outputs, by the runs of answers.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

from positional_heads.bridge.attention_interface import attention_module
from positional_heads.bridge.found_hooks import HOOKS
from positional_heads.bridge.model import TransformerLensModel, hook_name, layers_with_attention
from positional_heads.bridge.positions import LayerInputs

TABLES = ("hook_cos", "hook_sin")

HookKind = Callable[[Any], bool]
"""Whether a hook is of a kind."""


def hooked_points(model: TransformerLensModel, *names: str) -> dict[int, list[Any]]:
    """The attention's hook points of these names, in layers where any of them has hooks."""
    points = model.hook_dict  # once: TransformerLens builds it at each access
    by_layer = {layer: [points.get(hook_name(layer, name)) for name in names] for layer in layers_with_attention(model)}
    return {
        layer: found
        for layer, found in by_layer.items()
        if any(point is not None and _hooks_on(point) for point in found)
    }


def all_are(point: Any, kind: HookKind) -> bool:
    """Whether all hooks on a point act in forward passes and are of a kind."""
    return len(point.fwd_hooks) == _hooks_on(point) and all(kind(handle.user_hook) for handle in point.fwd_hooks)


def tables_refusal(model: TransformerLensModel) -> str | None:
    """Why an extension cannot act in a plain run, as it needs the cos and sin of each layer; None if it can."""
    for layer in hooked_points(model, *TABLES):
        if "position_embeddings" not in signature(attention_module(model, layer).forward).parameters:
            return f"attention of layer {layer} is not given the cos and sin that an extension replaces"
    return None


def looks_on(point: Any) -> bool:
    """Whether the hooks on a module are all ours that only read what a layer is called with."""
    return hasattr(point, "fwd_hooks") and all_are(
        point, lambda hook: isinstance(getattr(hook, "__self__", None), LayerInputs)
    )


@contextmanager
def tables_replaced(model: TransformerLensModel) -> Iterator[None]:
    """A block inside which hooks on cos and sin act on the tables that Hugging Face's attention modules are given."""
    with ExitStack() as undo:
        for layer, points in hooked_points(model, *TABLES).items():
            module = attention_module(model, layer)
            undo.callback(module.register_forward_pre_hook(_replacing(points), with_kwargs=True).remove)
        yield


def _hooks_on(point: Any) -> int:
    return sum(len(getattr(point, kind)) for kind in HOOKS)


def _replacing(points: list[Any]) -> Callable[..., Any]:
    """A hook on an attention module that lets hook points edit the cos and sin which it is called with."""

    def replace(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = signature(module.forward).bind(*args, **kwargs)
        tables = bound.arguments["position_embeddings"]
        bound.arguments["position_embeddings"] = tuple(
            point(table) for point, table in zip(points, tables, strict=True)
        )
        return bound.args, bound.kwargs

    return replace
