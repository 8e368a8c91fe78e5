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

ALPHA = 0.05
"""False discovery rate of the verdicts; a test compares both, because importing theirs loads torch."""
NAMED = 20
"""Heads that beat their null, the largest excess first, that are named at most."""
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
        from positional_heads.results import files
        from positional_heads.results.unfinished import unfinished

        kinds = [files.ABLATION, files.EXTRAPOLATION, files.COMPARISON, files.STABILITY, files.PLAN_STUDY]
        kinds += [files.MANIPULATION, files.EMERGENCE, files.HEAD_PLAN, files.PAIR_PLAN, files.RECOMMENDATION]
        kinds += [files.HEAD_PROFILE, files.DISTANCE_PROFILE, files.SCORES]
        held = [one for one in kinds if result.name == one.file_name or files.lies_in(result, one.file_name)]
        interrupted = unfinished(result)
        if result.is_dir() and not held:
            names = [one.file_name for one in (files.SCORES, files.COMPARISON, files.STABILITY, files.HEAD_PROFILE)]
            names += [one.file_name for one in (files.ABLATION, files.EXTRAPOLATION, files.HEAD_PLAN, files.PLAN_STUDY)]
            names += [one.file_name for one in (files.MANIPULATION, files.DISTANCE_PROFILE, files.EMERGENCE)]
            names += [one.file_name for one in (files.PAIR_PLAN, files.RECOMMENDATION)]
            raise FileNotFoundError(interrupted or _missing_result(result, names))
        print_result(result, held[0] if held else files.SCORES, as_json, top, head)
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
    from positional_heads.views.report.folder import write_report

    written = [*write_report(result, out), *more]
    for name in progress:
        (out / name).unlink(missing_ok=True)
    print_result(written[0], result.saved_as, as_json, top)
    say("written: " + ", ".join(str(file) for file in written))


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
    from positional_heads.results import (
        comparison_tables,
        distance_tables,
        emergence_tables,
        printed_manipulations,
        printed_plans,
        profile_tables,
        recommendation_tables,
        tables,
    )
    from positional_heads.results.files import (
        ABLATION,
        COMPARISON,
        DISTANCE_PROFILE,
        EMERGENCE,
        HEAD_PLAN,
        HEAD_PROFILE,
        MANIPULATION,
        PAIR_PLAN,
        PLAN_STUDY,
        RECOMMENDATION,
        SCORES,
        STABILITY,
    )

    if as_json:
        return [json.dumps({key: content[key] for key in JSON_KEYS if key in content}, indent=1)]
    provenance = content["provenance"]
    lines: list[object]
    if kind == SCORES:
        lines = [tables.scores_line(provenance), tables.heads_table(content["table"], top)]
        lines += _heads_that_beat_their_null(content["table"])
    elif kind == HEAD_PROFILE:
        lines = [profile_tables.profile_line(provenance), profile_tables.order_in_words(content["table"])]
        lines += [profile_tables.profile_table(content["table"], top), ""]
        lines += profile_tables.named_lines(content["heads_by_name"])
    elif kind == DISTANCE_PROFILE:
        lines = [distance_tables.distance_line(provenance, content["encodings"]), distance_tables.ORDER]
        lines += [distance_tables.distance_table(content["table"], top)]
    elif kind == ABLATION:
        sets = {tuple(heads) for _, _, _, heads in content["cells"]}
        lines = [
            tables.study_line(provenance, len(content["rows"]), len(sets)),
            f"Change of {content['measures'][0]}; negative is harm.",
            tables.study_table(content["effects"], content["contrasts"])
            if content["contrasts"]
            else tables.single_heads_table(content["single_heads"], top),
            *map(in_options, content["notes"]),
        ]
    elif kind == COMPARISON:
        found = comparison_tables.comparison_tables(content, top)
        lines = [comparison_tables.comparison_line(content), *(part for table in found for part in (table, ""))]
    elif kind == RECOMMENDATION:
        lines = list(map(in_options, recommendation_tables.printed_recommendation(content)))
    elif kind == STABILITY:
        lines = [part for table in comparison_tables.stability_tables(content, top) for part in (table, "")]
    elif kind == HEAD_PLAN:
        lines = [printed_plans.key_heads_table(content["table"]), *map(in_options, content["notes"])]
    elif kind == PAIR_PLAN:
        lines = [printed_plans.pairs_table(content["kept"]), *map(in_options, content["notes"])]
    elif kind == MANIPULATION:
        lines = [
            printed_manipulations.manipulation_line(content),
            f"Change of {content['measures'][0]}; negative is harm.",
            *(printed_manipulations.dose_table(content["effects"]), ""),
            printed_manipulations.contrast_table(content["contrasts"]),
            *map(in_options, content["notes"]),
        ]
    elif kind == EMERGENCE:
        lines = [emergence_tables.emergence_line(content), emergence_tables.steps_table(content["table"]), ""]
        lines += [emergence_tables.births_table(content["births"], top), *map(in_options, content["notes"])]
    elif kind == PLAN_STUDY:
        planned = content.get("planned", "windows")
        lines = [
            printed_plans.plans_line(content),
            f"Change of {content['measures'][0]} with {planned}; negative is harm.",
            printed_plans.plan_table(content["contrasts"], planned),
            *printed_plans.rows_left_out(content["contrasts"], planned),
            *map(in_options, content["notes"]),
        ]
    else:
        heading = tables.extrapolation_line(provenance, content["training_length"], content["heads"])
        lines = [heading, tables.extrapolation_table(content["table"]), *map(in_options, content.get("notes", []))]
    return [*map(str, lines), in_options(f"\nVerdict: {content['verdict']}")]


def _heads_that_beat_their_null(table: list[dict[str, Any]]) -> list[str]:
    """One line with their names, because the table ranks heads by rho and may show none of them."""
    beating = [row for row in table if row.get("q_value") is not None and row["q_value"] <= ALPHA]
    beating = sorted((row for row in beating if min(row["rho"], row["excess"]) > 0), key=lambda row: -row["excess"])
    if not beating:
        return []
    names = ", ".join(row["name"] for row in beating[:NAMED])
    more = f" and {len(beating) - NAMED} more" if len(beating) > NAMED else ""
    return [f"\nBeat their null, the largest excess first: {names}{more}"]


def _missing_result(folder: Path, names: list[str]) -> str:
    """One sentence on a folder without a result file: which of its folders has one, or which command writes one."""
    if not any(folder.iterdir()):
        writing = "score, profile, distances, plan, compare, ablate, manipulate, extrapolate, recommend or emerge"
        return f"{folder} is empty: give the --out folder of positional-heads {writing}"
    below = sorted({str(file.parent) for name in names for file in folder.glob(f"*/{name}")})
    if below:
        return f"no result file in {folder}; {', '.join(below)} {'has' if len(below) == 1 else 'have'} one"
    return f"no result file in {folder}: neither it nor a folder in it has {', '.join(names[:-1])} or {names[-1]}"
