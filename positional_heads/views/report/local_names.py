"""Results without the folders of whoever made them: a page is to be sent, and its reader needs names, not paths.

Names of models, adapters and texts that are local paths become their last part wherever a result says them: titles,
pictures, verdicts, lines to reproduce it. Commands then say FOLDER in place of what came before.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from positional_heads.results.record import Record

NAMED = {"name", "adapter", "folder", "file", "texts", "a", "b", "model", "haystack"}
"""Keys of a provenance under which paths can be."""
LOCAL = "local"
"""Key of what is local of a model: its name, its adapter."""
FOLDER = "FOLDER"
"""What stands for a local folder in a command."""
_PATH = re.compile(r"^(?:/|~|\\|\.{1,2}[/\\]|[A-Za-z]:[/\\])[^<>\n]*$|^[^<>\n]*/[^<>\n]*/[^<>\n]*$")
"""A text that begins like a path, or has more folders than a hub name has owners."""
Anything = TypeVar("Anything", bound=Record)


def without_paths(record: Anything) -> Anything:
    """The same result, in which every local path is its last part.

    Args:
        record: Any result; it is not changed.
    """
    changed = {field.name: _cleaned(getattr(record, field.name), field.name) for field in fields(record)}  # type: ignore[arg-type]
    return replace(record, **{name: one for name, one in changed.items() if one is not getattr(record, name)})  # type: ignore[type-var]


def short_name(name: str) -> str:
    """The last part of a local path; any other name as it is. Names of several models are joined by "and"."""
    return " and ".join(
        re.split(r"[/\\]", one.rstrip("/\\"))[-1] if is_path(one) else one for one in name.split(" and ")
    )


def is_path(name: str) -> bool:
    """Whether a name is that of a local file or folder, not of the hub."""
    return _PATH.match(name) is not None


def in_folder(name: str, model: Mapping[str, Any], key: str = "name") -> str:
    """A name as a command takes it: one that was a local path stands in FOLDER.

    Args:
        name: The short name.
        model: The model's part of the provenance.
        key: What the name is of the model, "name" or "adapter".
    """
    return f"{FOLDER}/{name}" if key in model.get(LOCAL, ()) else name


def _cleaned(value: Any, key: str) -> Any:
    if isinstance(value, Record):
        return without_paths(value)
    if isinstance(value, str):
        return short_name(value) if key in NAMED else value
    if isinstance(value, list):
        return [_cleaned(one, key) for one in value] if value and isinstance(value[0], str | dict) else value
    if not isinstance(value, Mapping):
        return value
    cleaned = {name: _cleaned(one, str(name)) for name, one in value.items()}
    local = [name for name in ("name", "adapter") if isinstance(value.get(name), str) and is_path(value[name])]
    if key == "source" and isinstance(folder := value.get("folder"), str) and is_path(folder):
        cleaned["folder"] = f"{FOLDER}/{short_name(folder)}"
    return {**cleaned, LOCAL: local} if local and key == "model" else cleaned
