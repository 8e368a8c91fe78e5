"""Jump studies as tables and lines that are printed without torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from positional_heads.results.tables import ResultTable, model_label, trained_on
from positional_heads.results.text import printable

STEP_COLUMNS = ("name", "step", "predicted", "held", "before", "jump", "unseen_pairs")
JUMP_MEANINGS = {
    "step": "mean D just beyond the training length less that just within, in pairs",
    "predicted": "the same by rotation alone, from queries and keys of shorter texts",
    "held": "the predicted step with pairs held where their angles would be new",
    "before": "the measured step one window earlier, a control",
    "jump": "the measured step in standard deviations of such steps elsewhere",
    "unseen_pairs": "pairs whose wavelength exceeds the training length",
    "prediction": "what predicts the steps of the heads",
    "correlation": "rank correlation of predicted and measured steps over heads",
    "correlation_low": "lower end of its 95 % interval over heads",
    "correlation_high": "its upper end",
    "p_value": "of that correlation, by permuting heads",
    "explained": "share of their variance that the prediction explains without a fit; below 0 it is worse than none",
    "explained_low": "lower end of its 95 % interval over heads",
    "explained_high": "its upper end",
}
LARGEST = "The heads with the largest steps first."


def jump_line(provenance: Mapping[str, Any], training_length: int, heads: int) -> str:
    """What was studied, in one line.

    Args:
        provenance: Of the study; parts may be missing.
        training_length: Tokens that the model was trained on.
        heads: Number of heads.
    """
    name, used = printable(model_label(provenance), newlines=False), provenance.get("settings") or {}
    about = ""
    if "measured" in used:
        about = f", measured in {used['measured']} sequences and predicted from {used['predicting']} others"
    return f"{name}, {trained_on(provenance, training_length)}: D of {heads} heads around that distance{about}"


def agreement_table(rows: Sequence[Mapping[str, Any]]) -> ResultTable:
    """How well each prediction tells the measured steps.

    Args:
        rows: Rows of `JumpStudy.agreement`.
    """
    return ResultTable(list(rows[0]), rows, JUMP_MEANINGS)


def steps_table(rows: Sequence[Mapping[str, Any]], top: int) -> ResultTable:
    """The heads with the largest steps, up or down.

    Args:
        rows: Rows of `JumpStudy.to_frame`.
        top: How many heads.
    """
    known = sorted((row for row in rows if row["step"] is not None), key=lambda row: -abs(row["step"]))
    return ResultTable(STEP_COLUMNS, known[:top], JUMP_MEANINGS)
