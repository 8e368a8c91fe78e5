"""Plot of a study of ablated heads or manipulated pairs: the effect by their number, at long and at short range."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from positional_heads.core.arguments import checked
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.effects import INTERACTION
from positional_heads.results.manipulation import ManipulationStudy
from positional_heads.results.printed_manipulations import EVERY, RANDOM_HEADS, RANDOM_PAIRS, done
from positional_heads.views.figures import NORMAL, PALETTE, Picture, readable, share_legend

if TYPE_CHECKING:
    import pandas as pd

Look = tuple[str, str, str, Any]
"""Label, colour, marker and line of a kind of sets."""
LOOKS: Mapping[str, Look] = {
    "top": ("top heads", PALETTE[1], "o", "-"),
    "random": ("random sets, same layers: mean and each", "0.35", "s", "--"),
    "anywhere": ("random sets of any layer, mean", PALETTE[3], "D", (0, (1, 1))),
    "lowest": ("lowest-scoring heads", PALETTE[0], "v", ":"),
    "retrieval": ("heads with the highest retrieval score", PALETTE[2], "^", "-."),
}
LOOKS_OF_PAIRS: Mapping[str, Look] = {
    "slowest": ("slowest pairs", PALETTE[1], "o", "-"),
    EVERY: ("all pairs", "black", "x", ""),
    "dominant": ("dominant pairs", PALETTE[2], "^", "-."),
    "fastest": ("fastest pairs", PALETTE[0], "v", ":"),
    RANDOM_PAIRS: ("random pairs, same heads: mean and each", "0.35", "s", "--"),
    RANDOM_HEADS: ("slowest pairs of random heads, mean", PALETTE[3], "D", (0, (1, 1))),
}
UNITS = {"log_prob": " (nats per token)", "exact": " (share of answers)"}
SPREAD = 0.08


class _Dose(NamedTuple):
    """What a plot shows of a study.

    Attributes:
        counted: Column of the effects that counts what was edited.
        numbers: The numbers along the axis.
        looks: The kinds of sets that are drawn.
        each: The kind of which every single set is a point.
        intact: How the model was without an edit.
        axis: What the axis counts.
        edit: What was done, for the title.
    """

    counted: str
    numbers: Sequence[int]
    looks: Mapping[str, Look]
    each: str
    intact: str
    axis: str
    edit: str


@checked
def dose_response(study: AblationStudy | ManipulationStudy, measure: str | None = None) -> Figure:
    """Effect by number of ablated heads, or of manipulated pairs of each head, one panel per range.

    With intervals over units, and every random set of heads, or of pairs.

    Args:
        study: What `ablation_study` or `manipulation_study` returned.
        measure: Which measure; the most sensitive when None.

    Raises:
        ValueError: If there is no such measure, or heads were only ablated one by one.
    """
    dose = _of_pairs(study) if isinstance(study, ManipulationStudy) else _of_heads(study)
    effects, each = study.effects(measure), study.by_set(measure)
    measure = study.measures[0] if measure is None else measure
    reaches = [reach for reach in study.reaches if reach != INTERACTION]
    figure = Picture(figsize=(1.4 + 4.2 * len(reaches), 4.6), layout="constrained")
    panels = figure.subplots(1, len(reaches), squeeze=False, sharey=True)[0]
    positions = {number: position for position, number in enumerate(dose.numbers)}
    for panel, reach in zip(panels, reaches, strict=True):
        rows = effects[effects["reach"] == reach]
        singles = each[(each["kind"] == dose.each) & (each["reach"] == reach)]
        panel.scatter(singles["k"].map(positions), singles["effect"], s=9, color="0.6", alpha=0.6, linewidth=0)
        for shift, (kind, look) in enumerate(dose.looks.items()):
            own = rows[rows["kind"] == kind]
            _draw_kind(panel, own, own[dose.counted].map(positions) + SPREAD * (shift - 1), look)
        panel.axhline(0, color="black", linewidth=0.7)
        plain = float(rows[rows["kind"] == "none"]["effect"].iloc[0])
        panel.set_title(f"{reach} range; {dose.intact} {plain:.3g}", fontsize=NORMAL)
        panel.set_xticks(list(positions.values()), [str(number) for number in positions])
        panel.set_xlabel(dose.axis, fontsize=NORMAL)
        panel.grid(alpha=0.25)
    title = f"{readable(study.model_name)}\n{readable(study.task)}: {dose.edit}"
    share_legend(figure, panels, title, columns=2)
    unit = UNITS.get(measure, "")
    figure.supylabel(f"change of {measure}{unit}\nnegative is harm", fontsize=NORMAL, parse_math=False)
    return figure


def _of_heads(study: AblationStudy) -> _Dose:
    if not study.sizes:
        msg = "this study has single heads alone, so there is no effect by number of heads: see by_head()"
        raise ValueError(msg)
    edit = f"heads ablated by {study.provenance['ablation']['mode']}"
    return _Dose("k", study.sizes, LOOKS, "random", "with all heads", "number of ablated heads", edit)


def _of_pairs(study: ManipulationStudy) -> _Dose:
    every = next(cell.k for cell in study.cells if cell.kind == EVERY)
    moved = done(study.how, study.factor)
    edit = f"pairs {moved} in the top {len(study.heads)} heads"
    numbers, axis = [*study.counts, every], f"number of pairs {moved}, of each head"
    return _Dose("pairs", numbers, LOOKS_OF_PAIRS, RANDOM_PAIRS, "as it is", axis, edit)


def _draw_kind(panel: Axes, rows: "pd.DataFrame", across: "pd.Series", look: Look) -> None:
    if rows.empty:
        return
    label, colour, marker, line = look
    panel.plot(across, rows["effect"], color=colour, marker=marker, linestyle=line, markersize=5, label=label)
    panel.vlines(across, rows["low"], rows["high"], color=colour, linewidth=1.2, alpha=0.8)
