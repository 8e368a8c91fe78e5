"""Rotation by range of distance, for methods that treat near and far keys, or single heads, differently.

Plain RoPE and every method that only changes frequencies has one rotation for all distances. SelfExtend has two: near
keys at their own distance, far ones at a distance counted in groups. A *band* is a range of distances with the phases
that queries and keys get there; bands of one sequence cover all distances, without overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import einops
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from positional_heads.core.rotary import Planes

QUERY_BLOCK = 512
"""Queries of one call of the attention kernel, whose mask has an entry for each of them and each key."""


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

    def of(self, heads: Int[Tensor, " chosen"]) -> "Band":
        """The band of some heads; phases that all heads share stay."""
        phases = (phase if len(phase) == 1 else phase[heads] for phase in (self.query_phase, self.key_phase))
        return Band(self.nearest, self.furthest, next(phases), next(phases))


def unrotated(
    planes: Float[Tensor, "*batch pos pair 2"], phase: Complex[Tensor, "*#batch pos pair"]
) -> Complex[Tensor, "*batch pos pair"]:
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


@dataclass(frozen=True)
class FreeChannels:
    """Queries or keys before rotation.

    Attributes:
        rotary: The channels that are rotated, as complex numbers.
        rest: The channels that are not.
    """

    rotary: Complex[Tensor, "*batch head pos pair"]
    rest: Float[Tensor, "*batch head pos rest"]

    def row(self, number: int) -> "FreeChannels":
        """Those of one sequence of a batch."""
        return FreeChannels(self.rotary[number], self.rest[number])

    def turned(self, phase: Complex[Tensor, "*#batch #head pos pair"]) -> Float[Tensor, "*batch head pos d"]:
        """All channels after rotation."""
        return torch.cat([torch.view_as_real(self.rotary * phase).flatten(-2), self.rest], dim=-1)


def banded_scores(
    bands: Sequence[Band],
    query: FreeChannels,
    key: FreeChannels,
    query_pos: Int[Tensor, " query_pos"],
    key_pos: Int[Tensor, " key_pos"],
) -> Float[Tensor, "head query_pos key_pos"]:
    """Q . k of one sequence, each entry by the band of its distance; unscaled.

    Args:
        bands: Phases of all positions from zero to the last key's.
        query: Queries before rotation.
        key: Keys before rotation, one head for each query head.
        query_pos: Positions of the queries.
        key_pos: Positions of the keys.
    """
    distance = query_pos[:, None] - key_pos
    scores = torch.zeros(key.rotary.shape[0], *distance.shape, device=query_pos.device)
    for band in bands:
        furthest = distance.max() if band.furthest is None else band.furthest
        inside = (distance >= band.nearest) & (distance <= furthest)
        own = query.turned(band.query_phase[:, query_pos]) @ key.turned(band.key_phase[:, key_pos]).mT
        scores = torch.where(inside, own, scores)
    return scores


def banded_attention(
    bands: Sequence[Band],
    query: FreeChannels,
    key: FreeChannels,
    value: Float[Tensor, "batch head key_pos d_value"],
    query_pos: Int[Tensor, "#batch query_pos"],
    key_pos: Int[Tensor, "#batch key_pos"],
    *,
    scale: float,
    visible: Bool[Tensor, "#batch #head query_pos key_pos"] | None = None,
) -> Float[Tensor, "batch head query_pos d_value"]:
    """Causal attention, each score by the band of its distance, by PyTorch's kernel: never all scores at once.

    Queries hold the channels of all bands side by side. Keys have a copy for each band, with zeros for the channels of
    the others, so q . k of a copy is the score in its band. Each block of queries is given the copies within reach.

    Args:
        bands: Phases of all positions from zero to the last key's.
        query: Queries before rotation.
        key: Keys before rotation, one head for each query head; the last ones are those of the queries.
        value: Values, one head for each query head.
        query_pos: Positions of the queries, each one more than the last; those of padding are arbitrary.
        key_pos: Positions of the keys.
        scale: Factor on q . k.
        visible: Entries that the model's mask shows, besides causality; all when None.
    """
    first = key_pos.shape[-1] - query_pos.shape[-1]
    turned = [query.turned(band.query_phase[:, query_pos].transpose(0, 1)) for band in bands]
    rotated = torch.cat(turned, dim=-1).to(value.dtype)
    width = rotated.shape[-1] // len(bands)
    copies = []
    for number, band in enumerate(bands):
        others = (number * width, (len(bands) - 1 - number) * width)
        own = key.turned(band.key_phase[:, key_pos].transpose(0, 1)).to(value.dtype)
        copies.append(torch.nn.functional.pad(own, others))
    # kernels that keep no scores want values as wide as keys
    values = torch.nn.functional.pad(value, (0, max(0, rotated.shape[-1] - value.shape[-1])))
    output = []
    for start in range(0, rotated.shape[2], QUERY_BLOCK):
        rows = rotated[:, :, start : start + QUERY_BLOCK]
        reached = [_inside(band, first + start, rows.shape[2], rows.device) for band in bands]
        masks = [inside for _, inside in reached]
        if visible is not None:
            own = visible[..., start : start + QUERY_BLOCK, :]
            masks = [mask & own[..., keys] for mask, (keys, _) in zip(masks, reached, strict=True)]
        output.append(
            torch.nn.functional.scaled_dot_product_attention(
                rows,
                torch.cat([copy[:, :, keys] for copy, (keys, _) in zip(copies, reached, strict=True)], dim=2),
                torch.cat([values[:, :, keys] for keys, _ in reached], dim=2),
                attn_mask=torch.cat(masks, dim=-1),
                scale=scale,
            )
        )
    return torch.cat(output, dim=2)[..., : value.shape[-1]]


def _inside(
    band: Band, first: int, count: int, device: torch.device
) -> tuple[slice, Bool[Tensor, "1 1 query_pos key_pos"]]:
    """The keys at distances of a band from any of some queries in a row, and which of these from each.

    Args:
        band: The range of distances.
        first: Column of the first query among the keys.
        count: Number of queries.
        device: Where to compute it.
    """
    start = 0 if band.furthest is None else max(0, first - band.furthest)
    keys = slice(start, max(start, first + count - band.nearest))
    inside = torch.ones(count, keys.stop - keys.start, dtype=torch.bool, device=device)
    inside = inside.tril(first - start - band.nearest)
    return keys, (inside if band.furthest is None else inside.triu(first - start - band.furthest))[None, None]
