"""The sets of manipulated pairs of a study: chosen pairs of the top heads, random pairs, and pairs of random heads.

Random pairs are the same in all heads of a set, as the slowest are. A pair may matter in many heads alike, and drawing
for each head on its own would average that out: any pairs chosen alike in all heads would look special.
"""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from positional_heads.core.head_sets import study_sets
from positional_heads.core.heads import Head
from positional_heads.core.number_ranges import number_ranges
from positional_heads.results.manipulation_tables import ManipulatedSet
from positional_heads.results.printed_manipulations import EVERY, PERMUTED, RANDOM_HEADS, RANDOM_PAIRS

Moved = Mapping[Head, tuple[int, ...]]
"""The manipulated pairs of each head."""
Orders = Mapping[Head, Sequence[int]]
"""All pairs of each head, in the order in which they are taken."""


class ManipulatedSets(NamedTuple):
    """Every set of a study and its role, and the pairs of each set."""

    cells: list[ManipulatedSet]
    moved: dict[tuple[str, ...], Moved]


def manipulated_sets(
    ranking: Sequence[Head],
    top: int,
    slowest: Orders,
    dominant: Orders | None,
    counts: Sequence[int],
    *,
    n_random: int,
    n_permuted: int,
    seed: int,
) -> ManipulatedSets:
    """Every set of a study, the empty one first.

    Args:
        ranking: All ranked heads, the highest first.
        top: Number of the top heads.
        slowest: The pairs of every ranked head that can be chosen, the slowest first.
        dominant: The pairs of the top heads, the dominant ones first; None for no such sets.
        counts: Numbers of pairs of each head, ascending.
        n_random: Number of random rankings of the pairs, and of sets of random heads; fewer of these where fewer exist.
        n_permuted: Number of permuted rankings of the heads; fewer where fewer exist.
        seed: Seed of all of them.
    """
    most = max(len(slowest[head]) for head in ranking[:top])
    pairs = sorted({pair for head in ranking[:top] for pair in slowest[head]})
    heads, found = sorted(ranking[:top]), ManipulatedSets([ManipulatedSet("none", 0, 0, ())], {(): {}})

    def add(kind: str, number: int, orders: Orders, among: Sequence[Head], count: int) -> None:
        moved = {head: tuple(sorted(orders[head][:count])) for head in among}
        name = tuple(f"{head}:{number_ranges(pairs).replace(' ', '')}" for head, pairs in moved.items())
        found.cells.append(ManipulatedSet(kind, count, number, name))
        found.moved[name] = moved

    chosen = {"slowest": slowest, "fastest": {head: slowest[head][::-1] for head in heads}}
    for kind, orders in {**chosen, **({} if dominant is None else {"dominant": dominant})}.items():
        for count in counts:
            add(kind, 0, orders, heads, count)
    for number in range(n_random):
        order = random.Random(f"pairs-{seed}-{number}").sample(pairs, len(pairs))
        drawn = {head: [pair for pair in order if pair in slowest[head]] for head in heads}
        for count in counts:
            add(RANDOM_PAIRS, number, drawn, heads, count)
    others = study_sets(ranking, [top], n_random, None, (), seed, n_permuted=n_permuted)
    for kind, name in (("random", RANDOM_HEADS), ("permuted", PERMUTED)):
        for cell in others:
            if cell.kind == kind:
                for count in counts:
                    add(name, cell.number, slowest, cell.heads, count)
    add(EVERY, 0, slowest, heads, most)
    return found


def slowest_first(frequencies: Sequence[float]) -> list[int]:
    """The pairs of a layer by frequency, the slowest first; of equal ones the last."""
    return sorted(range(len(frequencies)), key=lambda pair: (abs(frequencies[pair]), -pair))
