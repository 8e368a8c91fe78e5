"""What did each layer's attention hooks see? One forward pass, handed over layer by layer, nothing kept.

Hooks run in the order in which they were added, so whoever records last sees what others have edited.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.model import SCORES, TransformerLensModel, hook_name
from positional_heads.bridge.run_lengths import run_lengths

Record = dict[str, Tensor]
"""Activations of one layer by hook name; what did not fire is missing."""

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
    """Hooks that gather each layer's record and pass it on when its attention scores fire, the last of them.

    What `visit` returns replaces the attention scores, unless it is None.
    """
    pending: dict[int, Record] = {layer: {} for layer in layers}

    def keep(layer: int, name: str) -> Callable[..., None]:
        def hook_fn(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001
            pending[layer][name] = tensor

        return hook_fn

    def hand_over(layer: int) -> Callable[..., Any]:
        def hook_fn(tensor: Tensor, hook: Any) -> Any:  # noqa: ARG001
            record, pending[layer] = pending[layer], {}
            return visit(layer, {**record, SCORES: tensor}) if record else None

        return hook_fn

    known = set(model.hook_dict)
    hooks: list[tuple[str, Callable[..., Any]]] = []
    for layer in layers:
        names = [name for name in RECORDED if hook_name(layer, name) in known]
        hooks += [(hook_name(layer, name), keep(layer, name)) for name in names]
        hooks.append((hook_name(layer, SCORES), hand_over(layer)))
    return hooks


@torch.no_grad()
def record_layers(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None,
    layers: Sequence[int],
    visit: Callable[[int, Record], None],
) -> None:
    """Run the model once and visit each layer's record while it is at hand; each row is rotated as if it were alone."""
    arguments = {} if attention_mask is None else {"attention_mask": attention_mask}
    lengths = [tokens.shape[1]] if attention_mask is None else attention_mask.sum(-1).tolist()
    with (
        run_lengths(model, lengths, attention_mask),
        model.hooks(fwd_hooks=recording_hooks(model, layers, visit)),
    ):
        model(tokens, return_type=None, **arguments)
