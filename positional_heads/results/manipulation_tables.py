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
from positional_heads.results.printed_manipulations import (
    ALL_COUNTS,
    CHOSEN,
    COLUMNS,
    KINDS,
    PERMUTED,
    RANDOM_HEADS,
    RANDOM_PAIRS,
)

if TYPE_CHECKING:
    import pandas as pd


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
