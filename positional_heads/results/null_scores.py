"""The null of scores: what the same heads score with positions shuffled."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class NullScores:
    """Scores of the same model and text with positions shuffled, which measure geometry alone.

    See docs/equations.md, section 4.

    Attributes:
        rho: Score of each head in each shuffle.
        curve_mean: Mean dominant dimension at each distance, over the entries of all shuffles; NaN where no shuffle
            counted one. None where curves were left out.
        curve_sd: Standard deviation of one shuffle's mean, over the shuffles that counted an entry at the distance,
            with what sampling entries adds to it (null_pairs="all" shows the shuffles' own); NaN with fewer than two.
            None where curves were left out.
        sampling_sd: Standard deviation that sampling query-key pairs adds to the rho of one shuffle; None where all
            were counted.
    """

    rho: Float[Tensor, "repeat layer head"]
    curve_mean: Float[Tensor, "layer head distance"] | None = None
    curve_sd: Float[Tensor, "layer head distance"] | None = None
    sampling_sd: Float[Tensor, "layer head"] | None = None

    def __repr__(self) -> str:
        repeats, layers, heads = self.rho.shape
        return f"NullScores({repeats} shuffles of {layers} layers of {heads} heads)"

    @property
    def mean(self) -> Float[Tensor, "layer head"]:
        """Mean of the null rho over shuffles."""
        return self.rho.double().mean(0)

    @property
    def sd(self) -> Float[Tensor, "layer head"]:
        """Standard deviation of the null rho over shuffles, with what sampling query-key pairs adds to it."""
        return self.rho.double().std(0)

    @property
    def mean_error(self) -> Float[Tensor, "layer head"]:
        """Standard deviation that sampling query-key pairs adds to the mean; 0 where all were counted."""
        if self.sampling_sd is None:
            return torch.where(self.mean.isnan(), torch.nan, torch.zeros_like(self.mean))
        return self.sampling_sd / math.sqrt(len(self.rho))
