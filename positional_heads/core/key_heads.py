"""Choices of key heads, which groups of query heads read: by a measure, or at random.

A choice is a mask over layers and key heads. `key_heads` says which key head each query head reads, -1 where its layer
is not known.
"""

import random
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from positional_heads.core.heads import Head


def most_of_readers(
    values: Float64[Tensor, "layer head"], key_heads: Int[Tensor, "layer head"]
) -> Float64[Tensor, "layer kv_head"]:
    """The largest value of the query heads that read each key head; NaN where none of them has one.

    Args:
        values: A measure of query heads, NaN where it is not defined.
        key_heads: Key head that each of them reads.
    """
    most = torch.full((len(values), int(key_heads.max()) + 1), -torch.inf, dtype=torch.float64)
    known = torch.where(key_heads >= 0, values, torch.nan).nan_to_num(-torch.inf)
    most.scatter_reduce_(1, key_heads.clamp(min=0), known, "amax")
    return most.masked_fill(most.isinf(), torch.nan)


def readers(chosen: Bool[Tensor, "layer kv_head"], key_heads: Int[Tensor, "layer head"]) -> list[Head]:
    """The query heads that read one of these key heads, in order."""
    read = chosen.gather(1, key_heads.clamp(min=0)) & (key_heads >= 0)
    return [Head(layer, head) for layer, head in read.nonzero().tolist()]


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


def _mask(like: Bool[Tensor, "layer kv_head"], places: Sequence[int]) -> Bool[Tensor, "layer kv_head"]:
    flat = torch.zeros(like.numel(), dtype=torch.bool)
    flat[list(places)] = True
    return flat.view_as(like)
