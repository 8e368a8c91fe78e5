"""`positional-heads report`: one page of everything in a result folder."""

from pathlib import Path
from typing import Annotated

import typer

from positional_heads.cli.common import one_line_errors
from positional_heads.cli.wording import say


def report(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder that another command wrote, or a folder of these."),
    ],
    out: Annotated[Path | None, typer.Option(help="File to write; report.html in the folder if not given.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing page.")] = False,
) -> None:
    """Write one page of a result folder.

    It has verdict, plots, tokens, caveats, and commands to reproduce the results. It opens from disk without a network.
    Needs no model.

    Example: positional-heads report report
    """
    with one_line_errors():
        from positional_heads.views.report.page import page_file, write_report_page

        file = page_file(folder, out)
        if file.exists() and not overwrite:
            msg = f"{file}: exists already; choose another --out, or add --overwrite"
            raise ValueError(msg)
        written = write_report_page(folder, out)
        typer.echo(str(written))
        say(f"written: {written} ({written.stat().st_size / 1e6:.1f} MB)")
