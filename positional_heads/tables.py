"""Results as plain text: the table of heads that the command line and the report print. Needs nothing heavy."""

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = {
    "name": "head",
    "rho": "rho",
    "low": "low 95 %",
    "high": "high 95 %",
    "null_mean": "null",
    "excess": "excess",
    "q_value": "q",
    "rho_curve": "rho of curve",
}


def ranked(table: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of heads that have a score, the highest rho first."""
    return sorted((row for row in table if row["rho"] is not None), key=lambda row: -row["rho"])


def heads_table(table: Sequence[Mapping[str, Any]], top: int, *, markdown: bool = False) -> str:
    """The heads with the highest rho, one a line; what is unknown is a dash.

    Args:
        table: Rows as `HeadScores.to_frame` makes them.
        top: How many heads.
        markdown: With the bars of a Markdown table.
    """
    columns = {key: title for key, title in COLUMNS.items() if table and key in table[0]}
    rows = [list(columns.values())]
    rows += [[_cell(row[key]) for key in columns] for row in ranked(table)[:top]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + " --- |" * len(columns), *lines[1:]])
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def summary_line(provenance: Mapping[str, Any]) -> str:
    """What was scored on what, in one line."""
    model, data, settings = provenance["model"], provenance["data"], provenance["settings"]
    return (
        f"{model['name']}: {model['layers']} layers of {model['heads']} heads, {data['sequences']} sequences of up to "
        f"{data['longest']} tokens, {settings['null_repeats']} shuffles, seed {settings['seed']}"
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.3f}"
