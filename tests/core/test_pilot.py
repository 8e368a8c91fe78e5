"""The pilot measures how far rounding moves ranks."""

import numpy as np
import pytest
import torch

from positional_heads.core.binning import BinLookup
from positional_heads.core.pilot import mean_displacement


def test_displacement_is_the_mean_distance_between_mid_ranks():
    exact = torch.tensor([[0.1, 0.2, 1.1, 1.2, 2.1, 2.2, 2.3, 2.4]], dtype=torch.float64)
    rounded = exact.clone().float()
    rounded[0, 1] = 1.0  # from ranks 0 to 2 into ranks 2 to 4: mid-ranks 1 and 3
    rounded[0, 7] = 0.0  # from ranks 4 to 8 into ranks 0 to 2: mid-ranks 6 and 1
    moved, unseen = mean_displacement(exact, rounded, BinLookup(torch.tensor([[0.5, 1.5]])))
    assert float(moved) == pytest.approx((2 + 5) / 8 / 8)
    sd = np.std([2 / 8, 5 / 8, 0, 0, 0, 0, 0, 0])
    assert float(unseen) == pytest.approx(2 * sd / 8**0.5 + 3 / 8 * 4 / 8)


def test_values_on_an_edge_belong_to_the_bin_below_it():
    edges = torch.tensor([[0.5, 1.5, 1.75]])
    exact = torch.tensor([[0.25, 0.5, 0.75, 1.5, 1.625, 1.75, 2.0, 5.0]], dtype=torch.float64)
    rounded = torch.tensor([[0.25, 0.75, 0.75, 1.625, 1.625, 2.0, 2.0, 0.0]])
    moved, _ = mean_displacement(exact, rounded, BinLookup(edges))
    mid_ranks = {0: 1.0, 1: 3.0, 2: 5.0, 3: 7.0}
    bins = [np.searchsorted(edges[0].numpy(), values[0].numpy()) for values in (exact, rounded)]
    assert np.bincount(bins[0]).tolist() == [2, 2, 2, 2]
    distances = [abs(mid_ranks[own] - mid_ranks[other]) / 8 for own, other in zip(*bins, strict=True)]
    assert float(moved) == pytest.approx(np.mean(distances))
