"""What other tools must know about how a profiled model rotates: layers, key heads, layout, partial rotation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from positional_heads.results.head_profile import HeadProfile


def profiled_layers(profile: HeadProfile) -> Bool[Tensor, " layer"]:
    """Which layers have numbers; the others do not rotate, or were left out.

    Raises:
        ValueError: If none has.
    """
    known = (profile.key_heads >= 0).any(-1)
    if not bool(known.any()):
        msg = "no layer of this profile was measured: there is nothing to write"
        raise ValueError(msg)
    return known


def layout_of(profile: HeadProfile) -> str | None:
    """Which channels make a pair, "half" or "adjacent"; None if layers differ, or the profile does not say."""
    layouts = {str(layer.get("layout")) for layer in profile.provenance.get("rotary", [])}
    return layouts.pop() if len(layouts) == 1 else None


def refuse_unfit_rotation(profile: HeadProfile, tool: str, layouts: tuple[str, ...]) -> None:
    """Refuse a model whose pairs the tool would take from other channels than the model does.

    Args:
        profile: The profile.
        tool: Name of the tool, for the message.
        layouts: Layouts that the tool knows.

    Raises:
        ValueError: If channels are left unrotated, if layers have different numbers of pairs, if pairs are laid out in
            another way, or if they turn clockwise.
    """
    pairs = profile.pairs
    unrotated = bool((pairs.unrotated.nan_to_num() != 0).any())
    uneven = bool(pairs.query_norm[profiled_layers(profile)].isnan().any())
    refuse_unfit_layers(profile.provenance.get("rotary", []), tool, layouts, unrotated=unrotated, uneven=uneven)


def refuse_unfit_layers(
    layers: Sequence[Mapping[str, Any]], tool: str, layouts: tuple[str, ...], *, unrotated: bool, uneven: bool
) -> None:
    """`refuse_unfit_rotation`, from what is known of the layers.

    Args:
        layers: How each rotates, as the provenance of a profile says it.
        tool: Name of the tool, for the message.
        layouts: Layouts that the tool knows.
        unrotated: Whether channels that do not rotate were seen.
        uneven: Whether layers have different numbers of pairs.

    Raises:
        ValueError: As there.
    """
    if unrotated or any(layer.get("rotary_dim") != layer.get("d_head") for layer in layers):
        msg = f"{tool} rotates every channel, and this model leaves some unrotated: its pairs would be other channels"
        raise ValueError(msg)
    if uneven:
        msg = f"{tool} needs the same number of pairs in every layer, and this model's layers differ"
        raise ValueError(msg)
    unknown = sorted({str(layer.get("layout")) for layer in layers} - set(layouts))
    if unknown:
        msg = f"{tool} knows the layout {' and '.join(layouts)}, and this model has {unknown[0]}"
        raise ValueError(msg)
    if any(layer.get("sense", 1) != 1 for layer in layers):
        msg = f"{tool} turns pairs anticlockwise, and this model turns them clockwise"
        raise ValueError(msg)


def summed_over_readers(
    profile: HeadProfile, values: Float64[Tensor, "layer head pair"]
) -> Float64[Tensor, "layer kv_head pair"]:
    """Values of query heads, summed over those that read each key head; NaN in layers without numbers.

    Raises:
        ValueError: If layers have different numbers of key heads.
    """
    known, readers = profiled_layers(profile), profile.key_heads
    n_kv_heads = int(readers.max()) + 1
    if bool((readers[known].amax(-1) + 1 != n_kv_heads).any()):
        msg = f"layers of this model have different numbers of key heads, up to {n_kv_heads}, and a table needs one"
        raise ValueError(msg)
    chosen = torch.nn.functional.one_hot(readers.clamp(min=0), n_kv_heads).double()
    summed = torch.einsum("lhk,lhp->lkp", chosen, values.nan_to_num())
    return summed.masked_fill(~known[:, None, None], torch.nan)
