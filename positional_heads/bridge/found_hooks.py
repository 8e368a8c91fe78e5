"""Find where somebody else's hooks act on a bridge, or on Hugging Face's modules below it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

from positional_heads.bridge.model import TransformerLensModel

FORWARD = ("_forward_hooks", "_forward_pre_hooks")
HOOKS = (*FORWARD, "_backward_hooks", "_backward_pre_hooks")
ALL_MODULES = "all modules"
WRAPPED = "_original_component"
HARMLESS = ("positional_heads", "transformers", "accelerate")
"""Packages whose hooks on Hugging Face's modules act alike in both runs: on positions, devices and returned outputs."""


class FoundHooks(NamedTuple):
    """A module on which somebody else acts.

    Attributes:
        module: The module.
        replaced: Whether its forward method is replaced.
        hooks: Hooks on it that are neither the bridge's own nor harmless, by kind.
    """

    module: nn.Module
    replaced: bool
    hooks: dict[str, list[Callable[..., Any]]]


def global_hooks(*kinds: str) -> bool:
    """Whether hooks of these kinds are active on all modules."""
    return any(bool(getattr(nn.modules.module, f"_global{kind}", None)) for kind in kinds)


def found_hooks(model: TransformerLensModel) -> Iterator[FoundHooks]:
    """Modules of a bridge, and Hugging Face's own, which a bridge may pass by, with hooks or a forward of others."""
    own = {id(module): module for module in modules_below(model.original_model, wrapped=False)}
    for module in (own | {id(module): module for module in modules_below(model, wrapped=True)}).values():
        kept, within = vars(module), id(module) in own
        if "forward" not in kept and not any(map(kept.get, HOOKS)):
            continue  # as most of them, of which a bridge has many
        replaced = "forward" in kept and not (within and "_hf_hook" in kept)  # accelerate's only moves tensors
        usual = _is_harmless if within else is_bridges
        hooks = {kind: [hook for hook in (kept.get(kind) or {}).values() if not usual(hook)] for kind in HOOKS}
        if replaced or any(hooks.values()):
            yield FoundHooks(module, replaced, hooks)


def module_name(model: TransformerLensModel, module: nn.Module) -> str:
    """The shortest name of a hook point, or of another module of a bridge."""
    points = [name for name, point in model.hook_dict.items() if point is module]
    names = points or [name for name, other in model.named_modules(remove_duplicate=False) if other is module]
    return min(names, key=len, default="") or type(module).__name__


def is_bridges(hook: Callable[..., Any]) -> bool:
    """Whether a bridge put this hook on its wrappers itself, to fire hook points, which change nothing without hooks.

    A hook point's own hooks are wrapped in a function that is named after the hook.
    """
    home = str(getattr(hook, "__module__", ""))
    return home.startswith("transformer_lens.model_bridge") or "_wire_symbolic_hooks" in getattr(hook, "__name__", "")


def _is_harmless(hook: Callable[..., Any]) -> bool:
    return str(getattr(hook, "__module__", "")).partition(".")[0] in HARMLESS


def modules_below(root: Any, *, wrapped: bool) -> Iterator[nn.Module]:
    """A module and all below it, each once: as they are wrapped, or Hugging Face's own alone.

    Not by `modules`, whose recursion takes five times as long on the many modules of a bridge.
    """
    seen: set[int] = set()
    pending = [root]
    while pending:
        module = pending.pop()
        module = module if wrapped else original(module)
        if id(module) not in seen:
            seen.add(id(module))
            pending += [child for child in module._modules.values() if child is not None]
            yield module


def original(module: nn.Module) -> nn.Module:
    """The module itself, without wrappers around it."""
    while isinstance(inner := module._modules.get(WRAPPED), nn.Module):
        module = inner
    return module
