"""Does each layer turn its pairs as fast as its configuration says? Not after every loading: buffers get lost.

Frequencies are no weights: they are computed anew when a model is made, and kept in buffers that no checkpoint fills. A
fault there (memory that was never filled, a shuffled table) leaves a model that runs, and scores that look like any
others. So what a layer was seen to do is compared with what is computed here from its configuration, and every pair
must turn slower than the one before it: D counts pairs from fast to slow.
"""

import hashlib
import logging
import math
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Complex, Float64
from torch import Tensor

from positional_heads.bridge.active import active_extension
from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.rope_scaling.plain_rope import RopeTable, built_in_table, long_table_from
from positional_heads.bridge.run_lengths import rotary_modules
from positional_heads.core.rotary import pair_frequencies

logger = logging.getLogger(__name__)

ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Relative error of a frequency read off cos and sin of these precisions, with room; neighbours differ by more."""
LEAST = {torch.float16: 2.0**-24}
"""Radians per token that cos and sin of a precision cannot tell from others: float16's smallest step."""
WAY_OUT = (
    "Load the model again, in its final precision (dtype=) and not cast afterwards, or with another version of "
    "transformers; an intended change belongs into the configuration's rope_parameters, or use extended_rope"
)

_TOLD: "weakref.WeakSet[Any]" = weakref.WeakSet()


def proven_frequencies(
    model: TransformerLensModel,
    layer: int,
    phase: Complex[Tensor, "pos pair"],
    d_head: int,
    dtype: torch.dtype,
) -> str:
    """Prove how fast one layer turns its pairs, and give a hash of it for provenance.

    Slowest pairs that do not turn at all (p-RoPE) are accepted, whatever the configuration says. Where the
    configuration gives no base (GPT-J, CodeGen), only the order can be proven. LongRoPE's table for long runs is proven
    beside the one that the layer used.

    Args:
        model: A TransformerBridge.
        layer: Which layer.
        phase: cos + i sin that the layer used at positions 0, 1, 2, ...
        d_head: Width of a query head.
        dtype: Precision of cos and sin.

    Raises:
        UnsupportedModelError: If a pair turns otherwise than the configuration or the active extension says, or not
            slower than the pair before it.
    """
    extension = active_extension(model)
    if extension is not None and layer in extension.chosen:
        return frequency_hash(_proven(model, layer, phase, extension.table(layer, len(phase)), dtype))
    proven = []
    short = len(phase), phase
    long = [(length, found) for length, found in _long_phases(model, layer, phase, dtype) if length > len(phase)]
    for length, found in (short, *long):
        expected = built_in_table(model, layer, 2 * phase.shape[1], d_head, length)
        if expected is not None:
            _refuse_disorder(layer, expected.inv_freq.double().cpu())
        proven.append(_proven(model, layer, found, expected, dtype))
    return frequency_hash(torch.cat(proven))


def _proven(
    model: TransformerLensModel,
    layer: int,
    phase: Complex[Tensor, "pos pair"],
    expected: RopeTable | None,
    dtype: torch.dtype,
) -> Float64[Tensor, " pair"]:
    """Frequencies that these phases have, as expected."""
    if not phase.isfinite().all():
        msg = f"layer {layer}: cos and sin are not finite, so a frequency is not. {WAY_OUT}"
        raise UnsupportedModelError(msg)
    found = pair_frequencies(phase).double().cpu()
    if expected is None:
        _refuse_disorder(layer, found)
        return found
    frequencies = expected.inv_freq.double().cpu()
    _refuse_difference(model, layer, found, frequencies, dtype)
    factor, should = float(phase.abs().double().mean()), expected.attention_factor * expected.score_factor**0.5
    if not abs(factor / should - 1) <= ROUNDING[dtype]:
        msg = f"layer {layer}: cos and sin are multiplied by {factor:.5g}, expected {should:.5g}. {WAY_OUT}"
        raise UnsupportedModelError(msg)
    return frequencies.where(found != 0, 0)


@torch.no_grad()
def _long_phases(
    model: TransformerLensModel, layer: int, phase: Complex[Tensor, "pos pair"], dtype: torch.dtype
) -> Iterator[tuple[int, Complex[Tensor, "pos pair"]]]:
    """Length of LongRoPE's shortest long run, and phases of its first positions, from the model's rotary module."""
    length = long_table_from(model, layer)
    for module in rotary_modules(model) if length is not None else ():
        kind, named = getattr(module, "rope_type", None), {}
        if isinstance(kind, dict):
            named = {"layer_type": module.config.layer_types[layer]}
            kind = kind[named["layer_type"]]
        if kind != "longrope":
            continue
        assert length is not None
        places = torch.tensor([[*range(len(phase)), length - 1]], device=phase.device)
        # not called as a module, so that no hook sees it
        cos, sin = module.forward(torch.zeros(1, dtype=dtype, device=phase.device), places, **named)
        pairs = phase.shape[1]
        adjacent = cos.shape[-1] > pairs and torch.equal(cos[..., ::2], cos[..., 1::2])
        chosen = slice(None, None, 2) if adjacent else slice(pairs)
        yield length, torch.complex(cos[0, :-1, chosen].float(), sin[0, :-1, chosen].float())


def frequency_hash(frequencies: Float64[Tensor, " pair"]) -> str:
    """A sha256 over frequencies to five digits: machines differ in the last ones."""
    return hashlib.sha256(" ".join(f"{one:.4e}" for one in frequencies.tolist()).encode()).hexdigest()


def _refuse_disorder(layer: int, frequencies: Float64[Tensor, " pair"]) -> None:
    turning = frequencies[: int(frequencies.count_nonzero())]  # the others, if 0 and last, are pairs that do not turn
    if not len(turning) or not bool((turning > 0).all()) or not bool((turning.diff() < 0).all()):
        shown = ", ".join(f"{one:.4g}" for one in frequencies[:6].tolist())
        msg = (
            f"layer {layer}: its pairs do not turn slower from each to the next ({shown}, ... radians per token), so "
            f"dominant dimensions would not be ordered. {WAY_OUT}"
        )
        raise UnsupportedModelError(msg)


def _refuse_difference(
    model: TransformerLensModel,
    layer: int,
    found: Float64[Tensor, " pair"],
    expected: Float64[Tensor, " pair"],
    dtype: torch.dtype,
) -> None:
    error = (found - expected + math.pi).remainder(2 * math.pi) - math.pi  # phases cannot tell more than a turn apart
    differs = ~(error.abs() <= ROUNDING[dtype] * expected.abs() + LEAST.get(dtype, 0.0))  # so that NaN differs
    still = found.flip(0).abs().cumsum(0).flip(0) == 0  # slowest pairs that do not turn
    if still.all():
        still = torch.zeros_like(still)
    if bool((differs & still).any()) and model not in _TOLD:
        _TOLD.add(model)
        first = int(still.nonzero()[0])
        logger.warning("pairs from %d on do not turn in this model, which its configuration does not say", first)
    wrong = differs & ~still
    if bool(wrong.any()):
        pair = int(wrong.nonzero()[0])
        msg = (
            f"layer {layer}: pair {pair} turns by {float(found[pair]):.5g} radians per token, expected "
            f"{float(expected[pair]):.5g} ({int(wrong.sum())} of {len(found)} pairs differ). {WAY_OUT}"
        )
        raise UnsupportedModelError(msg)
