"""The contribution of each rotary pair to an attention score, and the dominant dimension D.

After Hong et al. (arXiv 2410.08703): the Hadamard product of rotated query and key, summed over the two channels of a
pair (docs/equations.md, section 2). Contributions and the unrotated remainder add up to q . k exactly; times the
attention scale, they add up to the model's attention score before soft-cap and mask.
"""

from typing import Literal

import einops
import torch
from jaxtyping import Complex, Float, Float64
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.rotary import Layout, rotary_planes


def expand_key_heads(
    x: Float[Tensor, "batch pos kv_head d_head"], n_heads: int
) -> Float[Tensor, "batch pos {n_heads} d_head"]:
    """Repeat each key head for every query head that shares it.

    Raises:
        ValueError: If the query heads cannot share the key heads evenly.
    """
    kv_heads = x.shape[2]
    if n_heads % kv_heads:
        msg = f"{n_heads} query heads cannot share {kv_heads} key heads evenly"
        raise ValueError(msg)
    group = n_heads // kv_heads
    return einops.repeat(x, "batch pos kv_head d_head -> batch pos (kv_head group) d_head", group=group)


def head_planes(
    x: Float[Tensor, "batch pos any_head d_head"], layout: Layout, rotary_dim: int, n_heads: int
) -> Float[Tensor, "batch {n_heads} pos pair 2"]:
    """Rotary planes with the head axis before positions, and key heads repeated for each query head."""
    planes = rotary_planes(expand_key_heads(x, n_heads), layout, rotary_dim)
    return einops.rearrange(planes, "batch pos head pair two -> batch head pos pair two")


def plane_contributions(
    query: Float[Tensor, "*lead query_pos pair 2"], key: Float[Tensor, "*lead key_pos pair 2"]
) -> Float[Tensor, "*lead query_pos key_pos pair"]:
    """`g_i(m, n) = q_m[a_i] k_n[a_i] + q_m[b_i] k_n[b_i]`, of pair i (docs/equations.md, section 2)."""
    query, key = query.unsqueeze(-3), key.unsqueeze(-4)
    return torch.addcmul(query[..., 0] * key[..., 0], query[..., 1], key[..., 1])


@checked
def pair_contributions(
    rot_q: Float[Tensor, "batch query_pos head d_head"],
    rot_k: Float[Tensor, "batch key_pos kv_head d_head"],
    layout: Layout,
    rotary_dim: int | None = None,
) -> Float[Tensor, "batch head query_pos key_pos pair"]:
    """The contribution of each rotary pair to q . k, unscaled, for every query and key (docs/equations.md, section 2).

    Args:
        rot_q: Rotated queries, as in `hook_rot_q`.
        rot_k: Rotated keys, as in `hook_rot_k`.
        layout: Which channels form a pair.
        rotary_dim: Number of rotated channels; all of d_head when None.

    Returns:
        Contributions in float32, also above the diagonal, where the model masks.

    Raises:
        ValueError: If head counts or widths do not fit.
    """
    rotary_dim = rot_q.shape[-1] if rotary_dim is None else rotary_dim
    n_heads = rot_q.shape[2]
    return plane_contributions(
        head_planes(rot_q, layout, rotary_dim, n_heads), head_planes(rot_k, layout, rotary_dim, n_heads)
    )


@checked
def unrotated_remainder(
    rot_q: Float[Tensor, "batch query_pos head d_head"],
    rot_k: Float[Tensor, "batch key_pos kv_head d_head"],
    rotary_dim: int,
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """The contribution to q . k of the channels without rotation, which does not depend on distance."""
    key = expand_key_heads(rot_k, rot_q.shape[2])[..., rotary_dim:].float()
    query = rot_q[..., rotary_dim:].float()
    return einops.einsum(query, key, "batch query_pos head d, batch key_pos head d -> batch head query_pos key_pos")


@checked
def dominant_dimension(
    contributions: Float[Tensor, "*lead pair"], temperature: float | Literal["attention"] = 1.0
) -> Float[Tensor, "*lead"]:
    """Softmax-weighted mean pair index, `D = sum_i i softmax_i(g / temperature)`, in [0, pairs - 1].

    See docs/equations.md, section 3.

    Computed as the index of the largest contribution plus the mean deviation from it: where one pair holds nearly all
    of the softmax, the weights of the others would be lost in a sum with its index.

    Args:
        contributions: Unscaled contributions g, in float32.
        temperature: 1 is the literal reading of the paper; sqrt(d_head) softens by the usual attention scale.

    Raises:
        ValueError: If the temperature is not positive.
    """
    if temperature == "attention":
        msg = (
            "temperature 'attention' needs a model: tensors have no attention scale, give a number, e.g. d_head ** 0.5"
        )
        raise ValueError(msg)
    if not temperature > 0:
        msg = f"temperature {temperature} must be positive"
        raise ValueError(msg)
    return dominance(contributions / temperature)[0]


def dominance(
    exponents: Float[Tensor, "*lead pair"],
) -> tuple[Float[Tensor, "*lead"], Float[Tensor, "*lead"]]:
    """Dominant dimension, and the largest weight of the softmax.

    Args:
        exponents: Contributions over temperature.
    """
    index = torch.arange(exponents.shape[-1], dtype=exponents.dtype, device=exponents.device)
    top, at = exponents.max(-1, keepdim=True)
    weights = torch.exp(exponents - top)
    total = weights.sum(-1)
    return at.squeeze(-1) + (weights * (index - at)).sum(-1) / total, 1 / total


def contribution_sums(
    query: Float[Tensor, "pos pair 2"], key: Float[Tensor, "pos pair 2"]
) -> Float64[Tensor, "pair distance"]:
    """Sum of each pair's contribution over all queries and keys at each distance, of one head and sequence.

    A contribution is the real part of q times the conjugate of k, both as complex numbers, so its sum at one distance
    is a cross-correlation: a Fourier transform gives the sums at every distance without a T x T tensor.

    Args:
        query: Rotated queries, as planes.
        key: Rotated keys, as planes; zero where a key does not count.
    """
    return _cross_correlation(*(torch.view_as_complex(planes.double().contiguous()) for planes in (query, key)))


def remainder_sums(query: Float[Tensor, "pos rest"], key: Float[Tensor, "pos rest"]) -> Float64[Tensor, " distance"]:
    """Sum of q . k of the channels without rotation over all queries and keys at each distance."""
    return _cross_correlation(query.double() + 0j, key.double() + 0j).sum(0)


def _cross_correlation(
    query: Complex[Tensor, "pos channel"], key: Complex[Tensor, "pos channel"]
) -> Float64[Tensor, "channel pos"]:
    length = len(query)
    if query.shape[1] == 0:  # some builds of the transform refuse empty tensors
        return torch.zeros(0, length, dtype=torch.float64)
    size = 2 * length  # padded, so that nothing wraps around
    spectrum = torch.fft.fft(query, size, dim=0) * torch.fft.fft(key, size, dim=0).conj()
    sums: Tensor = torch.fft.ifft(spectrum, dim=0)[:length].real.T.contiguous()
    return sums
