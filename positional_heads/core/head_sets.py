"""Which heads are ablated? The top ones, and every control they are compared with.

Two kinds of chance. *Permutations* shuffle the ranking within every layer and take the same places of it: so would the
top sets look, small and large ones together, if the ranking meant nothing; p-values come from these, and must let a
permuted set share heads with the top set. *Random sets* exclude the top heads, with as many heads in every layer: the
contrast of the top heads with others.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, prod

from positional_heads.core.heads import Head

HeadSet = tuple[Head, ...]
DRAWS_FOR_EACH = 50


@dataclass(frozen=True)
class Cell:
    """One set of heads of the study, and what it stands for.

    Attributes:
        kind: none, top, random, permuted, lowest, retrieval or single.
        k: Heads of the top set that it belongs to; 1 for single heads, 0 for none.
        number: Which of several of its kind.
        heads: The set, in order.
    """

    kind: str
    k: int
    number: int
    heads: HeadSet


def doses(n_heads: int, fractions: Sequence[float] | None, counts: Sequence[int] | None) -> list[int]:
    """Sizes of the top sets, ascending, each once.

    Args:
        n_heads: Heads that have a score.
        fractions: Shares of them, each rounded and at least one head.
        counts: Numbers of heads instead.

    Raises:
        ValueError: If both or none are given, or more heads are asked for than have a score.
    """
    if (fractions is None) == (counts is None):
        msg = "give fractions= or counts=, and not both"
        raise ValueError(msg)
    for fraction in fractions or ():
        if not 0 < fraction <= 1:
            msg = f"fraction {fraction} must be above 0 and at most 1: more heads than exist cannot be ablated"
            raise ValueError(msg)
    sizes = [max(1, round(fraction * n_heads)) for fraction in fractions or ()] or list(counts or ())
    for size in sizes:
        if not 1 <= size <= n_heads:
            msg = f"{size} heads asked for, {n_heads} have a score: give counts between 1 and {n_heads}"
            raise ValueError(msg)
    if not sizes:
        msg = "no fraction or count of heads given: there is nothing to ablate"
        raise ValueError(msg)
    return sorted(set(sizes))


def study_cells(
    ranking: Sequence[Head],
    sizes: Sequence[int],
    n_random: int,
    retrieval: Sequence[Head] | None,
    singles: Sequence[Head],
    seed: int,
) -> list[Cell]:
    """Every set of a study, the un-ablated one first.

    Args:
        ranking: All scored heads, the most positional first.
        sizes: Sizes of the top sets, ascending.
        n_random: How many permutations, and how many random sets for each size, if there are as many.
        retrieval: Heads by retrieval score, the highest first; None for no such control.
        singles: Heads to ablate one by one.
        seed: Seed of everything drawn.
    """
    cells = [Cell("none", 0, 0, ())]
    cells += [Cell("top", k, 0, _ordered(ranking[:k])) for k in sizes]
    cells += [Cell("lowest", k, 0, _ordered(ranking[-k:])) for k in sizes]
    if retrieval is not None:
        cells += [Cell("retrieval", k, 0, _ordered(retrieval[:k])) for k in sizes if k <= len(retrieval)]
    permuted = permuted_sets(ranking, sizes, n_random, str(seed))
    cells += [Cell("permuted", k, number, sets[k]) for number, sets in enumerate(permuted) for k in sizes]
    for k in sizes:
        drawn = random_sets(ranking, ranking[:k], n_random, [sets[k] for sets in permuted], f"{seed}-{k}")
        cells += [Cell("random", k, number, heads) for number, heads in enumerate(drawn)]
    return cells + [Cell("single", 1, number, (head,)) for number, head in enumerate(singles)]


def permuted_sets(ranking: Sequence[Head], sizes: Sequence[int], wanted: int, seed: str) -> list[dict[int, HeadSet]]:
    """Top sets of rankings permuted within layers, all different from each other and from the ranking's own.

    Args:
        ranking: All scored heads.
        sizes: Sizes of the sets.
        wanted: How many permutations; fewer are found where hardly more exist.
        seed: Seed of the permutations.
    """
    rng = random.Random(f"permuted-{seed}")
    own = {k: _ordered(ranking[:k]) for k in sizes}
    found: dict[tuple[HeadSet, ...], dict[int, HeadSet]] = {tuple(own.values()): own}
    for _ in range(DRAWS_FOR_EACH * wanted):
        if len(found) > wanted:
            break
        order = _permuted_within_layers(ranking, rng)
        sets = {k: _ordered(order[:k]) for k in sizes}
        found.setdefault(tuple(sets.values()), sets)
    return list(found.values())[1:]


def random_sets(
    pool: Sequence[Head], top: Sequence[Head], wanted: int, drawn_already: Sequence[HeadSet], seed: str
) -> list[HeadSet]:
    """Different sets of heads, none of them in `top`, with as many heads in every layer as it.

    Fewer than wanted where fewer exist; none where the rest of a layer is too small.

    Args:
        pool: Heads to draw from.
        top: The set to match.
        wanted: How many sets.
        drawn_already: Sets to take first where they qualify, so that they need not be run twice.
        seed: Seed of the draws.
    """
    taken = set(top)
    per_layer = Counter(head.layer for head in top)
    rest = {layer: [head for head in pool if head.layer == layer and head not in taken] for layer in per_layer}
    existing = prod(comb(len(rest[layer]), count) for layer, count in per_layer.items())
    found = dict.fromkeys(heads for heads in drawn_already if not taken & set(heads))
    rng = random.Random(f"random-{seed}")
    while len(found) < min(wanted, existing):
        found[_ordered([head for layer, count in per_layer.items() for head in rng.sample(rest[layer], count)])] = None
    return list(found)[:wanted]


def same_number_per_layer(some: Sequence[Head], others: Sequence[Head]) -> bool:
    """Whether two sets have equally many heads in every layer."""
    return Counter(head.layer for head in some) == Counter(head.layer for head in others)


def distinct_sets(cells: Sequence[Cell]) -> list[HeadSet]:
    """Every set once, in order: what really has to be run."""
    return list(dict.fromkeys(cell.heads for cell in cells))


def by_kind(cells: Sequence[Cell], kind: str) -> Mapping[int, list[Cell]]:
    """The cells of a kind, by k."""
    found: dict[int, list[Cell]] = {}
    for cell in cells:
        if cell.kind == kind:
            found.setdefault(cell.k, []).append(cell)
    return found


def _permuted_within_layers(ranking: Sequence[Head], rng: random.Random) -> list[Head]:
    places: dict[int, list[Head]] = {}
    for head in ranking:
        places.setdefault(head.layer, []).append(head)
    for heads in places.values():
        rng.shuffle(heads)
    left = {layer: iter(heads) for layer, heads in places.items()}
    return [next(left[head.layer]) for head in ranking]


def _ordered(heads: Sequence[Head]) -> HeadSet:
    return tuple(sorted(heads))
