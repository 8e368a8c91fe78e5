"""What acted on a model while a result was made, by the result's provenance, in words."""

from collections.abc import Mapping
from typing import Any

from positional_heads.core.edit_words import edits_in_words
from positional_heads.results.text import printable


def measured_under(provenance: Mapping[str, Any]) -> str | None:
    """What acted on a model while it was measured, an extension among it, as one phrase; None if nothing did.

    Args:
        provenance: Provenance of a result.
    """
    method = (provenance.get("extension") or {}).get("method")
    extended = None if method is None else f"the extension {printable(str(method), newlines=False)}"
    return " and ".join(filter(None, [edits_of(provenance), extended])) or None


def under_notes(provenance: Mapping[str, Any]) -> list[str]:
    """That a plan was made from a profile of an edited model, as a sentence; empty if nothing acted on it.

    Args:
        provenance: Provenance of the profile.
    """
    under = measured_under(provenance)
    return [f"The profile was measured under {under}: this is a plan of the model so edited."] if under else []


def edits_of(provenance: Mapping[str, Any]) -> str | None:
    """Ablated heads and hooks of others as one phrase that is safe to show; None without any.

    Args:
        provenance: Provenance of a result.
    """
    words = edits_in_words((provenance.get("model") or {}).get("edits") or {})
    return None if words is None else printable(words, newlines=False)
