"""The tables of a head profile: its heads, those that look furthest first, and the heads of each name."""

from collections.abc import Mapping, Sequence
from typing import Any

from positional_heads.results.tables import FILE_MEANINGS, ResultTable, meanings, model_label, text_label, title

PROFILE_COLUMNS = (
    *("name", "names", "rho", "null_mean", "excess", "q_value", "reach", "distant_mass", "sink_mass"),
    *("previous_token", "induction", "copying", "retrieval"),
)
SHOWN_AS = {"names": "is", "reach": "head_reach", "retrieval": "retrieval_score"}
"""Columns whose names mean something else in the tables of studies, or that show all of what another says first."""
PAIR_MEANINGS = {
    "frequency": "radians per token",
    "wavelength": "tokens per turn",
    "query_norm": "mean length of the query in the pair",
    "key_norm": "that of the key",
    "band_norm": "their product",
    "query_center": "mean of the query before rotation, as a complex number",
    "key_center": "that of the key",
    "agreement": "share of the head's best-scored keys that are also the pair's",
    "contribution_a_b": "mean contribution to the score at distances a to b, in tokens",
}
"""What the columns of pairs.csv mean."""
UNITS = {
    **dict.fromkeys(("rho", "rho_curve"), "-1 to 1"),
    "excess": "rho minus null",
    **dict.fromkeys(("mean_distance", "reach"), "tokens"),
    **dict.fromkeys(
        ("distant_mass", "sink_mass", "current_token", "previous_token", "duplicate_token", "induction", "copying"),
        "share of attention",
    ),
    "semantic": "correlation",
    "positional": "relative change",
    "retrieval": "share of tokens copied",
    **dict.fromkeys(("massive_query", "massive_key"), "channels"),
    "kernel": "0 to 1",
}
"""Unit of each measure."""
INTERVALS = (
    "name_low and name_high: 95 % interval over sequences of a measure; name_groups: how many of them it rests on, "
    "where not all count for every head"
)
"""What the columns of intervals in profile.csv mean."""
ROW_COLUMNS = ("measure", "value", "low", "high", "rank", "of", "unit")
"""Columns of the table of one head."""
MEANINGS_OF_ROWS = {
    "low": "lower end of the 95 % interval over sequences",
    "high": "its upper end",
    "rank": "1 for the largest value",
    "of": "heads that have the measure",
}
NAMED = 10
"""Heads of a name that a line lists at most."""


def order_of(table: Sequence[Mapping[str, Any]]) -> str:
    """The measure that puts heads first: attention beyond the window, or reach where no text is longer than that.

    Reach alone would begin with sinks, of whose attention hardly any is left to have a distance.

    Args:
        table: Rows of `HeadProfile.to_frame`.
    """
    return "distant_mass" if any(row.get("distant_mass") is not None for row in table) else "reach"


def profile_table(table: Sequence[Mapping[str, Any]], top: int) -> ResultTable:
    """The heads that look furthest.

    Args:
        table: Rows of `HeadProfile.to_frame`.
        top: How many heads.
    """
    order = order_of(table)
    profiled = sorted((row for row in table if row[order] is not None), key=lambda row: -row[order])
    if table and "names" not in table[0]:  # of a version that knew the first name only
        profiled = [{**row, "names": row["is"]} for row in profiled]
    columns = [SHOWN_AS.get(name, name) for name in PROFILE_COLUMNS if profiled and name in profiled[0]]
    return ResultTable(columns, [{SHOWN_AS.get(name, name): row[name] for name in row} for row in profiled[:top]])


def head_rows(table: Sequence[Mapping[str, Any]], head: str) -> list[dict[str, Any]]:
    """Every measure that one head has, with its interval and its rank among the heads that have it, 1 for the largest.

    Args:
        table: Rows of `HeadProfile.to_frame`.
        head: Name of the head.

    Raises:
        ValueError: If there is no such head.
    """
    own = next((row for row in table if row["name"] == head), None)
    if own is None:
        msg = f"no head {head!r} in this profile: it has {table[0]['name']} to {table[-1]['name']}"
        raise ValueError(msg)
    rows = []
    for name in (column for column in own if column in UNITS and own[column] is not None):
        known = [row[name] for row in table if row[name] is not None]
        rank = 1 + sum(value > own[name] for value in known)
        cells = name, own[name], own.get(f"{name}_low"), own.get(f"{name}_high"), rank, len(known), UNITS[name]
        rows.append(dict(zip(ROW_COLUMNS, cells, strict=True)))
    return rows


def head_lines(table: Sequence[Mapping[str, Any]], head: str) -> list[object]:
    """What one head is: its names, the heads that share its keys, and every measure.

    Args:
        table: Rows of `HeadProfile.to_frame`.
        head: Name of the head.

    Raises:
        ValueError: If there is no such head.
    """
    rows = head_rows(table, head)
    own = next(row for row in table if row["name"] == head)
    if own["key_head"] < 0:
        return [f"{head} was not profiled."]
    key = own["layer"], own["key_head"]
    shared = [row["name"] for row in table if (row["layer"], row["key_head"]) == key and row is not own]
    readers = f", as {'does' if len(shared) == 1 else 'do'} {' and '.join(shared)}" if shared else " alone"
    return [
        f"{head}: {own.get('names', own['is'])}. It reads key head {key[1]} of its layer{readers}.",
        ResultTable(ROW_COLUMNS, rows, MEANINGS_OF_ROWS),
    ]


def measure_title(name: str) -> str:
    """The title of a measure."""
    return title(SHOWN_AS.get(name, name))


def order_in_words(table: Sequence[Mapping[str, Any]]) -> str:
    """How the table of heads is ordered.

    Args:
        table: Rows of `HeadProfile.to_frame`.
    """
    return f"The heads with the largest {measure_title(order_of(table))} first."


def named_lines(by_name: Mapping[str, Sequence[object]]) -> list[str]:
    """One line for each name that heads have, with the clearest of them.

    Args:
        by_name: Heads of each name, as `HeadProfile.by_name` or its file has them.
    """
    lines = []
    for name, heads in by_name.items():
        more = f" and {len(heads) - NAMED} more" if len(heads) > NAMED else ""
        lines.append(f"{name} ({len(heads)}): {', '.join(map(str, heads[:NAMED]))}{more}")
    return lines


def profile_line(provenance: Mapping[str, Any]) -> str:
    """What was profiled on what, in one line."""
    model, data, settings = provenance["model"], provenance["data"], provenance["settings"]
    text_names = f" of {named}" if (named := text_label(provenance)) else ""
    asked = provenance.get("retrieval")
    task = f", retrieval by {asked['answered']} examples of {asked['task']}" if isinstance(asked, Mapping) else ""
    return (
        f"{model_label(provenance)}: {model['layers']} layers of {model['heads']} heads, {data['sequences']} sequences "
        f"of up to {data['longest']} tokens{text_names}, a window of {settings['window']} tokens, {settings['sinks']} "
        f"sinks, {settings['null_repeats']} shuffles{task}, seed {settings['seed']}"
    )


def profile_file_legend(columns: Sequence[str]) -> str:
    """The meanings of the columns of profile.csv that tables do not show, in one line.

    Args:
        columns: The columns of the file.
    """
    further = [name for name in columns if name not in {*PROFILE_COLUMNS, *SHOWN_AS.values(), "p_value"}]
    lines = [f"{name}: {meaning}" for name, (_, meaning) in zip(_known(further), meanings(further), strict=True)]
    judged = [f"p_value: {FILE_MEANINGS['p_value']}"] if "p_value" in columns else []
    return "; ".join(["is: the first of a head's names", *lines, *judged, INTERVALS]) + "."


def _known(columns: Sequence[str]) -> list[str]:
    return [name for name in columns if meanings([name])]
