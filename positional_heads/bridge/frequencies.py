"""Prove that each layer rotates its pairs at the frequencies of its configuration.

Frequencies are not weights: a model computes them when it is built and keeps them in buffers that no checkpoint fills.
With a fault there (uninitialised memory, a shuffled table) the model still runs and its scores look plausible. So the
frequencies read off a layer's cos and sin are compared with those computed here from its configuration, and each must
be lower than the one before it, because D counts pairs from fast to slow.
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
"""Largest relative error of a frequency read off cos and sin of these precisions; neighbouring pairs differ by more."""
RESOLUTION = {torch.float16: 2.0**-24}
"""Smallest frequency, in radians per token, that cos and sin of a precision resolve: float16's smallest step."""
WAY_OUT = (
    "Load the model again, in its final precision (dtype=) and not cast afterwards, or with another version of "
    "transformers; to change frequencies on purpose, use the configuration's rope_parameters, or extended_rope"
)

_WARNED: "weakref.WeakSet[Any]" = weakref.WeakSet()


def proven_frequencies(
    model: TransformerLensModel,
    layer: int,
    phase: Complex[Tensor, "pos pair"],
    d_head: int,
    dtype: torch.dtype,
) -> str:
    """Prove the frequencies of one layer, and return a hash of them for provenance.

    Frequencies of zero in the slowest pairs (p-RoPE) are accepted, whatever the configuration says. Where the
    configuration has no base (GPT-J, CodeGen), only the order can be proven. LongRoPE's table for long runs is proven
    in addition to the one that the layer used.

    Args:
        model: A TransformerBridge.
        layer: Which layer.
        phase: cos + i sin that the layer used at positions 0, 1, 2, ...
        d_head: Width of a query head.
        dtype: Precision of cos and sin.

    Raises:
        UnsupportedModelError: If a frequency differs from that of the configuration or the active extension, or is not
            lower than that of the pair before.
    """
    extension = active_extension(model)
    if extension is not None and layer in extension.chosen:
        return frequency_hash(_proven(model, layer, phase, extension.table(layer, len(phase)), dtype))
    proven = []
    long = [(length, phases) for length, phases in _long_phases(model, layer, phase, dtype) if length > len(phase)]
    for length, phases in ((len(phase), phase), *long):
        expected = built_in_table(model, layer, 2 * phase.shape[1], d_head, length)
        if expected is not None:
            _refuse_disorder(layer, expected.inv_freq.double().cpu())
        proven.append(_proven(model, layer, phases, expected, dtype))
    return frequency_hash(torch.cat(proven))


def _proven(
    model: TransformerLensModel,
    layer: int,
    phase: Complex[Tensor, "pos pair"],
    expected: RopeTable | None,
    dtype: torch.dtype,
) -> Float64[Tensor, " pair"]:
    """The expected frequencies, after a proof that these phases have them."""
    if not phase.isfinite().all():
        msg = f"layer {layer}: cos and sin are not finite, so neither are its frequencies. {WAY_OUT}"
        raise UnsupportedModelError(msg)
    own = pair_frequencies(phase).double().cpu()
    if expected is None:
        _refuse_disorder(layer, own)
        return own
    frequencies = expected.inv_freq.double().cpu()
    _refuse_difference(model, layer, own, frequencies, dtype)
    factor, right = float(phase.abs().double().mean()), expected.attention_factor * expected.score_factor**0.5
    if not abs(factor / right - 1) <= ROUNDING[dtype]:
        msg = f"layer {layer}: cos and sin are multiplied by {factor:.5g}, expected {right:.5g}. {WAY_OUT}"
        raise UnsupportedModelError(msg)
    return frequencies.where(own != 0, 0)


@torch.no_grad()
def _long_phases(
    model: TransformerLensModel, layer: int, phase: Complex[Tensor, "pos pair"], dtype: torch.dtype
) -> Iterator[tuple[int, Complex[Tensor, "pos pair"]]]:
    """Length of the shortest run that uses LongRoPE's long table, and phases of its first positions."""
    length = long_table_from(model, layer)
    for module in rotary_modules(model) if length is not None else ():
        kind, named = getattr(module, "rope_type", None), {}
        if isinstance(kind, dict):
            named = {"layer_type": module.config.layer_types[layer]}
            kind = kind[named["layer_type"]]
        if kind != "longrope":
            continue
        assert length is not None
        positions = torch.tensor([[*range(len(phase)), length - 1]], device=phase.device)
        # not module(...), which would run hooks
        cos, sin = module.forward(torch.zeros(1, dtype=dtype, device=phase.device), positions, **named)
        n_pairs = phase.shape[1]
        adjacent = cos.shape[-1] > n_pairs and torch.equal(cos[..., ::2], cos[..., 1::2])
        once = slice(None, None, 2) if adjacent else slice(n_pairs)
        yield length, torch.complex(cos[0, :-1, once].float(), sin[0, :-1, once].float())


def frequency_hash(frequencies: Float64[Tensor, " pair"]) -> str:
    """A sha256 over frequencies to five digits, because machines differ in the last ones."""
    return hashlib.sha256(" ".join(f"{one:.4e}" for one in frequencies.tolist()).encode()).hexdigest()


def _refuse_disorder(layer: int, frequencies: Float64[Tensor, " pair"]) -> None:
    rotating = frequencies[: int(frequencies.count_nonzero())]  # zeros are allowed for the slowest pairs only
    if not len(rotating) or not bool((rotating > 0).all()) or not bool((rotating.diff() < 0).all()):
        shown = ", ".join(f"{one:.4g}" for one in frequencies[:6].tolist())
        msg = (
            f"layer {layer}: its frequencies do not decrease from pair to pair ({shown}, ... radians per token), so "
            f"dominant dimensions would not be ordered. {WAY_OUT}"
        )
        raise UnsupportedModelError(msg)


def _refuse_difference(
    model: TransformerLensModel,
    layer: int,
    own: Float64[Tensor, " pair"],
    expected: Float64[Tensor, " pair"],
    dtype: torch.dtype,
) -> None:
    error = (own - expected + math.pi).remainder(2 * math.pi) - math.pi  # phases are known modulo one turn
    differs = ~(error.abs() <= ROUNDING[dtype] * expected.abs() + RESOLUTION.get(dtype, 0.0))  # NaN differs too
    constant = own.flip(0).abs().cumsum(0).flip(0) == 0  # the slowest pairs, if they do not rotate
    if constant.all():
        constant = torch.zeros_like(constant)
    if bool((differs & constant).any()) and model not in _WARNED:
        _WARNED.add(model)
        first = int(constant.nonzero()[0])
        logger.warning("pairs from %d on have frequency 0 in this model, but not in its configuration", first)
    wrong = differs & ~constant
    if bool(wrong.any()):
        pair = int(wrong.nonzero()[0])
        msg = (
            f"layer {layer}: pair {pair} turns by {float(own[pair]):.5g} radians per token, expected "
            f"{float(expected[pair]):.5g} ({int(wrong.sum())} of {len(own)} pairs differ). {WAY_OUT}"
        )
        raise UnsupportedModelError(msg)
