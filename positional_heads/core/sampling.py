"""Which pairs stand for all of them? A sample stratified by distance, in replicates that show what sampling costs.

Every pair of every sequence has the same chance, 1 / step, to be drawn by a replicate, so that sums over the sample
are unbiased for sums over all pairs, up to that factor. Pairs are taken in order of distance and every step-th is drawn
from a random start, which shares each replicate out over distances as evenly as whole numbers allow; where at its
distance the pair lies is random. Replicates are independent of each other: their spread is the sampling error.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

REPLICATES = 8
"""Independent samples that a sample is made of."""
FEWEST_SAMPLED = 1024


def sampled_distances(pairs_at: Int[Tensor, " distance"], step: float, key: tuple[int, int, int]) -> Int[Tensor, " n"]:
    """The distance of each sampled pair of one replicate, ascending.

    Args:
        pairs_at: Number of pairs of the sequence at each distance.
        step: One in so many pairs is drawn.
        key: Seed, sequence and replicate.
    """
    ends = pairs_at.cumsum(0).double()
    start = np.random.default_rng([*key, 0]).random()
    places = torch.arange(start * step, float(ends[-1]), step, dtype=torch.float64)
    return torch.searchsorted(ends, places, right=True).clamp(max=len(ends) - 1)


def sampled_keys(
    pairs_at: Int[Tensor, " distance"], distances: Int[Tensor, " n"], first: int, key: tuple[int, int, int]
) -> Int[Tensor, " n"]:
    """Where the key of each sampled pair lies: anywhere among the pairs of its distance.

    Args:
        pairs_at: Number of pairs of the sequence at each distance.
        distances: Distance of each sampled pair, in tokens.
        first: Position of the first key that counts.
        key: Seed, sequence and replicate.
    """
    draws = np.random.default_rng([*key, 1]).random(len(distances))
    return first + (torch.from_numpy(draws) * pairs_at[distances]).long()
