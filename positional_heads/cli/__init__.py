"""The command line. Nothing heavy is imported until a model is needed: help and reading results take no time.

Every failure ends in one line that names the cause and the way out, and exit status 1; wrong usage in 2; Ctrl-C in 130.
POSITIONAL_HEADS_DEBUG=1 in the environment shows tracebacks. Files appear whole or not at all.
"""

from pathlib import Path
from typing import Annotated

import typer

from positional_heads.cli import ablate, extrapolate, report, score
from positional_heads.cli.common import one_line_errors, say

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which attention heads of a rotary language model carry long distances?",
)


def main() -> None:
    """Entry point of `positional-heads`."""
    app()


@app.command()
def show(
    result: Annotated[Path, typer.Argument(help="A report folder, or a result file in it.")],
    top: Annotated[int, typer.Option(min=1, help="Heads to print.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
) -> None:
    """Print a result on disk, scores or a study, checked for damage; takes no model and no time."""
    with one_line_errors():
        from positional_heads.results.files import ABLATION, EXTRAPOLATION, SCORES
        from positional_heads.results.unfinished import unfinished

        left = unfinished(result)
        for name, printed in (
            (ABLATION.file_name, ablate.show_study),
            (EXTRAPOLATION.file_name, extrapolate.show_extrapolation),
        ):
            if result.name == name or (result / name).is_file():
                printed(result, as_json)
                break
        else:
            if left is not None and not (result / SCORES.file_name).is_file():
                raise FileNotFoundError(left)
            if result.is_dir() and not (result / SCORES.file_name).is_file():
                raise FileNotFoundError(
                    _what_is_there(result, [kind.file_name for kind in (SCORES, ABLATION, EXTRAPOLATION)])
                )
            score.show_scores(result, top, as_json)
        if left is not None:
            say(left)


def _what_is_there(folder: Path, names: list[str]) -> str:
    """One sentence on a folder without a result file: where there is one, and what writes one."""
    if not any(folder.iterdir()):
        return f"{folder} is empty: give the --out folder of positional-heads score, ablate or extrapolate"
    below = sorted({str(file.parent) for name in names for file in folder.glob(f"*/{name}")})
    if below:
        return f"no result file in {folder}; {', '.join(below)} {'has' if len(below) == 1 else 'have'} one"
    return f"no result file in {folder}: none of {', '.join(names)} is there, or in a folder in it"


for command in (score.score, score.merge, ablate.ablate, extrapolate.extrapolate, report.report):
    app.command()(command)
