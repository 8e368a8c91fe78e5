"""Length extrapolation as plots: allocation curves across the training length, and what each pair can tell apart."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from positional_heads.distinguishability import injective_range, told_apart, wavelengths
from positional_heads.studies.extrapolation_results import ExtrapolationStudy
from positional_heads.views.plots import PALETTE


def extrapolation_curves(study: ExtrapolationStudy) -> Figure:
    """Mean dominant dimension over distance, one panel per head and length, one line per method.

    Curves are running means over a sixteenth of the training length; the dashed line is where training ended.

    Args:
        study: What `extrapolation_study` returned.
    """
    lengths = sorted(set(study.lengths))
    width = max(1, study.training_length // 16)
    figure = Figure(figsize=(4.4 * len(lengths) + 0.6, 2.3 * len(study.heads) + 1.0), layout="constrained")
    panels = figure.subplots(len(study.heads), len(lengths), squeeze=False, sharey="row", sharex="col")
    names = list(dict.fromkeys(study.labels))
    for column, length in enumerate(lengths):
        for row, head in enumerate(study.heads):
            panel = panels[row][column]
            for index, (label, own) in enumerate(zip(study.labels, study.lengths, strict=True)):
                if own == length:
                    curve = _smooth(study.curves[index, row, :length].numpy(), width)
                    at = np.arange(len(curve)) + width // 2
                    panel.plot(at, curve, label=label, linewidth=0.9, color=_colour(label, names))
            panel.axvline(study.training_length, color="0.4", linestyle="--", linewidth=0.8)
            panel.set_title(f"{head}, {length} tokens", fontsize=9)
            panel.grid(alpha=0.25)
    figure.legend(*panels[0][0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=len(names))
    figure.supxlabel("token distance; dashed: training length", fontsize=9)
    figure.supylabel("mean dominant dimension (pair index)", fontsize=9)
    return figure


def distinguishability(frequencies: Float[Tensor, " pair"], length: int) -> Figure:
    """For every pair: its wavelength, the distances before it repeats, and how many of them it tells apart.

    Args:
        frequencies: Radians per token, e.g. `scores.frequencies[0]` or a method's own.
        length: Number of distances that matter, in tokens.
    """
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
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
    axes.set_title(f"What each rotary pair can tell apart in {length} tokens (dashed)", fontsize=9)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    return figure


def methods_told_apart(study: ExtrapolationStudy) -> Figure:
    """How many distances each pair tells apart in bfloat16, one panel per length, one line per method.

    Args:
        study: What `extrapolation_study` returned.
    """
    table = study.told_apart()
    lengths = sorted(set(study.lengths))
    figure = Figure(figsize=(4.4 * len(lengths) + 0.6, 3.4), layout="constrained")
    names = list(dict.fromkeys(study.labels))
    for panel, length in zip(figure.subplots(1, len(lengths), squeeze=False, sharey=True)[0], lengths, strict=True):
        for label, rows in table[table["length"] == length].groupby("method", sort=False):
            panel.plot(rows["pair"], rows["told_apart"], label=label, linewidth=1.1, color=_colour(str(label), names))
        panel.set(yscale="log", xlabel="pair index; higher is slower")
        panel.set_title(f"{length} tokens", fontsize=9)
        panel.grid(alpha=0.25)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, loc="outside upper center", ncols=len(names))
    figure.supylabel("distances told apart", fontsize=9)
    return figure


def _colour(label: str, names: list[str]) -> str:
    return "black" if label == "none" else PALETTE[names.index(label) % len(PALETTE)]


def _smooth(curve: np.ndarray, width: int) -> np.ndarray:
    return np.convolve(curve, np.ones(width) / width, mode="valid")
