"""Plain tables of a profile: one row per head, and one per head and rotary pair, as CSV and as JSON."""

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positional_heads.core.arguments import checked
from positional_heads.core.whole_files import write_atomically
from positional_heads.results.files import ResultFileError
from positional_heads.results.formats.foreign_files import existing_file, read_json, refuse_other_kind
from positional_heads.results.head_profile import HeadProfile

if TYPE_CHECKING:
    import pandas as pd

KIND = "a table of heads"
FIRST = ["name", "layer", "head"]
"""The first columns of both tables."""


@checked
def write_tables(profile: HeadProfile, folder: str | Path) -> list[Path]:
    """Write heads.csv, heads.json, pairs.csv and pairs.json, whose columns are those of `to_frame` and `pair_frame`.

    CSV is that of RFC 4180: commas, quotes where needed, lines that end in CR LF, a header. JSON is a list of rows.
    Numbers have all digits that they need to be read back as they were. What is not known is empty in CSV and null in
    JSON; an infinite wavelength is "inf" in CSV, and null in JSON, which has no such number (its frequency is 0).

    Args:
        profile: A profile.
        folder: Where the files go; made if missing.

    Returns:
        The files written.

    Raises:
        ResultFileError: If other files have these names.
    """
    tables = {"heads": profile.to_frame(), "pairs": profile.pair_frame()}
    files = {Path(folder) / f"{name}.{kind}": frame for name, frame in tables.items() for kind in ("csv", "json")}
    for file in files:
        refuse_other_kind(file, KIND, _refuse_other_table)
    for file, frame in files.items():
        write_atomically(file, _csv(frame) if file.suffix == ".csv" else _json(frame))
    return list(files)


def _csv(frame: "pd.DataFrame") -> str:
    return str(frame.to_csv(index=False, lineterminator="\r\n"))


def _json(frame: "pd.DataFrame") -> str:
    rows = [{str(name): _plain(value) for name, value in row.items()} for row in frame.to_dict(orient="records")]
    return json.dumps(rows, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    value = getattr(value, "item", lambda: value)()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_other_table(file: Path) -> None:
    """Refuse a file that has not the first columns of our tables."""
    if file.suffix == ".json":
        rows = read_json(file, KIND)
        found = list(rows[0])[:3] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else None
    else:
        with existing_file(file, KIND).open(encoding="utf-8", newline="") as stream:
            try:
                found = next(csv.reader(stream), [])[:3]
            except csv.Error:  # such as a field that is too long
                found = None
    if found != FIRST:
        msg = f"{file}: is not {KIND}"
        raise ResultFileError(msg)
