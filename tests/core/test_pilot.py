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
