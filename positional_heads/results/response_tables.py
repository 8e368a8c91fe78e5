"""Distance responses as tables and lines that are printed without torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from positional_heads.core.number_ranges import number_ranges
from positional_heads.results.tables import ResultTable, model_label, text_label
from positional_heads.results.text import printable

MEANINGS = {
    "response": "slope of the log of the reach on that of the inverse factor: 1 follows the pairs, 0 ignores them",
    "low": "lower end of its 95 % interval over sequences",
    "high": "upper end of that interval",
    "others": "mean response to as many other pairs of the same head, drawn at random",
    "reach_plain": "reach with the model's own frequencies, of the queries of the second half, in tokens",
    "measure": "what of the score is compared with the response",
    "correlation": "rank correlation of the two over heads; its interval is over sequences",
}
COLUMNS = ("name", "response", "low", "high", "others", "reach_plain", "rho", "pairs")
LARGEST = "The heads with the largest response first."


def response_line(provenance: Mapping[str, Any], heads: int) -> str:
    """What was turned, in one line.

    Args:
        provenance: Of the result; parts may be missing.
        heads: Number of heads.
    """
    used, named = provenance.get("settings") or {}, text_label(provenance)
    pairs = f"pairs {number_ranges(used['pairs'])}" if used.get("pairs") else "the dominant pairs"
    turned = ", ".join(f"{factor:g}" for factor in used.get("factors", [])) or "other"
    return (
        f"{printable(model_label(provenance), newlines=False)}: {heads} heads, {pairs} of each and as many others at "
        f"{turned} times their frequency{f', on {named}' if named else ''}"
    )


def response_table(rows: Sequence[Mapping[str, Any]], top: int) -> ResultTable:
    """The heads that respond most.

    Args:
        rows: Rows of `DistanceResponse.to_frame`.
        top: How many heads.
    """
    known = sorted((row for row in rows if row["response"] is not None), key=lambda row: -row["response"])
    return ResultTable(COLUMNS, known[:top], MEANINGS)


def prediction_table(rows: Sequence[Mapping[str, Any]]) -> ResultTable:
    """Whether a score predicts the response.

    Args:
        rows: Rows of `DistanceResponse.correlations`.
    """
    return ResultTable(("measure", "correlation", "low", "high", "heads"), rows, MEANINGS)
