"""Shared parts of all plots: figures that display themselves, colours, safe names, a wavelength axis."""

import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox
from torch import Tensor

from positional_heads.core.rotary import wavelengths

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's colours, which colour-blind readers can tell apart; the faint yellow last."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DIVERGING, SEQUENTIAL = "RdBu_r", "Purples"
"""Red is positive, blue negative; what has no sign has another hue."""
SMALL, NORMAL = 8, 9
NOTEBOOK_DPI = 110
LONGEST_NAME = 60
WIDEST_LEGEND = 7
WAVELENGTH = "wavelength of that pair (tokens)"
NAME_SIZE, NAME_WIDTH, NAME_HEIGHT = 7, 5.0, 9.0
"""Size of the names of points, and the room that they take for each character and in height, in points."""
POINTS_PER_INCH = 72
NEAR_NAME = 8.0
"""Points between a point and its name beyond which a line connects them."""
OFFSETS = tuple(
    (round(side * radius * math.cos(math.radians(angle)), 2), round(radius * math.sin(math.radians(angle)), 2))
    for radius in (6, 14, 24, 36, 50, 66)
    for angle in (30, -30, 0, 60, -60)
    for side in (1, -1)
)
"""Where a name may begin from its point, in points, the nearest first."""


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


def name_points(panel: Axes, points: Float[np.ndarray, "point 2"], names: Sequence[str]) -> None:
    """Names beside points, each where it covers no other name and as few points as can be; a line leads to far ones.

    Call it when all else is drawn, because the room for names depends on the panel's final size and limits.

    Args:
        panel: Where the points are.
        points: Their places, all of them; the first ones are named.
        names: Names of the first points, the most important first.
    """
    if not names:
        return
    figure = panel.get_figure(root=True)
    assert figure is not None
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    inside, scale = panel.get_window_extent(), figure.dpi / POINTS_PER_INCH
    drawn = panel.transData.transform(points[~np.isnan(points).any(1)])
    taken: list[Bbox] = []
    for place, name in zip(points, names, strict=False):
        anchor = panel.transData.transform(place)
        size = np.array([NAME_WIDTH * len(name), NAME_HEIGHT]) * scale
        boxes = [(offset, _name_box(anchor, np.array(offset) * scale, size)) for offset in OFFSETS]
        free = [(offset, box) for offset, box in boxes if not any(map(box.overlaps, taken))]
        within = [(offset, box) for offset, box in free if inside.containsx(box.x0) and inside.containsx(box.x1)]
        within = [(offset, box) for offset, box in within if inside.containsy(box.y0) and inside.containsy(box.y1)]
        offset, box = min(within or free or boxes[:1], key=lambda one: one[1].count_contains(drawn))
        taken.append(box)
        far = np.hypot(*offset) > NEAR_NAME
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.5", "shrinkA": 0, "shrinkB": 2} if far else None
        label = panel.annotate(
            name,
            place,
            offset,
            textcoords="offset points",
            fontsize=NAME_SIZE,
            horizontalalignment="left" if offset[0] >= 0 else "right",
            verticalalignment="center",
            arrowprops=line,
            path_effects=[withStroke(linewidth=1.8, foreground="white")],  # readable on the points that it covers
        )
        label.set_in_layout(False)


def _name_box(anchor: np.ndarray, offset: np.ndarray, size: np.ndarray) -> Bbox:
    """The room that a name takes: its left or right end, at half its height, lies at the offset."""
    left = anchor[0] + offset[0] - (size[0] if offset[0] < 0 else 0)
    below = anchor[1] + offset[1] - size[1] / 2
    return Bbox.from_bounds(left, below, size[0], size[1])


def wavelength_axis(
    axes: Axes,
    frequencies: Float[Tensor, " pair"],
    *,
    label: bool = True,
    name: str = "wavelength of that pair (tokens)",
) -> None:
    """A right-hand axis that gives the wavelength in tokens next to a left-hand axis of pair indices.

    Between two pairs the wavelength is interpolated geometrically, which for plain RoPE is exact.

    Args:
        axes: A panel whose vertical axis is the pair index.
        frequencies: Radians per token of each pair, NaN behind the last one; nothing is drawn if one is unknown.
        label: Label the axis.
        name: The label.
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
        right.set_ylabel(name, fontsize=SMALL)


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
