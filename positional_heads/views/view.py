"""The value of a token view: a page that displays itself in Jupyter, saves itself, and lists what was cropped."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from positional_heads.core.whole_files import write_atomically
from positional_heads.results.text import printable
from positional_heads.views.frame import frame
from positional_heads.views.page import render

BLUES = ("#ffffff", "#08306b")
BROWNS = ("#ffffff", "#8c2d04")
BLUE_TO_RED = ("#0000ff", "#ffffff", "#ff0000")
WHITE_TO_RED = ("#ffffff", "#ff0000")
DIVERGING = ("#083870", "#77b2d4", "#f7f7f7", "#e48668", "#6f0220")
"""Blue is negative and red positive, as in every other picture."""


@dataclass(frozen=True)
class Scale:
    """A colour scale in words: its ends, its unit, its colours from low to high."""

    low: str
    high: str
    unit: str
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """One component of circuitsvis with its props, which must be JSON without NaN."""

    component: Literal["AttentionPattern", "ColoredTokensMulti"]
    props: dict[str, Any]
    heading: str
    label: str
    scale: Scale
    kind: Literal["panel"] = "panel"


@dataclass(frozen=True)
class HeatCell:
    """One cell of a heat table: its class of colour, and its tooltip."""

    shade: str
    tooltip: str


@dataclass(frozen=True)
class HeatRow:
    """One row of a heat table."""

    name: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True)
class HeatTable:
    """A table of colours, readable without a script."""

    heading: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    scale: Scale
    kind: Literal["heat"] = "heat"


@dataclass(frozen=True)
class Numbers:
    """The numbers behind a picture, as a table that opens on request."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    kind: Literal["numbers"] = "numbers"


Part = Panel | HeatTable | Numbers


@dataclass(frozen=True)
class Group:
    """Parts that belong together, behind a summary that opens them, or without one."""

    parts: tuple[Part, ...]
    summary: str = ""
    open: bool = True


@dataclass(frozen=True)
class View:
    """A page of tokens or pairs that displays itself in Jupyter, saves itself to a file, and needs no network.

    Attributes:
        title: Title of the page.
        caption: How to read it, in sentences.
        groups: Its parts.
        notes: What was cropped, in sentences that are on the page too.
        height: Height in Jupyter, in pixels.
    """

    title: str
    caption: tuple[str, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    height: int = 640

    @cached_property
    def html(self) -> str:
        """The whole page, self-contained; only circuitsvis' bundle and our few lines run in it."""
        interactive = any(part.kind == "panel" for group in self.groups for part in group.parts)
        return render("view.html", interactive=interactive, shown=self)

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, all of it or nothing.

        Raises:
            OSError: If the file cannot be written.
        """
        file = Path(path)
        write_atomically(file, self.html)
        return file

    def _repr_html_(self) -> str:
        """A sandboxed frame for Jupyter, so that views interfere neither with each other nor with the notebook."""
        return frame(self.html, printable(self.title, newlines=False), self.height)

    def __repr__(self) -> str:
        return f"View({self.title!r}; display it in Jupyter, or save it: view.save('view.html'))"
