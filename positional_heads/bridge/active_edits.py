"""What is done to a model while it runs, besides an extension: our own ablations, and hooks of others.

Ablations are known by what they do, so they are part of a run's identity. What a user's hook does cannot be known: it
is named in the provenance of a result, and refused where a checkpoint would have to tell two runs apart.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.found_hooks import (
    ALL_MODULES,
    FORWARD,
    FoundHooks,
    found_hooks,
    global_hooks,
    is_bridges,
    module_name,
)
from positional_heads.bridge.model import PATTERN, TransformerLensModel, UnsupportedModelError, hook_name
from positional_heads.core.edit_words import edits_in_words, listed
from positional_heads.core.heads import Head

LAYER = re.compile(r"blocks\.(\d+)\.")
NAMED = 4
"""Hooks that a message names at most."""


def model_edits(model: TransformerLensModel) -> dict[str, Any]:
    """What changes the runs of a model now, as JSON; empty if nothing does but an extension.

    `ablated` has one entry for each layer and ablation, in the order in which they act: mode, heads, and all that the
    mode depends on. `hooks` names the modules on which hooks act that are not ours, or whose forward is replaced; hooks
    of backward passes change no run.
    """
    ablated: dict[int, list[dict[str, Any]]] = {}
    unknown = [ALL_MODULES] if global_hooks(*FORWARD) else []
    for found in found_hooks(model):
        edits = _known_edits(model, found)
        if edits == []:
            continue
        name = module_name(model, found.module)
        layer = LAYER.match(name)
        if edits is None or layer is None:
            unknown.append(name)
            continue
        of_layer = ablated.setdefault(int(layer[1]), [])
        for edit in edits:
            named = {**edit, "heads": [str(Head(int(layer[1]), head)) for head in edit["heads"]]}
            of_layer += [named] if named not in of_layer else []  # one ablation may need several hooks
    both: dict[str, list[Any]] = {
        "ablated": [edit for layer in sorted(ablated) for edit in ablated[layer]],
        "hooks": sorted({*unknown}),
    }
    return {name: found for name, found in both.items() if found}


def refuse_unknown_edits(edits: Mapping[str, Any]) -> None:
    """Refuse a checkpoint for a run under hooks of others.

    Args:
        edits: What `model_edits` returned.

    Raises:
        ValueError: If there are any.
    """
    if hooks := edits.get("hooks"):
        msg = (
            f"hooks act on {listed(hooks, NAMED)}, and a checkpoint cannot know what they change: a run "
            "without them would resume with their numbers. Remove the hooks (model.reset_hooks() removes those of hook "
            "points), or run without a checkpoint"
        )
        raise ValueError(msg)


@contextmanager
def without_ablations(model: TransformerLensModel) -> Iterator[None]:
    """A block in which our own ablations do nothing, for probes of the rotation."""
    with ExitStack() as undo:
        for point in [point for point in model.hook_dict.values() if point.fwd_hooks]:
            undo.callback(point._forward_hooks.update, dict(point._forward_hooks))  # in their order, into nothing
            undo.callback(point._forward_hooks.clear)
            for handle in point.fwd_hooks:
                if _edit(handle.user_hook):
                    point._forward_hooks.pop(handle.hook.id, None)
        yield


def refuse_edited_pattern(model: TransformerLensModel, layers: Sequence[int]) -> None:
    """Refuse layers with hooks of others on the attention pattern, where it is computed from scores.

    Raises:
        UnsupportedModelError: If there are any.
    """
    points = model.hook_dict
    for name in [hook_name(layer, PATTERN) for layer in layers]:
        hooks = [hook for kind in FORWARD for hook in vars(points[name])[kind].values()] if name in points else []
        if not all(map(is_bridges, hooks)):
            msg = (
                f"a hook acts on {name}, after the softmax: attention is computed from queries and keys here, which "
                "misses what it changes. Remove it (model.reset_hooks()), or leave out its layer (layers=)"
            )
            raise UnsupportedModelError(msg)


@contextmanager
def edits_named(model: TransformerLensModel) -> Iterator[None]:
    """A block in which an error about what a model computes says what acts on the model, which may be its cause."""
    try:
        yield
    except UnsupportedModelError as error:
        words = edits_in_words(model_edits(model))
        if words is None or words in str(error):
            raise
        msg = f"{error}. It is run under {words}, which may be the reason: remove them, or leave their block, first"
        raise UnsupportedModelError(msg) from error


def _known_edits(model: TransformerLensModel, found: FoundHooks) -> list[Mapping[str, Any]] | None:
    """What our own hooks on a module do, nothing for those that only read; None if others act on it, too."""
    handles = getattr(found.module, "fwd_hooks", [])
    acting = sum(len(found.hooks[kind]) for kind in FORWARD)
    replaced = found.replaced and not is_bridges(found.module.forward)
    if replaced or acting > len(handles):
        return None
    extension = active_extension(model)
    edits: list[Mapping[str, Any]] = []
    for hook in [handle.user_hook for handle in handles]:
        if is_bridges(hook) or (extension is not None and extension.owns(hook)):
            continue
        edit = _edit(hook)
        if edit is None:
            return None
        edits += [edit] if edit else []
    return edits


def _edit(hook: Callable[..., Any]) -> Mapping[str, Any] | None:
    """What a hook of ours does; empty if it only reads; None if it is not ours."""
    owner = getattr(hook, "__self__", hook)
    home = type(owner).__module__.partition(".")[0]
    return getattr(owner, "edit", None) if home == __name__.partition(".")[0] else None
