"""Checks of a head profile: what a file that somebody edited may not hold."""

from typing import Any

import torch

from positional_heads.results.plan_checks import check_key_heads, check_notes, check_shape


def check_profile(profile: Any) -> None:
    """Refuse measures and statistics whose shapes do not belong together.

    Raises:
        ValueError: If some do not.
    """
    check_key_heads(profile.key_heads)
    check_notes([], profile.provenance)
    layers, heads = profile.key_heads.shape
    if tuple(profile.scores.rho.shape) != (layers, heads):
        msg = f"scores are of {list(profile.scores.rho.shape)} heads, key_heads of {[layers, heads]}"
        raise ValueError(msg)
    if profile.sums.keys() != profile.weights.keys():
        differing = ", ".join(sorted(profile.sums.keys() ^ profile.weights.keys()))
        msg = f"sums and weights must be of the same measures, and differ in {differing}"
        raise ValueError(msg)
    for name, sums in profile.sums.items():
        check_shape(f"sums of {name}", sums, (len(sums) if sums.ndim else 0, layers, heads), torch.float64)
        check_shape(f"weights of {name}", profile.weights[name], sums.shape, torch.float64)
    for name, values in profile.others.items():
        check_shape(name, values, (layers, heads), torch.float64)
    ranges = len(profile.edges) - 1 if profile.edges.ndim else 0
    check_shape("edges", profile.edges, (ranges + 1,), torch.long)
    pairs = profile.pairs.frequencies.shape[-1]
    for name in ("mass", "reached"):
        check_shape(name, getattr(profile, name), (layers, heads, ranges), torch.float64)
    for name, shape in {
        "frequencies": (layers, pairs),
        "query_norm": (layers, heads, pairs),
        "key_norm": (layers, heads, pairs),
        "query_center": (layers, heads, pairs, 2),
        "key_center": (layers, heads, pairs, 2),
        "agreement": (layers, heads, pairs),
        "contribution": (layers, heads, pairs, ranges),
        "unrotated": (layers, heads, ranges),
    }.items():
        check_shape(name, getattr(profile.pairs, name), shape, torch.float64)
    if profile.pairs.attention_factor is not None:
        check_shape("attention_factor", profile.pairs.attention_factor, (layers, heads), torch.float64)
    check_shape("counts", profile.pairs.counts, (layers, ranges), torch.long)
