"""What acted on a model while a result was made, by the result's provenance, in words."""

from collections.abc import Mapping
from typing import Any

from positional_heads.core.edit_words import edits_in_words
from positional_heads.results.text import printable


def edits_of(provenance: Mapping[str, Any]) -> str | None:
    """Ablated heads and hooks of others as one phrase that is safe to show; None without any.

    Args:
        provenance: Provenance of a result.
    """
    words = edits_in_words((provenance.get("model") or {}).get("edits") or {})
    return None if words is None else printable(words, newlines=False)
