"""The birth of a property during training: the first checkpoint from which it holds to the end.

Checkpoints are counted in the order of their steps, and the number of checkpoints stands for "not born". A birth at one
checkpoint says that the property came after the checkpoint before, and by this one.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor


def births(above: Bool[Tensor, "checkpoint *shape"]) -> Int[Tensor, "*shape"]:
    """The first checkpoint from which on a property holds at every one; the number of checkpoints if at none.

    Args:
        above: Whether it holds at each checkpoint.
    """
    lasting = above.long().flip(0).cumprod(0).sum(0)
    return len(above) - lasting


def birth_ends(
    resampled: Int[Tensor, "resample *shape"], level: float
) -> tuple[Int[Tensor, "*shape"], Int[Tensor, "*shape"]]:
    """Both ends of the interval of a birth: the checkpoints between which that share of the resamples lies.

    Args:
        resampled: The birth in each resample.
        level: Coverage, between 0 and 1.

    Raises:
        ValueError: If the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        msg = f"level {level} must be between 0 and 1, e.g. 0.95"
        raise ValueError(msg)
    tails = ((1 - level) / 2, "lower"), ((1 + level) / 2, "higher")
    low, high = (np.asarray(np.quantile(resampled.numpy(), tail, axis=0, method=way)) for tail, way in tails)  # type: ignore[call-overload]
    return torch.from_numpy(low), torch.from_numpy(high)


def difference_ends(
    some: Float64[Tensor, "resample *shape"], others: Float64[Tensor, "resample *shape"], level: float
) -> tuple[Float64[Tensor, "*shape"], Float64[Tensor, "*shape"]]:
    """Both ends of the interval of the difference of two births in steps, infinite where one is not born.

    Where neither is born in a resample, their difference could be anything, so that resample widens both ends.

    Args:
        some: Step of one birth in each resample; infinite where it is not born.
        others: Step of the other birth.
        level: Coverage, between 0 and 1.
    """
    difference = (some - others).numpy()
    low = np.quantile(np.where(np.isnan(difference), -np.inf, difference), (1 - level) / 2, axis=0, method="lower")
    high = np.quantile(np.where(np.isnan(difference), np.inf, difference), (1 + level) / 2, axis=0, method="higher")
    return torch.from_numpy(np.asarray(low)), torch.from_numpy(np.asarray(high))
