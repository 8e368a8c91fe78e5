"""Results as notebooks show them: a verdict, a table, and what was run, with every character of theirs made harmless.

Plain elements without style or script, so that they follow the notebook's own theme.
"""

import html
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from positional_heads.results.text import printable

if TYPE_CHECKING:
    import pandas as pd

ROWS = 10


def result_html(
    kind: str,
    line: str,
    verdict: str | None,
    frame: "pd.DataFrame",
    provenance: Mapping[str, Any] | None = None,
    rows: int = ROWS,
) -> str:
    """A result as HTML.

    Args:
        kind: Name of the record.
        line: What was done, in one line.
        verdict: What it shows, in words.
        frame: A table; its first rows are shown.
        provenance: What was run, in full; folded away.
        rows: Rows of the table to show.
    """
    parts = [f"<p><b>{text(kind)}</b> {text(line)}</p>"]
    if verdict is not None:
        parts.append(f"<p><b>Verdict.</b> {text(verdict)}</p>")
    if len(frame):
        parts.append(table_html(frame.head(rows)))
    if len(frame) > rows:
        parts.append(f"<p>The first {rows} of {len(frame)} rows.</p>")
    if provenance is not None:
        said = json.dumps(provenance, indent=1, default=str, ensure_ascii=False)
        parts.append(f"<details><summary>What was run</summary><pre>{text(said)}</pre></details>")
    return f"<div>{''.join(parts)}</div>"


def table_html(frame: "pd.DataFrame") -> str:
    """A table as HTML, numbers to three places, what is unknown as a dash."""
    shown = frame.rename(columns=lambda name: printable(name, newlines=False))
    for column in shown.select_dtypes(exclude="number"):
        shown[column] = [value if value is None else printable(value) for value in shown[column]]
    return str(shown.to_html(index=False, na_rep="-", float_format="{:.3f}".format, escape=True, border=0))


def text(value: object) -> str:
    """Text for an HTML page, escaped, control characters and lone surrogates made visible."""
    return html.escape(printable(value))
