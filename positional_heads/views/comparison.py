"""Plots of comparisons: every head in one result against another, and the heads that beat their null in several."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from torch import Tensor

from positional_heads.core.arguments import checked, in_range
from positional_heads.results.comparison import BOTH, Change, Comparison
from positional_heads.results.stability import Stability
from positional_heads.views.figures import (
    DIVERGING,
    NORMAL,
    PALETTE,
    SMALL,
    Picture,
    name_points,
    readable,
    share_legend,
)

LONGEST_LABEL = 24
"""Characters of a result's name in a label."""


@checked
def comparison(comparison: Comparison, *, named: int = 8) -> Figure:
    """Every head in one result against the other: rho and, with nulls, the excess over the null.

    Heads on the dashed line are equal in both. Error bars of rho are 95 % intervals over sequences. The colour tells
    whether the change is significant, at a false discovery rate of 0.05; those that change most are named.

    Args:
        comparison: What `compare` returned.
        named: Most heads that a panel names.
    """
    in_range("named", named, 0)
    a, b = (readable(name, LONGEST_LABEL) for name in comparison.names)
    both = comparison.excess is not None and comparison.excess_change is not None
    figure = Picture(figsize=(9.6 if both else 5.2, 5.0), layout="constrained")
    panels = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
    changed = comparison.changed.flatten().numpy()
    error = np.abs(comparison.intervals.numpy() - comparison.rho.numpy()[..., None]).reshape(2, -1, 2)
    _draw_sides(panels[0], comparison.rho, changed, error)
    _label_axes(panels[0], f"rho in {a}", f"rho in {b}")
    if comparison.excess is not None and comparison.excess_change is not None:
        excess_changed = comparison.excess_changed.flatten().numpy()
        _draw_sides(panels[1], comparison.excess, excess_changed, None)
        _mark_beating(panels[1], comparison)
        _title_named(panels[1], excess_changed, named)
        _label_axes(panels[1], f"excess over the null in {a}", f"excess over the null in {b}")
    rank = comparison.agreement["rho"].correlation
    how = "the same sequences" if comparison.paired else "other sequences"
    title = f"{b} against {a}: {readable(comparison.model_name)}\n"
    title += f"{int(changed.sum())} of {comparison.n_scored} heads change significantly in rho; {how}; "
    title += f"rank correlation {rank:.2f}"
    _title_named(panels[0], changed, named)
    share_legend(figure, panels, title, columns=3)
    _name_heads(panels[0], comparison, comparison.rho, comparison.rho_change, changed, named)
    if comparison.excess is not None and comparison.excess_change is not None:
        _name_heads(panels[1], comparison, comparison.excess, comparison.excess_change, excess_changed, named)
    return figure


@checked
def stability(stability: Stability, *, rows: int = 30) -> Figure:
    """Rho in each result of the heads that beat their null in most of them; a dot marks where they do.

    With controls, the dot is full where a head stays without the first keys, and a ring where it does not.

    Args:
        stability: What `compare_all` returned.
        rows: Most heads to show.
    """
    in_range("rows", rows, 1)
    frame = stability.ranked()
    beating = int((frame["times"] > 0).sum())
    frame = frame.head(min(rows, beating) or min(rows, len(frame)))
    rho = stability.rho.flatten(1).numpy()[:, frame.index].T
    beats = stability.beats_null.flatten(1).numpy()[:, frame.index].T
    figure = Picture(
        figsize=(max(4.2, 2.4 + 1.1 * len(stability.names)), 1.8 + 0.24 * len(frame)), layout="constrained"
    )
    axes = figure.subplots()
    largest = float(np.nanmax(np.abs(rho), initial=0.0)) or 1.0
    image = axes.imshow(
        rho, cmap=DIVERGING, norm=CenteredNorm(0, halfrange=largest), aspect="auto", interpolation="none"
    )
    figure.colorbar(image, ax=axes, label="rho (-1 to 1)")
    for (row, column), value in np.ndenumerate(rho):
        colour = "white" if abs(value) > 0.65 * largest else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    stays = beats if stability.stays is None else stability.stays.flatten(1).numpy()[:, frame.index].T
    for marked, colour, edge in ((stays, "black", "white"), (beats & ~stays, "white", "black")):
        lines, columns = np.nonzero(marked)
        axes.scatter(columns + 0.36, lines, s=14, color=colour, edgecolor=edge, linewidth=0.5, zorder=3)
    names = [readable(name, LONGEST_LABEL) for name in stability.names]
    axes.set_xticks(range(len(names)), names, rotation=20 if len(names) > 3 else 0, fontsize=SMALL)  # noqa: PLR2004
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.set_yticks(range(len(frame)), frame["name"].tolist(), fontsize=SMALL)
    left_out = f"; the first {len(frame)} of {beating}" if beating > len(frame) else ""
    title = (
        f"Heads that beat their null in most results{left_out}" if beating else "No head beats its null in any result"
    )
    title = f"{title}\n{readable(stability.model_name)}\ndot: beats its shuffled null there (FDR 0.05)"
    title += "" if stability.stays is None else "\nring: only with the first keys of a sequence"
    axes.set_title(title, fontsize=NORMAL, parse_math=False)
    return figure


def _label_axes(panel: Axes, across: str, up: str) -> None:
    panel.set_xlabel(across, parse_math=False)
    panel.set_ylabel(up, parse_math=False)


def _draw_sides(panel: Axes, sides: Tensor, changed: np.ndarray, error: np.ndarray | None) -> None:
    x, y = sides.flatten(1).numpy()
    defined = ~(np.isnan(x) | np.isnan(y))
    ends = np.array([np.nanmin(sides), np.nanmax(sides)])
    panel.plot(ends, ends, color="0.4", linestyle="--", linewidth=0.9, label="equal in both")
    for group, colour, marker, label in (
        (defined & ~changed, "0.55", "o", "not shown to differ"),
        (defined & changed, PALETTE[1], "D", "differs significantly"),
    ):
        if group.any():
            bars: dict[str, Any] = {} if error is None else {"xerr": error[0, group].T, "yerr": error[1, group].T}
            options: dict[str, Any] = {
                "fmt": marker,
                "markersize": 4,
                "elinewidth": 0.7,
                "color": colour,
                "label": label,
                "alpha": 0.8,
            }
            panel.errorbar(x[group], y[group], **bars, **options)
    panel.axhline(0, color="0.8", linewidth=0.7, zorder=0)
    panel.axvline(0, color="0.8", linewidth=0.7, zorder=0)
    panel.locator_params(axis="x", nbins=5)  # more labels of three places would touch
    panel.grid(alpha=0.25)


def _mark_beating(panel: Axes, comparison: Comparison) -> None:
    """A ring around the heads that beat their null in one or both, and a square around those that stay in both."""
    assert comparison.excess is not None
    x, y = comparison.excess.flatten(1).numpy()
    beats, remains = (np.array(list(where.values())) for where in (comparison.beats, comparison.remains))
    for group, colour, marker, label in (
        (beats == BOTH, PALETTE[0], "o", "beats its null in both"),
        (np.isin(beats, ["a only", "b only"]), PALETTE[2], "o", "beats its null in one"),
        (remains == BOTH, PALETTE[3], "s", "stays in both"),
    ):
        if group.any():
            ring: dict[str, Any] = {"s": 100 if marker == "s" else 60, "marker": marker}
            ring |= {"facecolor": "none", "edgecolor": colour, "linewidth": 1.2}
            panel.scatter(x[group], y[group], label=label, zorder=3, **ring)


def _name_heads(
    panel: Axes, comparison: Comparison, sides: Tensor, change: Change, changed: np.ndarray, named: int
) -> None:
    size = np.where(changed, np.abs(change.value.flatten().numpy()), -1.0)
    order = np.argsort(-size, kind="stable")
    names = [str(comparison.heads[index]) for index in order[: min(named, int(changed.sum()))]]
    name_points(panel, sides.flatten(1).numpy().T[order], names)


def _title_named(panel: Axes, changed: np.ndarray, named: int) -> None:
    if int(changed.sum()) > named > 0:
        panel.set_title(f"named: the {named} that change most of {int(changed.sum())}", fontsize=SMALL)
