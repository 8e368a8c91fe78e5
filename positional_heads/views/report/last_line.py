"""What the files of every report folder share: the resolution of plots, and where the text says the numbers are."""

from positional_heads.results.record import Record

DPI = 110


def last_line(record: Record) -> str:
    """With which versions a record was made, and how to load it."""
    versions = ", ".join(f"{name} {number}" for name, number in record.provenance.get("versions", {}).items())
    made = f"Made with {versions}. " if versions else ""
    kind, file = type(record).__name__, record.saved_as.file_name
    return f'{made}Everything is in `{file}`: `positional_heads.{kind}.load("{file}")`.'
