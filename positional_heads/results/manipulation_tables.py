"""The tables of a manipulation study, from the means of its units under every set of manipulated pairs.

An effect is the measure with pairs manipulated minus the measure without, so harm is negative. A contrast is an effect
minus the mean effect of a control: random pairs of the same heads, or the slowest pairs of random heads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.head_sets import AnySet, StudySet, by_kind
from positional_heads.core.statistics import holm, permutation_p
from positional_heads.results.effects import UnitMeans
from positional_heads.results.tables import ResultTable

if TYPE_CHECKING:
    import pandas as pd

CHOSEN = ("slowest", "fastest", "dominant")
"""Pairs of the top heads that are no random ones."""
RANDOM_PAIRS, RANDOM_HEADS, PERMUTED, EVERY = "random pairs", "random heads", "permuted heads", "all pairs"
KINDS = (*CHOSEN, RANDOM_PAIRS, RANDOM_HEADS, PERMUTED, EVERY)
"""Roles of sets: some pairs of the top heads; the slowest of random heads, or of the top ones of permuted rankings; all
pairs of the top heads."""
SHOWN = (*CHOSEN, RANDOM_PAIRS, RANDOM_HEADS, EVERY)
ALL_COUNTS = "all"
"""The number of pairs of rows that average over all."""
COLUMNS = (
    *("kind", "against", "pairs", "reach", "effect", "contrast"),
    *("low", "high", "p_value", "p_holm", "draws"),
)
MEANINGS = {
    "pairs": "manipulated pairs of each head",
    **{kind: f"effect of manipulating the {kind} pairs of the top heads; negative is harm" for kind in CHOSEN},
    RANDOM_PAIRS: "mean effect of as many pairs of each of these heads, drawn at random",
    RANDOM_HEADS: "mean effect of the slowest pairs of other heads, as many in every layer",
    EVERY: "effect of all pairs of the top heads",
    "kind": "which pairs of the top heads",
    "against": "random pairs of the same heads, or the slowest pairs of random heads in the same layers",
    "contrast": "effect minus the mean effect of what it is compared with",
    "p_value": "share of random pairs, or of permuted rankings of the heads, that hurt at least as much",
    "p_holm": "the same after Holm's correction for the contrasts of a study",
    "draws": "number of random rankings of the pairs, or of permuted rankings of the heads",
}


@dataclass(frozen=True)
class ManipulatedSet(StudySet):
    """One set of manipulated pairs of a study, and its role.

    Attributes:
        kind: "none", or one of `KINDS`.
        k: Number of pairs of each head; 0 for none.
        heads: Texts, a head and its pairs each, e.g. "L1H2:3,12-15".
    """

    heads: AnySet


class Contrast(NamedTuple):
    """What is compared with what, and by which draws.

    Attributes:
        kind: The pairs of the top heads.
        against: The control, whose mean effect is subtracted.
        drawn: The sets that the p-value counts.
    """

    kind: str
    against: str
    drawn: str


CONTRASTS = (
    *(Contrast(kind, RANDOM_PAIRS, RANDOM_PAIRS) for kind in CHOSEN),
    Contrast("slowest", RANDOM_HEADS, PERMUTED),
)


def manipulation_contrasts(cells: Sequence[StudySet], by_reach: Iterable[UnitMeans], level: float) -> "pd.DataFrame":
    """`ManipulationStudy.contrasts`: pairs and heads against random ones, at each number of pairs and over all.

    Args:
        cells: Every set of manipulated pairs.
        by_reach: Means of the units, at each reach.
        level: Coverage of the intervals.
    """
    import pandas as pd

    counts = sorted(by_kind(cells, "slowest"))
    groups: list[tuple[int | str, list[int]]] = [*((count, [count]) for count in counts), (ALL_COUNTS, counts)]
    lines: list[dict[str, Any]] = []
    for units in by_reach:
        for label, chosen in groups:
            means = {kind: _over_counts(units, cells, kind, chosen) for kind in KINDS[:-1]}
            found = [
                {"kind": one.kind, "against": one.against, "pairs": label, "reach": units.reach}
                | _contrast(units, means, one, level)
                for one in CONTRASTS
                if one.kind in {cell.kind for cell in cells}
            ]
            for line, adjusted in zip(found, holm([line["p_value"] for line in found]), strict=True):
                lines.append({**line, "p_holm": adjusted})
    return pd.DataFrame(lines, columns=COLUMNS)


def _contrast(
    units: UnitMeans, means: Mapping[str, Float64[Tensor, "number unit"]], one: Contrast, level: float
) -> dict[str, Any]:
    """Effect, difference to the control with its interval, and p-value."""
    own, control, drawn = means[one.kind][0], means[one.against], means[one.drawn].mean(-1)
    effect = float(own.mean())
    difference = own - control.mean(0)  # NaN where there is no control
    return {
        "effect": effect,
        **units.change(difference, level, "contrast"),
        "p_value": permutation_p(effect, drawn),
        "draws": len(drawn),
    }


def _over_counts(
    units: UnitMeans, cells: Sequence[StudySet], kind: str, counts: Sequence[int]
) -> Float64[Tensor, "number unit"]:
    """Changes of the sets of a kind, averaged over numbers of pairs: those of one number are of one ranking."""
    sets = by_kind(cells, kind)
    return torch.stack([units.changes(sets.get(count, [])) for count in counts]).mean(0)


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
