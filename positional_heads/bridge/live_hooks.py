"""Make `hook_rot_q` and `hook_rot_k` fire, editable, on architectures where they exist but never fire.

GPT-NeoX, Phi-3, Falcon, GPT-J and CodeGen rotate in methods that bypass these hooks. The patches use private methods of
TransformerLens, so they are applied to the instances of one model only, tested there, and removed afterwards.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError, hook_name
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.core.arguments import checked

Patch = Callable[[Any, ExitStack], None]


@checked
@contextmanager
def live_rotary_hooks(model: TransformerLensModel) -> Iterator[TransformerLensModel]:
    """A block inside which `hook_rot_q` and `hook_rot_k` fire on every rotary layer, and edits reach the logits.

    Layers whose hooks fire anyway are left alone. Logits are unchanged unless a hook edits something. After the block,
    also after an exception, the model is as it was.

    Args:
        model: A TransformerBridge.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its hooks cannot be made to fire.
    """
    dead = [rotary.layer for rotary in resolve_layers(model).layers.values() if rotary.source != "hook"]
    probe = torch.arange(2, device=model.cfg.device)[None]
    with ExitStack() as undo:
        if dead:
            before = _logits(model, probe)
            for layer in dead:
                attention = model.blocks[layer].attn
                _patch_for(attention)(attention, undo)
            _check_patches(model, probe, dead, before)
        yield model


def _patch_for(attention: Any) -> Patch:
    component = attention.original_component
    if hasattr(attention, "_apply_rotary_pos_emb"):
        return _after_rotation
    if hasattr(component, "embed_positions") and hasattr(attention, "_reconstruct_attention"):
        return _instead_of_rotation
    if hasattr(component, "embed_positions") and hasattr(component, "_attn"):
        return _before_attention
    msg = (
        f"hook_rot_q of a {type(attention).__name__} around a {type(component).__name__} never fires, and there is no "
        "patch for it"
    )
    raise UnsupportedModelError(msg)


def _after_rotation(attention: Any, undo: ExitStack) -> None:
    """GPT-NeoX, Phi-3, Falcon: call the hooks after the bridge's own rotation."""
    rotate = attention._apply_rotary_pos_emb

    def rotate_then_hook(q: Any, k: Any, cos: Any, sin: Any) -> tuple[Any, Any]:
        q, k = rotate(q, k, cos, sin)
        return attention.hook_rot_q(q), attention.hook_rot_k(k)

    patch(attention, "_apply_rotary_pos_emb", rotate_then_hook, undo)


def _before_attention(attention: Any, undo: ExitStack) -> None:
    """GPT-J: call the hooks before Hugging Face's attention, which takes rotated queries and keys."""
    component = attention.original_component
    attend = component._attn

    def hook_then_attend(query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        # the keys can be the cache's own tensor: an edit in place would change every later run
        return attend(attention.hook_rot_q(query), attention.hook_rot_k(key.clone()), *args, **kwargs)

    patch(component, "_attn", hook_then_attend, undo)


def _instead_of_rotation(attention: Any, undo: ExitStack) -> None:
    """CodeGen rotates in the middle of a method: rotate before it, and call it without positions, so it does not."""
    from transformer_lens.model_bridge.generalized_components import codegen_attention

    reconstruct, reshape = attention._reconstruct_attention, attention._reshape_qkv_to_heads
    pending: list[Any] = []

    def reshape_rotate_hook(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        q, k, *rest = reshape(q, k, v, *args, **kwargs)
        component = attention.original_component
        sin, cos = component.embed_positions.to(q.device)[pending.pop()].chunk(2, dim=-1)
        width = component.rotary_dim or q.shape[-1]

        def rotate(x: torch.Tensor) -> torch.Tensor:
            turned = codegen_attention._apply_rotary_pos_emb(x[..., :width], sin, cos)
            return torch.cat([turned, x[..., width:]], dim=-1)

        return attention.hook_rot_q(rotate(q)), attention.hook_rot_k(rotate(k)), *rest

    def without_positions(q: Any, k: Any, v: Any, **kwargs: Any) -> Any:
        pending.append(kwargs.pop("position_ids"))
        return reconstruct(q, k, v, **kwargs)

    patch(attention, "_reshape_qkv_to_heads", reshape_rotate_hook, undo)
    patch(attention, "_reconstruct_attention", without_positions, undo)


def patch(module: Any, name: str, function: Callable[..., Any], undo: ExitStack) -> None:
    """Put a function in place of a method of one module, or of an earlier patch of it, until the stack is closed."""
    before = vars(module).get(name)
    object.__setattr__(module, name, function)
    if before is None:
        undo.callback(object.__delattr__, module, name)
    else:
        undo.callback(object.__setattr__, module, name, before)


def _check_patches(model: TransformerLensModel, probe: torch.Tensor, layers: list[int], before: torch.Tensor) -> None:
    fired: set[str] = set()

    def record(tensor: torch.Tensor, hook: Any) -> None:  # noqa: ARG001
        fired.add(hook.name)

    names = [hook_name(layer, name) for layer in layers for name in ("hook_rot_q", "hook_rot_k")]
    with model.hooks(fwd_hooks=[(name, record) for name in names]):
        after = _logits(model, probe)
    if not set(names) <= fired or not torch.equal(before, after):
        msg = "hook_rot_q cannot be made to fire without changing the logits in this version of TransformerLens"
        raise UnsupportedModelError(msg)


@torch.no_grad()
def _logits(model: TransformerLensModel, probe: torch.Tensor) -> torch.Tensor:
    return model(probe, return_type="logits").clone()
