"""The kernel score of a head, from its weights alone: how much it reads through few and slow directions.

After LPS ("Revealing Long-context Potential of Attention Heads via Frequency Kernels", ICML 2026), of which only the
abstract was at hand: low-frequency concentration of the query-key kernel, times how low its effective rank is. The
formulas are our reading.
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from positional_heads.core.rotary import Layout, rotary_planes


def kernel_score(
    query_weight: Float[Tensor, "d_model d_head"],
    key_weight: Float[Tensor, "d_model d_head"],
    layout: Layout,
    rotary_dim: int,
    slow: Bool[Tensor, " pair"],
) -> Float64[Tensor, ""]:
    """`C (1 - (R - 1) / (d_head - 1))`, between 0 and 1.

    Pair i reads inputs x and y as `z_i = (a_i . x) conj(b_i . y)`, with the columns of its two channels as complex
    vectors a and b, so its kernel has the energy `E_i = |a_i|^2 |b_i|^2`. C is the share of the slow pairs in the
    energy of all. R is the effective rank of `W_Q W_K^T` (Roy and Vetterli, 2007): the exponential of the entropy of
    its singular values, as shares of their sum.

    Args:
        query_weight: Weights of the query of one head.
        key_weight: Weights of the key that it reads.
        layout: Which channels make a rotary pair.
        rotary_dim: Number of rotated channels.
        slow: Pairs that count as slow: those that do not complete a turn within the training length.
    """
    query, key = query_weight.detach().double().cpu(), key_weight.detach().double().cpu()
    norms = [rotary_planes(x, layout, rotary_dim).double().square().sum((0, 2)) for x in (query, key)]
    energy = norms[0] * norms[1]
    concentration = energy[slow.cpu()].sum() / energy.sum()
    # the singular values of Q K^T are those of the product of the triangular factors of Q and K
    factors = [torch.linalg.qr(x, mode="r").R for x in (query, key)]
    shares = torch.linalg.svdvals(factors[0] @ factors[1].mT)
    shares = shares / shares.sum()
    rank = torch.exp(-torch.special.xlogy(shares, shares).sum())
    return concentration * (1 - (rank - 1) / (query.shape[1] - 1))
