"""The tables of a plan study, from the means of its units under every set of windows.

An effect is the measure with a plan minus the measure without, so what plans cost is negative. The gain of a plan is
its effect minus the mean effect of random plans at the same budget, or minus that of another plan: a plan that chooses
well has a positive one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.head_sets import AnySet, StudySet
from positional_heads.core.statistics import permutation_p
from positional_heads.results.effects import UnitMeans
from positional_heads.results.plan_words import ALL_BUDGETS

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("none", "plan", "chance", "layers", "all")
"""Roles of the sets of a study, see `TriedPlan`."""
PlanControl = Literal["chance", "layers"]
CONTRASTS = ("by", "budget", "reach", "effect", "gain", "low", "high", "p_chance", "plans")


@dataclass(frozen=True)
class TriedPlan(StudySet):
    """One plan of a study, and its role.

    Attributes:
        kind: "none" for no plan, "plan" for the choice of a measure, "chance" for a random one, "layers" for one with
            as many windows in every layer as the plan of a measure has, "all" for one that spares nothing.
        k: Key heads with a window, or pairs that are frozen or dropped.
        heads: The query heads that read a windowed key head; or, as text, the key heads that lose pairs, each with the
            digits of the pairs that it keeps, in base 16.
        by: The measure of a plan, or of the plan that it is compared with; otherwise its kind.
        budget: Share of the key heads to choose from that keep all keys, or of the pairs that keep their rotation.
    """

    heads: AnySet
    by: str
    budget: float


Plans = Sequence[TriedPlan]


def tried(cells: Plans, kind: str) -> Mapping[str, Mapping[float, list[TriedPlan]]]:
    """The sets of one kind, by measure and budget, in order of the budgets."""
    found: dict[str, dict[float, list[TriedPlan]]] = {}
    for one in sorted((one for one in cells if one.kind == kind), key=lambda one: one.budget):
        found.setdefault(one.by, {}).setdefault(one.budget, []).append(one)
    order = dict.fromkeys(one.by for one in cells)
    return {by: found[by] for by in order if by in found}


def plan_effects(
    cells: Plans, by_reach: Iterable[UnitMeans], by: str | None, level: float, counted: str
) -> "pd.DataFrame":
    """`PlanStudy.effects`: the mean effect of each plan, and of random ones, at each budget.

    Args:
        cells: Every set of windows.
        by_reach: Means of the units, at each reach.
        by: The column that the answers are split by.
        level: Coverage of the intervals.
        counted: Name of the column that counts what a plan edits.
    """
    import pandas as pd

    lines = []
    for units in by_reach:
        own = {} if by is None else {by: units.group}
        for kind in KINDS:
            for name, budgets in tried(cells, kind).items():
                for budget, plans in budgets.items():
                    known = {
                        **own,
                        "kind": kind,
                        "by": name,
                        "budget": budget,
                        counted: plans[0].k,
                        "reach": units.reach,
                    }
                    effect = units.intact(level) if kind == "none" else units.change(_mean(units, plans), level)
                    lines.append({**known, **effect, "plans": len(plans)})
    return pd.DataFrame(lines)


def plan_contrasts(cells: Plans, by_reach: Iterable[UnitMeans], control: PlanControl, level: float) -> "pd.DataFrame":
    """`PlanStudy.contrasts`: the plan of each measure against random ones, at each budget and over all.

    Args:
        cells: Every set of windows.
        by_reach: Means of the units, at each reach.
        control: Which random plans.
        level: Coverage of the intervals.
    """
    import pandas as pd

    lines, random = [], tried(cells, control)
    for units in by_reach:
        for name, own in tried(cells, "plan").items():
            others = random["chance" if control == "chance" else name]
            for label, budgets in _budgets(own):
                plan = _over_budgets(units, own, budgets)[0]
                drawn = _over_budgets(units, others, budgets)
                line = {"by": name, "budget": label, "reach": units.reach, "effect": float(plan.mean())}
                line |= units.change(plan - drawn.mean(0), level, "gain")
                # one-sided: how many random plans cost as little, or less
                line["p_chance"] = permutation_p(-float(plan.mean()), -drawn.mean(-1))
                lines.append({**line, "plans": len(drawn)})
    return pd.DataFrame(lines, columns=CONTRASTS)


def plan_differences(cells: Plans, by_reach: Iterable[UnitMeans], to: str, level: float) -> "pd.DataFrame":
    """`PlanStudy.differences`: the plan of each measure against that of one of them.

    Args:
        cells: Every set of windows.
        by_reach: Means of the units, at each reach.
        to: The measure to compare with.
        level: Coverage of the intervals.
    """
    import pandas as pd

    lines: list[dict[str, Any]] = []
    plans = tried(cells, "plan")
    for units in by_reach:
        for name, own in plans.items():
            for label, budgets in _budgets(own) if name != to else ():
                change = (_over_budgets(units, own, budgets) - _over_budgets(units, plans[to], budgets))[0]
                line = {"by": name, "to": to, "budget": label, "reach": units.reach}
                lines.append(line | units.change(change, level, "gain"))
    return pd.DataFrame(lines, columns=["by", "to", "budget", "reach", "gain", "low", "high"])


def _budgets(own: Mapping[float, Any]) -> list[tuple[float | str, list[float]]]:
    """Each budget, and all of them together."""
    return [*((budget, [budget]) for budget in own), (ALL_BUDGETS, [*own])]


def _mean(units: UnitMeans, plans: Plans) -> Float64[Tensor, " unit"]:
    return units.changes(plans).mean(0)


def _over_budgets(
    units: UnitMeans, plans: Mapping[float, Plans], budgets: Sequence[float]
) -> Float64[Tensor, "number unit"]:
    """The changes under plans of one number, averaged over budgets: random plans of one number are of one ranking."""
    return torch.stack([units.changes(plans[budget]) for budget in budgets]).mean(0)
