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


def without_paths(record: Record) -> Record:
    """The same result, in which models, texts and compared runs have short names."""
    cleaned = local_names.without_paths(record)
    if isinstance(cleaned, Comparison):
        a, b = map(short_name, cleaned.names)
        return replace(cleaned, names=(a, b))
    return cleaned
