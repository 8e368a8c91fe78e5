"""What an ablation study says of its top heads: what ranks them, and how many of them beat their null."""

from collections.abc import Mapping, Sequence
from typing import Any

from positional_heads.core.heads import Head
from positional_heads.results.text import printable


def ranked_heads(rank_by: str, top: Sequence[Head], scores: Mapping[str, Any]) -> str:
    """One sentence for the verdict of a study.

    Args:
        rank_by: What ranks the heads.
        top: The heads of the largest top set.
        scores: What the study's provenance says of the scores; `beats_null` and `stays` name heads, None where a null
            or control is missing, and are absent in files of earlier versions.
    """
    ranked = f"Heads are ranked by {printable(rank_by, newlines=False)}"
    if not top or "beats_null" not in scores:
        return f"{ranked}."
    if scores["beats_null"] is None:
        return f"{ranked}; whether they beat their null is not known (score with null_repeats=20)."
    beating = {*map(str, top)} & {*scores["beats_null"]}
    known = f"{len(beating)} of the top {len(top)} {'beats its' if len(beating) == 1 else 'beat their'} null"
    if scores.get("stays") is None:
        return f"{ranked}; {known}."
    staying = len(beating & {*scores["stays"]})
    keys = (scores.get("settings") or {}).get("control_keys")
    return f"{ranked}; {known}, {staying} without the first {keys} keys as well."
