"""Which two channels does a rotary pair turn, and by how much?

Convention that bites: pair i is channels (i, i + P) under the "half" layout (Llama, NeoX, Qwen, ...) and (2i, 2i + 1)
under the "adjacent" one (GPT-J, Cohere, GLM, ...). The wrong one keeps every total and spoils every per-pair number.
Rotary channels lead; channels from `rotary_dim` on are not rotated. A *phase* is cos + i sin of a position's angle
(radians), one per pair; its modulus is the method's attention factor, 1 for plain RoPE.
"""

from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor

Layout = Literal["half", "adjacent"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

COMPARED = 512
"""Positions at which phases are compared with those of later ones."""

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
        Rotated vectors in float32, the unrotated channels as they were.
    """
    rotary_dim = 2 * phase.shape[-1]
    planes = torch.view_as_complex(rotary_planes(x, layout, rotary_dim).contiguous())
    turned = torch.view_as_real(planes * phase.unsqueeze(-2))
    rotated = rearrange(turned, _FROM_PLANES[layout], two=2)
    return torch.cat([rotated, x[..., rotary_dim:].float()], dim=-1)


def move(
    rotated: Float[Tensor, "batch pos head d_head"],
    phase: Complex[Tensor, "#batch pos pair"],
    new_phase: Complex[Tensor, "#batch pos pair"],
    layout: Layout,
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotated vectors as they would be at other positions: the old rotation undone, the new one done."""
    return rotate(rotated, new_phase / phase, layout)


def plain_phases(positions: Float[Tensor, " pos"], base: float, rotary_dim: int) -> Complex[Tensor, "pos pair"]:
    """Phases of plain RoPE, `position * base ** (-2 i / rotary_dim)` radians; angles in float64, rounded once."""
    pairs = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=positions.device)
    angles = positions.double()[:, None] * base ** (-pairs / rotary_dim)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def pair_frequencies(phase: Complex[Tensor, "pos pair"]) -> Float[Tensor, " pair"]:
    """How fast each pair turns, in radians per token, read off the phases of consecutive positions.

    From one token to the next first, then over lags of 2, 4, 8, ... tokens, each correcting the last: slow pairs turn
    too little in one token for float32.
    """
    phase = (phase / phase.abs()).to(torch.complex128)
    frequency = torch.zeros(phase.shape[1], dtype=torch.float64, device=phase.device)
    lag = 1
    while lag < phase.shape[0]:
        turned = (phase[lag:][:COMPARED] * phase[:-lag][:COMPARED].conj()).sum(0)
        frequency = frequency + torch.angle(turned * torch.polar(torch.ones_like(frequency), -lag * frequency)) / lag
        lag *= 2
    return frequency
