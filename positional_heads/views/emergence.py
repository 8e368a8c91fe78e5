"""Plot of an emergence study: tracks of heads over training steps, with the loss and the task beneath."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from positional_heads.core.arguments import checked, in_range
from positional_heads.results.emergence import EmergenceStudy
from positional_heads.results.emergence_births import HeadMeasure
from positional_heads.views.figures import MARKERS, NORMAL, PALETTE, Picture, readable, share_legend

if TYPE_CHECKING:
    import pandas as pd

MOST = 6
"""Heads that are named at most, if no number is given."""
AXES = {"excess": "rho minus its null", "rho": "rho", "retrieval": "retrieval score"}


@checked
def emergence_tracks(study: EmergenceStudy, measure: HeadMeasure | None = None, *, most: int = MOST) -> Figure:
    """Tracks of the heads over training steps on a log axis, and beneath them the loss and the task.

    Named heads are those with the highest values at the last checkpoint, and where they are born by then their birth is
    a filled marker; all others are grey. The skill's births are vertical lines. Bands are intervals.

    Args:
        study: What `emergence_study` returned.
        measure: What is followed of the heads; the excess when None, or rho in a study without a null.
        most: Heads to name at most.

    Raises:
        ValueError: If the study has no such measure, or the number is negative.
    """
    in_range("most", most, 0)
    measure = measure or study.default_measure
    threshold = study.default_threshold if measure == study.default_measure else None
    births = study.births(measure, threshold=threshold).set_index(["kind", "name"])
    steps = study.step_frame()
    table = _tracks(study, measure)
    order = list(table)
    below = ["loss", *study.measures[:1]]
    figure = Picture(figsize=(7.2, 3.4 + 1.6 * len(below)), layout="constrained")
    panels = figure.subplots(1 + len(below), 1, sharex=True, height_ratios=[2.2, *[1.0] * len(below)])
    for name in order[most:]:
        panels[0].plot(study.steps, table[name], color="0.82", linewidth=0.7, zorder=1)
    for number, name in enumerate(order[:most]):
        color, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        panels[0].plot(study.steps, table[name], color=color, linewidth=1.6, label=str(name))
        born = float(births.loc[("head", name), "step"])
        if math.isfinite(born):
            panels[0].plot([born], [table.loc[born, name]], marker, color=color, markersize=7, zorder=3)
    panels[0].axhline(0, color="black", linewidth=0.7)
    panels[0].set_ylabel(AXES[measure], fontsize=NORMAL)
    for panel, name in zip(panels[1:], below, strict=True):
        panel.plot(steps["step"], steps[name], color="black", marker=".")
        panel.fill_between(steps["step"], steps[f"{name}_low"], steps[f"{name}_high"], color="0.8", linewidth=0)
        label = "loss, nats per token" if name == "loss" else f"{readable(study.task, 24)}\n{readable(name, 24)}"
        panel.set_ylabel(label, fontsize=NORMAL, parse_math=False)
    _mark_skill(panels, births, study.task)
    _log_steps(panels[-1], study.steps)
    title = f"{readable(study.model_name)}\nheads through training; a marker is a birth"
    share_legend(figure, panels, title, columns=4)
    return figure


def named_heads(study: EmergenceStudy, measure: HeadMeasure | None = None, most: int = MOST) -> list[str]:
    """The heads that `emergence_tracks` names and colours; arguments as there."""
    return [str(name) for name in list(_tracks(study, measure or study.default_measure))[:most]]


def _tracks(study: EmergenceStudy, measure: HeadMeasure) -> "pd.DataFrame":
    """A measure by step and head, the heads with the highest values at the last checkpoint first."""
    table = study.to_frame().pivot(index="step", columns="name", values=measure)
    table = table.loc[study.steps, [name for name in table if not table[name].isna().all()]]
    return table[table.iloc[-1].sort_values(ascending=False, kind="stable", na_position="last").index]


def _mark_skill(panels: np.ndarray, births: "object", task: str) -> None:
    """A vertical line at each birth of the skill, a wide pale one and a dark dotted one: both are seen at one step."""
    styles: dict[str, dict[str, Any]] = {
        "half-way": {"color": "0.7", "linewidth": 4, "zorder": 0},
        "above chance": {"color": "0.1", "linewidth": 1.4, "linestyle": ":", "zorder": 0.5},
    }
    for (kind, name), row in births.iterrows():  # type: ignore[attr-defined]
        rule = str(name).removeprefix(f"{task}, ")
        if kind == "skill" and math.isfinite(row["step"]):
            for panel in panels:
                panel.axvline(row["step"], **styles[rule], label=f"skill {rule}")


def _log_steps(panel: Axes, steps: list[int]) -> None:
    """A log axis, which is linear from step 0 to the next; births at its ends are not hidden by the frame."""
    after = [step for step in steps if step > 0]
    panel.set_xscale("symlog", linthresh=after[0] if after else 1)
    scale = panel.xaxis.get_transform()
    first, last = scale.transform([steps[0], steps[-1]])
    room = 0.04 * (last - first)
    panel.set_xlim(*scale.inverted().transform([first - room, last + room]))
    panel.set_xticks(steps, [str(step) for step in steps], rotation=45 if len(steps) > 8 else 0, fontsize=8)  # noqa: PLR2004
    panel.minorticks_off()
    panel.set_xlabel("training step", fontsize=NORMAL)
