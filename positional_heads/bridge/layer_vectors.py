"""What one layer did with the positions of one batch, and what D is there: hooks, caches, examples and counts ask here.

D is the softmax-weighted index of the contributions, the attention factor squared of YaRN and LongRoPE divided out of
them, so that methods compare by what they do to angles. Contributions keep the factor: they add up to the score.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from positional_heads.bridge.resolve import RotaryLayer
from positional_heads.core.bands import Band, rotated_in, unrotated
from positional_heads.core.contributions import dominant_dimension, head_planes, plane_contributions
from positional_heads.core.plan import EntryPlan
from positional_heads.core.rotary import move

PLAIN_FACTOR = 1e-2
"""Attention factors nearer to 1 than this are rounding, in bfloat16 too."""

Temperature = float | Literal["attention"]
Planes = tuple[Float[Tensor, "head pos pair 2"], Float[Tensor, "head pos pair 2"]]


@dataclass(frozen=True)
class LayerVectors:
    """What one layer did with the positions of one batch.

    Attributes:
        rotary: How the layer rotates.
        rot_q: Rotated queries.
        rot_k: Rotated keys, one head per group.
        phase: cos + i sin of each position and pair.
        window: Distances the mask lets through, 0 to window - 1; None if it hides none in sequences of this length.
        bands: What is used instead of rot_q and rot_k by distance, where an extension rewrites scores; else None.
    """

    rotary: RotaryLayer
    rot_q: Float[Tensor, "batch pos head d_head"]
    rot_k: Float[Tensor, "batch pos kv_head d_head"]
    phase: Complex[Tensor, "#batch pos pair"]
    window: int | None
    bands: list[Band] | None

    @cached_property
    def attention_factors(self) -> Float[Tensor, " #head"]:
        """What cos and sin are multiplied by, for all heads or each: 1 in plain RoPE, more in YaRN and LongRoPE."""
        phase = self.phase[:1] if self.bands is None else self.bands[-1].query_phase
        factors = phase.detach().abs().mean((1, 2))
        return torch.where((factors - 1).abs() < PLAIN_FACTOR, 1.0, factors)

    def temperature(self, asked: Temperature) -> float:
        """Softmax temperature of D; "attention" takes the layer's own attention scale."""
        return 1 / self.rotary.scale if asked == "attention" else float(asked)

    def divided(self, by_head: Float[Tensor, "head *rest"], heads: slice = slice(None)) -> Float[Tensor, "head *rest"]:
        """Contributions of some heads, or their queries, with the attention factor squared divided out."""
        squared = self.attention_factors.to(by_head.device) ** 2
        if bool((squared == 1).all()):
            return by_head
        own = squared if len(squared) == 1 else squared[heads]
        return by_head / own.view(-1, *[1] * (by_head.ndim - 1))

    def dominant(
        self, contributions: Float[Tensor, "head *pairs pair"], asked: Temperature, heads: slice = slice(None)
    ) -> Float[Tensor, "head *pairs"]:
        """D of some heads, from their contributions as `contributions` gives them.

        Args:
            contributions: Contributions of these heads, without the attention scale.
            asked: Softmax temperature.
            heads: Which heads.
        """
        return dominant_dimension(self.divided(contributions, heads), self.temperature(asked))

    def contributions(self, row: int) -> Float[Tensor, "head query_pos key_pos pair"]:
        """What each pair adds to q . k in one sequence, also above the diagonal; of size T x T x pairs."""
        return added_up(list(self.ranges(row)))

    def phase_of(self, row: int) -> Complex[Tensor, "pos pair"]:
        """Phases of one sequence."""
        return self.phase[min(row, len(self.phase) - 1)]

    def ranges(
        self, row: int, start: int = 0, stop: int | None = None, order: Int[Tensor, " pos"] | None = None
    ) -> Iterator[tuple[int, int | None, Planes]]:
        """Rotary planes of one sequence as they are used at each range of distances, nearest first; together all.

        Args:
            row: Which sequence.
            start: Its first token.
            stop: One past its last token.
            order: Which position's content each position gets; their own when None.

        Yields:
            Smallest distance, largest or None for no limit, queries and keys.
        """
        rotary = self.rotary
        rot_q, rot_k = self.rot_q[row : row + 1, start:stop], self.rot_k[row : row + 1, start:stop]
        phase = self.phase_of(row)[start:stop]
        if order is not None:
            order = order.to(rot_q.device)
            rot_q, rot_k = (move(x[:, order], phase[None, order], phase[None], rotary.layout) for x in (rot_q, rot_k))
        shape = (rotary.layout, rotary.rotary_dim, rotary.n_heads)
        query, key = head_planes(rot_q, *shape)[0], head_planes(rot_k, *shape)[0]
        if self.bands is None:
            yield 0, None, (query, key)
            return
        free_query, free_key = unrotated(query, phase), unrotated(key, phase)
        for band in self.bands:
            yield band.nearest, band.furthest, rotated_in(band.first(query.shape[1]), free_query, free_key)

    def parts(
        self,
        plan: EntryPlan,
        row: int,
        span: tuple[int, int],
        order: Int[Tensor, " pos"] | None = None,
        *,
        divide: bool = True,
    ) -> Iterator[tuple[EntryPlan, Planes]]:
        """Planes to count D from, and which part of a plan's pairs each set is for.

        Args:
            plan: Which pairs count.
            row: Which sequence.
            span: Its first, and one past its last, real token.
            order: Which position's content each position gets; their own when None.
            divide: Divide the attention factor squared out of the contributions.
        """
        for nearest, furthest, (query, key) in self.ranges(row, *span, order):
            low = max(plan.min_distance, nearest)
            limits = [limit for limit in (plan.max_distance, furthest) if limit is not None]
            high = min(limits, default=None)
            if nearest < span[1] - span[0] and (high is None or low <= high):
                same = (low, high) == (plan.min_distance, plan.max_distance)
                part = plan if same else replace(plan, min_distance=low, max_distance=high)
                yield part, (self.divided(query) if divide else query, key)


def added_up(
    ranges: Sequence[tuple[int, int | None, Planes]], heads: slice = slice(None), queries: slice = slice(None)
) -> Float[Tensor, "chosen query_pos key_pos pair"]:
    """What each pair adds to q . k for some heads and queries, each key by the range of its distance.

    Args:
        ranges: All ranges of one sequence, see `LayerVectors.ranges`.
        heads: Which heads.
        queries: Which queries.
    """
    position = torch.arange(ranges[0][2][1].shape[1], device=ranges[0][2][1].device)
    back = (position[queries, None] - position)[..., None]
    found = None
    for nearest, _, (query, key) in ranges:  # each overwrites what lies beyond it
        added = plane_contributions(query[heads, queries], key[heads])
        found = added if found is None else torch.where(back >= nearest, added, found)
    assert found is not None  # there is at least one range
    return found
