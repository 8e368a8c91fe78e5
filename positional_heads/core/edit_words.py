"""What acts on a model besides an extension, in words, from its description as JSON (`bridge.active_edits`)."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

LISTED = 8
"""Heads, or places of hooks, that a phrase lists at most."""


def edits_in_words(edits: Mapping[str, Any]) -> str | None:
    """Ablated heads and hooks of others as one phrase, "far ablation of L0H1 and hooks on ..."; None without any.

    Args:
        edits: What `model_edits` returned.
    """
    by_mode: dict[str, list[str]] = defaultdict(list)
    for one in edits.get("ablated", []):
        by_mode[str(one["mode"])] += one["heads"]
    phrases = [f"{mode} ablation of {listed(heads)}" for mode, heads in by_mode.items()]
    phrases += [f"hooks on {listed(edits['hooks'])}"] if edits.get("hooks") else []
    return " and ".join(phrases) or None


def listed(names: list[str], most: int = LISTED) -> str:
    """The first names, and how many more there are."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
