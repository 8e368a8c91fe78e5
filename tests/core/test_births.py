"""Births and the ends of their intervals, counted in plain Python."""

import itertools
import math

import pytest
import torch

from positional_heads.core.births import birth_ends, births, difference_ends


def born(track):
    """The first checkpoint from which it holds to the end, by looking at every one."""
    return next((first for first in range(len(track)) if all(track[first:])), len(track))


def test_a_birth_is_the_first_checkpoint_from_which_it_holds_to_the_end():
    tracks = list(itertools.product([False, True], repeat=5))
    found = births(torch.tensor(tracks).T)
    assert found.tolist() == [born(track) for track in tracks]
    assert births(torch.tensor(tracks).T[:, :, None].expand(-1, -1, 3)).tolist() == [[born(one)] * 3 for one in tracks]
    assert births(torch.tensor([[False], [True]])).tolist() == [1]
    assert births(torch.tensor([[True], [False]])).tolist() == [2]  # not born


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_the_interval_leaves_no_more_out_on_either_side_than_its_level_says(level):
    drawn = torch.randint(6, (101, 7), generator=torch.Generator().manual_seed(0))
    low, high = birth_ends(drawn, level)
    for column, (least, most) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        ordered = sorted(drawn[:, column].tolist())
        assert (least, most) == (
            ordered[math.floor(100 * (1 - level) / 2)],
            ordered[math.ceil(100 * (1 + level) / 2 - 1e-9)],
        )
    with pytest.raises(ValueError, match="level 1 must be between 0 and 1"):
        birth_ends(drawn, 1)


def test_a_difference_of_births_is_infinite_where_one_is_missing_and_anything_where_both_are():
    inf = math.inf
    some = torch.tensor([[100.0, inf, inf, 5.0]] * 40).double()
    others = torch.tensor([[300.0, 300.0, inf, inf]] * 40).double()
    low, high = difference_ends(some, others, 0.95)
    assert low.tolist() == [-200, inf, -inf, -inf]
    assert high.tolist() == [-200, inf, inf, -inf]
    some[0, 0] = inf  # one resample of 40 is within the tail of 2.5 %
    low, high = difference_ends(some, others, 0.9)
    assert (low[0], high[0]) == (-200, -200)
