"""Plots of head scores: a heat map, their distribution against the null, and curves of D over distance.

The blue-white-red scale is centred on zero; it and the Okabe-Ito palette are safe for colour-blind readers.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head, Heads, as_heads
from positional_heads.results.scores import HeadScores, kept
from positional_heads.results.tables import text_label
from positional_heads.results.text import rounded
from positional_heads.views.figures import (
    DIVERGING,
    NORMAL,
    PALETTE,
    SMALL,
    Picture,
    name_points,
    readable,
    share_legend,
    wavelength_axis,
)

LABELLED_CELLS = 400
WIDEST_LABELLED = 24
"""Heads per layer up to which numbers fit into the map."""
FEWEST_PAIRS = 32
"""Query-key pairs below which a point of a curve is too noisy to set the scale by."""
FEWEST_BINS, MOST_BINS = 8, 40
SLIM = 45
"""Height of a colour bar over its width."""
SHOWN = 4
"""Heads whose curves are shown if none are asked for."""
MARK = "#E69F00"
"""Colour of what marks a head that stays; it can be seen on red, white and blue."""
NAMED = 12
"""Most heads that the distribution names."""


@checked
def rho_heat_map(scores: HeadScores, *, alpha: float = 0.05) -> Figure:
    """Rho of every head and, with a null, its excess beside it: layers down, heads across.

    Dots mark heads that beat their null, diamonds those that stay without the first keys.

    Args:
        scores: What `score_heads` returned.
        alpha: False discovery rate of the marks.
    """
    maps = {"rho (-1 to 1)": scores.rho.numpy()}
    if scores.null is not None:
        maps["excess: rho minus null"] = scores.excess.numpy()
    layers, heads = scores.rho.shape
    labelled = scores.rho.numel() <= LABELLED_CELLS and heads <= WIDEST_LABELLED
    across = len(maps) if heads <= WIDEST_LABELLED else 1
    down = len(maps) // across
    width, height = (
        (0.55 * heads, 0.42 * layers) if labelled else (min(10.0, 0.3 * heads), min(9 / down, 0.22 * layers))
    )
    size = (max(5.2, across * (width + 1.3) + 0.4), down * max(1.1, height + 0.4) + 1.2)
    figure = Picture(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    mark_size = min(16.0, 0.9 * (72 * min(width / heads, height / layers) / 2.4) ** 2)
    for panel, (title, values) in zip(panels, maps.items(), strict=True):
        _draw_map(panel, values, title, labelled=labelled)
        _mark_heads(panel, scores, alpha, mark_size)
    subtitle = "no null was computed"
    if scores.null is not None:
        subtitle = _standing_in_words(scores, alpha, "dot: ", "diamond: ").replace("; ", "\n")  # maps are narrow
    subtitle += "; grey: no score" if bool(scores.rho.isnan().any()) else ""
    title = f"Spearman's rho of token distance and dominant dimension\n{scored_what(scores)}"
    figure.suptitle(f"{title}\n{subtitle}", fontsize=NORMAL, parse_math=False)
    return figure


@checked
def rho_distribution(scores: HeadScores, *, alpha: float = 0.05) -> Figure:
    """Distribution of rho over heads, with that of all shuffles, and each head's rho against its own null.

    A high rho in the first panel may be geometry. In the second, heads above the diagonal have an excess over their
    null; those that beat it, or, with a control, those that stay, are named.

    Args:
        scores: What `score_heads` returned.
        alpha: False discovery rate of the named heads.
    """
    figure = Picture(figsize=(9.4 if scores.null is not None else 5.4, 4.2), layout="constrained")
    panels = figure.subplots(1, 1 if scores.null is None else 2, squeeze=False)[0]
    _draw_histogram(panels[0], scores)
    subtitle = "no null was computed: score again with null_repeats=20"
    if scores.null is not None:
        _draw_against_null(panels[1], scores, alpha)
        subtitle = _standing_in_words(scores, alpha)
    if not scores.n_scored:
        subtitle = "no head has a score"
    share_legend(figure, panels, f"rho of every head\n{scored_what(scores)}\n{subtitle}", columns=3)
    if scores.null is not None:
        _name_heads(panels[1], scores, alpha)
    return figure


@checked
def allocation_curves(scores: HeadScores, heads: Heads | None = None, *, training_length: int | None = None) -> Figure:
    """Mean dominant dimension over distance, one panel per head, with the shuffled null's mean and 2 sd band.

    A sampled null's band includes sampling: it is wide where a shuffle counts few query-key pairs.

    The right-hand axis gives the wavelengths of the pairs. Where sequences go beyond the training length, a dashed line
    marks it. Distances with at least 32 query-key pairs set the scale, where there are any.

    Args:
        scores: What `score_heads` returned.
        heads: Which heads; `scores.notable(4)` when None: those that beat their null, if any do.
        training_length: Tokens that the model was trained on; when None, the one in the scores' provenance, or else the
            model's context.

    Raises:
        ValueError: If the model has no such head, the head has no curve, or curves were left out.
    """
    heads = scores.notable(SHOWN) if heads is None else as_heads(heads, *scores.rho.shape)
    for head in heads:
        if kept(scores.curve)[head].isnan().all():
            reason = scores.reasons.get(head, "none of its query-key pairs counts")
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
    title = f"Allocation of rotary dimensions by distance\n{scored_what(scores)}"
    title += "" if heads else ": no head has a score"
    share_legend(figure, panels[: len(heads)], title, columns=3 if columns > 1 else 1)
    figure.supxlabel("distance from query back to key (tokens)", fontsize=NORMAL)
    figure.supylabel("mean dominant dimension (pair index)", fontsize=NORMAL)
    return figure


def _training_limit(scores: HeadScores, given: int | None) -> tuple[int, str] | None:
    """The training length and its label, if sequences go beyond it."""
    extension = scores.provenance.get("extension") or {}
    training_length = given or extension.get("training_length")
    limit = training_length or scores.provenance["model"].get("context")
    if limit is None or kept(scores.curve).shape[-1] <= limit:
        return None
    return int(limit), f"{'training length' if training_length else 'context of the model'}, {limit} tokens"


def _draw_curve(panel: Axes, scores: HeadScores, head: Head) -> None:
    curve = kept(scores.curve)[head].numpy()
    distance = np.arange(curve.size)
    panel.plot(distance, curve, color=PALETTE[0], linewidth=1.0, label="mean D on this text")
    if scores.null is not None:
        mean, spread = (kept(values)[head].numpy() for values in (scores.null.curve_mean, scores.null.curve_sd))
        label = "the same with positions shuffled, mean and 2 sd"
        panel.plot(distance, mean, color="0.3", linewidth=0.7, linestyle=":", label=label)
        panel.fill_between(distance, mean - 2 * spread, mean + 2 * spread, color="0.6", alpha=0.35, linewidth=0)
    counted = kept(scores.pair_counts)[head.layer].numpy() >= FEWEST_PAIRS
    shown = curve[counted] if (~np.isnan(curve[counted])).any() else curve
    margin = 0.08 * (np.nanmax(shown) - np.nanmin(shown)) + 1e-3
    panel.set_ylim(np.nanmin(shown) - margin, np.nanmax(shown) + margin)
    rho, rho_curve = float(scores.rho[head]), float(scores.rho_curve[head])
    panel.set_title(f"{head}: rho {rounded(rho)}, rho of the curve {rounded(rho_curve)}", fontsize=NORMAL)
    panel.grid(alpha=0.25)


def _draw_histogram(panel: Axes, scores: HeadScores) -> None:
    rho = scores.rho[~scores.rho.isnan()].numpy()
    null = np.zeros(0) if scores.null is None else scores.null.rho[~scores.null.rho.isnan()].numpy()
    everything = np.concatenate([rho, null, [0.0]])
    bins = int(np.clip(2 * len(rho) ** 0.5, FEWEST_BINS, MOST_BINS))
    edges = np.linspace(everything.min() - 0.01, everything.max() + 0.01, bins + 1).tolist()
    if len(null) and scores.null is not None:
        label = f"positions shuffled {scores.null.rho.shape[0]} times"
        panel.hist(null, edges, weights=np.full(len(null), 1 / len(null)), color="0.75", label=label)
    if len(rho):
        weights = np.full(len(rho), 1 / len(rho))
        panel.hist(rho, edges, weights=weights, histtype="step", color=PALETTE[0], linewidth=1.4, label="on this text")
        top = panel.get_ylim()[1]
        panel.plot(rho, np.full(len(rho), -0.05 * top), "|", color=PALETTE[0], markersize=7, label="each head")
        panel.set_yticks([tick for tick in panel.get_yticks() if 0 <= tick <= top])
        panel.set_ylim(-0.1 * top, top)
    panel.axvline(0, color="black", linewidth=0.7)
    panel.set_xlabel("Spearman's rho (-1 to 1)", fontsize=NORMAL)
    panel.set_ylabel("share of heads", fontsize=NORMAL)
    panel.grid(alpha=0.25)


def _draw_against_null(panel: Axes, scores: HeadScores, alpha: float) -> None:
    assert scores.null is not None
    mean, spread, rho = (values.flatten().numpy() for values in (scores.null.mean, scores.null.sd, scores.rho))
    beating, staying = (marked.flatten() for marked in _standing(scores, alpha))
    controlled = scores.control is not None
    scored = ~np.isnan(rho)
    error = np.abs(scores.interval().flatten(0, 1).numpy() - rho[:, None]).T
    ends = np.array([min(0, np.nanmin(mean, initial=0)), max(0, np.nanmax(mean, initial=0))])
    panel.plot(ends, ends, color="0.4", linestyle="--", linewidth=0.9, label="rho equal to its null")
    for group, colour, marker, label in (
        (scored & ~beating, "0.55", "o", "does not beat its null"),
        (beating & ~staying, PALETTE[1], "s", "beats its null" + controlled * ", does not stay"),
        (staying, PALETTE[0], "D", f"stays without the first {scores.control_keys} keys"),
    ):
        if group.any():
            panel.errorbar(
                mean[group],
                rho[group],
                xerr=2 * spread[group],
                yerr=error[:, group],
                fmt=marker,
                markersize=4,
                elinewidth=0.8,
                color=colour,
                label=label,
            )
    named = int(staying.sum()) or int(beating.sum())
    if named > NAMED:
        which = "that stay" if staying.any() else "that beat their null"
        panel.set_title(f"named: the {NAMED} with the largest excess of the {named} {which}", fontsize=SMALL)
    panel.set_xlabel("rho with positions shuffled, mean and 2 sd", fontsize=NORMAL)
    panel.set_ylabel("rho on this text, and its 95 % interval", fontsize=NORMAL)
    panel.grid(alpha=0.25)


def _name_heads(panel: Axes, scores: HeadScores, alpha: float) -> None:
    """Name the heads with the largest excess of those that stay, or else of those that beat their null."""
    assert scores.null is not None
    staying = bool(_standing(scores, alpha)[1].any())
    best = scores.positional_heads(alpha=alpha, stays=staying)[:NAMED]
    others = [head for head in scores.heads if head not in best]
    points = [(float(scores.null.mean[head]), float(scores.rho[head])) for head in [*best, *others]]
    name_points(panel, np.array(points), [str(head) for head in best])


def _standing(scores: HeadScores, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Heads that beat their null, and those of them that stay without the first keys; none without a control."""
    beating = scores.beats_null(alpha).numpy()
    controlled = scores.control is not None
    return beating, scores.stays(alpha).numpy() if controlled else np.zeros_like(beating)


def _standing_in_words(scores: HeadScores, alpha: float, beating: str = "", staying: str = "") -> str:
    """How many heads beat their null and stay, each with the mark that it has."""
    beats, stays = (int(marked.sum()) for marked in _standing(scores, alpha))
    said = f"{beating}{beats} of {scores.n_scored} heads beat their null (FDR {alpha:g})"
    if scores.control is None:
        return said
    return f"{said}; {staying}{stays} of them stay{'s' * (stays == 1)} without the first {scores.control_keys} keys"


def notable_in_words(scores: HeadScores) -> str:
    """Which heads `scores.notable` gives."""
    if scores.null is None or not scores.beats_null().any():
        return "the heads with the highest rho"
    stay = scores.control is not None and bool(scores.stays().any())
    return f"heads that beat their null{', first those that stay' if stay else ''}, the largest excess first"


def scored_what(scores: HeadScores) -> str:
    """The model and, where its name is known, the text, for a title."""
    named = text_label(scores.provenance)
    return readable(scores.model_name) + (f", text {readable(named)}" if named else "")


def _draw_map(panel: Axes, values: np.ndarray, title: str, *, labelled: bool) -> None:
    panel.set_facecolor("0.85")
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    norm = CenteredNorm(0, halfrange=largest)
    image = panel.imshow(values, cmap=DIVERGING, norm=norm, aspect="auto", interpolation="none")
    panel.figure.colorbar(image, ax=panel, label=title, aspect=SLIM)
    if labelled:
        _label_cells(panel, values, largest)
    layers, heads = values.shape
    panel.set(xlabel="head", ylabel="layer", xticks=_ticks(heads), yticks=_ticks(layers))


def _mark_heads(panel: Axes, scores: HeadScores, alpha: float, size: float) -> None:
    if scores.null is None:
        return
    beating, staying = _standing(scores, alpha)
    for marked, marker, colour, edge in (
        (beating & ~staying, "o", "black", "white"),
        (staying, "D", MARK, "black"),
    ):
        rows, columns = np.nonzero(marked)
        look: dict[str, Any] = {"s": size, "marker": marker, "color": colour, "edgecolor": edge, "linewidth": 0.5}
        panel.scatter(columns + 0.34, rows - 0.3, zorder=3, **look)


def _label_cells(axes: Axes, rho: np.ndarray, largest: float) -> None:
    for (layer, head), value in np.ndenumerate(rho):
        text = "n/a" if np.isnan(value) else rounded(value, 2)
        colour = "white" if abs(value) > 0.65 * largest else "black"
        axes.text(head, layer, text, ha="center", va="center", fontsize=7, color=colour)


def _ticks(size: int) -> np.ndarray:
    return np.arange(0, size, max(1, size // 16))
