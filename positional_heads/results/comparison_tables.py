"""The tables of comparisons: heads that change most, heads that beat their null in most results, agreement of ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

from positional_heads.results.tables import ResultTable
from positional_heads.results.text import printable

CHANGE_COLUMNS = (
    *("name", "rho_a", "rho_b", "change", "change_low", "change_high", "change_q"),
    *("excess_a", "excess_b", "excess_change", "excess_change_q", "beats", "stays_in"),
    *("curve_distance", "slow_share", "beyond_share"),
)
AGREEMENT_COLUMNS = ("measure", "correlation", "low", "high", "ceiling")
TOP_COLUMNS = ("k", "shared", "expected", "jaccard", "p_shared")
PAIR_SHARE_COLUMNS = ("pair", "wavelength_a", "wavelength_b", "share", "share_low", "share_high", "even", "level")
RANKED_BY = ("times", "times_stays", "lowest_rho")
"""What puts a head first where several results are side by side; without controls, none is known to stay."""
PAIR_COLUMNS = ("a", "b", "correlation_rho", "correlation_excess", *TOP_COLUMNS)


ORDER = "Heads with the largest change of rho and, of profiles, pairs with the largest share first; --top shows more."


def changes_table(table: Sequence[Mapping[str, Any]], top: int) -> ResultTable:
    """The heads whose rho changes most from one result to another.

    Args:
        table: Rows of `Comparison.to_frame`.
        top: How many heads.
    """
    scored = sorted((row for row in table if row["change"] is not None), key=lambda row: -abs(row["change"]))
    return ResultTable([name for name in CHANGE_COLUMNS if table and name in table[0]], scored[:top])


def stable_table(table: Sequence[Mapping[str, Any]], top: int) -> ResultTable:
    """The heads that beat their null in most results.

    Args:
        table: Rows of `Stability.to_frame`.
        top: How many heads.
    """
    ranked_by = [name for name in RANKED_BY if name in table[0]]
    scored = [row for row in table if row["lowest_rho"] is not None]
    scored.sort(key=lambda row: [-row[name] for name in ranked_by])
    columns = ["name", *ranked_by, "mean_rho", *(name for name in table[0] if name.startswith("rho on "))]
    return ResultTable(columns, scored[:top])


def comparison_line(content: Mapping[str, Any]) -> str:
    """Which two results were compared, in one line.

    Args:
        content: What a comparison's file holds beside its tensors.
    """
    a, b = (printable(name, newlines=False) for name in content["names"])
    model = printable(content["provenance"]["model"]["name"], newlines=False)
    how = "the same sequences" if content["paired"] else "other sequences"
    return f"{model}: {b} (b) against {a} (a), {len(content['table'])} heads, {how}"


def comparison_tables(content: Mapping[str, Any], top: int) -> list[ResultTable]:
    """The heads that change most, how far the ranks agree, how many top heads are shared, and where pairs changed.

    Args:
        content: What a comparison's file holds beside its tensors.
        top: How many heads.
    """
    agreement, shared = (ResultTable(AGREEMENT_COLUMNS, content["agreement"]), ResultTable(TOP_COLUMNS, content["top"]))
    pairs = sorted(content.get("pairs", []), key=lambda row: -(row["share"] or 0.0))
    changed = [ResultTable(PAIR_SHARE_COLUMNS, pairs[:top])] if pairs else []
    return [changes_table(content["table"], top), agreement, shared, *changed]


def stability_tables(content: Mapping[str, Any], top: int) -> list[ResultTable]:
    """The heads that beat their null in most results, and how alike two results are.

    Args:
        content: What the file of several results side by side holds beside its tensors.
        top: How many heads.
    """
    return [stable_table(content["table"], top), ResultTable(PAIR_COLUMNS, content["pairs"])]
