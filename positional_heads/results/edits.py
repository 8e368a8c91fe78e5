"""What acted on a model while a result was made, by the result's provenance, in words."""

from collections.abc import Mapping
from typing import Any

from positional_heads.core.edit_words import edits_in_words, extension_in_words
from positional_heads.results.text import printable


def measured_under(provenance: Mapping[str, Any]) -> str | None:
    """What acted on a model while it was measured, an extension among it, as one phrase; None if nothing did.

    Args:
        provenance: Provenance of a result.
    """
    return " and ".join(filter(None, [edits_of(provenance), extension_of(provenance)])) or None


def under_notes(provenance: Mapping[str, Any]) -> list[str]:
    """That a plan was made from a profile of an edited model, as a sentence; empty if nothing acted on it.

    Args:
        provenance: Provenance of the profile.
    """
    under = measured_under(provenance)
    return [f"The profile was measured under {under}: this is a plan of the model so edited."] if under else []


def extension_of(provenance: Mapping[str, Any]) -> str | None:
    """The extension as a phrase that is safe to show, with what it moved if it moved pairs; None without one.

    Args:
        provenance: Provenance of a result.
    """
    extension = provenance.get("extension")
    return printable(extension_in_words(extension), newlines=False) if extension else None


def edits_of(provenance: Mapping[str, Any]) -> str | None:
    """Ablated heads and hooks of others as one phrase that is safe to show; None without any.

    Args:
        provenance: Provenance of a result.
    """
    words = edits_in_words((provenance.get("model") or {}).get("edits") or {})
    return None if words is None else printable(words, newlines=False)
