"""Rotary pairs: the channels of each, their rotation by position, their frequency and wavelength.

Convention: pair i is channels (i, i + P) under the "half" layout (Llama, NeoX, Qwen, ...) and (2i, 2i + 1)
under the "adjacent" one (GPT-J, Cohere, GLM, ...). The wrong one keeps every total and spoils every per-pair number.
Rotary channels lead; channels from `rotary_dim` on are not rotated. A *phase* is cos + i sin of a position's angle
(radians), one per pair; its modulus is the method's attention factor, 1 for plain RoPE.
"""

import math
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Float64
from torch import Tensor

from positional_heads.core.arguments import checked, in_range

Planes = Float[Tensor, "head pos pair 2"]
"""Queries or keys of one sequence, the two channels of each rotary pair side by side."""

Layout = Literal["half", "adjacent"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

COMPARED = 512
"""Positions averaged at each lag: enough to average out bfloat16 rounding, and the cost stays linear in lags."""
BFLOAT16_STEP = 2.0**-8
"""Spacing of bfloat16 below 1, the precision in which most models hold cos and sin."""

_TO_PLANES = {"half": "... (two pair) -> ... pair two", "adjacent": "... (pair two) -> ... pair two"}
_FROM_PLANES = {"half": "... pair two -> ... (two pair)", "adjacent": "... pair two -> ... (pair two)"}


def rotary_planes(x: Float[Tensor, "*lead d_head"], layout: Layout, rotary_dim: int) -> Float[Tensor, "*lead pair 2"]:
    """The rotary channels as one plane per pair, in float32 (bf16 sums over pairs would lose the answer).

    Args:
        x: Query or key vectors, rotated or not.
        layout: Which channels make a pair.
        rotary_dim: Number of leading channels that are rotated; even.

    Raises:
        ValueError: If `rotary_dim` is odd or exceeds d_head.
    """
    if rotary_dim % 2 or not 0 < rotary_dim <= x.shape[-1]:
        msg = f"rotary_dim {rotary_dim} must be even and between 2 and d_head = {x.shape[-1]}"
        raise ValueError(msg)
    return rearrange(x[..., :rotary_dim].float(), _TO_PLANES[layout], two=2)


def rotate(
    x: Float[Tensor, "batch pos head d_head"], phase: Complex[Tensor, "#batch pos pair"], layout: Layout
) -> Float[Tensor, "batch pos head d_head"]:
    """Turn every pair of x by the phase of its position: the plane (u, v) as u + iv, times cos + i sin.

    Args:
        x: Query or key vectors.
        phase: cos + i sin per position and pair.
        layout: Which channels make a pair.

    Returns:
        Rotated vectors in float32, the unrotated channels unchanged.
    """
    rotary_dim = 2 * phase.shape[-1]
    planes = torch.view_as_complex(rotary_planes(x, layout, rotary_dim).contiguous())
    turned = torch.view_as_real(planes * phase.unsqueeze(-2))
    rotated = rearrange(turned, _FROM_PLANES[layout], two=2)
    return torch.cat([rotated, x[..., rotary_dim:].float()], dim=-1)


def pair_frequencies(phase: Complex[Tensor, "pos pair"]) -> Float[Tensor, " pair"]:
    """Rotation of each pair in radians per token, measured from the phases of consecutive positions.

    One lag cannot serve all pairs. At lag 1 a slow pair turns by less than the rounding of its phase; at lag L the
    rounding is divided by L, but the angle of a fast pair is known only modulo 2 pi / L. So lags double from 1, and
    each corrects the estimate of the last: the rotation that remains after undoing the current estimate is less than
    half a turn, so its angle is unambiguous. At each lag the phases of the first `COMPARED` positions are summed, which
    averages out their rounding.
    """
    phase = (phase / phase.abs()).to(torch.complex128)
    frequency = torch.zeros(phase.shape[1], dtype=torch.float64, device=phase.device)
    lag = 1
    while lag < phase.shape[0]:
        turned = (phase[lag:][:COMPARED] * phase[:-lag][:COMPARED].conj()).sum(0)
        remaining = torch.angle(turned * torch.polar(torch.ones_like(frequency), -lag * frequency))
        frequency = frequency + remaining / lag
        lag *= 2
    return frequency


@checked
def wavelengths(frequencies: Float[Tensor, "*lead pair"]) -> Float64[Tensor, "*lead pair"]:
    """Tokens per full rotation; infinite for a pair that does not rotate."""
    return 2 * math.pi / frequencies.double()


@checked
def injective_range(frequencies: Float[Tensor, "*lead pair"], length: int) -> Float64[Tensor, "*lead pair"]:
    """Distances, from zero on, before the rotation repeats, in tokens; at most `length`."""
    in_range("length", length, 1, 2**40)
    return wavelengths(frequencies).clamp(max=length)


@checked
def told_apart(
    frequencies: Float[Tensor, "*lead pair"], length: int, resolution: float = BFLOAT16_STEP
) -> Float64[Tensor, "*lead pair"]:
    """How many of the distances 0 to length - 1 a pair can distinguish at once (Hong et al., figure 1).

    These are the distances within one rotation whose angles differ by at least the resolution. A fast pair
    distinguishes neighbours and repeats soon; a slow one never repeats and hardly distinguishes neighbours.

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
    # a pair that does not rotate maps every distance to one angle
    return (span / frequencies.clamp(min=resolution)).clamp(min=1)
