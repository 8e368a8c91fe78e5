"""Plot of an ablation study: the effect by number of ablated heads, at long and at short range."""

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from positional_heads.core.arguments import checked
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.effects import INTERACTION
from positional_heads.views.figures import NORMAL, PALETTE, Picture, readable, share_legend

if TYPE_CHECKING:
    import pandas as pd

LOOKS = {
    "top": ("top heads", PALETTE[1], "o", "-"),
    "random": ("random sets, same layers: mean and each", "0.35", "s", "--"),
    "anywhere": ("random sets of any layer, mean", PALETTE[3], "D", (0, (1, 1))),
    "lowest": ("lowest-scoring heads", PALETTE[0], "v", ":"),
    "retrieval": ("heads with the highest retrieval score", PALETTE[2], "^", "-."),
}
UNITS = {"log_prob": " (nats per token)", "exact": " (share of answers)"}
SPREAD = 0.08


@checked
def dose_response(study: AblationStudy, measure: str | None = None) -> Figure:
    """Effect by number of ablated heads, one panel per range, with intervals over units and every random set.

    Args:
        study: What `ablation_study` returned.
        measure: Which measure; the most sensitive when None.

    Raises:
        ValueError: If there is no such measure, or heads were only ablated one by one.
    """
    if not study.sizes:
        msg = "this study has single heads alone, so there is no effect by number of heads: see by_head()"
        raise ValueError(msg)
    effects, each = study.effects(measure), study.by_set(measure)
    measure = study.measures[0] if measure is None else measure
    reaches = [reach for reach in study.reaches if reach != INTERACTION]
    figure = Picture(figsize=(1.4 + 4.2 * len(reaches), 4.6), layout="constrained")
    panels = figure.subplots(1, len(reaches), squeeze=False, sharey=True)[0]
    for panel, reach in zip(panels, reaches, strict=True):
        rows = effects[effects["reach"] == reach]
        singles = each[(each["kind"] == "random") & (each["reach"] == reach)]
        positions = {k: position for position, k in enumerate(study.sizes)}
        panel.scatter(singles["k"].map(positions), singles["effect"], s=9, color="0.6", alpha=0.6, linewidth=0)
        for shift, kind in enumerate(LOOKS):
            _draw_kind(panel, rows[rows["kind"] == kind], kind, positions, shift)
        panel.axhline(0, color="black", linewidth=0.7)
        plain = float(rows[rows["kind"] == "none"]["effect"].iloc[0])
        panel.set_title(f"{reach} range; with all heads {plain:.3g}", fontsize=NORMAL)
        panel.set_xticks(list(positions.values()), [str(k) for k in positions])
        panel.set_xlabel("number of ablated heads", fontsize=NORMAL)
        panel.grid(alpha=0.25)
    ablation = study.provenance["ablation"]
    title = f"{readable(study.model_name)}\n{readable(study.task)}: heads ablated by {ablation['mode']}"
    share_legend(figure, panels, title, columns=2)
    unit = UNITS.get(measure, "")
    figure.supylabel(f"change of {measure}{unit}\nnegative is harm", fontsize=NORMAL, parse_math=False)
    return figure


def _draw_kind(panel: Axes, rows: "pd.DataFrame", kind: str, positions: dict[int, int], shift: int) -> None:
    if rows.empty:
        return
    label, colour, marker, line = LOOKS[kind]
    across = rows["k"].map(positions) + SPREAD * (shift - 1)
    panel.plot(across, rows["effect"], color=colour, marker=marker, linestyle=line, markersize=5, label=label)
    panel.vlines(across, rows["low"], rows["high"], color=colour, linewidth=1.2, alpha=0.8)
