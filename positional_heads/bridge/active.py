"""Which extension is at work on a model now? Asked by whatever reads or proves its scores."""

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from positional_heads.bridge.rope_scaling.extended_rope import Extension

_ACTIVE: "weakref.WeakKeyDictionary[Any, Extension]" = weakref.WeakKeyDictionary()


def active_extension(model: Any) -> "Extension | None":
    """The extension whose block this model is in, or None."""
    return _ACTIVE.get(model)


def set_active(model: Any, extension: "Extension") -> None:
    """Say that an extension is at work."""
    _ACTIVE[model] = extension


def clear_active(model: Any) -> None:
    """Say that none is."""
    _ACTIVE.pop(model, None)
