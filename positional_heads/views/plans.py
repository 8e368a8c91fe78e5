"""Plot of a plan study: what plans cost at each budget, by measure, beside random plans."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from positional_heads.core.arguments import checked
from positional_heads.results.effects import INTERACTION
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.plan_words import plan_words, tried_edits
from positional_heads.views.ablation import UNITS
from positional_heads.views.figures import MARKERS, NORMAL, PALETTE, Picture, readable, share_legend

MARGIN = 0.15
"""Room above and below what was measured, as a share of its range."""


@checked
def loss_by_budget(study: PlanStudy, measure: str | None = None) -> Figure:
    """What plans cost by budget, the share that is left as it is, one panel per range, with intervals over units.

    A budget of windows is a share of key heads, and no share of the cache: `HeadPlan.kept_share` says that.
    Random plans are a grey band from the worst to the best, and their mean. The axis fits what was measured:
    an interval that is far longer, as few units give, is cut at the edge, and marked there.

    Args:
        study: What `plan_study` or `pair_study` returned.
        measure: Which measure of the task; the most sensitive when None.

    Raises:
        ValueError: If there is no such measure.
    """
    effects, each = study.effects(measure), study.by_set(measure)
    measure, words = study.measures[0] if measure is None else measure, plan_words(study.planned)
    reaches = [reach for reach in study.reaches if reach != INTERACTION]
    figure = Picture(figsize=(1.4 + 4.2 * len(reaches), 4.6), layout="constrained")
    panels = figure.subplots(1, len(reaches), squeeze=False, sharey=True)[0]
    whiskers, measured = [], [0.0]
    for panel, reach in zip(panels, reaches, strict=True):
        rows = effects[effects["reach"] == reach]
        chance = rows[rows["kind"] == "chance"].sort_values("budget")
        drawn = each[(each["kind"] == "chance") & (each["reach"] == reach)].groupby("k")["effect"]
        low, high = (drawn.agg(end).loc[chance[words.column]] for end in ("min", "max"))
        measured += [*low, *high, *rows.loc[rows["kind"] != "none", "effect"]]
        panel.fill_between(chance["budget"], low, high, color="0.85", label="random plans, worst to best", linewidth=0)
        panel.plot(chance["budget"], chance["effect"], color="0.45", linestyle="--", label="random plans, mean")
        for number, name in enumerate(study.by):
            own = rows[(rows["kind"] == "plan") & (rows["by"] == name)].sort_values("budget")
            across = own["budget"] + 0.006 * (number - (len(study.by) - 1) / 2)
            look = {
                "color": PALETTE[number % len(PALETTE)],
                "marker": MARKERS[(number + number // len(PALETTE)) % len(MARKERS)],
            }
            panel.plot(across, own["effect"], markersize=5, label=readable(name), **look)
            panel.vlines(across, own["low"], own["high"], color=look["color"], linewidth=1.2, alpha=0.8)
            whiskers.append((panel, look["color"], np.stack([across, own["low"], own["high"]])))
        whole = rows[rows["kind"] == "all"]
        panel.plot(whole["budget"], whole["effect"], color="black", marker="x", linestyle="", label=words.every)
        panel.axhline(0, color="black", linewidth=0.7)
        plain = float(rows[rows["kind"] == "none"]["effect"].iloc[0])
        panel.set_title(f"{reach} range; without {study.planned} {plain:.3g}", fontsize=NORMAL)
        panel.set_xlim(-0.05, 1.05)
        panel.set_xlabel(words.axis, fontsize=NORMAL)
        panel.grid(alpha=0.25)
    _fit(panels[0], measured)
    _mark_cut(whiskers)
    tried = tried_edits(study.planned, study.provenance)
    title = f"{readable(study.model_name)}\n{readable(study.task)}: {tried}"
    share_legend(figure, panels, title, columns=3)
    unit = UNITS.get(measure, "")
    figure.supylabel(f"change of {measure}{unit}\nnegative is harm", fontsize=NORMAL, parse_math=False)
    return figure


def _fit(panel: Axes, measured: Sequence[float]) -> None:
    """Limit the vertical axis to what was measured, whatever the intervals."""
    least, most = float(np.nanmin(measured)), float(np.nanmax(measured))
    room = MARGIN * (most - least) or 1.0
    panel.set_ylim(least - room, most + room)


def _mark_cut(whiskers: Iterable[tuple[Axes, str, Float[np.ndarray, "ends plan"]]]) -> None:
    """Mark each interval that goes on beyond the edge of its panel: places, lower ends, upper ends."""
    for panel, color, (across, low, high) in whiskers:
        least, most = panel.get_ylim()
        for cut, edge, marker in ((low < least, least, "v"), (high > most, most, "^")):
            if cut.any():
                style: dict[str, Any] = {"marker": marker, "markersize": 6, "linestyle": "", "clip_on": False}
                panel.plot(across[cut], np.full(cut.sum(), edge), color=color, **style)
                panel.plot([], [], color="0.3", marker=marker, linestyle="", label="interval goes on beyond the axis")
