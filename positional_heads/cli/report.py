"""`positional-heads report`: one page of everything in a result folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from positional_heads.cli.common import EXPLORER_MARK, one_line_errors, refuse_suffix
from positional_heads.cli.wording import say

if TYPE_CHECKING:
    from positional_heads.views.explorer.explorer import Explorer


def report(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder that another command wrote, or a folder of these."),
    ],
    out: Annotated[Path | None, typer.Option(help="File to write; report.html in the folder if not given.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing page.")] = False,
) -> None:
    """Write the report of a result folder.

    One page with verdict, plots, tokens, caveats, and commands to reproduce the results, and beside it the explorer's,
    to which its heads link where results have heads to choose. Both open from disk without a network. Needs no model.

    Example: positional-heads report report
    """
    with one_line_errors():
        from positional_heads.results.files import EXPLORER_NAME
        from positional_heads.views.report.page import page_file, write_report_page

        file = page_file(folder, out)
        refuse_suffix(file)
        explorer = file.with_name(EXPLORER_NAME)
        for page in (file, explorer):
            if page.exists() and not overwrite and not (page == explorer and EXPLORER_MARK in page.read_bytes()):
                msg = f"{page}: exists already; choose another --out, or add --overwrite"
                raise ValueError(msg)
        made = _explored(folder) if file != explorer else None
        if made is not None:
            made.save(explorer)
        written = write_report_page(folder, out, explorer=None if made is None else EXPLORER_NAME)
        typer.echo(str(written))
        say(f"written: {written} ({written.stat().st_size / 1e6:.1f} MB)")
        if made is not None:
            say(f"written: {explorer}, on which to choose heads")


def _explored(folder: Path) -> "Explorer | None":
    """The explorer of the folder; None where no result says how many layers and heads the model has."""
    from positional_heads.views.explorer.explorer import explore
    from positional_heads.views.explorer.runs import NoHeadsError

    try:
        return explore(folder)
    except (FileNotFoundError, NoHeadsError):
        return None
