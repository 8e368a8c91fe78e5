"""Whatever order sets are run in, each finds the layers that it shares; the chosen order shares as many as any can."""

from itertools import pairwise, permutations

import hypothesis
from hypothesis import given
from hypothesis import strategies as st

from positional_heads.core.heads import Head
from positional_heads.core.set_order import first_difference, shared_layers, sharing_order

LAYERS = 4
heads = st.builds(Head, st.integers(0, LAYERS - 1), st.integers(0, 1))
head_set = st.frozensets(heads, max_size=4).map(lambda chosen: tuple(sorted(chosen)))


def below(heads, layer):
    return [head for head in heads if head.layer < layer]


def layers_run(order):
    """Layers run in all, by keeping only what `shared_layers` says, each with the heads ablated below it."""
    starts, kept, run = shared_layers(order), {}, 0
    for heads in order:
        usable = [layer for layer, under in kept.items() if under == below(heads, layer)]
        start = max(usable, default=0)
        run += LAYERS - start
        kept = {layer: kept[layer] for layer in starts[heads] if layer <= start and layer in usable}
        kept |= {layer: below(heads, layer) for layer in starts[heads] if layer > start}
        assert set(kept) == starts[heads]  # nothing that is needed later is missing
    return run


def layers_apart(order):
    """Layers run if each set starts where it differs from the one before."""
    return LAYERS + sum(LAYERS - first_difference(a, b) for a, b in pairwise(order))


@given(st.lists(head_set, min_size=1, max_size=5, unique=True))
@hypothesis.settings(deadline=None, max_examples=60)
def test_no_order_runs_fewer_layers(sets):
    order = sharing_order(sets)
    assert sorted(order) == sorted(sets)
    assert layers_run(order) == layers_apart(order) == min(layers_apart(one) for one in permutations(sets))


@given(st.lists(head_set, min_size=1, max_size=6, unique=True))
@hypothesis.settings(deadline=None)
def test_all_that_a_later_set_shares_is_kept_in_any_order(sets):
    starts = shared_layers(sets)
    for position, heads in enumerate(sets):
        # a later set starts from what the sets on the way to it all share with it
        ways = [
            min(first_difference(a, b) for a, b in pairwise(sets[position : stop + 1]))
            for stop in range(position + 1, len(sets))
        ]
        assert starts[heads] == set(ways) - {0}


def test_the_empty_set_shares_all_layers_below_the_other_sets_first():
    alone, two = (Head(2, 0),), (Head(2, 0), Head(3, 1))
    assert first_difference((), alone) == 2
    assert first_difference(alone, alone) is None
    assert sharing_order([(), alone, two]) == [two, alone, ()]
    assert shared_layers([two, alone, ()]) == {two: {3, 2}, alone: {2}, (): set()}
