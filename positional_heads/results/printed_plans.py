"""Plans and their studies as tables that are short enough to read: equal layers in one line, budgets averaged."""

from collections.abc import Mapping, Sequence
from typing import Any

from positional_heads.core.number_ranges import number_ranges
from positional_heads.results.plan_words import ALL_BUDGETS, WINDOWS, plan_words, tried_edits
from positional_heads.results.tables import ROWS, ResultTable, model_label
from positional_heads.results.text import printable


def plan_table(contrasts: Sequence[Mapping[str, Any]], planned: str) -> ResultTable:
    """A plan study: one line for every measure, budget and range; with many, only the means over all budgets.

    Args:
        contrasts: Rows of `PlanStudy.contrasts`.
        planned: What the plans do, as in `PlanStudy`.
    """
    shown = contrasts
    if len(contrasts) > ROWS:
        shown = [row for row in contrasts if row["budget"] == ALL_BUDGETS][:ROWS]
    return ResultTable(list(contrasts[0]), shown, plan_words(planned).meanings)


def rows_left_out(contrasts: Sequence[Mapping[str, Any]], planned: str) -> list[str]:
    """Where the rows are that `plan_table` leaves out, as a sentence; empty if none."""
    shown = len(plan_table(contrasts, planned).lines)
    if shown == len(contrasts):
        return []
    return [f"These are {shown} of {len(contrasts)} rows, means over all budgets; contrasts.csv has each budget."]


def plans_line(content: Mapping[str, Any]) -> str:
    """Model, task and plans of a plan study, in one line.

    Args:
        content: Everything in its file that is not a tensor.
    """
    provenance, planned = content["provenance"], content.get("planned", WINDOWS)
    sets = {tuple(heads) for _, _, _, heads, _, _ in content["cells"]}
    return (
        f"{model_label(provenance)}: {printable(content['task'])}, {len(content['rows'])} answers under each of "
        f"{len(sets)} sets of {tried_edits(planned, provenance)}"
    )


def key_heads_table(table: Sequence[Mapping[str, Any]]) -> ResultTable:
    """A head plan: which key heads of which layers have a window, equal layers in one line.

    Args:
        table: Rows of `HeadPlan.to_frame`.
    """
    layers: dict[int, dict[str, list[int]]] = {}
    for row in table:
        own = layers.setdefault(row["layer"], {"see a window": [], "keep all keys": []})
        own["see a window" if row["windowed"] else "keep all keys"].append(row["key_head"])
    lines = {layer: {name: number_ranges(heads) or "-" for name, heads in own.items()} for layer, own in layers.items()}
    return _by_layers(lines, ["see a window", "keep all keys"])


def pairs_table(kept: Sequence[Sequence[str]]) -> ResultTable:
    """A pair plan: the pairs of each key head that keep their rotation, equal layers in one line.

    Args:
        kept: `PairPlan.digits`.
    """
    names = [f"pairs of K{head}" for head in range(max(map(len, kept), default=0))]
    lines = {
        layer: {**dict.fromkeys(names, "-"), **dict(zip(names, map(_pairs_that_rotate, heads), strict=False))}
        for layer, heads in enumerate(kept)
    }
    return _by_layers(lines, names)


def _pairs_that_rotate(digits: str) -> str:
    return number_ranges([pair for pair, digit in enumerate(digits) if digit == "1"]) or "none"


def _by_layers(lines: Mapping[int, Mapping[str, str]], names: Sequence[str]) -> ResultTable:
    """One line for all layers that have the same."""
    layers: dict[tuple[str, ...], list[int]] = {}
    for layer, line in lines.items():
        layers.setdefault(tuple(line[name] for name in names), []).append(layer)
    rows = [{"layers": number_ranges(same), **dict(zip(names, line, strict=True))} for line, same in layers.items()]
    return ResultTable(["layers", *names], rows)
