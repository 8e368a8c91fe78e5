"""Controls are what they claim to be: as many heads in every layer, none of the top ones, all different."""

from collections import Counter
from itertools import combinations, pairwise
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from positional_heads.core.head_sets import (
    anywhere_sets,
    by_kind,
    distinct_sets,
    permuted_sets,
    random_sets,
    set_sizes,
    study_sets,
)
from positional_heads.core.heads import Head
from tests.support.synthetic_studies import all_heads


def layers(heads):
    return Counter(head.layer for head in heads)


@settings(deadline=None, max_examples=40)
@given(order=st.permutations(all_heads()), sizes=st.sets(st.integers(1, 12), min_size=1), seed=st.integers(0, 99))
def test_every_control_matches_the_top_heads_layer_by_layer(order, sizes, seed):
    sets = study_sets(order, sorted(sizes), 20, None, order[:2], seed)
    top = {k: of_size[0].heads for k, of_size in by_kind(sets, "top").items()}
    for k, heads in top.items():
        assert set(heads) == set(order[:k])
        random = [one.heads for one in by_kind(sets, "random").get(k, [])]
        assert len(set(random)) == len(random)
        assert all(layers(one) == layers(heads) and not set(one) & set(heads) for one in random)
        existing = 1
        for layer, count in layers(heads).items():
            existing *= comb(8 - layers(heads)[layer], count)
        assert len(random) == min(20, existing)
        assert all(layers(one.heads) == layers(heads) for one in by_kind(sets, "permuted")[k])
        assert set(by_kind(sets, "lowest")[k][0].heads) == set(order[-k:])
    for number in range(len(by_kind(sets, "permuted").get(max(sizes), []))):
        # one permuted ranking gives nested sets, as the ranking itself does
        nested = [set(same_size[number].heads) for _, same_size in sorted(by_kind(sets, "permuted").items())]
        assert all(small <= large for small, large in pairwise(nested))
    assert distinct_sets(sets)[0] == ()
    assert len(set(distinct_sets(sets))) == len(distinct_sets(sets))


def test_permutations_may_share_heads_with_the_top_and_random_sets_are_reused():
    order = all_heads()[::9] + [head for head in all_heads() if head not in all_heads()[::9]]
    sets = study_sets(order, [4], 20, None, [], 0)
    permuted = [set(cell.heads) for cell in by_kind(sets, "permuted")[4]]
    assert any(one & set(order[:4]) for one in permuted)
    reused = [one for one in by_kind(sets, "random")[4] if set(one.heads) in permuted]
    assert reused


def test_a_layer_too_small_for_a_match_gives_none():
    heads = [Head(0, head) for head in range(4)]
    assert random_sets(heads, heads[:3], 20, [], "s") == []
    assert random_sets(heads, heads[:2], 20, [], "s") == [(Head(0, 2), Head(0, 3))]


def test_sizes_are_rounded_sorted_and_within_the_number_of_heads():
    assert set_sizes(32, (0.01, 0.02, 0.05, 0.1, 0.2), None) == [1, 2, 3, 6]
    assert set_sizes(32, None, [5, 1]) == [1, 5]
    assert set_sizes(32, None, []) == set_sizes(32, (), None) == []
    for arguments, message in (
        ((32, (1.5,), None), "fraction 1.5 must be above 0 and at most 1"),
        ((32, None, [33]), "33 heads asked for, 32 have a score"),
        ((32, None, [0]), "0 heads asked for"),
        ((32, None, [5, 1, 5]), "counts names 5 twice: give each once"),
        ((32, (0.1, 0.1), None), "fractions names 0.1 twice"),
        ((32, None, None), "either fractions= or counts="),
        ((32, (0.1,), [1]), "either fractions= or counts="),
    ):
        with pytest.raises(ValueError, match=message):
            set_sizes(*arguments)


def test_permutations_are_all_different_and_none_is_the_ranking_itself():
    order = all_heads()
    drawn = permuted_sets(order, [1], 20, "0")
    assert {sets[1] for sets in drawn} == {(Head(0, head),) for head in range(1, 8)}  # all that exist
    drawn = permuted_sets(order, [1, 2], 20, "0")
    assert len({tuple(sets.values()) for sets in drawn}) == 20
    assert {1: (Head(0, 0),), 2: (Head(0, 0), Head(0, 1))} not in drawn


def test_sets_of_any_layer_are_all_there_are_if_so_many_are_wanted():
    pool, top = all_heads()[:7], all_heads()[2:5]
    rest = [head for head in pool if head not in top]
    every = {tuple(sorted(heads)) for heads in combinations(rest, 3)}
    found = anywhere_sets(pool, top, 99, "s")
    assert set(found) == every
    assert len(found) == len(every) == 4
    assert anywhere_sets(pool, top, 3, "s") == found[:3]
    assert anywhere_sets(pool, pool[:4], 9, "s") == []
    assert anywhere_sets(pool, top, 0, "s") == []


def test_sets_of_any_layer_come_from_every_layer_alike():
    top = all_heads()[:4]  # all of one layer
    drawn = anywhere_sets(all_heads(), top, 700, "s")
    assert len(set(drawn)) == 700
    counts = Counter(head for heads in drawn for head in heads)
    assert not set(top) & set(counts)
    assert stats.chisquare([counts[head] for head in all_heads()[4:]]).pvalue > 0.01
    ranking = [*all_heads()[::8], *(head for head in all_heads() if head.head)]  # one of each layer, then the others
    sets = study_sets(ranking, [4], 5, None, [], 0, n_permuted=9, n_anywhere=7)
    assert {kind: len(by_kind(sets, kind)[4]) for kind in ("random", "permuted", "anywhere")} == {
        "random": 5,
        "permuted": 9,
        "anywhere": 7,
    }
