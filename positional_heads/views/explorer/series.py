"""The mean score of a head by distance, in closed form from the centres of its queries and keys.

If queries and keys do not depend on each other, the mean score at distance t is `sum_i A_i cos(f_i t + p_i)`. With
`c_i = E[q_i] conj(E[k_i])` of pair i, `A_i = s a^2 |c_i|` and `p_i = arg c_i`; s is the attention scale, and a the
attention factor of YaRN and LongRoPE. Channels without rotation add the same at every distance, and are left out, as is
a soft-cap.
"""

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.text import printable
from positional_heads.views.explorer.by_distance import by_layer, pairs_of_layers
from positional_heads.views.explorer.numbers import number, numbers

CLOSE = 1e-5
"""Largest relative difference of measured frequencies from the powers of one base."""
UNKNOWN = "unknown"
"""Type of a rotation whose frequencies are no powers of one base, where no extension of ours is at work."""


def series_part(
    profile: HeadProfile, run: str, training_length: int | None = None
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The mean score by distance of every head, as a sum of cosines of its rotary pairs.

    Args:
        profile: The profile.
        run: Id of the run that it is.
        training_length: Tokens that the model was trained on, where known.

    Returns:
        What all heads share; and of each profiled head, by its name, amplitude and phase of each pair.
    """
    pairs = profile.pairs
    rotary = {one["layer"]: one for one in profile.provenance.get("rotary", [])}
    query, key = (torch.view_as_complex(center.contiguous()) for center in (pairs.query_center, pairs.key_center))
    product = query * key.conj()
    factor = torch.ones(product.shape[:2]) if pairs.attention_factor is None else pairs.attention_factor
    lengths = pairs_of_layers(pairs.frequencies)
    by_head = {}
    for head in profile.heads:
        layer, n_pairs = head.layer, lengths[head.layer]
        own = product[head][:n_pairs]
        if layer in rotary and n_pairs and bool(own.abs().isfinite().all()):
            size = rotary[layer]["scale"] * float(factor[head]) ** 2
            phase = own.angle() * rotary[layer].get("sense", 1)  # frequencies are those of pairs that turn forwards
            by_head[str(head)] = {"amplitude": numbers(size * own.abs()), "phase": numbers(phase)}
    base = common_base(pairs.frequencies)
    method = (profile.provenance.get("extension") or {}).get("method", "none")
    if method == "none":
        method = UNKNOWN if base is None else "default"
    part = {
        "run": run,
        "frequency": by_layer(pairs.frequencies, pairs.frequencies),
        "base": number(base),
        "scaling": printable(method, newlines=False),
        "training_length": training_length,
        "unit": "attention score",
        "capped": any(one.get("soft_cap") is not None for one in rotary.values()),
        "factor_known": pairs.attention_factor is not None,
    }
    return part, by_head


def common_base(frequencies: Float64[Tensor, "layer pair"]) -> float | None:
    """The base b of layers whose pair i turns by `b ** (-i / pairs)` radians per token; None where one does not.

    Args:
        frequencies: Radians per token, NaN in layers without rotation and beyond a layer's last pair.
    """
    bases = []
    for row in frequencies:
        own = row[row.isfinite()].double()
        if not len(own):
            continue
        share = torch.arange(len(own)).double() / len(own)
        if len(own) == 1 or not bool((own > 0).all()):
            return None
        base = (-own[1:].log() / share[1:]).median().exp()
        if not bool((own * base**share - 1).abs().max() <= CLOSE):
            return None
        bases.append(float(base))
    middle = sum(bases) / len(bases) if bases else 0.0
    return middle if bases and max(bases) - min(bases) <= CLOSE * middle else None
