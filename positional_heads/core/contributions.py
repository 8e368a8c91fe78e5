"""How much of an attention score does each rotary pair carry, and which pair dominates?

Method section 2 of Hong et al. (arXiv 2410.08703): the Hadamard product of rotated query and key, summed over the two
channels of a pair. Pairs and the unrotated remainder add up to q . k exactly; times the attention scale, they add up
to the model's attention score before soft-cap and mask.
"""

import einops
import torch
from jaxtyping import Float
from torch import Tensor

from positional_heads.core.arguments import check_temperature, checked
from positional_heads.core.rotary import Layout, rotary_planes


def expand_key_heads(
    x: Float[Tensor, "batch pos kv_head d_head"], n_heads: int
) -> Float[Tensor, "batch pos {n_heads} d_head"]:
    """Give every query head its own copy of the key head that it shares.

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
    """Rotary planes with the head axis in front, key heads already shared out: what pairs are scored from."""
    planes = rotary_planes(expand_key_heads(x, n_heads), layout, rotary_dim)
    return einops.rearrange(planes, "batch pos head pair two -> batch head pos pair two")


def plane_contributions(
    query: Float[Tensor, "*lead query_pos pair 2"], key: Float[Tensor, "*lead key_pos pair 2"]
) -> Float[Tensor, "*lead query_pos key_pos pair"]:
    """`g_i(m, n) = q_m[a_i] k_n[a_i] + q_m[b_i] k_n[b_i]`, for every query, key and pair (method section 2)."""
    query, key = query.unsqueeze(-3), key.unsqueeze(-4)
    return torch.addcmul(query[..., 0] * key[..., 0], query[..., 1], key[..., 1])


@checked
def pair_contributions(
    rot_q: Float[Tensor, "batch query_pos head d_head"],
    rot_k: Float[Tensor, "batch key_pos kv_head d_head"],
    layout: Layout,
    rotary_dim: int | None = None,
) -> Float[Tensor, "batch head query_pos key_pos pair"]:
    """What each rotary pair adds to q . k, unscaled, for every query-key pair of every head (method section 2).

    Args:
        rot_q: Rotated queries, as `hook_rot_q` has them.
        rot_k: Rotated keys, as `hook_rot_k` has them; key heads are shared out to query heads.
        layout: Which channels make a pair.
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
    """What the channels without rotation add to q . k: the part of the score that knows no distance."""
    key = expand_key_heads(rot_k, rot_q.shape[2])[..., rotary_dim:].float()
    query = rot_q[..., rotary_dim:].float()
    return einops.einsum(query, key, "batch query_pos head d, batch key_pos head d -> batch head query_pos key_pos")


@checked
def dominant_dimension(contributions: Float[Tensor, "*lead pair"], temperature: float = 1.0) -> Float[Tensor, "*lead"]:
    """Softmax-weighted mean pair index, `D = sum_i i softmax_i(g / temperature)`, in [0, pairs - 1] (method section 3).

    Added up as the index of the largest contribution and the deviation from it, so that what the other pairs weigh is
    not lost where one holds nearly all.

    Args:
        contributions: Unscaled contributions g, in float32.
        temperature: 1 is the source's literal reading; sqrt(d_head) softens by the usual attention scale.

    Raises:
        ValueError: If the temperature is not positive.
    """
    check_temperature(temperature)
    return dominance(contributions / temperature)[0]


def dominance(
    exponents: Float[Tensor, "*lead pair"],
) -> tuple[Float[Tensor, "*lead"], Float[Tensor, "*lead"]]:
    """Dominant dimension, and the share of the softmax that the largest contribution holds.

    Args:
        exponents: Contributions over temperature.
    """
    index = torch.arange(exponents.shape[-1], dtype=exponents.dtype, device=exponents.device)
    top, at = exponents.max(-1, keepdim=True)
    weights = torch.exp(exponents - top)
    total = weights.sum(-1)
    return at.squeeze(-1) + (weights * (index - at)).sum(-1) / total, 1 / total
