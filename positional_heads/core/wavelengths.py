"""What can a rotary pair tell apart? Its wavelength, and the distances over which its rotation never repeats.

A pair that turns fast tells neighbours apart and repeats soon; one that turns slowly never repeats and hardly tells
neighbours apart. The first figure of Hong et al. (arXiv 2410.08703), as numbers, under any method's frequencies.
"""

import math

from jaxtyping import Float, Float64
from torch import Tensor

from positional_heads.core.arguments import checked, in_range

BFLOAT16_STEP = 2.0**-8
"""Spacing of bfloat16 below 1, the precision in which most models hold cos and sin."""


@checked
def wavelengths(frequencies: Float[Tensor, "*lead pair"]) -> Float64[Tensor, "*lead pair"]:
    """Tokens of one whole turn; infinite for a pair that does not turn."""
    return 2 * math.pi / frequencies.double()


@checked
def injective_range(frequencies: Float[Tensor, "*lead pair"], length: int) -> Float64[Tensor, "*lead pair"]:
    """Distances, from zero on, before the rotation comes round again, in tokens; at most `length`."""
    in_range("length", length, 1, 2**40)
    return wavelengths(frequencies).clamp(max=length)


@checked
def told_apart(
    frequencies: Float[Tensor, "*lead pair"], length: int, resolution: float = BFLOAT16_STEP
) -> Float64[Tensor, "*lead pair"]:
    """How many of the distances 0 to length - 1 a pair can tell apart at once.

    Distances within one turn whose angles differ by at least the resolution.

    Args:
        frequencies: Radians per token.
        length: Number of distances.
        resolution: Smallest difference of angles that counts, in radians.

    Raises:
        ValueError: If the resolution is not positive.
    """
    if not resolution > 0:
        msg = f"resolution {resolution} must be positive, in radians"
        raise ValueError(msg)
    frequencies = frequencies.double()
    span = (injective_range(frequencies, length) * frequencies).nan_to_num()
    # a pair that does not turn maps every distance to one angle
    return (span / frequencies.clamp(min=resolution)).clamp(min=1)
