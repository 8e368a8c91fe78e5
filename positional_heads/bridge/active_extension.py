"""The extension that is active on a model. `extended_rope` sets it; code that reads or proves scores asks for it.

`ActiveExtension` is all that the rest of `bridge/` needs of an extension, so that it need not import
`extended_rope`, which is built on all of it.
"""

import weakref
from collections.abc import Container
from typing import Any, Protocol, runtime_checkable

from positional_heads.bridge.attention_interface import Attend
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.rope_scaling.plain_rope import RopeTable
from positional_heads.bridge.rotary_layer import RotaryModel
from positional_heads.core.bands import Band
from positional_heads.core.edit_words import MANIPULATED


@runtime_checkable
class ActiveExtension(Protocol):
    """A length extension inside its block."""

    @property
    def name(self) -> str:
        """Name of its method."""

    @property
    def resolved(self) -> RotaryModel:
        """How the model rotates without it."""

    @property
    def chosen(self) -> Container[int]:
        """Layers that it extends."""

    @property
    def rewrites_scores(self) -> bool:
        """Whether attention scores are rewritten, rather than cos and sin."""

    @property
    def follows_length(self) -> bool:
        """Whether the rotation depends on the length of the run."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Method, settings and extended heads, as JSON."""

    def table(self, layer: int, length: int) -> RopeTable:
        """Frequencies of a layer in a run of so many tokens."""

    def bands(self, layer: int, length: int, device: Any = None, *, run_length: int | None = None) -> list[Band] | None:
        """Rotation of positions 0 to length - 1 by distance; None where cos and sin express it."""

    @property
    def far(self) -> int:
        """Distance in tokens from which on the last of its bands rotates."""

    @property
    def reach(self) -> int | None:
        """Tokens of the longest run that it can rotate; None for any."""

    @property
    def attend(self) -> Attend:
        """Attention of a plain run, where scores are rewritten."""

    def owns(self, hook: Any) -> bool:
        """Whether a hook is one of its own."""

    def set_run_lengths(self, lengths: list[int] | None) -> None:
        """Rotate each row as part of a run of so many tokens; None: as the passes imply."""


_ACTIVE: "weakref.WeakKeyDictionary[TransformerLensModel, ActiveExtension]" = weakref.WeakKeyDictionary()


def active_extension(model: TransformerLensModel) -> ActiveExtension | None:
    """The extension that is active on this model, or None."""
    return _ACTIVE.get(model)


def active_block(model: TransformerLensModel) -> str:
    """The name of the block in which the model's rotation is extended or moved."""
    extension = active_extension(model)
    return MANIPULATED if extension is not None and extension.name == MANIPULATED else "extended_rope"


def extension_provenance(model: TransformerLensModel) -> dict[str, Any]:
    """The extension that is active on this model, for provenance; nothing without one."""
    extension = active_extension(model)
    return {} if extension is None else {"extension": extension.provenance}


def active_bands(
    model: TransformerLensModel, layer: int, length: int, device: Any, run_length: int
) -> list[Band] | None:
    """How the active extension rotates a layer by distance; None where cos and sin say how it rotates.

    Args:
        model: A TransformerBridge.
        layer: Which layer.
        length: Tokens of the sequence.
        device: Where to compute it.
        run_length: Tokens of the whole run that it is part of.
    """
    extension = active_extension(model)
    return None if extension is None else extension.bands(layer, length, device, run_length=run_length)


def set_active(model: TransformerLensModel, extension: ActiveExtension) -> None:
    """Make an extension the active one."""
    _ACTIVE[model] = extension


def clear_active(model: TransformerLensModel) -> None:
    """Leave the model without an active extension."""
    _ACTIVE.pop(model, None)
