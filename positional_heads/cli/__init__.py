"""The command line. Heavy libraries are imported only when a model is needed, so help and `show` are fast.

A failure prints one line with its cause and what to do, and exits with status 1; wrong usage with 2; Ctrl-C with 130.
POSITIONAL_HEADS_DEBUG=1 in the environment shows tracebacks. Files are written completely or not at all.
"""

from typing import Annotated

import typer

from positional_heads.cli import (
    ablate,
    compare,
    distances,
    emerge,
    explore,
    extrapolate,
    manipulate,
    plan,
    profile,
    recommend,
    report,
    score,
    show,
)
from positional_heads.cli.wording import know_options_of

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


for command in (
    *(show.show, score.score, score.merge, profile.profile, distances.distances, plan.plan, compare.compare),
    *(ablate.ablate, manipulate.manipulate, extrapolate.extrapolate, recommend.recommend, emerge.emerge),
    *(report.report, explore.explore),
):
    app.command()(command)
know_options_of(app)
