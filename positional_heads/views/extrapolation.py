"""Plots of an extrapolation study: allocation over distance, methods compared, and what each pair tells apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head
from positional_heads.core.rotary import injective_range, told_apart, wavelengths
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.text import signed
from positional_heads.views.figures import (
    MARKERS,
    NORMAL,
    PALETTE,
    SMALL,
    Picture,
    readable,
    share_legend,
    wavelength_axis,
)

METHOD_COLOURS = PALETTE[:6]
"""Without black, which is the plain model, and yellow, which is too faint for a line."""
FILLS = ("full", "none", "left", "bottom")
ALLOCATION_LABELS = {
    "rho_beyond": "rho beyond the training length",
    "jump": "jump at the training length (sd of the curve)",
    "stretch": "stretch of the plain curve (times)",
}


@checked
def extrapolation_curves(study: ExtrapolationStudy) -> Figure:
    """Mean dominant dimension over distance, one panel per head and length, one line per method.

    Curves are running means over a sixteenth of the training length; the dashed line is where training ended. The
    right-hand axis gives the wavelengths that pairs have without extension, where the study has a run without and
    keeps the frequencies of the head's layer.

    Args:
        study: What `extrapolation_study` returned.
    """
    lengths = sorted(set(study.lengths))
    figure = Picture(figsize=(4.6 * len(lengths) + 0.9, 2.3 * len(study.heads) + 1.4), layout="constrained")
    panels = figure.subplots(len(study.heads), len(lengths), squeeze=False, sharey="row", sharex="col")
    names = list(dict.fromkeys(study.labels))
    for column, length in enumerate(lengths):
        for row, head in enumerate(study.heads):
            panel = panels[row][column]
            for index, (label, own) in enumerate(zip(study.labels, study.lengths, strict=True)):
                if own == length:
                    distance, mean = study.running_means(index)
                    panel.plot(distance, mean[row], label=label, linewidth=1.0, **_line(label, names))
            panel.axvline(study.training_length, color="0.4", linestyle="--", linewidth=0.8)
            panel.set_title(f"{head}, {length} tokens", fontsize=NORMAL)
            panel.grid(alpha=0.25)
    if "none" in study.labels:
        plain = study.frequencies[study.labels.index("none")]
        for row, head in enumerate(study.heads):
            if _turns_as_recorded(study, head):
                wavelength_axis(panels[row][-1], plain, name="wavelength without\nextension (tokens)")
    share_legend(figure, panels.flatten(), _title(study, "Allocation beyond the training length"), columns=len(names))
    reached = f"dashed: training length, {study.training_length} tokens"
    figure.supxlabel(f"distance from query back to key (tokens); {reached}", fontsize=NORMAL)
    figure.supylabel("mean dominant dimension (pair index)", fontsize=NORMAL)
    return figure


@checked
def method_comparison(study: ExtrapolationStudy) -> Figure:
    """Task efficiency over each measure of allocation, one point per method and length.

    Above each panel is the rank correlation with its interval.

    Args:
        study: What `extrapolation_study` returned.
    """
    table, link = study.to_frame(), study.link().set_index("measure")
    names, lengths = list(dict.fromkeys(study.labels)), sorted(set(study.lengths))
    figure = Picture(figsize=(3.6 * len(ALLOCATION_LABELS) + 0.6, 4.3), layout="constrained")
    panels = figure.subplots(1, len(ALLOCATION_LABELS), sharey=True)
    for panel, (measure, label) in zip(panels, ALLOCATION_LABELS.items(), strict=True):
        for row in table.to_dict("records"):
            style = {"color": _line(row["method"], names)["color"], "marker": _cycled(MARKERS, names, row["method"])}
            fill = _cycled(FILLS, lengths, row["length"])
            panel.plot(row[measure], row["efficiency"], markersize=8, fillstyle=fill, **style)
        panel.axhline(1, color="0.4", linestyle="--", linewidth=0.8)
        panel.margins(x=0.16, y=0.1)
        panel.set_xlabel(label, fontsize=NORMAL)
        panel.set_title(_correlation_line(link.loc[measure]), fontsize=SMALL)
        panel.grid(alpha=0.25)
    for name in names:  # no data: these lines only fill the legend
        panels[0].plot([], [], _cycled(MARKERS, names, name), color=_line(name, names)["color"], label=name)
    for length in lengths:
        fill = _cycled(FILLS, lengths, length)
        panels[0].plot([], [], "o", color="0.4", fillstyle=fill, label=f"{length} tokens")
    share_legend(figure, panels, _title(study, "Methods compared"), columns=len(names) + len(lengths))
    panels[0].set_ylabel("efficiency: answer's probability over\nthe plain model's within training", fontsize=NORMAL)
    return figure


@checked
def distinguishability(frequencies: Float[Tensor, " pair"], length: int) -> Figure:
    """Wavelength of every pair, the distances before it repeats, and how many of them bfloat16 tells apart.

    Args:
        frequencies: Radians per token, e.g. `scores.frequencies[0]` or a method's own.
        length: Number of distances that matter, in tokens.
    """
    figure = Picture(figsize=(6.2, 3.6), layout="constrained")
    axes = figure.subplots()
    pairs = np.arange(len(frequencies))
    lines = (
        ("wavelength", wavelengths(frequencies), ":", PALETTE[5]),
        ("distances before it repeats", injective_range(frequencies, length), "-", PALETTE[0]),
        ("of them told apart in bfloat16", told_apart(frequencies, length), "-", PALETTE[1]),
    )
    for label, values, style, colour in lines:
        axes.plot(pairs, values.numpy(), style, marker="o", markersize=3, label=label, color=colour)
    axes.axhline(length, color="0.4", linestyle="--", linewidth=0.8)
    axes.set(yscale="log", xlabel="pair index; higher is slower", ylabel="tokens")
    axes.set_title(f"What each rotary pair can tell apart in {length} tokens (dashed)", fontsize=NORMAL)
    axes.legend(fontsize=SMALL)
    axes.grid(alpha=0.25)
    return figure


@checked
def methods_told_apart(study: ExtrapolationStudy) -> Figure:
    """How many distances each pair tells apart in bfloat16, one panel per length, one line per method.

    Args:
        study: What `extrapolation_study` returned.
    """
    table = study.told_apart()
    lengths = sorted(set(study.lengths))
    figure = Picture(figsize=(4.4 * len(lengths) + 0.9, 3.8), layout="constrained")
    names = list(dict.fromkeys(study.labels))
    panels = figure.subplots(1, len(lengths), squeeze=False, sharey=True)[0]
    for panel, length in zip(panels, lengths, strict=True):
        for label, rows in table[table["length"] == length].groupby("method", sort=False):
            # later lines are thinner, because methods with the same frequencies would hide each other
            width = 3.2 - 2.2 * names.index(str(label)) / max(1, len(names) - 1)
            panel.plot(rows["pair"], rows["told_apart"], label=label, linewidth=width, **_line(str(label), names))
        panel.set(yscale="log", xlabel="pair index; higher is slower")
        panel.set_title(f"{length} tokens", fontsize=NORMAL)
        panel.grid(alpha=0.25)
    share_legend(figure, panels, _title(study, "What each rotary pair tells apart"), columns=len(names))
    figure.supylabel("distances told apart (tokens)", fontsize=NORMAL)
    return figure


def _turns_as_recorded(study: ExtrapolationStudy, head: Head) -> bool:
    """Whether a head's layer has the frequencies that the study keeps, those of the first rotated layer.

    They can differ between layers (Gemma 3's local and global ones). Studies of earlier versions do not say.
    """
    known = {one["layer"]: one["frequencies"] for one in study.provenance.get("rotary") or []}
    return not known or known.get(head.layer) == known[min(known)]


def _title(study: ExtrapolationStudy, title: str) -> str:
    return f"{title}\n{readable(study.model_name)}"


def _correlation_line(link: Any) -> str:
    if np.isnan(link["correlation"]):
        return "rank correlation undefined"
    interval = "" if np.isnan(link["low"]) else f" ({signed(link['low'], 2)} to {signed(link['high'], 2)})"
    return f"rank correlation {signed(link['correlation'], 2)}{interval}, {int(link['points'])} points"


def _cycled(looks: Sequence[str], values: Sequence[Any], value: Any) -> str:
    return looks[list(values).index(value) % len(looks)]


def _line(label: str, names: list[str]) -> dict[str, Any]:
    """The colour and dashes of a method; methods beyond the palette differ by dashes."""
    if label == "none":
        return {"color": "black", "linestyle": "-"}
    others = [name for name in names if name != "none"]
    round_of_colours, colour = divmod(others.index(label), len(METHOD_COLOURS))
    return {"color": METHOD_COLOURS[colour], "linestyle": ("-", "--", ":", "-.")[round_of_colours % 4]}
