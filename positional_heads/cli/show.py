"""`positional-heads show`, and what every command prints of its result: a line, a table and the verdict."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from positional_heads.cli import options
from positional_heads.cli.common import one_line_errors
from positional_heads.cli.wording import in_options, say

if TYPE_CHECKING:
    from positional_heads.results.files import ResultKind
    from positional_heads.views.report.folder import Reported

JSON_KEYS = (
    *("verdict", "diagnosis", "config", "table", "heads_by_name", "correlations", "link", "contrasts", "effects"),
    *("single_heads", "kept", "agreement", "top", "pairs", "jumps", "births", "order", "notes", "provenance"),
)


def show(
    result: Annotated[Path, typer.Argument(help="Folder that another command wrote, or a result file in it.")],
    top: options.Top = 10,
    head: Annotated[str | None, typer.Option(help="Print every measure of one head of a profile, e.g. L3H7.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Print a result from disk.

    Scores, a study or a comparison, after checking the file for damage; loads no model.
    """
    with one_line_errors():
        from positional_heads.cli.printed import PRINTED
        from positional_heads.results.files import SCORES, lies_in
        from positional_heads.results.unfinished import unfinished

        held = [one for one in PRINTED if result.name == one.file_name or lies_in(result, one.file_name)]
        interrupted = unfinished(result)
        if result.is_dir() and not held:
            raise FileNotFoundError(
                interrupted or _missing_result(result, [one.file_name for one in reversed(PRINTED)])
            )
        print_result(result, held[0] if held else SCORES, as_json, top, head)
        if interrupted is not None:
            say(interrupted)


def finish(
    result: "Reported",
    out: Path,
    as_json: bool,
    *,
    top: int = 10,
    progress: Sequence[str] = (),
    more: Sequence[Path] = (),
) -> None:
    """Write a result's report folder, and print the result.

    Args:
        result: What the command computed.
        out: The folder.
        as_json: Print JSON.
        top: Heads to print of scores and profiles, and of heads ablated alone.
        progress: Files in the folder that the run could have been resumed from, removed now.
        more: Other files that the command wrote, to be listed.
    """
    from positional_heads.results.files import HEAD_PROFILE, SCORES
    from positional_heads.views.report.folder import write_report

    written = [*write_report(result, out), *more]
    for name in progress:
        (out / name).unlink(missing_ok=True)
    print_result(written[0], result.saved_as, as_json, top)
    say("written: " + ", ".join(str(file) for file in written))
    if result.saved_as in {SCORES, HEAD_PROFILE}:
        say(f"positional-heads explore {out} shows every head")


def print_result(path: Path, kind: "ResultKind", as_json: bool, top: int, head: str | None = None) -> None:
    """Print a result on disk.

    Args:
        path: The file, or its folder.
        kind: The kind of result it must be.
        as_json: Print JSON instead of a table.
        top: Heads to print of scores and profiles, and of heads ablated alone.
        head: Print this head of a profile only.

    Raises:
        ValueError: If it is no profile, or has no such head.
    """
    from positional_heads.results.files import HEAD_PROFILE, read_result, understood

    if head is not None and kind != HEAD_PROFILE:
        msg = f"--head shows one head of a profile, and {path} has none: write one with {HEAD_PROFILE.written_by}"
        raise ValueError(msg)
    content, _ = read_result(path, kind)
    if head is not None:
        lines = _one_head(content["table"], head, as_json)
    else:
        with understood(path, kind):
            lines = _lines(content, kind, as_json, top)
    for line in lines:
        typer.echo(line)


def _one_head(table: list[dict[str, Any]], head: str, as_json: bool) -> list[str]:
    """Every measure of one head of a profile."""
    from positional_heads.core.heads import Head
    from positional_heads.results.profile_tables import head_lines, head_rows

    name = str(Head.parse(head))
    return [json.dumps(head_rows(table, name), indent=1)] if as_json else [*map(str, head_lines(table, name))]


def print_content(content: dict[str, Any], kind: "ResultKind", as_json: bool, top: int) -> None:
    """Print a result from everything in its file that is not a tensor; arguments as in `print_result`."""
    for line in _lines(content, kind, as_json, top):
        typer.echo(line)


def _lines(content: dict[str, Any], kind: "ResultKind", as_json: bool, top: int) -> list[str]:
    """What is printed of a result, by line or table."""
    if as_json:
        return [json.dumps({key: content[key] for key in JSON_KEYS if key in content}, indent=1)]
    from positional_heads.cli.printed import PRINTED

    return [*map(str, PRINTED[kind](content, top)), in_options(f"\nVerdict: {content['verdict']}")]


def _missing_result(folder: Path, names: list[str]) -> str:
    """One sentence on a folder without a result file: which of its folders has one, or which command writes one."""
    if not any(folder.iterdir()):
        writing = "score, profile, distances, plan, compare, ablate, manipulate, extrapolate, recommend or emerge"
        return f"{folder} is empty: give the --out folder of positional-heads {writing}"
    below = sorted({str(file.parent) for name in names for file in folder.glob(f"*/{name}")})
    if below:
        return f"no result file in {folder}; {', '.join(below)} {'has' if len(below) == 1 else 'have'} one"
    return f"no result file in {folder}: neither it nor a folder in it has {', '.join(names[:-1])} or {names[-1]}"
