"""Record what each layer's attention hooks see in one forward pass, layer by layer; nothing is kept.

Hooks run in the order in which they were added, so a recording sees the edits of hooks that were added before it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.model import SCORES, Record, TransformerLensModel, hook_name
from positional_heads.bridge.run_lengths import run_lengths

RECORDED = (
    "hook_q",
    "hook_k",
    "hook_q_normed",
    "hook_k_normed",
    "hook_cos",
    "hook_sin",
    "hook_rot_q",
    "hook_rot_k",
)


def recording_hooks(
    model: TransformerLensModel, layers: Sequence[int], visit: Callable[[int, Record], Any]
) -> list[tuple[str, Callable[..., Any]]]:
    """Hooks that collect each layer's record, and visit it when the attention scores fire, the last of its hooks.

    The return value of `visit` replaces the attention scores, unless it is None.
    """
    pending: dict[int, Record] = {layer: {} for layer in layers}

    def store(layer: int, name: str) -> Callable[..., None]:
        def hook_fn(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001
            pending[layer][name] = tensor

        return hook_fn

    def finish(layer: int) -> Callable[..., Any]:
        def hook_fn(tensor: Tensor, hook: Any) -> Any:  # noqa: ARG001
            record, pending[layer] = pending[layer], {}
            return visit(layer, {**record, SCORES: tensor}) if record else None

        return hook_fn

    existing = set(model.hook_dict)
    hooks: list[tuple[str, Callable[..., Any]]] = []
    for layer in layers:
        names = [name for name in RECORDED if hook_name(layer, name) in existing]
        hooks += [(hook_name(layer, name), store(layer, name)) for name in names]
        hooks.append((hook_name(layer, SCORES), finish(layer)))
    return hooks


@torch.no_grad()
def record_layers(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[int],
    visit: Callable[[int, Record], None],
) -> None:
    """Run the model once, without padding, and visit each layer's record."""
    with (
        run_lengths(model, [tokens.shape[1]]),
        model.hooks(fwd_hooks=recording_hooks(model, layers, visit)),
    ):
        model(tokens, return_type=None)
