"""Run Hugging Face's own model under a bridge: its modules without the bridge's wrappers, at the cost of a plain pass.

A bridge puts a wrapper with hooks around every module, and computes attention itself, with all scores. For the length
of a block the modules are put back in their own places, and attention goes through transformers' attention interface
to a function of the caller's, which sees the rotated query and key. What the wrappers add is left out, and modules run
that a bridge may pass by: so nobody else's hooks may be on either, and `plain_run_refusal` says where they are. An
active extension acts in plain runs, too: on cos and sin, or as the attention.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from inspect import signature
from typing import Any

from torch import nn

from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.attention_interface import Attend, attention_module, scaled_dot_product, served
from positional_heads.bridge.found_hooks import (
    ALL_MODULES,
    HOOKS,
    found_hooks,
    global_hooks,
    module_name,
    original,
)
from positional_heads.bridge.model import SCORES, TransformerLensModel, layers_with_attention
from positional_heads.bridge.recording import RECORDED
from positional_heads.bridge.replayed_hooks import (
    HookKind,
    all_are,
    hooked_points,
    looks_on,
    tables_refusal,
    tables_replaced,
)


@contextmanager
def plain_model(model: TransformerLensModel, attend: Attend | None = None) -> Iterator[Any]:
    """A block inside which the model under a bridge is Hugging Face's own again; the bridge's own tree stays as it is.

    Runs of the bridge inside the block run it, too, with no hook of a wrapper: ask `plain_run_refusal` before.

    Args:
        model: A TransformerBridge.
        attend: Attention of every layer that uses transformers' attention interface: called as
            `attend(module, query, key, value, attention_mask, **settings)`, with rotated query [batch head pos d_head]
            and key [batch kv_head pos d_head], and returns its output [batch pos head d_head] and None. That of
            `plain_attention` when None.

    Yields:
        Hugging Face's model.
    """
    modules = [attention_module(model, layer) for layer in layers_with_attention(model)]
    with ExitStack() as undo:
        extension = active_extension(model)
        if extension is not None and not extension.rewrites_scores:
            undo.enter_context(tables_replaced(model))
        undo.enter_context(unwrapped_model(model))
        undo.enter_context(
            served([module for module in modules if module is not None], attend or plain_attention(model))
        )
        yield model.original_model


@contextmanager
def unwrapped_model(model: TransformerLensModel) -> Iterator[Any]:
    """A block inside which the model under a bridge consists of Hugging Face's own modules; yields it."""
    with ExitStack() as undo:
        _unwrap(model.original_model, undo, set())
        yield model.original_model


def plain_attention(model: TransformerLensModel) -> Attend:
    """Attention of plain runs: by PyTorch's own kernels, or by an extension that rewrites scores."""
    extension = active_extension(model)
    return extension.attend if extension is not None and extension.rewrites_scores else scaled_dot_product


def without_logits(model: TransformerLensModel) -> dict[str, Any]:
    """Arguments of a run that compute the logits of the last token only, where the model can leave out the others."""
    return {"logits_to_keep": 1} if "logits_to_keep" in signature(type(model.original_model).forward).parameters else {}


def plain_run_refusal(model: TransformerLensModel, replayed: Mapping[str, HookKind] | None = None) -> str | None:
    """Why a plain run would not compute what the bridge computes now; None if nothing is known to be in the way.

    That it does compute the same is for the caller to prove, on a probe and on each run.

    Args:
        model: A TransformerBridge.
        replayed: The kind of hooks that the caller takes care of, by the name of the attention's hook point.
    """
    if model.training or model.original_model.training:
        return "the model is in training mode"
    if getattr(model, "_weights_processed", False):
        return "its weights are processed (compatibility mode)"
    for layer in layers_with_attention(model):
        module = attention_module(model, layer)
        if module is None:
            return f"attention of layer {layer} does not use transformers' attention interface"
        if getattr(module, "attn_logit_softcapping", None) is not None or getattr(module, "sinks", None) is not None:
            return f"attention of layer {layer} has a soft-cap or a sink, which PyTorch's kernels do not have"
    extension, kinds = active_extension(model), dict(replayed or {})
    if extension is None:
        return _hook_refusal(model, kinds)
    for name in (*RECORDED, SCORES):
        kinds[name] = partial(_is_either, extension.owns, kinds.get(name))
    return _hook_refusal(model, kinds) or tables_refusal(model)


def _is_either(owns: HookKind, kind: HookKind | None, hook: Any) -> bool:
    return owns(hook) or (kind is not None and kind(hook))


def _hook_refusal(model: TransformerLensModel, replayed: Mapping[str, HookKind]) -> str | None:
    """Hooks of others on modules that a plain run passes by, and on Hugging Face's own, which a bridge may pass by."""
    if global_hooks(*HOOKS):
        return f"hooks on {ALL_MODULES} are active"
    allowed = {
        id(point)
        for name, kind in replayed.items()
        for (point,) in hooked_points(model, name).values()
        if all_are(point, kind)
    }
    for found in found_hooks(model):
        if found.replaced:
            return f"the forward method of {module_name(model, found.module)} is replaced"
        if not (id(found.module) in allowed or looks_on(found.module)):
            return f"a hook on {module_name(model, found.module)} is active"
    return None


def _unwrap(parent: nn.Module, undo: ExitStack, seen: set[int]) -> None:
    """Put the originals of all modules below this one in their places until the stack is closed."""
    if id(parent) in seen:
        return
    seen.add(id(parent))
    for name, child in list(parent._modules.items()):
        if child is None:
            continue
        own = original(child)
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            own = copy(child)  # the bridge uses the container, too: its own stays as it is
            own.__dict__["_modules"] = dict(child._modules)
        if own is not child:
            undo.callback(parent._modules.__setitem__, name, child)
            parent._modules[name] = own
        _unwrap(own, undo, seen)
