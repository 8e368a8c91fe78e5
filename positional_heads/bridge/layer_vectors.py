"""Rotated queries and keys of one layer and batch, by distance, and the dominant dimension D of their contributions.

D is the softmax-weighted index of the contributions after dividing the squared attention factor of YaRN and LongRoPE
out of them, so that methods are compared by their angles. Contributions keep the factor: they sum to the score.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Inexact, Int
from torch import Tensor

from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.core.arguments import Temperature
from positional_heads.core.bands import Band, Unrotated, banded_scores, unrotated
from positional_heads.core.contributions import (
    dominant_dimension,
    head_planes,
    plane_contributions,
)
from positional_heads.core.plan import EntryPlan
from positional_heads.core.rotary import Planes

PLAIN_FACTOR = 1e-2
"""Attention factors closer to 1 than this are rounding, in bfloat16 too."""


class DistanceRange(NamedTuple):
    """Queries and keys of one sequence as they are rotated at a range of distances.

    Attributes:
        nearest: Smallest distance in tokens.
        furthest: Largest distance in tokens; None for no limit.
        planes: Rotary planes of queries and keys.
    """

    nearest: int
    furthest: int | None
    planes: tuple[Planes, Planes]


@dataclass(frozen=True)
class LayerVectors:
    """Rotated queries and keys of one layer and batch.

    Attributes:
        rotary: How the layer rotates.
        rot_q: Rotated queries.
        rot_k: Rotated keys, one head per group.
        phases: cos + i sin of each position and pair; one row if all rows have the same.
        window: Distances that the mask lets through, 0 to window - 1; None if the mask has no window or the sequences
            are no longer than it.
        bands: Phases by distance that replace those of `phases`, where an extension rewrites scores; else None. Only
            this class needs to know: `by_distance` gives queries and keys in both cases.
    """

    rotary: RotaryLayer
    rot_q: Float[Tensor, "batch pos head d_head"]
    rot_k: Float[Tensor, "batch pos kv_head d_head"]
    phases: Complex[Tensor, "#batch pos pair"]
    window: int | None = None
    bands: Sequence[Band] | None = None

    @cached_property
    def attention_factors(self) -> Float[Tensor, " #head"]:
        """The factor on cos and sin, for all heads or each: 1 in plain RoPE, more in YaRN and LongRoPE."""
        phases = self.phases[:1] if self.bands is None else self.bands[-1].query_phase
        sizes = phases.detach().abs()
        factors = sizes.mean((1, 2))
        if bool((sizes == 0).any()):  # pairs that an extension leaves out have no factor
            factors = torch.where(factors > 0, sizes.sum((1, 2)) / (sizes > 0).sum((1, 2)).clamp(min=1), 1.0)
        return torch.where((factors - 1).abs() < PLAIN_FACTOR, 1.0, factors)

    def temperature(self, temperature: Temperature) -> float:
        """Softmax temperature of D as a number: "attention" is the layer's own attention scale."""
        return 1 / self.rotary.scale if temperature == "attention" else float(temperature)

    def divided(
        self, by_head: Inexact[Tensor, "head *rest"], heads: slice = slice(None)
    ) -> Inexact[Tensor, "head *rest"]:
        """Contributions of some heads, or their queries, over the squared attention factor."""
        squared = self.attention_factors.to(by_head.device) ** 2
        if bool((squared == 1).all()):
            return by_head
        own = squared if len(squared) == 1 else squared[heads]
        return by_head / own.view(-1, *[1] * (by_head.ndim - 1))

    def dominant(
        self, contributions: Float[Tensor, "head *entry pair"], temperature: Temperature, heads: slice = slice(None)
    ) -> Float[Tensor, "head *entry"]:
        """D of some heads.

        Args:
            contributions: Contributions of these heads as `contributions` gives them, without the attention scale.
            temperature: Softmax temperature.
            heads: Which heads.
        """
        return dominant_dimension(self.divided(contributions, heads), self.temperature(temperature))

    def contributions(self, row: int) -> Float[Tensor, "head query_pos key_pos pair"]:
        """Contribution of each pair to q . k in one sequence, also above the diagonal; of size T x T x pairs."""
        return contributions_by_distance(list(self.by_distance(row)))

    def scores(self, row: int, queries: Int[Tensor, " query_pos"]) -> Float[Tensor, "1 head query_pos key_pos"]:
        """Attention scores before the mask, of some queries of one sequence and every key."""
        return self.rotary.soft_capped(self.scaled_scores(row, queries))

    def scaled_scores(self, row: int, queries: Int[Tensor, " query_pos"]) -> Float[Tensor, "1 head query_pos key_pos"]:
        """The same before the soft-cap."""
        rotary, query, key = self.rotary, self.rot_q[row, queries][None], self.rot_k[row][None]
        if self.bands is None:
            return rotary.scaled_scores(query, key)
        phase = self.phase(row)
        free = (rotary.free_channels(query, phase[None, queries]), rotary.free_channels(key, phase[None]))
        every = torch.arange(key.shape[1], device=queries.device)
        q_dot_k = banded_scores(self.bands, free[0].row(0), free[1].row(0), queries, every)
        return q_dot_k[None] * rotary.scale

    def phase(self, row: int) -> Complex[Tensor, "pos pair"]:
        """Cos + i sin of each position and pair of one sequence."""
        return self.phases[min(row, len(self.phases) - 1)].to(self.rot_q.device)  # one table may serve all devices

    def content(
        self, row: int, start: int = 0, stop: int | None = None
    ) -> tuple[Complex[Tensor, "head pos pair"], Complex[Tensor, "kv_head pos pair"]]:
        """Queries and keys of one sequence before rotation, without attention factor, key heads not repeated.

        Args:
            row: Which sequence.
            start: Its first token.
            stop: One past its last token.
        """
        rotary, phase = self.rotary, self.phase(row)[start:stop]
        query, key = (
            head_planes(x[row : row + 1, start:stop], rotary.layout, rotary.rotary_dim, x.shape[2])[0]
            for x in (self.rot_q, self.rot_k)
        )
        return unrotated(query, phase), unrotated(key, phase)

    def by_distance(self, row: int, start: int = 0, stop: int | None = None) -> Iterator[DistanceRange]:
        """Queries and keys of one sequence as they are rotated at each distance, nearest range first.

        The ranges cover all distances: one range in plain RoPE, more where a method rotates near and far keys
        differently.

        Args:
            row: Which sequence.
            start: Its first token.
            stop: One past its last token.
        """
        if self.bands is None:
            rotated = (self.rotary.planes(x[row : row + 1, start:stop])[0] for x in (self.rot_q, self.rot_k))
            yield DistanceRange(0, None, (next(rotated), next(rotated)))
            return
        for nearest, furthest, content in self._unrotated(row, start, stop):
            yield DistanceRange(nearest, furthest, content.rotated())

    def parts(
        self, plan: EntryPlan, row: int, span: tuple[int, int], *, divide: bool = True
    ) -> Iterator[tuple[EntryPlan, tuple[Planes, Planes]]]:
        """The part of a plan's entries at each range of distances, and the planes to count their D from.

        Args:
            plan: Which entries count.
            row: Which sequence.
            span: Its first, and one past its last, real token.
            divide: Divide the squared attention factor out of the contributions.
        """
        for nearest, furthest, (query, key) in self.by_distance(row, *span):
            part = _part(plan, nearest, furthest, span[1] - span[0])
            if part is not None:
                yield part, (self.divided(query) if divide else query, key)

    def unrotated_parts(
        self, plan: EntryPlan, row: int, span: tuple[int, int], *, divide: bool = True
    ) -> Iterator[tuple[EntryPlan, Unrotated]]:
        """The same with queries and keys before rotation, for content at other positions."""
        for nearest, furthest, content in self._unrotated(row, *span):
            part = _part(plan, nearest, furthest, span[1] - span[0])
            if part is not None:
                yield part, replace(content, query=self.divided(content.query)) if divide else content

    def _unrotated(self, row: int, start: int, stop: int | None) -> Iterator[tuple[int, int | None, Unrotated]]:
        phase, (query, key) = self.phase(row)[start:stop], self.content(row, start, stop)
        if self.bands is None:
            yield 0, None, Unrotated(query, key, phase[None], phase[None])
            return
        for band in self.bands:
            own = band.first(query.shape[1])
            yield band.nearest, band.furthest, Unrotated(query, key, own.query_phase, own.key_phase)


def _part(plan: EntryPlan, nearest: int, furthest: int | None, length: int) -> EntryPlan | None:
    """The part of a plan at a range of distances; None if no entry of a sequence is there."""
    low = max(plan.min_distance, nearest)
    high = min((limit for limit in (plan.max_distance, furthest) if limit is not None), default=None)
    if nearest >= length or (high is not None and low > high):
        return None
    # the plan itself, not an equal copy: a copy would have to count its sample again
    same = (low, high) == (plan.min_distance, plan.max_distance)
    return plan if same else replace(plan, min_distance=low, max_distance=high)


def contributions_by_distance(
    ranges: Sequence[DistanceRange],
    heads: slice = slice(None),
    queries: slice | Int[Tensor, " query_pos"] = slice(None),
) -> Float[Tensor, "chosen query_pos key_pos pair"]:
    """Contribution of each pair to q . k, for some heads and queries, each key by the range of its distance.

    Args:
        ranges: All ranges of one sequence, see `LayerVectors.by_distance`.
        heads: Which heads.
        queries: Which queries.
    """
    first, *further = ranges
    query, key = first.planes
    contributions = plane_contributions(query[heads, queries], key[heads])
    position = torch.arange(key.shape[1], device=key.device)
    distance = (position[queries, None] - position)[..., None]
    for nearest, _, (query, key) in further:
        beyond = plane_contributions(query[heads, queries], key[heads])
        contributions = torch.where(distance >= nearest, beyond, contributions)
    return contributions
