"""Shared parts of all plots: figures that display themselves, colours, safe names, a wavelength axis."""

import io
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from positional_heads.core.rotary import wavelengths

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's colours, which colour-blind readers can tell apart; the faint yellow last."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DIVERGING = "RdBu_r"
SMALL, NORMAL = 8, 9
NOTEBOOK_DPI = 110
LONGEST_NAME = 60
WIDEST_LEGEND = 7


class Picture(Figure):
    """A figure without global state: notebooks show it, `savefig` writes png, svg or pdf, nothing needs closing."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=NOTEBOOK_DPI)
        return buffer.getvalue()


def png(figure: Figure, dpi: int) -> bytes:
    """A figure as a PNG file, without the name of the software, so that equal figures have equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def readable(text: str, longest: int = LONGEST_NAME) -> str:
    """A name as one line that any font and file format can hold: control characters and the like escaped, cut if long.

    Args:
        text: A model's or task's name, which may be anything.
        longest: Characters to keep.
    """
    safe = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
    return safe if len(safe) <= longest else f"{safe[: longest - 3]}..."


def share_legend(figure: Figure, panels: Iterable[Axes], title: str, *, columns: int) -> None:
    """The figure's title with one legend for all panels beneath it, each label once.

    Args:
        figure: The figure.
        panels: Where labelled artists are.
        title: One or more lines.
        columns: Labels in a row, at most.
    """
    labelled: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    if not labelled:
        figure.suptitle(title, fontsize=NORMAL, parse_math=False)
        return
    columns = max(1, min(columns, len(labelled), WIDEST_LEGEND))
    # a title of the legend's own: layout keeps no room between a figure's title and a legend
    legend = figure.legend(
        list(labelled.values()),
        list(labelled),
        title=title,
        fontsize=SMALL,
        title_fontsize=NORMAL,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
    )
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)
    legend.get_title().set_multialignment("center")


def wavelength_axis(axes: Axes, frequencies: Float[Tensor, " pair"], *, label: bool = True) -> None:
    """A right-hand axis that gives the wavelength in tokens next to a left-hand axis of pair indices.

    Between two pairs the wavelength is interpolated geometrically, which for plain RoPE is exact.

    Args:
        axes: A panel whose vertical axis is the pair index.
        frequencies: Radians per token of each pair, NaN behind the last one; nothing is drawn if one is unknown.
        label: Label the axis.
    """
    frequencies = frequencies[: int((~frequencies.isnan()).sum())]
    if not len(frequencies) or bool(frequencies.isnan().any()):
        return
    tokens = wavelengths(frequencies).numpy()

    def wavelength_at(pair: float, _: int | None = None) -> str:
        return token_count(interpolated(tokens, pair)) if -0.5 <= pair <= len(tokens) - 0.5 else ""  # noqa: PLR2004

    right = axes.secondary_yaxis("right")
    right.yaxis.set_major_formatter(FuncFormatter(wavelength_at))
    right.tick_params(labelsize=SMALL)
    if label:
        right.set_ylabel("wavelength of that pair (tokens)", fontsize=SMALL)


def interpolated(tokens: np.ndarray, pair: float) -> float:
    """Wavelength at a fractional pair index, or at the nearest pair beyond the ends."""
    pair = min(max(pair, 0.0), len(tokens) - 1.0)
    low, high = tokens[math.floor(pair)], tokens[math.ceil(pair)]
    if not np.isfinite([low, high]).all():  # a pair that does not rotate has no finite wavelength
        return float(low if pair % 1 < 0.5 else high)  # noqa: PLR2004
    return float(low ** (1 - pair % 1) * high ** (pair % 1))


def token_count(tokens: float) -> str:
    """A number of tokens as a short label."""
    if math.isinf(tokens):
        return "no rotation"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.3g}"
