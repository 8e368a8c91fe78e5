"""`ph.explore`: results as one page to click through, and as the document behind it."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from positional_heads.core.arguments import checked
from positional_heads.core.whole_files import write_atomically
from positional_heads.results.files import EXPLORER_DATA, EXPLORER_NAME
from positional_heads.results.record import Record
from positional_heads.views.explorer.document import explorer_document
from positional_heads.views.explorer.runs import given_runs, read_runs

LARGEST_PAGE = 12_000_000
"""Bytes of a page that is one file; what a larger one knows of each layer is in files beside it."""
HEIGHT = 900
_DATA_FILE = re.compile(r"L\d+\.json")


@dataclass(frozen=True, repr=False, eq=False)
class Explorer:
    """Results of one model, to click through: it displays itself in Jupyter, saves itself, and needs no network.

    Attributes:
        document: Everything that the page shows, as JSON; `positional_heads/views/explorer/schema.json` describes it.
        height: Height in Jupyter, in pixels.
    """

    document: dict[str, Any]
    height: int = HEIGHT

    @property
    def title(self) -> str:
        """Title of the page."""
        return str(self.document["title"])

    @cached_property
    def html(self) -> str:
        """The whole page in one file, however large."""
        from positional_heads.views.explorer.page import explorer_html  # Altair takes a second

        return explorer_html(self.document)

    @cached_property
    def files(self) -> dict[str, str]:
        """The files that `save` writes to a folder, by name: the page, and above 12 MB one file for each layer."""
        if len(self.html.encode()) <= LARGEST_PAGE:
            return {EXPLORER_NAME: self.html}
        from positional_heads.views.explorer.page import explorer_files

        return explorer_files(self.document)

    @property
    def several_files(self) -> bool:
        """Whether it is too large for one file: then browsers show it from a server only, `explore DIR --serve`."""
        return len(self.files) > 1

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the page, each file complete or not at all.

        Args:
            path: A file, or a folder, in which it is called explorer.html. A page above 12 MB has files of each layer
                beside it, in a folder explorer_data, and must be called explorer.html.

        Returns:
            The page's file.

        Raises:
            ValueError: If a page above 12 MB would be called something else.
            OSError: If a file cannot be written.
        """
        path = Path(path)
        file = path / EXPLORER_NAME if path.is_dir() or not path.suffix else path
        if self.several_files and file.name != EXPLORER_NAME:
            msg = (
                f"{file}: this explorer is too large for one file, and the files beside it belong to one called "
                f"{EXPLORER_NAME}: give a folder"
            )
            raise ValueError(msg)
        beside = {name: content for name, content in self.files.items() if name != EXPLORER_NAME}
        for name, content in beside.items():
            write_atomically(file.parent / name, content)
        write_atomically(file, self.files[EXPLORER_NAME])
        if file.name == EXPLORER_NAME:
            remove_data(file.parent, keep={Path(name).name for name in beside})
        return file

    def _repr_html_(self) -> str:
        """A sandboxed frame for Jupyter, and a picture of the atlas for hosts that run nothing."""
        return str(self._repr_mimebundle_()["text/html"])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str | bytes]:
        """The frame; a picture of the atlas; and one line for hosts that show text only."""
        from positional_heads.views.explorer.picture import atlas_picture
        from positional_heads.views.frame import frame

        png = b"" if self.document["rank_by"] is None else atlas_picture(self.document)._repr_png_()
        if self.several_files:
            html = f"<p><b>{escape(self.title)}</b>: too large for a notebook; save it: explorer.save('explorer')</p>"
        else:
            html = frame(self.html, self.title, self.height, png)
        return {"text/html": html, "text/plain": repr(self)} | ({"image/png": png} if png else {})

    def __repr__(self) -> str:
        runs, model = self.document["runs"], self.document["model"]
        return (
            f"Explorer({self.title!r}: {model['layers']} layers of {model['heads']} heads, {len(runs)} "
            f"{'result' if len(runs) == 1 else 'results'}; display it in Jupyter, or save it: "
            f"explorer.save({EXPLORER_NAME!r}))"
        )


@checked
def explore(
    result: str | Path | Record | Sequence[Record] | Mapping[str, Record | str | Path], *, title: str | None = None
) -> Explorer:
    """Results to click through: choose heads in an atlas or a table, and see all that is known of them.

    Shows scores, profiles, ablations of single heads, extensions, comparisons, and texts token by token; several
    results of one shape side by side, e.g. of other texts or checkpoints.

    Args:
        result: The --out folder of a command of positional-heads, or a folder of such folders; or a result, a list of
            results, or results or such folders by the names that they should have.
        title: Title of the page; the model and its text when None.

    Returns:
        The explorer; `.document` holds everything that it shows, `.save(path)` writes the page.

    Raises:
        FileNotFoundError: If there is no such folder, or no such result in it.
        ResultFileError: If a result is damaged, foreign, or from a newer version.
        TypeError: If one is no result that an explorer shows.
        ValueError: If there is none.
    """
    if isinstance(result, str | Path):
        return Explorer(explorer_document(read_runs(result), title))
    return Explorer(explorer_document(given_runs([result] if isinstance(result, Record) else result), title))


def remove_data(folder: Path, keep: set[str] = frozenset()) -> list[Path]:  # type: ignore[assignment]
    """Remove the files of layers that an earlier, larger explorer left in a folder, and nothing else.

    Args:
        folder: The folder of explorer.html.
        keep: Names of files that stay.

    Returns:
        What was removed.
    """
    data = folder / EXPLORER_DATA
    stale = [file for file in data.glob("L*.json") if _DATA_FILE.fullmatch(file.name) and file.name not in keep]
    for file in stale:
        file.unlink()
    with suppress(OSError):  # it holds other files, or is not there
        data.rmdir()
    return stale
