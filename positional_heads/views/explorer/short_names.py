"""Names that say what was run and not where: in one printable line, and of a path the last part."""

from dataclasses import replace

from positional_heads.results.comparison import Comparison
from positional_heads.results.record import Record
from positional_heads.results.text import printable
from positional_heads.views.report import local_names

LONGEST = 80


def short_name(name: object) -> str:
    """A readable name: of a path the last part, in one line of at most 80 characters."""
    shown = printable(local_names.short_name(str(name)), newlines=False)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def text_names(record: Record) -> list[str]:
    """Short names of the texts of a result; empty where none is known."""
    names = (record.provenance.get("data") or {}).get("texts") or []
    return [*dict.fromkeys(short_name(name) for name in names if name)]


def compared_names(comparison: Comparison) -> tuple[str, str]:
    """What two compared results are called: by their texts where only these differ, or else as they were named."""
    sides = [comparison.provenance.get(side) or {} for side in ("a", "b")]
    weights = [(side.get("model") or {}).get("weights") for side in sides]
    texts: list[list[str]] = [(side.get("data") or {}).get("texts") or [] for side in sides]
    if all(texts) and texts[0] != texts[1] and weights[0] == weights[1]:
        a, b = (short_name(", ".join(map(short_name, one or ()))) for one in texts)
        if a != b:
            return a, b
    return short_name(comparison.names[0]), short_name(comparison.names[1])


def without_paths(record: Record) -> Record:
    """The same result, in which models, texts and compared runs have short names."""
    cleaned = local_names.without_paths(record)
    if isinstance(cleaned, Comparison):
        a, b = map(short_name, cleaned.names)
        return replace(cleaned, names=(a, b))
    return cleaned
