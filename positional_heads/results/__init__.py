"""Frozen records: numbers with labels, tables, verdicts and files. Knows no model."""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """The files of other tools, loaded when first asked for: `ph.formats`."""
    if name != "formats":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return import_module("positional_heads.results.formats")
