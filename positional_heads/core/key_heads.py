"""Choices of key heads, which groups of query heads read: by a measure, or at random.

A choice is a mask over layers and key heads. `key_heads` says which key head each query head reads, -1 where its layer
is not known. Where layers read the keys of others, `keys_of` says of which: a key head is then one of the layer that
holds it, and all that read it count.
"""

import random
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from positional_heads.core.heads import Head


def most_of_readers(
    values: Float64[Tensor, "layer head"],
    key_heads: Int[Tensor, "layer head"],
    keys_of: Int[Tensor, " layer"] | None = None,
) -> Float64[Tensor, "layer kv_head"]:
    """The largest value of the query heads that read each key head; NaN where none of them has one.

    Args:
        values: A measure of query heads, NaN where it is not defined.
        key_heads: Key head that each of them reads.
        keys_of: Layer whose keys each layer reads, -1 for none; its own when None.
    """
    width = int(key_heads.max()) + 1
    most = torch.full((len(values) * width,), -torch.inf, dtype=torch.float64)
    place, known = _places(key_heads, keys_of, width)
    most.scatter_reduce_(
        0, place.flatten(), torch.where(known, values, torch.nan).nan_to_num(-torch.inf).flatten(), "amax"
    )
    return most.masked_fill(most.isinf(), torch.nan).view(-1, width)


def readers(
    chosen: Bool[Tensor, "layer kv_head"],
    key_heads: Int[Tensor, "layer head"],
    keys_of: Int[Tensor, " layer"] | None = None,
) -> list[Head]:
    """The query heads that read one of these key heads, in order; arguments as in `most_of_readers`."""
    place, known = _places(key_heads, keys_of, chosen.shape[1])
    return [Head(layer, head) for layer, head in (chosen.flatten()[place] & known).nonzero().tolist()]


def lowest(
    values: Float64[Tensor, "layer kv_head"], among: Bool[Tensor, "layer kv_head"], count: int
) -> Bool[Tensor, "layer kv_head"]:
    """The key heads with the lowest values; of equal ones the first by layer and number. NaN counts as the highest."""
    places = among.flatten().nonzero().flatten()
    order = values.flatten()[places].nan_to_num(torch.inf).sort(stable=True).indices
    return _mask(among, places[order[:count]].tolist())


def drawn_values(shape: Sequence[int], seed: str) -> Float64[Tensor, "layer kv_head"]:
    """A random number for every key head; the lowest of them are a random choice."""
    rng = random.Random(seed)
    layers, heads = shape
    return torch.tensor([[rng.random() for _ in range(heads)] for _ in range(layers)], dtype=torch.float64)


def permuted_within_layers(
    values: Float64[Tensor, "layer kv_head"], among: Bool[Tensor, "layer kv_head"], seed: str
) -> Float64[Tensor, "layer kv_head"]:
    """The values of these key heads exchanged at random within each layer: its lowest are as many in every layer."""
    rng, permuted = random.Random(seed), values.clone()
    for layer, allowed in enumerate(among):
        places = allowed.nonzero().flatten().tolist()
        permuted[layer, places] = values[layer, rng.sample(places, len(places))]
    return permuted


def _places(
    key_heads: Int[Tensor, "layer head"], keys_of: Int[Tensor, " layer"] | None, width: int
) -> tuple[Int[Tensor, "layer head"], Bool[Tensor, "layer head"]]:
    """Place of the key head of each query head among all, row by row, and whether there is one."""
    holders = torch.arange(len(key_heads)) if keys_of is None else keys_of
    known = (key_heads >= 0) & (holders >= 0)[:, None]
    return holders.clamp(min=0)[:, None] * width + key_heads.clamp(min=0), known


def _mask(like: Bool[Tensor, "layer kv_head"], places: Sequence[int]) -> Bool[Tensor, "layer kv_head"]:
    flat = torch.zeros(like.numel(), dtype=torch.bool)
    flat[list(places)] = True
    return flat.view_as(like)
