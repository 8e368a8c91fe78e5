"""Scores as plots: which heads score, and where along the distance their allocation moves.

Colours: a blue-white-red scale centred on zero, and the Okabe-Ito palette, both safe for colour-blind readers.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from positional_heads.heads import Head
from positional_heads.results import HeadScores

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LABELLED_CELLS = 400


def rho_heat_map(scores: HeadScores, *, alpha: float = 0.05) -> Figure:
    """Rho of every head, layers down and heads across; a dot marks heads that beat their null.

    Args:
        scores: What `score_heads` returned.
        alpha: False discovery rate of the dots.
    """
    rho = scores.rho.numpy()
    layers, heads = rho.shape
    figure = Figure(figsize=(max(4.5, 0.55 * heads + 2), max(2.6, 0.45 * layers + 1.6)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    largest = float(np.nanmax(np.abs(rho), initial=0.0)) or 1.0
    image = axes.imshow(rho, cmap="RdBu_r", norm=CenteredNorm(0, halfrange=largest), aspect="auto")
    figure.colorbar(image, ax=axes, label="rho")
    _label_cells(axes, rho, largest)
    subtitle = "no null was computed"
    if scores.null is not None:
        rows, columns = np.nonzero(scores.significant(alpha).numpy())
        axes.scatter(columns + 0.36, rows - 0.32, s=16, color="black", zorder=3)
        subtitle = f"dot: beats its shuffled null (FDR {alpha:g}); {len(rows)} heads do"
    axes.set(xlabel="head", ylabel="layer", xticks=_ticks(heads), yticks=_ticks(layers))
    title = f"Spearman's rho of token distance and dominant dimension, {scores.provenance['model']['name']}"
    axes.set_title(f"{title}\n{subtitle}", fontsize=9, parse_math=False)
    return figure


def allocation_curves(scores: HeadScores, heads: Sequence[Head] | None = None) -> Figure:
    """Mean dominant dimension over distance, one panel per head, with the shuffled null's mean and 2 sd band.

    Args:
        scores: What `score_heads` returned.
        heads: Which heads; the four with the highest rho when None.

    Raises:
        ValueError: If the model has no such head, or the head has no curve.
    """
    heads = scores.top(min(4, int((~scores.rho.isnan()).sum()))) if heads is None else scores.known(heads)
    for head in heads:
        if scores.curve[head].isnan().all():
            reason = scores.reasons.get(head, "none of its pairs counts")
            msg = f"{head} has no curve to draw ({reason}): leave it out"
            raise ValueError(msg)
    columns = min(2, max(1, len(heads)))
    rows = -(-len(heads) // columns) or 1
    figure = Figure(figsize=(4.6 * columns, 2.7 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for index, (panel, head) in enumerate(zip(panels, heads, strict=False)):
        _draw_curve(panel, scores, head, PALETTE[index % len(PALETTE)])
    for panel in panels[len(heads) :]:
        panel.set_visible(False)
    if heads:
        figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=2)
    figure.supxlabel("token distance", fontsize=9)
    figure.supylabel("mean dominant dimension (pair index; higher is slower)", fontsize=9)
    return figure


def _draw_curve(panel: Axes, scores: HeadScores, head: Head, colour: str) -> None:
    curve = scores.curve[head].numpy()
    distance = np.arange(curve.size)
    panel.plot(distance, curve, color=colour, linewidth=1.0, label="mean D on this text")
    if scores.null is not None:
        mean, spread = scores.null.curve_mean[head].numpy(), 2 * scores.null.curve_sd[head].numpy()
        label = "the same with positions shuffled, mean and 2 sd"
        panel.plot(distance, mean, color="0.3", linewidth=0.7, linestyle=":", label=label)
        panel.fill_between(distance, mean - spread, mean + spread, color="0.6", alpha=0.35, linewidth=0)
    margin = 0.05 * (np.nanmax(curve) - np.nanmin(curve)) + 1e-3
    panel.set_ylim(np.nanmin(curve) - margin, np.nanmax(curve) + margin)
    rho, rho_curve = float(scores.rho[head]), float(scores.rho_curve[head])
    panel.set_title(f"{head}: rho {rho:.3f}, rho of the curve {rho_curve:.3f}", fontsize=9)
    panel.grid(alpha=0.25)


def _label_cells(axes: Axes, rho: np.ndarray, largest: float) -> None:
    if rho.size > LABELLED_CELLS:
        return
    for (layer, head), value in np.ndenumerate(rho):
        text = "n/a" if np.isnan(value) else f"{value:.2f}"
        colour = "white" if abs(value) > 0.65 * largest else "black"
        axes.text(head, layer, text, ha="center", va="center", fontsize=7, color=colour)


def _ticks(size: int) -> np.ndarray:
    return np.arange(0, size, max(1, size // 16))
