"""The sets of heads of an ablation study: the top heads, and every control they are compared with.

Two controls are random. *Permutations* shuffle the ranking within every layer and take its first heads, as the top sets
would be if the ranking meant nothing; p-values come from these, so a permuted set may share heads with the top set.
*Random sets* exclude the top heads and have as many heads in every layer: they contrast the top heads with others.
Sets drawn *anywhere* exclude the top heads and take as many heads from any layer, a weaker control: where the top heads
lie in layers that matter more, or less, than others do, it shows a difference of layers.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import comb, prod
from typing import Any

from positional_heads.core.arguments import refuse_twice
from positional_heads.core.heads import Head

HeadSet = tuple[Head, ...]
AnySet = tuple[Any, ...]
"""A set of heads, or of texts that say which rotary pairs key heads keep."""
DRAWS_PER_SET = 50
"""Permutations drawn for each one wanted, before giving up on finding different ones."""
FEWEST_PERMUTATIONS = 20
"""Fewer permuted rankings cannot give a p-value below 0.05, so no more than those beyond are left out of a study."""
LEFT_OUT = {"anywhere": "sets of any layer", "permuted": "permuted rankings", "random": "random sets"}
"""Kinds of sets of which a smaller study has fewer, in words."""


@dataclass(frozen=True)
class StudySet:
    """One set of heads of a study, and its role.

    Attributes:
        kind: none, top, random, permuted, anywhere, lowest, retrieval or single.
        k: Size of the top set that it is compared with; 1 for single heads, 0 for none.
        number: Its number among the sets of its kind and size.
        heads: The heads, in order.
    """

    kind: str
    k: int
    number: int
    heads: HeadSet


@dataclass(frozen=True)
class SetPlan:
    """Which sets a study has.

    Attributes:
        sizes: Sizes of the top sets, ascending; none where heads are only ablated one by one.
        n_random: Number of random sets of each size.
        n_permuted: Number of permutations.
        n_anywhere: Number of sets of heads of any layer of each size.
        singles: How many heads are ablated one by one, from the top of the ranking on.
        retrieval: Whether the heads with the highest retrieval score are a control.
    """

    sizes: tuple[int, ...]
    n_random: int
    n_permuted: int
    n_anywhere: int
    singles: int
    retrieval: bool

    def sets(self, ranking: Sequence[Head], retrieval: Sequence[Head] | None, seed: int) -> list[StudySet]:
        """The sets of heads, see `study_sets`."""
        return study_sets(
            ranking,
            self.sizes,
            self.n_random,
            retrieval if self.retrieval else None,
            ranking[: self.singles],
            seed,
            n_permuted=self.n_permuted,
            n_anywhere=self.n_anywhere,
        )

    def as_json(self) -> dict[str, Any]:
        """The plan for a file."""
        return {**asdict(self), "sizes": list(self.sizes)}

    def left_out_of(self, asked: "SetPlan", ranking: Sequence[Head], seed: int) -> list[str]:
        """What a larger plan has that this one has not, in words: only sets that exist."""
        parts = []
        if self.singles < asked.singles:
            which = f"{asked.singles - self.singles} of " if self.singles else "all "
            parts.append(f"{which}{asked.singles} single heads")
        if replace(self, sizes=(), singles=0, retrieval=False) != replace(asked, sizes=(), singles=0, retrieval=False):
            own, more = (plan.sets(ranking, None, seed) for plan in (self, replace(asked, sizes=self.sizes)))
            for kind, name in LEFT_OUT.items():
                # a permuted ranking has a set of each size, all of one number
                kept, drawn = (
                    len({(kind != "permuted" and one.k, one.number) for one in sets if one.kind == kind})
                    for sets in (own, more)
                )
                if kept < drawn:
                    parts.append(f"{drawn - kept} of {drawn} {name}")
        if dropped := [str(size) for size in asked.sizes if size not in self.sizes]:
            parts.append(f"the sets of {' and '.join(dropped)} heads")
        if self.retrieval < asked.retrieval:
            parts.append("the retrieval control")
        return parts


def smaller_plans(asked: SetPlan, ranking: Sequence[Head]) -> list[SetPlan]:
    """A plan, and what is left of it as more and more is left out, down to the top sets of one size and their controls.

    First go single heads, which no test rests on: those outside of the largest top set, then all; then sets of any
    layer, for the same reason. Then random sets and permutations, one by one as long as a p-value below 0.05 remains
    possible; then sizes, the largest first, because small sets are the stronger claim, as long as those left have as
    many permutations; last the retrieval control. A plan without sizes keeps its single heads, which are all it has.
    """
    plans = [asked]
    if asked.sizes:
        plans += [replace(asked, singles=fewer) for fewer in (asked.sizes[-1], 0) if fewer < asked.singles]
        plans += [replace(plans[-1], n_anywhere=0)] if asked.n_anywhere else []
    for fewer in range(max(asked.n_random, asked.n_permuted) - 1, FEWEST_PERMUTATIONS - 1, -1):
        n_random, n_permuted = min(asked.n_random, fewer), min(asked.n_permuted, fewer)
        plans.append(replace(plans[-1], n_random=n_random, n_permuted=n_permuted))
    wanted = min(asked.n_permuted, FEWEST_PERMUTATIONS)
    for fewer in range(len(asked.sizes) - 1, 0, -1):
        if existing_permutations(ranking, asked.sizes[:fewer]) < min(
            wanted, existing_permutations(ranking, asked.sizes)
        ):
            break
        plans.append(replace(plans[-1], sizes=asked.sizes[:fewer]))
    return [*plans, replace(plans[-1], retrieval=False)] if asked.retrieval else plans


def set_sizes(n_heads: int, fractions: Sequence[float] | None, counts: Sequence[int] | None) -> list[int]:
    """Sizes of the top sets, ascending, each once; none for an empty list.

    Args:
        n_heads: Heads that have a score.
        fractions: Shares of these heads, each rounded to at least one head.
        counts: Numbers of heads, instead of fractions.

    Raises:
        ValueError: If both or neither are given, one is given twice, or more heads are asked for than have a score.
    """
    if (fractions is None) == (counts is None):
        msg = "give either fractions= or counts="
        raise ValueError(msg)
    refuse_twice("fractions", fractions or ())
    refuse_twice("counts", counts or ())
    for fraction in fractions or ():
        if not 0 < fraction <= 1:
            msg = f"fraction {fraction} must be above 0 and at most 1: more heads than exist cannot be ablated"
            raise ValueError(msg)
    sizes = [max(1, round(fraction * n_heads)) for fraction in fractions or ()] or list(counts or ())
    for size in sizes:
        if not 1 <= size <= n_heads:
            msg = f"{size} heads asked for, {n_heads} have a score: give counts between 1 and {n_heads}"
            raise ValueError(msg)
    return sorted(set(sizes))


def study_sets(
    ranking: Sequence[Head],
    sizes: Sequence[int],
    n_random: int,
    retrieval: Sequence[Head] | None,
    singles: Sequence[Head],
    seed: int,
    *,
    n_permuted: int | None = None,
    n_anywhere: int = 0,
) -> list[StudySet]:
    """Every set of a study, the empty one first.

    Args:
        ranking: All scored heads, the most positional first.
        sizes: Sizes of the top sets, ascending.
        n_random: Number of random sets of each size; fewer where fewer exist.
        retrieval: Heads by retrieval score, the highest first; None for no such control.
        singles: Heads to ablate one by one.
        seed: Seed of permutations and random sets.
        n_permuted: Number of permutations, fewer where fewer exist; as many as random sets when None.
        n_anywhere: Number of sets of heads of any layer of each size; fewer where fewer exist.
    """
    sets = [StudySet("none", 0, 0, ())]
    sets += [StudySet("top", k, 0, _ordered(ranking[:k])) for k in sizes]
    sets += [StudySet("lowest", k, 0, _ordered(ranking[-k:])) for k in sizes]
    if retrieval is not None:
        sets += [StudySet("retrieval", k, 0, _ordered(retrieval[:k])) for k in sizes if k <= len(retrieval)]
    permuted = permuted_sets(ranking, sizes, n_random if n_permuted is None else n_permuted, str(seed))
    sets += [StudySet("permuted", k, number, by_size[k]) for number, by_size in enumerate(permuted) for k in sizes]
    for k in sizes:
        drawn = random_sets(ranking, ranking[:k], n_random, [by_size[k] for by_size in permuted], f"{seed}-{k}")
        sets += [StudySet("random", k, number, heads) for number, heads in enumerate(drawn)]
        anywhere = anywhere_sets(ranking, ranking[:k], n_anywhere, f"{seed}-{k}")
        sets += [StudySet("anywhere", k, number, heads) for number, heads in enumerate(anywhere)]
    return sets + [StudySet("single", 1, number, (head,)) for number, head in enumerate(singles)]


def permuted_sets(ranking: Sequence[Head], sizes: Sequence[int], wanted: int, seed: str) -> list[dict[int, HeadSet]]:
    """Top sets of rankings permuted within layers, all different from each other and from the ranking's own.

    Args:
        ranking: All scored heads.
        sizes: Sizes of the sets.
        wanted: Number of permutations; fewer are returned where few different ones exist.
        seed: Seed of the permutations.
    """
    rng = random.Random(f"permuted-{seed}")
    permuted: list[dict[int, HeadSet]] = []
    seen = [{k: _ordered(ranking[:k]) for k in sizes}]
    for _ in range(DRAWS_PER_SET * wanted):
        if len(permuted) == wanted:
            break
        order = _permuted_within_layers(ranking, rng)
        by_size = {k: _ordered(order[:k]) for k in sizes}
        if by_size not in seen:
            seen.append(by_size)
            permuted.append(by_size)
    return permuted


def existing_permutations(ranking: Sequence[Head], sizes: Sequence[int]) -> int:
    """How many permuted rankings differ from each other and from the ranking's own in a set of one of these sizes."""
    counts = [Counter(head.layer for head in ranking[:size]) for size in (*sorted(sizes), len(ranking))]
    return prod(comb(more[layer], fewer[layer]) for fewer, more in pairwise(counts) for layer in fewer) - 1


def random_sets(
    pool: Sequence[Head], top: Sequence[Head], wanted: int, drawn_already: Sequence[HeadSet], seed: str
) -> list[HeadSet]:
    """Different sets of heads outside `top`, each with as many heads in every layer as `top`.

    Fewer than wanted where fewer exist; none where the rest of a layer is too small.

    Args:
        pool: Heads to draw from.
        top: The set to match.
        wanted: Number of sets.
        drawn_already: Sets to take first where they qualify, to save running others.
        seed: Seed of the draws.
    """
    taken = set(top)
    per_layer = Counter(head.layer for head in top)
    rest = {layer: [head for head in pool if head.layer == layer and head not in taken] for layer in per_layer}
    existing = prod(comb(len(rest[layer]), count) for layer, count in per_layer.items())
    sets = dict.fromkeys(heads for heads in drawn_already if not taken & set(heads))
    rng = random.Random(f"random-{seed}")
    while len(sets) < min(wanted, existing):
        sets[_ordered([head for layer, count in per_layer.items() for head in rng.sample(rest[layer], count)])] = None
    return list(sets)[:wanted]


def anywhere_sets(pool: Sequence[Head], top: Sequence[Head], wanted: int, seed: str) -> list[HeadSet]:
    """Different sets of as many heads outside `top`, of any layer; fewer than wanted where fewer exist.

    Args:
        pool: Heads to draw from.
        top: The set to match in size only.
        wanted: Number of sets.
        seed: Seed of the draws.
    """
    taken = set(top)
    rest = [head for head in pool if head not in taken]
    sets: dict[HeadSet, None] = {}
    rng = random.Random(f"anywhere-{seed}")
    while len(sets) < min(wanted, comb(len(rest), len(top))):
        sets[_ordered(rng.sample(rest, len(top)))] = None
    return list(sets)


def set_name(heads: AnySet) -> str:
    """The heads of a set in words; what its results are kept under."""
    return " ".join(map(str, heads))


def distinct_sets(sets: Sequence[StudySet]) -> list[Any]:
    """The heads of every set once, in order: the ablations to run."""
    return list(dict.fromkeys(one.heads for one in sets))


def by_kind(sets: Sequence[StudySet], kind: str) -> Mapping[int, list[StudySet]]:
    """The sets of a kind, by k."""
    by_size: dict[int, list[StudySet]] = {}
    for one in sets:
        if one.kind == kind:
            by_size.setdefault(one.k, []).append(one)
    return by_size


def _permuted_within_layers(ranking: Sequence[Head], rng: random.Random) -> list[Head]:
    layers: dict[int, list[Head]] = {}
    for head in ranking:
        layers.setdefault(head.layer, []).append(head)
    for heads in layers.values():
        rng.shuffle(heads)
    shuffled = {layer: iter(heads) for layer, heads in layers.items()}
    return [next(shuffled[head.layer]) for head in ranking]


def _ordered(heads: Sequence[Head]) -> HeadSet:
    return tuple(sorted(heads))
