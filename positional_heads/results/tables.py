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
    "saturation": "saturated",
}
KINDS = ("top", "random", "lowest", "retrieval")


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
    return _aligned(heads_rows(table, top), markdown)


def heads_rows(table: Sequence[Mapping[str, Any]], top: int) -> list[list[str]]:
    """The cells of `heads_table`, the titles first."""
    columns = {key: title for key, title in COLUMNS.items() if table and key in table[0]}
    return [list(columns.values()), *([_cell(row[key]) for key in columns] for row in ranked(table)[:top])]


def study_table(
    effects: Sequence[Mapping[str, Any]], contrasts: Sequence[Mapping[str, Any]], *, markdown: bool = False
) -> str:
    """An ablation study, one line for every reach and number of heads.

    Args:
        effects: Rows as `AblationStudy.effects` makes them.
        contrasts: Rows as `AblationStudy.contrasts` makes them.
        markdown: With the bars of a Markdown table.
    """
    return _aligned(study_rows(effects, contrasts), markdown)


def study_rows(effects: Sequence[Mapping[str, Any]], contrasts: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of `study_table`, the titles first."""
    found = {(row["reach"], row["k"], row["kind"]): row["effect"] for row in effects}
    rows = [["range", "heads", *KINDS, "top - random", "low 95 %", "high 95 %", "p", "random sets"]]
    for row in contrasts:
        kinds = [found.get((row["reach"], row["k"], kind)) for kind in KINDS[1:]]
        numbers = [row["top"], *kinds, row["difference"], row["low"], row["high"], row.get("p_value")]
        rows.append([row["reach"], str(row["k"]), *map(_cell, numbers), str(row["random_sets"])])
    return rows


def study_line(provenance: Mapping[str, Any], rows: int, sets: int) -> str:
    """What was ablated for which task, in one line."""
    model, task, ablation = provenance["model"], provenance["task"], provenance["ablation"]
    distance = "" if ablation["distance"] is None else f" at distance {ablation['distance']}"
    return (
        f"{model['name']}: {task['name']}, {rows} answers under each of {sets} sets of heads, mode "
        f"{ablation['mode']}{distance}, heads ranked by {provenance['scores']['rank_by']}"
    )


def extrapolation_table(table: Sequence[Mapping[str, Any]], *, markdown: bool = False) -> str:
    """An extrapolation study, one line for every method and length.

    Args:
        table: Rows as `ExtrapolationStudy.to_frame` makes them.
        markdown: With the bars of a Markdown table.
    """
    return _aligned(extrapolation_rows(table), markdown)


def extrapolation_rows(table: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of `extrapolation_table`, the titles first."""
    columns = [key for key in table[0] if key not in {"method", "length"}]
    rows = [["method", "length", *(key.replace("_", " ") for key in columns)]]
    rows += [[row["method"], str(row["length"]), *(_cell(row[key]) for key in columns)] for row in table]
    return rows


def extrapolation_line(provenance: Mapping[str, Any], training_length: int, heads: Sequence[str]) -> str:
    """What was extended and measured, in one line."""
    return (
        f"{provenance['model']['name']}, trained on {training_length} tokens: {provenance['task']['name']} beyond "
        f"them, allocation of {', '.join(heads)} on {provenance['data']['sequences']} sequences"
    )


def _aligned(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def summary_line(provenance: Mapping[str, Any]) -> str:
    """What was scored on what, in one line."""
    model, data, settings = provenance["model"], provenance["data"], provenance["settings"]
    pairs = "all" if settings.get("pairs", "all") == "all" else f"{settings['pairs']} sampled"
    return (
        f"{model['name']}: {model['layers']} layers of {model['heads']} heads, {data['sequences']} sequences of up to "
        f"{data['longest']} tokens, {pairs} pairs, {settings['null_repeats']} shuffles, seed {settings['seed']}"
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.3f}"
