"""The command line. Heavy libraries are imported only when a model is needed, so help and `show` are fast.

A failure prints one line with its cause and what to do, and exits with status 1; wrong usage with 2; Ctrl-C with 130.
POSITIONAL_HEADS_DEBUG=1 in the environment shows tracebacks. Files are written completely or not at all.
"""

from pathlib import Path
from typing import Annotated

import typer

from positional_heads.cli import ablate, extrapolate, options, report, score
from positional_heads.cli.common import one_line_errors, say

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Score attention heads of a RoPE language model by how their dominant dimension changes with token distance.",
)


def main() -> None:
    """Entry point of `positional-heads`."""
    app()


def _print_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        typer.echo(f"positional-heads {version('positional-heads')}")
        raise typer.Exit
    return asked


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command()
def show(
    result: Annotated[Path, typer.Argument(help="A report folder, or a result file in it.")],
    top: options.Top = 10,
    as_json: options.AsJson = False,
) -> None:
    """Print a result from disk.

    Scores or a study, after checking the file for damage; loads no model.
    """
    with one_line_errors():
        from positional_heads.results.files import ABLATION, EXTRAPOLATION, SCORES
        from positional_heads.results.unfinished import unfinished

        def holds(name: str) -> bool:
            return result.name == name or (result / name).is_file()

        interrupted = unfinished(result)
        if holds(ABLATION.file_name):
            ablate.show_study(result, as_json)
        elif holds(EXTRAPOLATION.file_name):
            extrapolate.show_extrapolation(result, as_json)
        elif result.is_dir() and not holds(SCORES.file_name):
            names = [SCORES.file_name, ABLATION.file_name, EXTRAPOLATION.file_name]
            raise FileNotFoundError(interrupted or _missing_result(result, names))
        else:
            score.show_scores(result, top, as_json)
        if interrupted is not None:
            say(interrupted)


def _missing_result(folder: Path, names: list[str]) -> str:
    """One sentence on a folder without a result file: which of its folders has one, or which command writes one."""
    if not any(folder.iterdir()):
        return f"{folder} is empty: give the --out folder of positional-heads score, ablate or extrapolate"
    below = sorted({str(file.parent) for name in names for file in folder.glob(f"*/{name}")})
    if below:
        return f"no result file in {folder}; {', '.join(below)} {'has' if len(below) == 1 else 'have'} one"
    return f"no result file in {folder}: neither it nor a folder in it has {', '.join(names[:-1])} or {names[-1]}"


for command in (score.score, score.merge, ablate.ablate, extrapolate.extrapolate, report.report):
    app.command()(command)
