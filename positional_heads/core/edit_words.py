"""What acts on a model, in words, from its description as JSON (`bridge.active_edits`, `Extension.provenance`)."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

MANIPULATED = "manipulated_pairs"
"""The method of an extension that moves pairs."""
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


def extension_in_words(extension: Mapping[str, Any]) -> str:
    """An extension as a phrase, "the extension yarn", or what was moved, "pairs 3, 4 of L1H2 frozen".

    Args:
        extension: Its provenance.
    """
    if extension.get("method") != MANIPULATED:
        return f"the extension {extension.get('method')}"
    return " and ".join(map(_move_in_words, extension["moves"])) or "pairs moved back and forth"


def _move_in_words(move: Mapping[str, Any]) -> str:
    n, pairs = move.get("n"), _pairs(move.get("pairs") or [])
    done = {
        "freeze": f"{pairs} of {{}} frozen",
        "zero": f"{pairs} of {{}} left out",
        "scale": f"{pairs} of {{}} turned {move.get('factor')} times as fast",
        "remap": f"{pairs} of {{}} turned as {_pairs(move.get('to') or [])}",
        "drop_slowest": f"the {n} slowest pairs of {{}} frozen",
        "drop_fastest": f"the {n} fastest pairs of {{}} frozen",
        "swap_bands": f"the {n} fastest and the {n} slowest pairs of {{}} swapped",
    }
    return done[move["how"]].format(listed(move["heads"]))


def _pairs(pairs: list[int]) -> str:
    return f"{'pair' if len(pairs) == 1 else 'pairs'} {listed([str(pair) for pair in pairs])}"


def listed(names: list[str], most: int = LISTED) -> str:
    """The first names, and how many more there are."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
