"""Manipulation studies as tables and lines that are printed without torch, and the words that these share."""

from collections.abc import Mapping, Sequence
from typing import Any

from positional_heads.results.tables import ResultTable, model_label
from positional_heads.results.text import printable

CHOSEN = ("slowest", "fastest", "dominant")
"""Pairs of the top heads that are no random ones."""
RANDOM_PAIRS, RANDOM_HEADS, PERMUTED, EVERY = "random pairs", "random heads", "permuted heads", "all pairs"
KINDS = (*CHOSEN, RANDOM_PAIRS, RANDOM_HEADS, PERMUTED, EVERY)
"""Roles of sets: some pairs of the top heads; the slowest of random heads, or of the top ones of permuted rankings; all
pairs of the top heads."""
SHOWN = (*CHOSEN, RANDOM_PAIRS, RANDOM_HEADS, EVERY)
DONE = {"freeze": "frozen", "zero": "zeroed", "scale": "scaled"}
ALL_COUNTS = "all"
"""The number of pairs of rows that average over all."""
COLUMNS = (
    *("kind", "against", "pairs", "reach", "effect", "contrast"),
    *("low", "high", "p_value", "p_holm", "draws"),
)
MEANINGS = {
    "pairs": "manipulated pairs of each head",
    **{kind: f"effect of manipulating the {kind} pairs of the top heads; negative is harm" for kind in CHOSEN},
    RANDOM_PAIRS: "mean effect of as many random pairs of these heads, the same in each",
    RANDOM_HEADS: "mean effect of the slowest pairs of other heads, as many in every layer",
    EVERY: "effect of all pairs of the top heads",
    "kind": "which pairs of the top heads",
    "against": "random pairs of the same heads, or the slowest pairs of random heads in the same layers",
    "contrast": "effect minus the mean effect of what it is compared with",
    "p_value": "share of random pairs, or of permuted rankings of the heads, that hurt at least as much",
    "p_holm": "the same after Holm's correction for the contrasts of a study",
    "draws": "number of random rankings of the pairs, or of permuted rankings of the heads",
}


def done(how: str, factor: float | None) -> str:
    """What was done to pairs, as a participle: "frozen", "scaled by 0.5"."""
    return DONE[how] if factor is None else f"{DONE[how]} by {factor:g}"


def dose_table(effects: Sequence[Mapping[str, Any]]) -> ResultTable:
    """The effects of a study, one line for every range and number of pairs.

    Args:
        effects: Rows of `ManipulationStudy.effects`.
    """
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for row in sorted((row for row in effects if row["kind"] in SHOWN), key=lambda row: row["pairs"]):
        line = lines.setdefault((row["reach"], row["pairs"]), {"reach": row["reach"], "pairs": row["pairs"]})
        line[row["kind"]] = row["effect"]
    known = {name for line in lines.values() for name in line}
    order = {reach: place for place, reach in enumerate(dict.fromkeys(row["reach"] for row in effects))}
    rows = sorted(lines.values(), key=lambda line: order[line["reach"]])
    return ResultTable([name for name in ("reach", "pairs", *SHOWN) if name in known], rows, MEANINGS)


def contrast_table(contrasts: Sequence[Mapping[str, Any]]) -> ResultTable:
    """The contrasts of a study over all numbers of pairs.

    Args:
        contrasts: Rows of `ManipulationStudy.contrasts`.
    """
    over = [row for row in contrasts if row["pairs"] == ALL_COUNTS]
    return ResultTable([name for name in COLUMNS if name != "pairs"], over, MEANINGS)


def draws_line(contrasts: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]) -> str:
    """Whether p-values are exact, in one line.

    Args:
        contrasts: Rows of `ManipulationStudy.contrasts`.
        provenance: Of the study; parts may be missing.
    """
    pairs, heads = (
        next(int(row["draws"]) for row in contrasts if row["against"] == control)
        for control in (RANDOM_PAIRS, RANDOM_HEADS)
    )
    asked = (provenance.get("settings") or {}).get("n_permuted", 0)
    of_heads = f"exact, of all {heads} permuted rankings that exist" if heads < asked else f"of a sample of {heads}"
    return (
        f"P-values of pairs are of a sample of {pairs} random rankings, not exact and at least {1 / (1 + pairs):.2g}; "
        f"those of heads are {of_heads}{'' if heads < asked else ' permuted rankings, not exact'} and at least "
        f"{1 / (1 + heads):.2g}."
    )


def manipulation_line(content: Mapping[str, Any]) -> str:
    """Model, task, heads and pairs of a study, in one line.

    Args:
        content: Everything in its file that is not a tensor.
    """
    provenance = content["provenance"]
    sets = {tuple(heads) for _, _, _, heads in content["cells"]}
    ranked = printable((provenance.get("scores") or {}).get("rank_by", "rho"), newlines=False)
    return (
        f"{model_label(provenance)}: {printable(content['task'], newlines=False)}, {len(content['rows'])} answers "
        f"under each of {len(sets)} sets of pairs {done(content['how'], content['factor'])}; top heads by {ranked}: "
        f"{', '.join(content['heads'])}"
    )
