"""Rotation by range of distance, for methods that treat near and far keys, or single heads, differently.

Plain RoPE and every method that only changes frequencies has one rotation for all distances. SelfExtend has two: near
keys at their own distance, far ones at a distance counted in groups. A *band* is a range of distances with the phases
that queries and keys get there; bands of one sequence cover all distances, without overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import einops
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from positional_heads.core.rotary import Planes


@dataclass(frozen=True)
class Band:
    """A range of distances and the phases of queries and keys there.

    Attributes:
        nearest: Smallest distance in tokens.
        furthest: Largest distance in tokens; None for no limit.
        query_phase: cos + i sin of every position and pair, for one head or each.
        key_phase: The same for keys.
    """

    nearest: int
    furthest: int | None
    query_phase: Complex[Tensor, "#head pos pair"]
    key_phase: Complex[Tensor, "#head pos pair"]

    def first(self, length: int) -> "Band":
        """The band of the first positions only."""
        return Band(self.nearest, self.furthest, self.query_phase[:, :length], self.key_phase[:, :length])


def unrotated(planes: Planes, phase: Complex[Tensor, "pos pair"]) -> Complex[Tensor, "head pos pair"]:
    """Rotary planes with rotation and attention factor undone, as complex numbers."""
    return torch.view_as_complex(planes.contiguous()) * (phase.conj() / phase.abs().square())


@dataclass(frozen=True)
class Unrotated:
    """Queries and keys of one sequence before rotation, as complex numbers, and the phases that they get.

    Attributes:
        query: Queries.
        key: Keys, one head per group of query heads.
        query_phase: cos + i sin of every position and pair, for all query heads or each.
        key_phase: The same for keys, also by query head where heads differ.
    """

    query: Complex[Tensor, "head pos pair"]
    key: Complex[Tensor, "kv_head pos pair"]
    query_phase: Complex[Tensor, "#head pos pair"]
    key_phase: Complex[Tensor, "#head pos pair"]

    def rotated(self, order: Int[Tensor, " pos"] | None = None) -> tuple[Planes, Planes]:
        """Rotary planes of queries and keys, one key head for each query head.

        Args:
            order: Which position's content each position gets; their own when None.
        """
        query, key = (x if order is None else x[:, order.to(x.device)] for x in (self.query, self.key))
        every = self.key_phase if len(self.key_phase) == 1 else None
        turned = key if every is None else key * every
        turned = einops.repeat(turned, "kv_head pos pair -> (kv_head group) pos pair", group=len(query) // len(key))
        turned = turned if every is not None else turned * self.key_phase
        return torch.view_as_real(query * self.query_phase), torch.view_as_real(turned)

    def to(self, dtype: torch.dtype) -> "Unrotated":
        """The same with queries and keys in another precision, by the name of its real numbers."""
        return replace(self, query=self.query.to(dtype.to_complex()), key=self.key.to(dtype.to_complex()))


def banded_scores(
    bands: Sequence[Band],
    query: Complex[Tensor, "head query_pos pair"],
    key: Complex[Tensor, "head key_pos pair"],
    query_pos: Int[Tensor, " query_pos"],
) -> Float[Tensor, "head query_pos key_pos"]:
    """Q . k of the rotary channels, each entry by the band of its distance; unscaled, without the remainder.

    Args:
        bands: Phases of all positions from zero to the last key's.
        query: Unrotated queries.
        key: Unrotated keys, from position zero on.
        query_pos: Positions of the queries.
    """
    distance = query_pos[:, None] - torch.arange(key.shape[1], device=key.device)
    scores = torch.zeros(query.shape[0], *distance.shape, device=key.device)
    for band in bands:
        rot_q = torch.view_as_real(query * band.query_phase[:, query_pos]).flatten(-2)
        rot_k = torch.view_as_real(key * band.key_phase[:, : key.shape[1]]).flatten(-2)
        furthest = distance.max() if band.furthest is None else band.furthest
        inside = (distance >= band.nearest) & (distance <= furthest)
        scores = torch.where(inside, rot_q @ rot_k.transpose(1, 2), scores)
    return scores
