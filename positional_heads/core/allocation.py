"""How an extension changes D(t), the mean dominant dimension at distance t (docs/equations.md, section 6).

The *jump* is the change of D across the training length; the *stretch* maps the plain curve onto the extended one. A
curve is NaN at distances of which no query-key pair was counted, as happens at the end of a long run where pairs are
sampled; both leave them out.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

STRETCHES = 200
"""Candidate stretches, in geometric progression."""


def running_means(curve: Float[Tensor, "head distance"], window: int) -> Float64[Tensor, "head place"]:
    """Mean D over each `window` consecutive distances; NaN where none of them has any.

    Args:
        curve: Mean dominant dimension at each distance.
        window: Distances averaged.
    """
    counted = ~curve.isnan()
    sums, counts = (torch.nn.functional.pad(one.double().cumsum(-1), (1, 0)) for one in (curve.nan_to_num(), counted))
    return (sums[:, window:] - sums[:, :-window]) / (counts[:, window:] - counts[:, :-window])


def jump_at(
    curve: Float[Tensor, "head distance"], training_length: int, window: int | None = None
) -> Float64[Tensor, " head"]:
    """Mean D just beyond the training length less mean D just within, in standard deviations of such differences.

    Args:
        curve: Mean dominant dimension at each distance.
        training_length: The distance to compare at, in tokens.
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
    means = running_means(curve, window)  # of the `window` distances from each one on
    steps = means[:, window:] - means[:, :-window]  # column i compares both sides of distance i + window
    # the first windows are left out: near keys differ from all others
    within = steps[:, window : training_length - 2 * window + 1]
    return steps[:, training_length - window] / within.std(-1)


@dataclass(frozen=True)
class Stretch:
    """The stretch of the plain curve that fits another best.

    Attributes:
        factor: The other curve at t is like the plain one at t / factor.
        explained: Share of the other curve's variance that this explains.
    """

    factor: Float64[Tensor, " head"]
    explained: Float64[Tensor, " head"]


def stretch_between(
    plain: Float64[Tensor, "head distance"], extended: Float64[Tensor, "head longer"], most: float
) -> Stretch:
    """The stretch s that minimises the squared error of `D_extended(t) = D_plain(t / s)`.

    Where t / s lies beyond the plain curve, the extended curve's own mean is predicted, which explains nothing. So a
    larger stretch covers more distances, and is chosen only if it fits them.

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
    factors, best, explained = np.geomspace(1, most, STRETCHES), [], []
    for before, after in zip(plain.numpy(), extended.numpy(), strict=True):
        if np.isnan(before).all() or np.isnan(after).all():  # nothing was observed
            best.append(np.nan)
            explained.append(np.nan)
            continue
        errors = np.array([_squared_error(before, after, factor) for factor in factors])
        variation = np.nansum((after - np.nanmean(after)) ** 2)
        best.append(factors[np.argmin(errors)])
        explained.append(1 - errors.min() / variation if variation > 0 else np.nan)
    return Stretch(torch.tensor(best, dtype=torch.float64), torch.tensor(explained, dtype=torch.float64))


def _squared_error(plain: np.ndarray, extended: np.ndarray, factor: float) -> float:
    """Of the distances with query-key pairs."""
    known, here = (np.flatnonzero(~np.isnan(curve)) for curve in (plain, extended))
    at, there = here / factor, extended[here]
    predicted = np.where(at <= known[-1], np.interp(at, known, plain[known]), there.mean())
    return float(((there - predicted) ** 2).sum())
