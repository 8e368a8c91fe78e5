"""Names of heads, by rules on their measures that anyone can redo.

A head gets every name whose rule holds, in this order; the first one is what tables show. What a head does now and then
comes before where its attention rests meanwhile: most retrieval and induction heads rest on the first keys.

| name | rule |
|---|---|
| retrieval | retrieval score of 0.1 or more, the threshold of Wu et al. (arXiv 2404.15574) |
| previous token | 0.4 or more goes to the token before (`previous_token`) |
| induction | 0.1 or more goes to what followed earlier occurrences of the token (`induction`) |
| duplicate token | 0.1 or more goes to earlier occurrences of the token (`duplicate_token`) |
| sink | half or more of its attention goes to the first keys (`sink_mass`) |
| far | 0.2 or more goes beyond the window and past the first keys (`distant_mass`) |
| local | 0.05 or less goes there, and less than half to the first keys |

The thresholds are our choice, but for that of retrieval.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Bool, Float64
from torch import Tensor

from positional_heads.core.heads import Head

Measures = Mapping[str, Float64[Tensor, "layer head"]]


class Rule(NamedTuple):
    """When a head has a name.

    Attributes:
        name: The name.
        needs: Measures that the rule reads.
        holds: Whether it holds, for every head; False where a measure is NaN.
        sign: 1 if the clearest case has most of the first of these measures, -1 if it has least.
    """

    name: str
    needs: tuple[str, ...]
    holds: Callable[[Measures], Bool[Tensor, "layer head"]]
    sign: int = 1


def _at_least(name: str, measure: str, least: float) -> Rule:
    return Rule(name, (measure,), lambda values: values[measure] >= least)


RULES = (
    _at_least("retrieval", "retrieval", 0.1),
    _at_least("previous token", "previous_token", 0.4),
    _at_least("induction", "induction", 0.1),
    _at_least("duplicate token", "duplicate_token", 0.1),
    _at_least("sink", "sink_mass", 0.5),
    _at_least("far", "distant_mass", 0.2),
    Rule(
        "local",
        ("distant_mass", "sink_mass"),
        lambda values: (values["distant_mass"] <= 0.05) & (values["sink_mass"] < 0.5),  # noqa: PLR2004
        sign=-1,
    ),
)
MIXED = Rule("mixed", ("reach",), lambda values: values["reach"].isfinite())
"""What a head is that no rule names; the clearest case is the one that looks furthest."""
NAMED_BY = tuple(dict.fromkeys(measure for rule in RULES for measure in rule.needs))
"""Measures that the rules read."""


def head_labels(heads: list[Head], measures: Measures) -> dict[Head, list[str]]:
    """Every name of each head, in the order of the rules.

    Args:
        heads: The heads.
        measures: What is known of them; a rule whose measures are not all there holds for no head.
    """
    held = {rule.name: rule.holds(measures) for rule in RULES if all(name in measures for name in rule.needs)}
    return {head: [name for name, holds in held.items() if bool(holds[head])] for head in heads}
