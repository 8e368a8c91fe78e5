"""What changed a head: effects of ablating it alone, and how it differs in another result."""

from typing import Any

import torch
from torch import Tensor

from positional_heads.core.heads import Head
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.comparison import Change, Comparison
from positional_heads.results.tables import title
from positional_heads.results.text import printable
from positional_heads.views.explorer.measures import Measure, measure, sentence
from positional_heads.views.explorer.numbers import numbers
from positional_heads.views.explorer.runs import Run
from positional_heads.views.explorer.short_names import compared_names

UNITS = {"log_prob": "nats per token", "loss": "nats per token", "exact": "share of right answers"}
"""Units of the measures of tasks."""
SIDES = ("a", "b")


def effect_parts(run: Run, study: AblationStudy) -> tuple[list[dict[str, Any]], list[Measure]]:
    """Effects of every head that was ablated alone, one part for each range of the task.

    Returns:
        The parts, and the same as measures.
    """
    frame = study.by_head()
    parts, measures = [], []
    for reach in study.reaches if len(frame) else ():
        values, *ends = (_placed(study, frame, column) for column in (reach, f"{reach} low", f"{reach} high"))
        name, task = study.measures[0], printable(study.task, newlines=False)
        meaning = (
            f"change of {name} of {task} ({reach}) when the head is ablated (mode "
            f"{study.provenance.get('ablation', {}).get('mode', '?')}), against the whole model; negative is harm"
        )
        unit = UNITS.get(name, "")
        titled = f"effect of ablation ({reach})"
        one = measure(
            run,
            f"effect_{reach.replace(' - ', '_minus_')}",
            values,
            meaning,
            titled=titled,
            unit=unit,
            scale="diverging",
            interval=torch.stack(ends, dim=-1),
        )
        measures.append(one)
        parts.append(
            {
                "run": run.id,
                "title": f"Change of {name} by ablating the head alone, {task}, {reach}",
                "measure": name,
                "unit": unit,
                "meaning": sentence(meaning),
                "range": reach,
                "values": one["values"],
                "intervals": one["intervals"],
            }
        )
    return parts, measures


def comparison_part(run: Run, comparison: Comparison) -> tuple[dict[str, Any], list[Measure]]:
    """Rho and excess of every head in both results, and the change with its interval and q.

    Returns:
        The part, and the changes and their q as measures.
    """
    names = [*compared_names(comparison)]
    of = f"{names[1]} minus {names[0]}"
    rows, measures = [], []
    changes = {"rho": (comparison.rho, comparison.rho_change), "excess": (comparison.excess, comparison.excess_change)}
    for name, (sides, change) in changes.items():
        if sides is None or change is None:
            continue
        rows.append(_row(name, sides, change))
        measures.append(
            measure(
                run,
                f"{name}_change",
                change.value,
                f"{name}, {of}",
                titled=f"change of {name}",
                scale="diverging",
                interval=change.interval(),
            )
        )
        q_meaning = f"p-value of the change of {name} ({of}) after Benjamini-Hochberg over all heads"
        measures.append(
            measure(run, f"{name}_change_q", change.q_values, q_meaning, titled=f"q of the change of {name}")
        )
    return {"run": run.id, "names": names, "rows": rows}, measures


def _row(name: str, sides: Tensor, change: Change) -> dict[str, Any]:
    low, high = change.interval().flatten(0, 1).unbind(-1)
    columns = {side: sides[at] for at, side in enumerate(SIDES)}
    columns |= {"change": change.value, "low": low, "high": high, "q": change.q_values}
    return {"name": name, "title": title(name), **{key: numbers(column.flatten()) for key, column in columns.items()}}


def _placed(study: AblationStudy, frame: Any, column: str) -> Tensor:
    """A column of the table of heads, by layer and head; NaN where a head was not ablated alone."""
    values = torch.full(study.ranked_by.shape, torch.nan, dtype=torch.float64)
    for name, value in zip(frame["name"], frame[column], strict=True):
        values[Head.parse(name)] = value
    return values
