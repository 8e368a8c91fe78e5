"""Scores as plots: which heads score, against what null, and where along the distance their allocation moves.

Colours: a blue-white-red scale centred on zero, and the Okabe-Ito palette, both safe for colour-blind readers.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head, Heads
from positional_heads.results.scores import HeadScores
from positional_heads.views.figures import DIVERGING, NORMAL, PALETTE, Picture, readable, share_legend, wavelength_axis

LABELLED_CELLS = 400
WIDEST_LABELLED = 24
"""Heads per layer up to which numbers fit their cells."""
FEWEST_PAIRS = 32
"""Query-key pairs below which a point of a curve is too noisy to set the scale by."""


@checked
def rho_heat_map(scores: HeadScores, *, alpha: float = 0.05) -> Figure:
    """Rho of every head, layers down and heads across; a dot marks heads that beat their null.

    Args:
        scores: What `score_heads` returned.
        alpha: False discovery rate of the dots.
    """
    rho = scores.rho.numpy()
    layers, heads = rho.shape
    labelled = rho.size <= LABELLED_CELLS and heads <= WIDEST_LABELLED
    width, height = (0.55 * heads, 0.42 * layers) if labelled else (min(10.0, 0.3 * heads), min(9.0, 0.22 * layers))
    figure = Picture(figsize=(max(5.2, width + 1.7), max(2.6, height + 1.5)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    largest = float(np.nanmax(np.abs(rho), initial=0.0)) or 1.0
    image = axes.imshow(rho, cmap=DIVERGING, norm=CenteredNorm(0, halfrange=largest), aspect="auto")
    figure.colorbar(image, ax=axes, label="rho (-1 to 1)")
    if labelled:
        _label_cells(axes, rho, largest)
    subtitle = "no null was computed"
    if scores.null is not None:
        rows, columns = np.nonzero(scores.significant(alpha).numpy())
        size = min(16.0, 0.9 * (72 * min(width / heads, height / layers) / 2.4) ** 2)
        axes.scatter(columns + 0.34, rows - 0.3, s=size, color="black", edgecolor="white", linewidth=0.5, zorder=3)
        subtitle = f"dot: beats its shuffled null (FDR {alpha:g}); {len(rows)} heads do"
    subtitle += "; grey: no score" if np.isnan(rho).any() else ""
    axes.set(xlabel="head", ylabel="layer", xticks=_ticks(heads), yticks=_ticks(layers))
    title = f"Spearman's rho of token distance and dominant dimension\n{_model(scores)}"
    axes.set_title(f"{title}\n{subtitle}", fontsize=NORMAL, parse_math=False)
    return figure


@checked
def allocation_curves(scores: HeadScores, heads: Heads | None = None, *, training_length: int | None = None) -> Figure:
    """Mean dominant dimension over distance, one panel per head, with the shuffled null's mean and 2 sd band.

    The right-hand axis says what wavelength the pairs have. Where sequences go beyond the training length, a dashed
    line says where that ends. The scale is set by distances with at least 32 pairs, where there are any.

    Args:
        scores: What `score_heads` returned.
        heads: Which heads; the four with the highest rho when None.
        training_length: Tokens that the model was trained on; when None, what the scores say of it, or else the
            model's context.

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
    figure = Picture(figsize=(4.9 * columns + 0.6, 2.6 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    limit = _training_limit(scores, training_length)
    for index, (panel, head) in enumerate(zip(panels, heads, strict=False)):
        _draw_curve(panel, scores, head)
        if limit is not None:
            panel.axvline(limit[0], color="0.4", linestyle="--", linewidth=0.9, label=limit[1])
        last_column = index % columns == columns - 1 or index == len(heads) - 1
        wavelength_axis(panel, scores.frequencies[head.layer], label=last_column)
    for panel in panels[len(heads) :]:
        panel.set_visible(False)
    title = f"Allocation of rotary dimensions by distance\n{_model(scores)}"
    title += "" if heads else ": no head has a score"
    share_legend(figure, panels[: len(heads)], title, columns=3 if columns > 1 else 1)
    figure.supxlabel("distance from query back to key (tokens)", fontsize=NORMAL)
    figure.supylabel("mean dominant dimension (pair index)", fontsize=NORMAL)
    return figure


def _training_limit(scores: HeadScores, given: int | None) -> tuple[int, str] | None:
    """Where training ended and how to call it, if sequences go beyond."""
    extension = scores.provenance.get("extension") or {}
    known = given or extension.get("training_length")
    limit = known or scores.provenance["model"].get("context")
    if limit is None or scores.curve.shape[-1] <= limit:
        return None
    return int(limit), f"{'training length' if known else 'context of the model'}, {limit} tokens"


def _draw_curve(panel: Axes, scores: HeadScores, head: Head) -> None:
    curve = scores.curve[head].numpy()
    distance = np.arange(curve.size)
    panel.plot(distance, curve, color=PALETTE[0], linewidth=1.0, label="mean D on this text")
    if scores.null is not None:
        mean, spread = scores.null.curve_mean[head].numpy(), 2 * scores.null.curve_sd[head].numpy()
        label = "the same with positions shuffled, mean and 2 sd"
        panel.plot(distance, mean, color="0.3", linewidth=0.7, linestyle=":", label=label)
        panel.fill_between(distance, mean - spread, mean + spread, color="0.6", alpha=0.35, linewidth=0)
    counted = scores.pair_counts[head.layer].numpy() >= FEWEST_PAIRS
    shown = curve[counted] if (~np.isnan(curve[counted])).any() else curve
    margin = 0.08 * (np.nanmax(shown) - np.nanmin(shown)) + 1e-3
    panel.set_ylim(np.nanmin(shown) - margin, np.nanmax(shown) + margin)
    rho, rho_curve = float(scores.rho[head]), float(scores.rho_curve[head])
    panel.set_title(f"{head}: rho {rho:.3f}, rho of the curve {rho_curve:.3f}", fontsize=NORMAL)
    panel.grid(alpha=0.25)


def _model(scores: HeadScores) -> str:
    return readable(str(scores.provenance["model"]["name"]))


def _label_cells(axes: Axes, rho: np.ndarray, largest: float) -> None:
    for (layer, head), value in np.ndenumerate(rho):
        text = "n/a" if np.isnan(value) else f"{value:.2f}"
        colour = "white" if abs(value) > 0.65 * largest else "black"
        axes.text(head, layer, text, ha="center", va="center", fontsize=7, color=colour)


def _ticks(size: int) -> np.ndarray:
    return np.arange(0, size, max(1, size // 16))
