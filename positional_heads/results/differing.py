"""What differs between two scoring runs by their provenance: model, text and settings, each by its name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from positional_heads.results.edits import edits_of, extension_of
from positional_heads.results.tables import text_label
from positional_heads.results.text import printable

PRECISION_ONLY = {"pairs", "null_repeats", "null_pairs", "resamples", "bins", "seed", "control_keys"}
"""Settings that change how exactly rho or its null is measured; all others change what rho is."""
MODEL = (
    *("name", "weights", "dtype", "architecture", "revision", "compatibility_mode"),
    *("quantization", "adapter", "origin"),
)
COUNTS = {"sha256", "groups", "monotonous", "tokens", "texts", "drawn"}
"""Parts of the data that follow from others, or that no reader compares."""
_NAMES = {"model name": "model", "data longest": "length", "data sequences": "number of sequences"}
LONGEST_VALUE = 40


class Difference(NamedTuple):
    """One thing in which two runs differ.

    Attributes:
        name: What it is called, e.g. text, length, temperature.
        kind: model, text, setting or other.
        a: Its value in the first run, printable; None for a fingerprint or what was not recorded.
        b: Its value in the second run.
    """

    name: str
    kind: str
    a: str | None = None
    b: str | None = None

    def __str__(self) -> str:
        return self.name if self.a == self.b else f"{self.name} ({self.a} against {self.b})"


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Everything recorded in which two scoring runs differ.

    A setting that one of them does not know, because an earlier version wrote it, differs from any value that has an
    effect.

    Args:
        a: Provenance of the first result.
        b: Provenance of the second.
    """
    found: list[Difference] = []
    model, data, settings, versions = (
        (a.get(part) or {}, b.get(part) or {}) for part in ("model", "data", "settings", "versions")
    )
    found += _parts("model", model, "model", list(MODEL))
    if data[0].get("sha256") != data[1].get("sha256"):
        found.append(_texts(a, b))
    found += _parts("data", data, "text", sorted({*data[0], *data[1]} - COUNTS))
    found += _parts("", settings, "setting", sorted({*settings[0], *settings[1]}))
    if (a.get("extension") or None) != (b.get("extension") or None):
        found.append(_difference("extension", "setting", *(one.get("extension") for one in (a, b))))
    words = edits_of(a), edits_of(b)
    if model[0].get("edits") != model[1].get("edits"):
        found.append(Difference("ablations and hooks", "model", *(one or "none" for one in words)))
    found += _parts("version of", versions, "other", ["positional-heads"])
    found += _parts("", (a, b), "other", ["kernels"])
    return found


def _texts(a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
    """Other texts, or other sequences of the same ones."""
    names = text_label(a), text_label(b)
    if all(names) and names[0] == names[1]:
        return Difference(f"sequences of {names[0]}", "text")
    return Difference("text", "text", *map(_in_words, names)) if all(names) else Difference("text", "text")


def _parts(
    prefix: str, sides: tuple[Mapping[str, Any], Mapping[str, Any]], kind: str, keys: list[str]
) -> list[Difference]:
    a, b = sides
    changed = [key for key in keys if (a.get(key) or None) != (b.get(key) or None)]
    return [_difference(f"{prefix} {key}".strip(), kind, a.get(key), b.get(key)) for key in changed]


def _difference(name: str, kind: str, a: Any, b: Any) -> Difference:
    name = _NAMES.get(name, name.removeprefix("data "))
    if name == "model weights":  # a fingerprint says nothing
        return Difference(name, kind)
    if kind == "setting" and name == "extension":
        return Difference(name, kind, *(extension_of({name: one}) or "none" for one in (a, b)))
    return Difference(name, kind, _in_words(a), _in_words(b))


def _in_words(value: Any) -> str:
    words = f"{value:g}" if isinstance(value, float) else printable(value, newlines=False)
    return words if len(words) <= LONGEST_VALUE else f"{words[: LONGEST_VALUE - 3]}..."
