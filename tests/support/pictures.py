"""Draw docs/rooms.svg and docs/pipeline.svg from the code: `python -m tests.support.pictures`.

Files, sentences, floors and arrows are read from the package, so a test can draw both again and compare.
"""

import ast
import textwrap
from collections.abc import Iterable
from html import escape
from pathlib import Path

from tests.laws.test_rooms import FLOOR, MODULES, ROOT, imports, room

DOCS = ROOT.parent / "docs"
ROOMS = [name for name in FLOOR if (ROOT / name).is_dir()]
COLUMNS = {
    "cli": "",
    "studies": "right",
    "views": "left",
    "scoring": "right",
    "zoo": "right",
    "results": "left",
    "bridge": "right",
    "core": "",
}
"""Where each room is drawn, so that no arrow passes behind another room."""
Box = tuple[float, float, float, float]
"""x, y, width and height."""
STEPS = (
    ("a TransformerBridge", "bridge/resolve.py", "resolve_layers"),
    ("its rotating layers: pair layout, frequencies, scale; a text", "bridge/sequences.py", "batches"),
    ("batches of token ids [batch pos]", "bridge/capture.py", "capture"),
    ("rotated queries and keys of each layer [batch pos head d_head]", "core/pilot.py", "PilotSample.bins"),
    ("bins of D; queries and keys, in place and shuffled", "core/kernels/tiled.py", "dominant_block"),
    ("contributions and D of a tile of query-key pairs", "core/kernels/sums.py", "tile_sums"),
    ("five integer sums of a tile", "core/correlation.py", "CorrelationSums.add"),
    ("the same sums of all sequences, and of every shuffle", "scoring/sums.py", "ScoreSums.result"),
    ("sums of every layer", "core/correlation.py", "Correlation.rho"),
    ("HeadScores: rho of every head, and of every shuffle", "core/statistics.py", "excess_p_values"),
    ("excess over the null, p-values", "results/verdicts.py", "scores_verdict"),
)
"""Input and function of each step, in the order in which a run first enters them."""

WIDTH, MARGIN, LINE, INSET, GAP = 540, 12, 19, 12, 22
CHARACTERS = {"": 7.4, "mono": 7.3}
"""Width in pixels of an average character, generous, for breaking lines."""
HUES = {
    "core": 210,
    "results": 150,
    "bridge": 270,
    "zoo": 90,
    "views": 330,
    "scoring": 30,
    "studies": 180,
    "cli": 0,
}


def sentence(file: Path, name: str = "") -> str:
    """First sentence of the docstring of a file, or of a function or class in it, without its full stop."""
    node: ast.AST = ast.parse(file.read_text())
    for part in filter(None, name.split(".")):
        body = node.body  # type: ignore[attr-defined]
        node = next(inner for inner in body if getattr(inner, "name", None) == part)
    text = ast.get_docstring(node)  # type: ignore[arg-type]
    if text is None:
        msg = f"{file.relative_to(ROOT)} {name} has no docstring to draw"
        raise ValueError(msg)
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def wrapped(text: str, width: float, kind: str = "") -> list[tuple[str, str]]:
    """Lines of a text that fit a width in pixels, each with its class."""
    return [(line, kind) for line in textwrap.wrap(text, int(width / CHARACTERS[kind]), break_on_hyphens=False)]


def card(x: float, y: float, width: float, height: float, hue: str, lines: Iterable[tuple[str, str]]) -> str:
    """A rounded box in the colour of a room, with lines of text."""
    box = f'<rect class="{hue}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"/>'
    texts = [
        f'<text class="{kind}" x="{x + INSET:g}" y="{y + LINE * number + 5:g}">{escape(line)}</text>'
        for number, (line, kind) in enumerate(lines, 1)
    ]
    return "\n".join([box, *texts])


def picture(title: str, height: float, parts: Iterable[str]) -> str:
    """An SVG with a background of its own, so that it is readable on a light and on a dark page."""
    light = "".join(f".{name}{{fill:hsl({hue} 70% 94%);stroke:hsl({hue} 40% 55%)}}" for name, hue in HUES.items())
    dark = "".join(f".{name}{{fill:hsl({hue} 30% 20%);stroke:hsl({hue} 40% 55%)}}" for name, hue in HUES.items())
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}"
viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{title}">
<title>{title}</title>
<style>
text{{font:14px system-ui,sans-serif;fill:#1b1b1f}} .head{{font-weight:700}} .mono{{font:12px ui-monospace,monospace}}
.data{{font-style:italic}} .paper{{fill:#fff}} path{{fill:none;stroke:#777;stroke-width:1.5}} #tip path{{fill:#777}}
{light}
@media (prefers-color-scheme:dark){{text{{fill:#e6e6ea}} .paper{{fill:#1b1b1f}} {dark}}}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z"/></marker></defs>
<rect class="paper" width="{WIDTH}" height="{height:g}"/>
{chr(10).join(parts)}
</svg>
"""


def pipeline() -> str:
    """The way of a score, from text to verdict: what arrives, and which function takes it."""
    parts, y = [], MARGIN
    for data, file, name in STEPS:
        parts.append(f'<path d="M{MARGIN + 40} {y + 2}v25" marker-end="url(#tip)"/>')
        parts.append(f'<text class="data" x="{MARGIN + 58}" y="{y + 19}">{escape(data)}</text>')
        y += 30
        lines = [(name, "head"), (f"positional_heads/{file}", "mono")]
        lines += wrapped(sentence(ROOT / file, name), WIDTH - 2 * MARGIN - 2 * INSET)
        parts.append(card(MARGIN, y, WIDTH - 2 * MARGIN, LINE * len(lines) + 15, file.split("/")[0], lines))
        y += LINE * len(lines) + 15
    return picture("The scoring pipeline, from a model and a text to a verdict", y + MARGIN, parts)


def room_arrows() -> set[tuple[str, str]]:
    """Which room imports which, less what follows from two other arrows."""
    arrows = {
        (room(module), room(other))
        for module, file in MODULES.items()
        for other in imports(file) & set(MODULES)
        if {room(module), room(other)} <= set(ROOMS) and room(module) != room(other)
    }
    below = {name: {end for start, end in arrows if start == name} for name in ROOMS}
    for name in sorted(ROOMS, key=FLOOR.__getitem__):
        below[name] |= {further for end in below[name] for further in below[end]}
    return {(a, b) for a, b in arrows if not any(b in below[between] for between in below[a])}


def files_of(folder: Path) -> list[str]:
    """Names of the files of a room, and then of each folder in it."""
    here = sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")
    inner = sorted(file.parent for file in folder.glob("*/__init__.py"))
    return [", ".join(here)] + [f"{one.name}/ {', '.join(files_of(one))}" for one in inner]


def rooms() -> str:
    """The rooms of the package, the highest floor first: what is in each, and which uses which."""
    parts: list[str] = []
    boxes: dict[str, Box] = {}
    half, y = (WIDTH - 2 * MARGIN - GAP) / 2, MARGIN
    for floor in sorted({FLOOR[name] for name in ROOMS}, reverse=True):
        here = [name for name in COLUMNS if FLOOR[name] == floor]
        texts = {}
        for name in here:
            room_for = (half if COLUMNS[name] else WIDTH - 2 * MARGIN) - 2 * INSET
            texts[name] = [(f"{name}/", "head"), *wrapped(sentence(ROOT / name / "__init__.py"), room_for)]
            texts[name] += [line for text in files_of(ROOT / name) for line in wrapped(text, room_for, "mono")]
        height = LINE * max(len(lines) for lines in texts.values()) + 15
        for name in here:
            x = MARGIN + half + GAP if COLUMNS[name] == "right" else MARGIN
            boxes[name] = (x, y, half if COLUMNS[name] else WIDTH - 2 * MARGIN, height)
            parts.append(card(*boxes[name], name, texts[name]))
        y += height + 2 * GAP
    ends = [arrow(boxes[start], boxes[end]) for start, end in sorted(room_arrows())]
    return picture("The rooms of the package: each imports lower ones only", y - 2 * GAP + MARGIN, [*ends, *parts])


def arrow(start: Box, end: Box) -> str:
    """A line from the bottom of a box to the top of a lower one, through the gap if they share no column."""
    left, right = max(start[0], end[0]), min(start[0] + start[2], end[0] + end[2])
    if left < right:
        x1 = x2 = (left + right) / 2
    else:  # the boxes share no column: from corner to corner
        x1, x2 = (start[0] + 6, end[0] + end[2] - 12) if start[0] > end[0] else (start[0] + start[2] - 6, end[0] + 12)
    return f'<path d="M{x1:g} {start[1] + start[3]:g}L{x2:g} {end[1] - 1:g}" marker-end="url(#tip)"/>'


PICTURES = {"pipeline.svg": pipeline, "rooms.svg": rooms}


if __name__ == "__main__":
    for file_name, draw in PICTURES.items():
        (DOCS / file_name).write_text(draw())
