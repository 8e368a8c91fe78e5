"""Names that say what was run and not where: the last part of a path, and texts without local folders."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from positional_heads.results.text import printable

_PATH = re.compile(r"^(?:[/~.\\]|[A-Za-z]:[/\\])|[\\]|/.*/")
"""A name that begins like a path, or has more folders than a model's owner."""
LONGEST = 80


def short_name(name: object) -> str:
    """A readable name: of a path the last part, in one line of at most 80 characters."""
    text = str(name)
    if _PATH.search(text):
        text = re.split(r"[/\\]", text.rstrip("/\\"))[-1] or text
    shown = printable(text, newlines=False)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def without_paths(text: str, provenance: Mapping[str, Any], others: Iterable[str] = ()) -> str:
    """A sentence in which the models and texts of a result, and others, have short names."""
    for name in sorted({*_named(provenance), *others}, key=len, reverse=True):
        for written in (name, printable(name, newlines=False)):
            text = text.replace(written, short_name(name)) if short_name(name) != written else text
    return printable(text, newlines=False)


def _named(provenance: Mapping[str, Any]) -> Iterator[str]:
    """Names of models and texts, of both sides where two results were compared."""
    for key, value in provenance.items():
        if key in {"model", "a", "b", "results", "data", "task"} or isinstance(value, Mapping):
            inner = value if isinstance(value, Mapping) else {}
            if isinstance(name := inner.get("name"), str):
                yield name
            yield from (text for text in inner.get("texts") or [] if isinstance(text, str))
            yield from _named(inner)
        elif key == "differing" and isinstance(value, list):
            for one in value:
                yield from (one[side] for side in "ab" if isinstance(one, Mapping) and isinstance(one.get(side), str))
