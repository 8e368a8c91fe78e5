"""Pictures that follow the reader's light or dark scheme: a figure as SVG whose colours are CSS variables.

The colours of our plots are a short list (`figures.PALETTE`, ink, paper and greys), so each has one dark partner here,
and the cells of a heat map, which are pixels, are kept once for each scheme. No picture of a page is a white box in the
dark.
"""

import base64
import io
import math
import re
import textwrap
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import imread, imsave

from positional_heads.views.figures import DIVERGING, SEQUENTIAL, SMALL, share_legend

INK, PAPER = (230, 233, 239), (28, 32, 39)
"""Of the dark scheme, as `--ink` and `--card` of page.css."""
DARK = {
    "#0072b2": "#58aee8",
    "#d55e00": "#f5874a",
    "#009e73": "#37c99b",
    "#cc79a7": "#e39bc4",
    "#e69f00": "#f0b43c",
    "#56b4e9": "#a9dcfa",
}
"""Lighter partners of the palette's colours, which would be hard to see on dark paper."""
DARK_SCALES = {
    DIVERGING: ("#8ec8ff", "#2f6fae", "#272c35", "#b8493c", "#ffb3a3"),
    SEQUENTIAL: ("#232832", "#7a6fc0", "#e5dcff"),
}
"""The explorer's scales in the dark: what is near zero is near the paper; blue stays negative, red positive."""
WIDEST = 5.3
"""Inches of a figure that a phone can show as it is; wider ones have a second, narrow layout."""
NARROW = 4.6
LINE_PER_INCH, LEGEND_PER_INCH = 14, 15
"""Characters of a title, and of a legend, in an inch."""
HANDLE = 6
"""Characters that the line of a legend takes."""
LEAST_CELL, TICK, SIDES = 0.25, 0.22, 1.4
"""Inches of a cell that can hold its number, of the label of a tick, and of what stands beside a map."""
_COLOUR = re.compile(r"(?<=: )#[0-9a-f]{6}\b")
_IMAGE = re.compile(r'<image [^>]*?xlink:href="data:image/png;base64,\s*([^"]*)"[^>]*/>')
_PLACES = re.compile(r'\b(d|x|y)="([^"]*)"')
_LONG = re.compile(r"(\d\d\.\d|\d\.\d\d)\d+")
"""Digits below a tenth of a point, and of small numbers below a hundredth."""


def themed_svg(figure: Figure, *, trimmed: bool = False) -> bytes:
    """A figure as SVG with a light and a dark look, chosen by the reader's scheme; equal figures have equal bytes.

    It runs nothing, and needs neither a font nor another file: letters are outlines.

    Args:
        figure: The figure.
        trimmed: Whether the picture ends where the last line ends, inside or outside of the figure.
    """
    buffer = io.StringIO()
    settings: Any = {"svg.hashsalt": "positional_heads", "svg.fonttype": "path", "path.simplify_threshold": 0.3}
    nameless = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", bbox_inches="tight" if trimmed else None, metadata=nameless)
    drawn = _without_waste(buffer.getvalue())
    images = bool(_IMAGE.search(drawn))
    drawn = _IMAGE.sub(_in_both_schemes, drawn)
    classes: dict[str, str] = {}
    drawn = re.sub(r' style="([^"]*)"', lambda found: _class_of(found[1], classes), drawn)
    rules = "".join(f".{name}{{{style}}}" for style, name in classes.items())
    colours = sorted({"#000000", *_COLOUR.findall(rules)})
    light, dark = (
        ";".join(f"--{_name(colour)}:{shown(colour)}" for colour in colours) for shown in (str, dark_partner)
    )
    style = f"svg{{{light};fill:var(--{_name('#000000')})}}" + "@media(prefers-color-scheme:dark){svg{" + dark + "}}"
    style += _COLOUR.sub(lambda found: f"var(--{_name(found[0])})", rules)
    if images:
        style += ".night{display:none}@media(prefers-color-scheme:dark){.day{display:none}.night{display:inline}}"
    head, body = drawn.split("<defs>", 1)
    return f"{head}<style>{style}</style><defs>{body}".encode()


def dark_partner(colour: str) -> str:
    """What a colour becomes in the dark: greys run from ink to paper, the palette is lighter, others stay.

    Args:
        colour: As `#rrggbb`, in small letters.
    """
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    if not red == green == blue:
        return DARK.get(colour, colour)
    share = red / 255
    return "#" + "".join(f"{round(ink + share * (paper - ink)):02x}" for ink, paper in zip(INK, PAPER, strict=True))


def narrowed(figure: Figure) -> Figure:
    """The same figure with fewer panels beside each other, for a narrow screen; it is changed in place.

    Args:
        figure: A figure that was drawn or saved before: its colour bars have their places.
    """
    width, height = figure.get_size_inches()
    panels = [axes for axes in figure.axes if axes.get_subplotspec() is not None]
    if not panels:
        return figure
    grid = panels[0].get_subplotspec().get_gridspec()  # type: ignore[union-attr]
    rows, across = grid.nrows, max(1, int(NARROW * grid.ncols / width + 0.2))
    shown = [axes for axes in panels if axes.get_visible()]
    for axes in panels:
        if not axes.get_visible():
            axes.remove()
    down = -(-len(shown) // across)
    square = any(axes.get_aspect() == 1 for axes in shown)
    figure.set_size_inches(NARROW, height * NARROW / width if square else height / rows * down + 0.2)
    places = GridSpec(down, across, figure=figure)
    for number, axes in enumerate(shown):
        axes.set_subplotspec(places[number // across, number % across])
        axes.tick_params(labelbottom=True, labelleft=True)
        axes.set_title(_wrapped(axes.get_title(), NARROW / across), fontsize=SMALL, parse_math=False)
        room, ticks = (NARROW - SIDES) / across, axes.get_xticks()
        if axes.images and all(label.get_text().isdigit() for label in axes.get_xticklabels()):
            axes.set_xticks(ticks[:: math.ceil(len(ticks) * TICK / room)])
        if axes.images and room / max(1, axes.images[0].get_size()[1]) < LEAST_CELL:
            for text in axes.texts:
                text.set_visible(False)
    _narrow_titles(figure, shown)
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)  # once more than saving does, because so much has moved
    return figure


def _narrow_titles(figure: Figure, panels: list[Axes]) -> None:
    """The figure's own title, labels and legend, in lines and columns that fit."""
    figure.suptitle(_wrapped(figure.get_suptitle(), NARROW), fontsize=SMALL, parse_math=False)
    if across := figure.get_supxlabel():
        figure.supxlabel(_wrapped(across, NARROW), fontsize=SMALL)
    if figure.legends:
        title = figure.legends[0].get_title().get_text()
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        figure.legends[0].remove()
        columns = int(NARROW * LEGEND_PER_INCH // (max(map(len, labels), default=1) + HANDLE))
        share_legend(figure, panels, _wrapped(title, NARROW), columns=max(1, columns))


def _wrapped(text: str, inches: float) -> str:
    return "\n".join(textwrap.fill(line, int(inches * LINE_PER_INCH)) for line in text.split("\n"))


def _without_waste(drawn: str) -> str:
    """The same drawing without what no reader sees: names, spaces, digits. It takes a third of the room."""
    drawn = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<[?!][^>]*>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r">\s+<", "><", drawn)
    drawn = _PLACES.sub(_shortened, drawn)
    drawn = re.sub(r'(<use [^>]*)transform="translate\((-?[\d.]+) 0\)"', r'\1x="\2"', drawn)
    used = [*dict.fromkeys(re.findall(r"#([^\"#)]+)(?=[\")])", drawn))]
    short = {name: f"u{number}" for number, name in enumerate(used)}
    drawn = re.sub(r' id="([^"]*)"', lambda found: f' id="{short[found[1]]}"' if found[1] in short else "", drawn)
    drawn = re.sub(r'(href="|url\()#([^")]+)', lambda found: f"{found[1]}#{short[found[2]]}", drawn)
    return re.sub(r"\s+/>", "/>", drawn).replace("<g></g>", "").strip()


def _class_of(style: str, classes: dict[str, str]) -> str:
    """A class for a style, which is written once."""
    return f' class="{classes.setdefault(style, f"s{len(classes)}")}"'


def _shortened(found: re.Match[str]) -> str:
    """Coordinates to a tenth of a point, on one line."""
    places = " ".join(_LONG.sub(r"\1", found[2]).split())
    return f'{found[1]}="{places}"'


@lru_cache(maxsize=4)
def _scale(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The colours of a scale from low to high, light and dark, in 0 to 255."""
    light = np.rint(255 * mpl.colormaps[name](np.arange(256))[:, :3])
    stops = np.array([[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in DARK_SCALES[name]])
    along = np.linspace(0, 1, len(stops))
    dark = np.stack([np.interp(np.linspace(0, 1, 256), along, stops[:, channel]) for channel in range(3)], axis=1)
    return light, dark


def _in_both_schemes(found: re.Match[str]) -> str:
    """An image of a scale's colours, and the same in the colours of the dark one."""
    day, encoded = found[0], found[1]
    pixels = np.rint(255 * imread(io.BytesIO(base64.b64decode(encoded)), format="png")).astype(np.uint8)
    buffer = io.BytesIO()
    imsave(buffer, _darkened(pixels), format="png", metadata={"Software": None})  # type: ignore[dict-item]
    night = day.replace(encoded, base64.b64encode(buffer.getvalue()).decode())
    return f'<g class="day">{day}</g><g class="night">{night}</g>'


def _darkened(pixels: np.ndarray) -> np.ndarray:
    """Each pixel at the place of the dark scale that it has on the light one, whichever scale comes nearest."""
    colours, where = np.unique(pixels[..., :3].reshape(-1, 3), axis=0, return_inverse=True)
    scales = [_scale(name) for name in DARK_SCALES]
    distances = [((colours[:, None].astype(float) - light) ** 2).sum(-1) for light, _ in scales]
    chosen = min(range(len(scales)), key=lambda scale: distances[scale].min(1).sum())
    dark = scales[chosen][1][distances[chosen].argmin(1)]
    found = np.rint(dark[where.reshape(-1)]).astype(np.uint8).reshape(*pixels.shape[:2], 3)
    return np.dstack([found, pixels[..., 3:]])


def _name(colour: str) -> str:
    return f"c{colour[1:]}"
