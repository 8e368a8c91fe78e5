"""The tables of an ablation study, from the means of its units under every set of heads.

An effect is the measure with heads ablated minus the measure without, so harm is negative. A contrast is the effect of
the top heads minus the mean effect of random sets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.head_sets import StudySet, by_kind
from positional_heads.core.predictors import harm_predictions
from positional_heads.core.statistics import permutation_p
from positional_heads.results.effects import UnitMeans
from positional_heads.results.tables import KINDS

if TYPE_CHECKING:
    import pandas as pd

ALL_SIZES = "all"
FEWEST_RANKED = 3
"""Heads below which no rank correlation is given."""
Control = Literal["random", "anywhere"]
CONTRASTS = ("k", "reach", "top", "difference", "low", "high", "p_value", "random_sets", "permutations")
Sets = Sequence[StudySet]
ByHead = Mapping[str, Float64[Tensor, "layer head"]]


def effects_table(
    cells: Sets,
    by_reach: Iterable[UnitMeans],
    by: str | None,
    level: float,
    kinds: Sequence[str] = KINDS,
    counted: str = "k",
) -> "pd.DataFrame":
    """`AblationStudy.effects`: the mean effect of each kind of set at each size.

    Args:
        cells: Every set of heads.
        by_reach: Means of the units, at each reach.
        by: The column that the answers are split by.
        level: Coverage of the intervals.
        kinds: Which kinds of sets, in this order.
        counted: Name of the column that sizes sets.
    """
    import pandas as pd

    lines = []
    for units in by_reach:
        own = {} if by is None else {by: units.group}
        lines.append({**own, "kind": "none", counted: 0, "reach": units.reach, **units.intact(level), "sets": 1})
        for kind in kinds:
            for k, sets in by_kind(cells, kind).items():
                effect = units.change(units.changes(sets).mean(0), level)
                lines.append({**own, "kind": kind, counted: k, "reach": units.reach, **effect, "sets": len(sets)})
    return pd.DataFrame(lines)


def contrasts_table(cells: Sets, by_reach: Iterable[UnitMeans], control: Control, level: float) -> "pd.DataFrame":
    """`AblationStudy.contrasts`: top heads against random ones, at each size and over those with random sets.

    Args:
        cells: Every set of heads.
        by_reach: Means of the units, at each reach.
        control: Which random sets.
        level: Coverage of the intervals.
    """
    import pandas as pd

    sizes, with_control = sorted(by_kind(cells, "top")), by_kind(cells, control)
    groups: list[tuple[int | str, list[int]]] = [(k, [k]) for k in sizes]
    groups += [(ALL_SIZES, [k for k in sizes if k in with_control] or sizes)] if sizes else []
    lines = []
    for units in by_reach:
        top, random, permuted = (
            {k: units.changes(sets) for k, sets in by_kind(cells, kind).items()}
            for kind in ("top", control, "permuted")
        )
        for k, chosen in groups:
            paired = [top[size][0] - random[size].mean(0) for size in chosen if size in random]
            difference = torch.stack(paired).mean(0) if paired else torch.full_like(units.means[0], torch.nan)
            effect = float(torch.stack([top[size][0].mean() for size in chosen]).mean())
            by_chance = torch.zeros(0)
            if permuted:
                by_chance = torch.stack([permuted[size].mean(-1) for size in chosen]).mean(0)
            line = {"k": k, "reach": units.reach, "top": effect, **units.change(difference, level, "difference")}
            line["p_value"] = permutation_p(effect, by_chance.double())
            line["random_sets"] = sum(len(random[size]) for size in chosen if size in random)
            lines.append({**line, "permutations": len(by_chance)})
    table = pd.DataFrame(lines, columns=CONTRASTS)
    return table if control == "random" else table.drop(columns=["p_value", "permutations"])


def sets_table(cells: Sets, by_reach: Iterable[UnitMeans]) -> "pd.DataFrame":
    """`AblationStudy.by_set`: the mean effect of every single set."""
    import pandas as pd

    lines = [
        {**set_labels(cell), "reach": units.reach, "effect": effect}
        for units in by_reach
        for cell, effect in zip(cells, units.changes(cells).mean(-1).tolist(), strict=True)
    ]
    return pd.DataFrame(lines)


def heads_alone_table(cells: Sets, by_reach: Iterable[UnitMeans], columns: ByHead, level: float) -> "pd.DataFrame":
    """`AblationStudy.by_head`: the effect of every head that was ablated alone, the largest harm first.

    Args:
        cells: Every set of heads.
        by_reach: Means of the units, at each reach.
        columns: What else is known of each head.
        level: Coverage of the intervals.
    """
    import pandas as pd

    singles = [cell for sets in by_kind(cells, "single").values() for cell in sets]
    heads = [cell.heads[0] for cell in singles]
    frame = pd.DataFrame({"name": [str(head) for head in heads]})
    for name, values in columns.items():
        frame[name] = [float(values[head]) for head in heads]
    for units in by_reach if heads else ():
        changes, reach = units.changes(singles), units.reach
        low, high = units.intervals(changes, level).numpy().T
        frame[reach], frame[f"{reach} low"], frame[f"{reach} high"] = changes.mean(-1).numpy(), low, high
    return frame.sort_values("long", ignore_index=True) if "long" in frame else frame


def predictors_table(cells: Sets, by_reach: Iterable[UnitMeans], measures: ByHead, level: float) -> "pd.DataFrame":
    """`AblationStudy.predictors`: how well each measure of the heads predicts the harm of ablating a head alone.

    Args:
        cells: Every set of heads.
        by_reach: Means of the units, at each reach.
        measures: The measures by name; NaN where a head has none.
        level: Coverage of the intervals.

    Raises:
        ValueError: If too few heads were ablated alone and have a value in every measure.
    """
    import pandas as pd

    singles = by_kind(cells, "single").get(1, [])
    if not singles:
        msg = "no head was ablated alone: run the study with singles='all'"
        raise ValueError(msg)
    known = [cell for cell in singles if not any(values[cell.heads[0]].isnan() for values in measures.values())]
    if len(known) < FEWEST_RANKED:
        msg = f"{len(known)} heads were ablated alone and have a value in every measure: {FEWEST_RANKED} are needed"
        raise ValueError(msg)
    heads = [cell.heads[0] for cell in known]
    chosen = {name: torch.stack([values[head] for head in heads]) for name, values in measures.items()}
    layers = torch.tensor([head.layer for head in heads])
    lines = []
    for units in by_reach:
        harm = -units.changes(known)
        found = harm_predictions(chosen, harm, layers, level=level)
        size = {"heads": len(heads), "units": harm.shape[1]}
        lines += [{"reach": units.reach, "measure": name, **asdict(one), **size} for name, one in found.items()]
    return pd.DataFrame(lines)


def set_labels(cell: StudySet) -> dict[str, Any]:
    """The columns that tell a set of heads apart."""
    return {"kind": cell.kind, "k": cell.k, "number": cell.number, "heads": " ".join(str(head) for head in cell.heads)}
