"""A recommendation as lines and tables, from the content of its file: no torch is loaded to print one."""

import json
from collections.abc import Mapping
from typing import Any

from positional_heads.results.tables import ResultTable, model_label, trained_on

COLUMNS = (
    *("candidate", "loss", "loss_change", "loss_low", "loss_high", "within", "within_change", "within_low"),
    *("within_high", "exact", "log_prob", "config"),
)

DIAGNOSIS = (
    ("D", "dominant dimension: the index of the rotary pair that dominates the score, here its mean at each distance"),
    ("sd", "change of that curve across the training length, in standard deviations of the curve"),
)
"""Words of the diagnosis of heads."""
IN_PLACE = "To put into config.json, in place of what is there"
BESIDE = (
    "Its rope_scaling replaces that of the file (transformers 4). rope_parameters (transformers 5), if the file has "
    "it, may stay: version 5 reads rope_scaling before it."
)
"""What the block replaces."""


def recommendation_line(content: Mapping[str, Any]) -> str:
    """The model, and how far its context is to be extended, in one line."""
    data = content["provenance"].get("data") or {}
    text = f", on {data['sequences']} sequences" if "sequences" in data else ""
    label, trained = model_label(content["provenance"]), trained_on(content["provenance"], content["training_length"])
    return f"{label}, {trained}, to {content['target_length']}{text}"


def recommendation_table(content: Mapping[str, Any]) -> ResultTable | None:
    """One line per candidate; None if there was nothing to try."""
    rows = content["table"]
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    return ResultTable(columns, rows, words=DIAGNOSIS if content["jumps"] else ()) if rows else None


def config_text(content: Mapping[str, Any]) -> str | None:
    """What to put into config.json, as JSON; None if nothing is to be changed."""
    return None if content["config"] is None else json.dumps(content["config"], indent=2)


def printed_recommendation(content: Mapping[str, Any]) -> list[str]:
    """What is printed of a recommendation, but for its verdict."""
    table, config = recommendation_table(content), config_text(content)
    lines = [recommendation_line(content), "", f"Diagnosis: {content['diagnosis']}", *content["notes"]]
    lines += [] if table is None else ["", str(table)]
    return lines if config is None else [*lines, "", f"{IN_PLACE}:", config, "", BESIDE]
