"""The order in which sets of heads are ablated, so that most layers need not be run again for the next set.

Below the lowest layer at which two sets differ, a model computes the same under both. Ordered like the words of a
dictionary, layer after layer, every set follows the one that it shares most layers with.
"""

from collections.abc import Sequence
from itertools import pairwise

from positional_heads.core.head_sets import HeadSet
from positional_heads.core.heads import Head

LAST = Head(2**31, 0)
"""Sorts after every head: of two sets that begin alike, the one that goes on in a lower layer comes first."""


def first_difference(first: HeadSet, second: HeadSet) -> int | None:
    """The lowest layer in which the sets have different heads; None if they are the same."""
    return min((head.layer for head in {*first} ^ {*second}), default=None)


def sharing_order(sets: Sequence[HeadSet]) -> list[HeadSet]:
    """The sets in the order in which consecutive ones share most layers."""
    return sorted(sets, key=lambda heads: (*heads, LAST))


def shared_layers(order: Sequence[HeadSet]) -> dict[HeadSet, frozenset[int]]:
    """For each set, the layers that later sets start from: they share all that is below with this one.

    Args:
        order: Different sets, in the order in which they are run.
    """
    starts: dict[HeadSet, frozenset[int]] = dict.fromkeys(order[-1:], frozenset())
    for heads, following in zip(reversed(order[:-1]), reversed(order[1:]), strict=True):
        start = first_difference(heads, following)
        assert start is not None  # the sets are different
        starts[heads] = frozenset({start, *(layer for layer in starts[following] if layer < start)} - {0})
    return starts


def run_costs(order: Sequence[HeadSet], n_layers: int) -> dict[HeadSet, float]:
    """Share of the layers that is run for each set, after the one before it; all where `n_layers` is 0."""
    costs = dict.fromkeys(order, 1.0)
    if n_layers:
        for before, heads in pairwise(order):
            costs[heads] = 1 - (first_difference(before, heads) or 0) / n_layers
    return costs
