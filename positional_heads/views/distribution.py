"""How the scores of all heads are spread, and whether they are more than what shuffled positions give."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from positional_heads.core.arguments import checked
from positional_heads.results.scores import HeadScores
from positional_heads.views.figures import NORMAL, PALETTE, SMALL, Picture, readable, share_legend

FEWEST_BINS, MOST_BINS = 8, 40
NAMED = 12
"""Heads named at most."""


@checked
def rho_distribution(scores: HeadScores, *, alpha: float = 0.05) -> Figure:
    """How rho is spread over heads, against its null: all shuffles together, and each head against its own.

    Heads right of the others in the first panel may owe that to geometry; in the second, what lies above the diagonal
    is more than geometry, and heads for which that is significant are named.

    Args:
        scores: What `score_heads` returned.
        alpha: False discovery rate of the named heads.
    """
    figure = Picture(figsize=(9.4 if scores.null is not None else 5.4, 4.2), layout="constrained")
    panels = figure.subplots(1, 1 if scores.null is None else 2, squeeze=False)[0]
    known = int((~scores.rho.isnan()).sum())
    _draw_histogram(panels[0], scores, known)
    said = "no null was computed: score with null_repeats=20 to see what is geometry"
    if scores.null is not None:
        _draw_against_null(panels[1], scores, alpha)
        said = f"{int(scores.significant(alpha).sum())} of {known} heads beat their null (FDR {alpha:g})"
    if not known:
        said = "no head has a score"
    name = readable(str(scores.provenance["model"]["name"]))
    share_legend(figure, panels, f"rho of every head\n{name}\n{said}", columns=3)
    return figure


def _draw_histogram(panel: Axes, scores: HeadScores, known: int) -> None:
    rho = scores.rho[~scores.rho.isnan()].numpy()
    null = np.zeros(0) if scores.null is None else scores.null.rho[~scores.null.rho.isnan()].numpy()
    everything = np.concatenate([rho, null, [0.0]])
    bins = int(np.clip(2 * known**0.5, FEWEST_BINS, MOST_BINS))
    edges = np.linspace(everything.min() - 0.01, everything.max() + 0.01, bins + 1).tolist()
    if len(null) and scores.null is not None:
        label = f"positions shuffled {scores.null.rho.shape[0]} times"
        panel.hist(null, edges, weights=np.full(len(null), 1 / len(null)), color="0.75", label=label)
    if known:
        weights = np.full(known, 1 / known)
        panel.hist(rho, edges, weights=weights, histtype="step", color=PALETTE[0], linewidth=1.4, label="on this text")
        top = panel.get_ylim()[1]
        panel.plot(rho, np.full(known, -0.05 * top), "|", color=PALETTE[0], markersize=7, label="each head")
        panel.set_yticks([tick for tick in panel.get_yticks() if 0 <= tick <= top])
        panel.set_ylim(-0.1 * top, top)
    panel.axvline(0, color="black", linewidth=0.7)
    panel.set_xlabel("Spearman's rho (-1 to 1)", fontsize=NORMAL)
    panel.set_ylabel("share of heads", fontsize=NORMAL)
    panel.grid(alpha=0.25)


def _draw_against_null(panel: Axes, scores: HeadScores, alpha: float) -> None:
    assert scores.null is not None
    mean, spread, rho = (values.flatten().numpy() for values in (scores.null.mean, scores.null.sd, scores.rho))
    significant = scores.significant(alpha).flatten().numpy()
    known = ~np.isnan(rho)
    ends_of_interval = scores.interval().flatten(0, 1).numpy()
    error = np.abs(ends_of_interval - rho[:, None]).T
    ends = np.array([min(0, np.nanmin(mean, initial=0)), max(0, np.nanmax(mean, initial=0))])
    panel.plot(ends, ends, color="0.4", linestyle="--", linewidth=0.9, label="no more than geometry")
    for shown, colour, marker, label in (
        (known & ~significant, "0.55", "o", "not significant"),
        (known & significant, PALETTE[1], "D", "beats its null"),
    ):
        if shown.any():
            panel.errorbar(
                mean[shown],
                rho[shown],
                xerr=2 * spread[shown],
                yerr=error[:, shown],
                fmt=marker,
                markersize=4,
                elinewidth=0.8,
                color=colour,
                label=label,
            )
    best = sorted(np.flatnonzero(significant), key=lambda place: mean[place] - rho[place])
    for place in best[:NAMED]:
        at = (mean[place], rho[place])
        panel.annotate(str(scores.heads[place]), at, (4, 4), textcoords="offset points", fontsize=7)
    if len(best) > NAMED:
        panel.set_title(f"named: the {NAMED} with the largest excess of {len(best)}", fontsize=SMALL)
    panel.set_xlabel("rho with positions shuffled, mean and 2 sd", fontsize=NORMAL)
    panel.set_ylabel("rho on this text, and its 95 % interval", fontsize=NORMAL)
    panel.grid(alpha=0.25)
