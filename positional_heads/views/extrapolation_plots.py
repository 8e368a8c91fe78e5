"""Length extrapolation as plots: allocation curves across the training length, and what each pair can tell apart."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from positional_heads.distinguishability import injective_range, told_apart, wavelengths
from positional_heads.studies.extrapolation_results import ExtrapolationStudy
from positional_heads.views.plots import PALETTE

SMOOTHED = 9


def extrapolation_curves(study: ExtrapolationStudy) -> Figure:
    """Mean dominant dimension over distance, one panel per head and length, one line per method.

    Curves are averaged over 9 distances; the dashed line is where training ended.

    Args:
        study: What `extrapolation_study` returned.
    """
    lengths = sorted(set(study.lengths))
    figure = Figure(figsize=(4.4 * len(lengths) + 0.6, 2.3 * len(study.heads) + 1.0), layout="constrained")
    panels = figure.subplots(len(study.heads), len(lengths), squeeze=False, sharey="row", sharex="col")
    names = list(dict.fromkeys(study.labels))
    for column, length in enumerate(lengths):
        for row, head in enumerate(study.heads):
            panel = panels[row][column]
            for index, (label, own) in enumerate(zip(study.labels, study.lengths, strict=True)):
                if own == length:
                    curve = _smooth(study.curves[index, row, :length].numpy())
                    colour = "black" if label == "none" else PALETTE[names.index(label) % len(PALETTE)]
                    at = np.arange(len(curve)) + SMOOTHED // 2
                    panel.plot(at, curve, label=label, linewidth=0.9, color=colour)
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


def _smooth(curve: np.ndarray) -> np.ndarray:
    return np.convolve(curve, np.ones(SMOOTHED) / SMOOTHED, mode="valid")
