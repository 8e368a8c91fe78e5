"""What `show` prints of each kind of result, by line or table, from the content of its file."""

from collections.abc import Callable, Mapping
from typing import Any

from positional_heads.cli.wording import in_options
from positional_heads.results import (
    comparison_tables,
    files,
    jump_tables,
    printed_manipulations,
    printed_plans,
    profile_tables,
    recommendation_tables,
    response_tables,
    tables,
)
from positional_heads.results.files import ResultKind

NAMED = 20
"""Heads that beat their null, the largest excess first, that are named at most."""
Content = Mapping[str, Any]


def _scores(content: Content, top: int) -> list[object]:
    return [
        tables.scores_line(content["provenance"]),
        tables.order_of_heads(content["table"], top) + ".",
        tables.heads_table(content["table"], top),
        *_heads_that_beat_their_null(content["table"]),
    ]


def _profile(content: Content, top: int) -> list[object]:
    return [
        profile_tables.profile_line(content["provenance"]),
        profile_tables.order_in_words(content["table"]),
        *(profile_tables.profile_table(content["table"], top), ""),
        *profile_tables.named_lines(content["heads_by_name"]),
    ]


def _distances(content: Content, top: int) -> list[object]:
    from positional_heads.results import distance_tables  # loads torch

    return [
        distance_tables.distance_line(content["provenance"], content["encodings"]),
        distance_tables.ORDER,
        distance_tables.distance_table(content["table"], top),
    ]


def _ablation(content: Content, top: int) -> list[object]:
    sets = {tuple(heads) for _, _, _, heads in content["cells"]}
    return [
        tables.study_line(content["provenance"], len(content["rows"]), len(sets)),
        tables.change_line(content["measures"][0], content["effects"], whole="With all heads"),
        tables.study_table(content["effects"], content["contrasts"])
        if content["contrasts"]
        else tables.single_heads_table(content["single_heads"], top),
        *_notes(content),
    ]


def _comparison(content: Content, top: int) -> list[object]:
    found = comparison_tables.comparison_tables(content, top)
    about = [comparison_tables.comparison_line(content), comparison_tables.ORDER]
    return [*about, *(part for table in found for part in (table, ""))]


def _stability(content: Content, top: int) -> list[object]:
    return [part for table in comparison_tables.stability_tables(content, top) for part in (table, "")]


def _recommendation(content: Content, _: int) -> list[object]:
    return [*map(in_options, recommendation_tables.printed_recommendation(content))]


def _head_plan(content: Content, _: int) -> list[object]:
    return [printed_plans.key_heads_table(content["table"]), *_notes(content)]


def _pair_plan(content: Content, _: int) -> list[object]:
    return [printed_plans.pairs_table(content["kept"]), *_notes(content)]


def _plan_study(content: Content, _: int) -> list[object]:
    planned = content.get("planned", "windows")
    return [
        printed_plans.plans_line(content),
        tables.change_line(content["measures"][0], content["effects"], f" with {planned}"),
        printed_plans.plan_table(content["contrasts"], planned),
        *printed_plans.rows_left_out(content["contrasts"], planned),
        *_notes(content),
    ]


def _manipulation(content: Content, _: int) -> list[object]:
    return [
        printed_manipulations.manipulation_line(content),
        tables.change_line(content["measures"][0], content["effects"]),
        *(printed_manipulations.dose_table(content["effects"]), ""),
        printed_manipulations.contrast_table(content["contrasts"]),
        *("", printed_manipulations.draws_line(content["contrasts"], content["provenance"])),
        *_notes(content),
    ]


def _emergence(content: Content, top: int) -> list[object]:
    from positional_heads.results import emergence_tables  # loads torch

    return [
        emergence_tables.emergence_line(content),
        *(emergence_tables.steps_table(content["table"]), ""),
        *([emergence_tables.births_line(content["born"])] if "born" in content else []),
        emergence_tables.births_table(content["births"], top),
        *_notes(content),
    ]


def _jumps(content: Content, top: int) -> list[object]:
    return [
        jump_tables.jump_line(content["provenance"], content["training_length"], len(content["heads"])),
        *(jump_tables.agreement_table(content["agreement"]), ""),
        jump_tables.LARGEST,
        jump_tables.steps_table(content["table"], top),
    ]


def _response(content: Content, top: int) -> list[object]:
    return [
        response_tables.response_line(content["provenance"], len(content["table"])),
        response_tables.LARGEST,
        *(response_tables.response_table(content["table"], top), ""),
        response_tables.prediction_table(content["correlations"]),
    ]


def _extrapolation(content: Content, _: int) -> list[object]:
    return [
        tables.extrapolation_line(content["provenance"], content["training_length"], content["heads"]),
        tables.extrapolation_table(content["table"]),
        *_notes(content),
    ]


def _notes(content: Content) -> list[str]:
    return [*map(in_options, content.get("notes", []))]


def _heads_that_beat_their_null(table: list[dict[str, Any]]) -> list[str]:
    """One line with their names, because the table may be too short for them."""
    beating = [row for row in tables.ranked_rows(table) if tables.beats_null(row)]
    if not beating:
        return []
    names = ", ".join(row["name"] for row in beating[:NAMED])
    more = f" and {len(beating) - NAMED} more" if len(beating) > NAMED else ""
    return [f"\nBeat their null, the largest excess first: {names}{more}"]


PRINTED: dict[ResultKind, Callable[[Content, int], list[object]]] = {
    files.ABLATION: _ablation,
    files.EXTRAPOLATION: _extrapolation,
    files.JUMPS: _jumps,
    files.DISTANCE_RESPONSE: _response,
    files.COMPARISON: _comparison,
    files.STABILITY: _stability,
    files.PLAN_STUDY: _plan_study,
    files.MANIPULATION: _manipulation,
    files.EMERGENCE: _emergence,
    files.HEAD_PLAN: _head_plan,
    files.PAIR_PLAN: _pair_plan,
    files.RECOMMENDATION: _recommendation,
    files.HEAD_PROFILE: _profile,
    files.DISTANCE_PROFILE: _distances,
    files.SCORES: _scores,
}
"""By kind; of a folder with several results the first kind is printed."""
