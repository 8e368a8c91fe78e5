"""Sums of a head profile over the sequences of one layer: they add in any order, up to rounding in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

MEASURES = (
    "mean_distance",
    "reach",
    "distant_mass",
    "sink_mass",
    "current_token",
    "previous_token",
    "duplicate_token",
    "induction",
    "copying",
    "semantic",
    "positional",
)
"""Measures that are ratios of sums over queries, in the order of the last axis of `sums` and `weights`."""


@dataclass(frozen=True)
class ProfileSums:
    """The sums of one layer, all float64 and on the CPU, changed in place.

    Attributes:
        tensors: By name: `sums` and `weights` [group head measure]; `mass` and `moment`, attention and attention times
            distance [head range]; `query_norm`, `key_norm` [any_head pair], `query_center`, `key_center`
            [any_head pair 2], `agreement` [head pair]; `contribution` [head pair range], `unrotated` [head range];
            `query_squares`, `key_squares` of each rotated channel [any_head d_head]; `attention_factor` times tokens
            [head]; `entries` [range]; `tokens` and `sampled`, the numbers of tokens and of sampled queries.
    """

    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        if "attention_factor" not in self.tensors:
            msg = "its sums of a profile have no attention factor: an earlier version wrote them"
            raise ValueError(msg)

    @classmethod
    def at_zero(cls, groups: int, heads: int, kv_heads: int, d_head: int, pairs: int, ranges: int) -> "ProfileSums":
        """Nothing counted."""
        by_name: dict[str, tuple[int, ...]] = {
            "sums": (groups, heads, len(MEASURES)),
            "weights": (groups, heads, len(MEASURES)),
            "mass": (heads, ranges),
            "moment": (heads, ranges),
            "query_norm": (heads, pairs),
            "key_norm": (kv_heads, pairs),
            "query_center": (heads, pairs, 2),
            "key_center": (kv_heads, pairs, 2),
            "agreement": (heads, pairs),
            "contribution": (heads, pairs, ranges),
            "unrotated": (heads, ranges),
            "query_squares": (heads, d_head),
            "key_squares": (kv_heads, d_head),
            "attention_factor": (heads,),
            "entries": (ranges,),
            "tokens": (),
            "sampled": (),
        }
        return cls({name: torch.zeros(shape, dtype=torch.float64) for name, shape in by_name.items()})

    def add(self, **parts: Tensor | float) -> None:
        """Add to tensors by name."""
        for name, part in parts.items():
            self.tensors[name] += part.cpu().double() if isinstance(part, Tensor) else part

    def absorb(self, other: "ProfileSums") -> None:
        """Add the sums over other batches, in place."""
        self.add(**other.tensors)

    def empty(self) -> "ProfileSums":
        """The same shapes, nothing counted."""
        return ProfileSums({name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()})
