"""The kernel score of a head, from its weights alone: how much it reads through few and slow directions.

After LPS ("Revealing Long-context Potential of Attention Heads via Frequency Kernels", ICML 2026), of which only the
abstract was at hand: low-frequency concentration of the query-key kernel, times how low its effective rank is. The
formulas are our reading.
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from positional_heads.core.rotary import Layout, rotary_planes


def kernel_scores(
    query_weight: Float[Tensor, "head d_model d_head"],
    key_weight: Float[Tensor, "kv_head d_model d_head"],
    layout: Layout,
    rotary_dim: int,
    slow: Bool[Tensor, " pair"],
) -> Float64[Tensor, " head"]:
    """`C (1 - (R - 1) / (d_head - 1))` of each head of a layer, between 0 and 1.

    Pair i reads inputs x and y as `z_i = (a_i . x) conj(b_i . y)`, with the columns of its two channels as complex
    vectors a and b, so its kernel has the energy `E_i = |a_i|^2 |b_i|^2`. C is the share of the slow pairs in the
    energy of all. R is the effective rank of `W_Q W_K^T` (Roy and Vetterli, 2007): the exponential of the entropy of
    its singular values, as shares of their sum.

    Args:
        query_weight: Weights of the queries.
        key_weight: Weights of the keys, each read by as many neighbouring heads.
        layout: Which channels make a rotary pair.
        rotary_dim: Number of rotated channels.
        slow: Pairs that count as slow: those that do not complete a turn within the training length.
    """
    heads, _, d_head = query_weight.shape
    # Apple's GPUs have no float64
    exact = [x.detach().to("cpu" if x.device.type == "mps" else x.device).double() for x in (query_weight, key_weight)]
    norms = [rotary_planes(x, layout, rotary_dim).double().square().sum((1, 3)).cpu() for x in exact]
    # the singular values of Q K^T are those of the product of the triangular factors of Q and K
    factors = [torch.linalg.qr(x, mode="r").R.cpu() for x in exact]
    query_norms, query_factor = norms[0], factors[0]
    key_norms, key_factor = (x.repeat_interleave(heads // len(key_weight), 0) for x in (norms[1], factors[1]))
    energy = query_norms * key_norms
    concentration = energy[:, slow.cpu()].sum(1) / energy.sum(1)
    shares = torch.linalg.svdvals(query_factor @ key_factor.mT)
    shares = shares / shares.sum(1, keepdim=True)
    rank = torch.exp(-torch.special.xlogy(shares, shares).sum(1))
    return concentration * (1 - (rank - 1) / (d_head - 1))
