"""Does a head's allocation of dimensions go on beyond the training length, and how far is it stretched?

Three numbers read off the curve D(t), the mean dominant dimension at distance t: its correlation with distance within
and beyond the training length, the jump where that ends, and the stretch that maps the plain curve onto the extended
one (method section 6).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

STRETCHES = 200


@dataclass(frozen=True)
class Jump:
    """The change of D across the training length.

    Attributes:
        size: Mean D just beyond it less mean D just within, in pairs.
        relative: The same in standard deviations of such differences at all places well within.
    """

    size: Float64[Tensor, " head"]
    relative: Float64[Tensor, " head"]


def jump_at(curve: Float64[Tensor, "head distance"], training_length: int, window: int | None = None) -> Jump:
    """How abruptly D changes at the training length, against how much it varies within.

    Args:
        curve: Mean dominant dimension at each distance.
        training_length: Where the jump may be, in tokens.
        window: Distances averaged on either side; a sixteenth of the training length when None.

    Raises:
        ValueError: If the curve ends too early, or the training length is too short for the window.
    """
    window = max(2, training_length // 16) if window is None else window
    if curve.shape[1] < training_length + window or training_length < 4 * window:
        msg = (
            f"a jump at {training_length} tokens needs a curve of at least {training_length + window} distances (it "
            f"has {curve.shape[1]}) and a training length of at least {4 * window}"
        )
        raise ValueError(msg)
    sums = torch.nn.functional.pad(curve.double().cumsum(-1), (1, 0))
    means = (sums[:, window:] - sums[:, :-window]) / window  # of the distances from each place on
    steps = means[:, window:] - means[:, :-window]  # across the place `window` behind
    size = steps[:, training_length - window]
    # the first distances are passed over: near keys differ from all others
    within = steps[:, window : training_length - 2 * window + 1]
    return Jump(size, size / within.std(-1))


@dataclass(frozen=True)
class Stretch:
    """How the plain curve has to be stretched to become another.

    Attributes:
        factor: The stretch: another curve at t is like the plain one at t / factor.
        explained: Share of the other curve's variance that this explains.
    """

    factor: Float64[Tensor, " head"]
    explained: Float64[Tensor, " head"]


def stretch_between(
    plain: Float64[Tensor, "head distance"], extended: Float64[Tensor, "head longer"], most: float
) -> Stretch:
    """The stretch s that best gives `D_extended(t) = D_plain(t / s)`, by least squares.

    Where t / s lies beyond the plain curve nothing is explained: there the extended curve's own mean is predicted. So a
    larger stretch explains more distances, and must explain them well.

    Args:
        plain: Curve of the plain model within its training length.
        extended: Curve of the extended model, over more distances.
        most: Largest stretch to try.

    Raises:
        ValueError: If `most` is below 1.
    """
    if not most >= 1:
        msg = f"the largest stretch to try is {most}: it must be at least 1"
        raise ValueError(msg)
    tried = np.geomspace(1, most, STRETCHES)
    distance = np.arange(extended.shape[1])
    known = np.arange(plain.shape[1])
    factors, explained = [], []
    for before, after in zip(plain.numpy(), extended.numpy(), strict=True):
        variation = ((after - after.mean()) ** 2).sum()
        errors = []
        for stretch in tried:
            at = distance / stretch
            predicted = np.where(at <= known[-1], np.interp(at, known, before), after.mean())
            errors.append(((after - predicted) ** 2).sum())
        best = int(np.argmin(errors))
        factors.append(tried[best])
        explained.append(1 - errors[best] / variation if variation > 0 else np.nan)
    return Stretch(torch.tensor(factors, dtype=torch.float64), torch.tensor(explained, dtype=torch.float64))
