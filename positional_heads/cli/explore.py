"""`positional-heads explore`: a result folder as one page to click through, or as JSON."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from positional_heads.cli.common import one_line_errors, refuse_suffix
from positional_heads.cli.wording import say

if TYPE_CHECKING:
    from positional_heads.views.explorer.explorer import Explorer


def explore(
    folder: Annotated[Path, typer.Argument(help="Folder that another command wrote, or a folder of these.")],
    out: Annotated[Path | None, typer.Option(help="File or folder to write; the folder itself if not given.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything that the page shows as JSON, and write nothing.")
    ] = False,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Show the page on this machine's own address, and write nothing; Ctrl-C ends."),
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --serve; a free one if 0.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing page.")] = False,
) -> None:
    """Write a page on which to choose heads.

    An atlas and a table of all heads, and for the chosen ones curves, contributions, effects and tokens. It opens from
    disk without a network. Needs no model.

    Example: positional-heads explore report
    """
    with one_line_errors():
        from positional_heads.results.files import EXPLORER_NAME
        from positional_heads.views.explorer.explorer import explore as explored

        if as_json and serve:
            msg = "--json prints and --serve shows: give one of them"
            raise ValueError(msg)
        if (as_json or serve) and out is not None:
            msg = f"--out is a file to write, and {'--json' if as_json else '--serve'} writes none: leave one out"
            raise ValueError(msg)
        if port and not serve:
            msg = "--port is that of --serve: add it, or leave the port out"
            raise ValueError(msg)
        file = folder if out is None else out
        refuse_suffix(file)
        file = file / EXPLORER_NAME if out is None or file.is_dir() or not file.suffix else file
        if not (as_json or serve or overwrite) and file.exists():
            msg = f"{file}: exists already; choose another --out, or add --overwrite"
            raise ValueError(msg)
        made = explored(folder)
        if as_json:
            json.dump(made.document, sys.stdout, allow_nan=False)
            typer.echo()
        elif serve:
            _serve(made, port)
        else:
            _write(made, file, folder)


def _write(made: "Explorer", file: Path, folder: Path) -> None:
    """Write the page, and say what to do with it."""
    written = made.save(file)
    again = f"positional-heads explore {shlex.quote(str(folder))}"
    typer.echo(str(written))
    size = sum(len(content.encode()) for content in made.files.values())
    if made.several_files:
        say(
            f"written: {written} and {len(made.files) - 1} files in explorer_data beside it ({size / 1e6:.1f} MB), too "
            f"much for one file: browsers read them from a server only, {again} --serve"
        )
    else:
        say(f"written: {written} ({size / 1e6:.1f} MB); open it in a browser, from disk")
    first = _first(made.document)
    say(f"link to a head: {written.name}#{first}; for programs: {again} --json")


def _first(document: dict[str, Any]) -> str:
    """The head to look at first: the highest of the measure that ranks them."""
    ranking = next((one for one in document["measures"] if one["id"] == document["rank_by"]), None)
    known = [] if ranking is None else [at for at, value in enumerate(ranking["values"]) if value is not None]
    best = max(known, key=lambda at: ranking["values"][at], default=0)  # type: ignore[index]
    return str(document["heads"][best])


def _serve(made: "Explorer", port: int) -> None:
    """Show the page until Ctrl-C."""
    from positional_heads.views.explorer.serving import server

    try:
        serving = server(made.files, port)
    except OSError as error:
        msg = f"--port {port}: cannot listen there ({error.strerror or error}); choose another, or 0 for a free one"
        raise OSError(msg) from error
    with serving:
        address = f"http://127.0.0.1:{serving.server_port}/"
        typer.echo(address)
        say(f"{made.title}: open {address} on this machine; Ctrl-C ends it")
        sys.stdout.flush()
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            say("ended")
