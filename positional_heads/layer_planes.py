"""Rotary planes of one sequence out of a layer's vectors, and which listed pairs lie in a part of a plan."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bands import rotated_in, unrotated
from positional_heads.contributions import head_planes
from positional_heads.host.capture import LayerVectors
from positional_heads.plan import PairPlan, Places
from positional_heads.rotary import move

Planes = tuple[Float[Tensor, "head pos pair 2"], Float[Tensor, "head pos pair 2"]]


def within(places: Places, plan: PairPlan, device: torch.device) -> Places:
    """The listed pairs whose distance the plan counts.

    Args:
        places: Positions of queries and keys.
        plan: Which distances count.
        device: Where the positions are needed.
    """
    query_pos, key_pos = places
    distance = query_pos - key_pos
    inside = (distance >= plan.min_distance) & (distance <= plan.furthest)
    if not bool(inside.all()):
        query_pos, key_pos = query_pos[inside], key_pos[inside]
    return query_pos.to(device), key_pos.to(device)


def layer_planes(
    vectors: LayerVectors, plan: PairPlan, row: int, start: int, stop: int, order: Int[Tensor, " pos"] | None = None
) -> Iterator[tuple[PairPlan, Planes]]:
    """Rotary planes of one sequence's real tokens, at their own positions or with their content shuffled.

    One entry with all pairs that count; or, where an extension rewrites scores, one for each range of distances, with
    the part of the plan that lies in it.
    """
    rotary = vectors.rotary
    rot_q, rot_k = vectors.rot_q[row : row + 1, start:stop], vectors.rot_k[row : row + 1, start:stop]
    if order is not None:
        order = order.to(rot_q.device)
        phase = vectors.phase[min(row, len(vectors.phase) - 1)][None, start:stop]
        rot_q = move(rot_q[:, order], phase[:, order], phase, rotary.layout)
        rot_k = move(rot_k[:, order], phase[:, order], phase, rotary.layout)
    shape = (rotary.layout, rotary.rotary_dim, rotary.n_heads)
    query, key = head_planes(rot_q, *shape)[0], head_planes(rot_k, *shape)[0]
    if vectors.bands is None:
        yield plan, (query, key)
        return
    own = vectors.phase[min(row, len(vectors.phase) - 1)][start:stop]
    free_query, free_key = unrotated(query, own), unrotated(key, own)
    for band in vectors.bands:
        nearest = max(plan.min_distance, band.nearest)
        limits = [limit for limit in (plan.max_distance, band.furthest) if limit is not None]
        if nearest < stop - start and nearest <= min(limits, default=nearest):
            part = replace(plan, min_distance=nearest, max_distance=min(limits, default=None))
            yield part, rotated_in(band.first(stop - start), free_query, free_key)
