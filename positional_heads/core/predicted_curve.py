"""The curve of D that rotation alone gives: queries and keys as they are, at distances that nobody has run.

See docs/equations.md, section 6.
"""

import torch
from jaxtyping import Complex, Float64, Int
from torch import Tensor

from positional_heads.core.contributions import dominance


def predicted_curve(
    product: Complex[Tensor, "head sample pair"],
    frequencies: Float64[Tensor, " pair"],
    distances: Float64[Tensor, "distance #pair"] | Int[Tensor, "distance #pair"],
    temperature: float = 1.0,
) -> Float64[Tensor, "head distance"]:
    """Mean dominant dimension at each distance, if what queries and keys hold does not depend on their distance.

    Args:
        product: q times the conjugate of k before rotation, of randomly paired queries and keys.
        frequencies: Radians per token.
        distances: In tokens; for all pairs or each, so that a pair can be held at another distance.
        temperature: Softmax temperature of D.
    """
    means = []
    for distance in distances.double():
        angle = frequencies * distance
        turned = product.real * angle.cos().float() - product.imag * angle.sin().float()
        means.append(dominance(turned / temperature)[0].double().mean(-1))
    return torch.stack(means, dim=-1)
