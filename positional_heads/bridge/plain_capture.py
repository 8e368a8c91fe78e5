"""Capture rotated queries and keys from a plain run, which holds no attention scores, and prove them.

At the door a probe must show the same vectors as the bridge's hooks. On every run a few rows of each sequence prove
scale, mask and window: the softmax of their rebuilt scores, times the values, must be the output of the model's own
attention, so a sink, a bias or a soft-cap would show.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.active_extension import active_bands
from positional_heads.bridge.attention_interface import (
    attention_module,
    relative_error,
    tables_kept,
)
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.masks import MaskProof
from positional_heads.bridge.model import Record, TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.plain_run import plain_attention, plain_model, plain_run_refusal, without_logits
from positional_heads.bridge.rotary_layer import TOLERANCE, RotaryLayer, refuse_non_finite
from positional_heads.bridge.run_lengths import run_lengths
from positional_heads.bridge.sequences import real_spans

CHECKED_ROWS = 16
"""Query positions per layer and sequence at which rebuilt attention is compared with the model's own."""
OTHER_TERMS = ("softcap", "s_aux", "position_bias", "cache")
"""Settings of an attention function that change scores or keys, so that q . k and the mask do not give its output."""

Shown = tuple[Tensor, Tensor, Tensor]
"""Rotated queries, rotated keys and phases of a layer."""

logger = logging.getLogger(__name__)


class Attended(NamedTuple):
    """What the attention of a layer was given in a plain run, and what it gave.

    Attributes:
        record: Rotated queries and keys, with the cos and sin that they were rotated by.
        value: Values.
        mask: True at visible entries, or 0 there and very negative elsewhere; None for plain causality.
        output: Weighted values of each head.
    """

    record: Record
    value: Float[Tensor, "batch kv_head pos d_value"]
    mask: Tensor | None
    output: Float[Tensor, "batch pos head d_value"]


class _Finished(Exception):  # noqa: N818  not an error
    """Ends a run after the last layer that was asked for."""


def plain_capture_refusal(model: TransformerLensModel, layers: Sequence[RotaryLayer]) -> str | None:
    """Why these layers cannot be captured from a plain run now; None if they can."""
    if not all(rotary.plain for rotary in layers):
        return "no plain run was seen to show what the hooks show"
    return plain_run_refusal(model)


@torch.no_grad()
def capture_plainly(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[RotaryLayer],
    visit: Callable[[LayerVectors], None],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
) -> None:
    """Run the model once, plainly, and visit each layer's rotated queries and keys, proven; see `capture`.

    Raises:
        UnsupportedModelError: If a layer's vectors do not give the output of its attention, or causality, padding and
            one window do not explain its mask.
    """
    by_layer = {rotary.layer: rotary for rotary in layers}
    spans = real_spans(tokens, attention_mask)
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    lengths = [stop - start for start, stop in spans]
    masks, last = MaskProof(spans), _Last()

    def prove_and_visit(layer: int, attended: Attended) -> None:
        rotary, record = by_layer[layer], attended.record
        rot_q, rot_k = rotary.rotated_vectors(model, record, positions)
        refuse_non_finite(layer, rot_q, rot_k, spans)
        key = (rotary.table, rotary.sense)
        phases = last.of(record["hook_cos"], key, lambda: rotary.phase(model, record, positions))
        window = masks.window(layer, attended.mask, tokens.shape[1])
        bands = active_bands(model, layer, tokens.shape[1], rot_k.device, lengths[0])
        vectors = LayerVectors(rotary, rot_q, rot_k, phases, window, bands)
        _prove_output(vectors, attended, spans)
        visit(vectors)

    arguments = {} if attention_mask is None else {"attention_mask": attention_mask}
    with run_lengths(model, lengths, attention_mask), _read(model, by_layer, prove_and_visit):
        model(tokens, return_type=None, use_cache=False, **without_logits(model), **arguments)


def proven_plain(
    model: TransformerLensModel,
    tokens: Int[Tensor, "1 pos"],
    layers: Mapping[int, RotaryLayer],
    shown: Mapping[int, Shown],
) -> dict[int, RotaryLayer]:
    """The layers, with the mark that plain runs may be read where one of the same tokens shows the same in all of them.

    Args:
        model: A TransformerBridge.
        tokens: The probe.
        layers: The layers as they are resolved.
        shown: What the bridge showed of the same tokens, by layer.
    """
    errors: dict[int, float] = {}
    limits: dict[int, float] = {}

    def compare(vectors: LayerVectors) -> None:
        layer, phases = vectors.rotary.layer, vectors.phases
        own = (vectors.rot_q, vectors.rot_k, torch.view_as_real(phases))
        expected = (*shown[layer][:2], torch.view_as_real(shown[layer][2]))
        errors[layer] = max(map(relative_error, expected, own))
        # where one of them rotates in float32, the other may have rounded to half precision
        limits[layer] = max(TOLERANCE[vectors.rot_q.dtype], TOLERANCE[shown[layer][0].dtype])

    refusal = plain_run_refusal(model)
    if refusal is None:
        try:
            capture_plainly(model, tokens, list(layers.values()), compare)
        except (UnsupportedModelError, ValueError, TypeError, RuntimeError) as error:
            refusal = str(error)
    wrong = [layer for layer, error in errors.items() if not error <= limits[layer]]
    if refusal is None and wrong:
        refusal = f"layer {wrong[0]} differs by {errors[wrong[0]]:.2g} of the largest channel"
    if refusal is not None:
        logger.info("reading the bridge's hooks instead of a plain run: %s", refusal)
    return {layer: replace(rotary, plain=refusal is None) for layer, rotary in layers.items()}


class _Last:
    """Phases of the last table: most models hand all layers the same one."""

    def __init__(self) -> None:
        self._key: Any = None
        self._table: Tensor | None = None
        self._phases: Any = None

    def of(self, table: Tensor, key: Any, phases: Callable[[], Tensor]) -> Any:
        if self._table is not table or self._key != key:
            self._table, self._key, self._phases = table, key, phases()
        return self._phases


@contextmanager
def _read(
    model: TransformerLensModel, layers: Mapping[int, RotaryLayer], visit: Callable[[int, Attended], None]
) -> Iterator[None]:
    """A block for one plain run, which ends after the last of these layers; each is visited when it has attended."""
    modules, attention = {attention_module(model, layer): layer for layer in layers}, plain_attention(model)
    records: dict[int, Record] = {layer: {} for layer in layers}
    left = set(layers)

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, Tensor | None]:
        if module in modules:
            _refuse_other_attention(layers[modules[module]], settings, records[modules[module]])
        output, pattern = attention(module, query, key, value, mask, **settings)
        if module in modules:
            layer = modules[module]
            rotated = {"hook_rot_q": query.transpose(1, 2), "hook_rot_k": key.transpose(1, 2)}
            visit(layer, Attended({**records[layer], **rotated}, value, mask, output))
            left.discard(layer)
            if not left and not offloaded:
                raise _Finished
        return output, pattern

    with ExitStack() as undo:
        own = undo.enter_context(plain_model(model, attend))
        for module, layer in modules.items():  # after those of an extension, which may have replaced them
            undo.enter_context(tables_kept(module, records[layer]))
        offloaded = any(hasattr(module, "_hf_hook") for module in own.modules())  # accelerate cleans up after each
        with suppress(_Finished):
            yield
    if left:
        msg = f"layer {min(left)}: its attention does not call the attention interface that its configuration names"
        raise UnsupportedModelError(msg)


def _refuse_other_attention(rotary: RotaryLayer, settings: Mapping[str, Any], record: Record) -> None:
    scale = settings.get("scaling")
    if scale is None:
        scale = rotary.d_head**-0.5
    others = [name for name in OTHER_TERMS if settings.get(name) is not None]
    if others or "hook_cos" not in record or not abs(float(scale) - rotary.scale) <= 1e-6 * abs(rotary.scale):
        msg = (
            f"layer {rotary.layer}: attention is called with scale {scale} and {others or 'nothing else'}, where a "
            f"scale of {rotary.scale}, and nothing else, explains its scores"
        )
        raise UnsupportedModelError(msg)


def _scores(
    vectors: LayerVectors, row: int, query_pos: Int[Tensor, " query_pos"], groups: int
) -> Float[Tensor, "head query_pos key_pos"]:
    """Scores of some queries before the mask, rebuilt from rotated queries and keys."""
    if vectors.bands is not None:
        return vectors.scores(row, query_pos)[0]
    # heads of one group share keys: one product for all their rows, rather than a copy of the keys for each head
    query = rearrange(vectors.rot_q[row, query_pos], "query (group head) d -> group (head query) d", group=groups)
    scores = torch.matmul(query.float(), rearrange(vectors.rot_k[row], "key group d -> group d key").float())
    scores = rearrange(scores, "group (head query) key -> (group head) query key", query=len(query_pos))
    return scores * vectors.rotary.scale


def _prove_output(vectors: LayerVectors, attended: Attended, spans: Sequence[tuple[int, int]]) -> None:
    """Compare a few rows of each sequence with attention rebuilt from rotated queries, keys and values.

    Args:
        vectors: Rotated queries and keys, and the window of the mask.
        attended: What the layer's attention was given, and what it gave.
        spans: First, and one past the last, real token of each sequence.
    """
    rotary, value = vectors.rotary, attended.value
    groups, device = value.shape[1], value.device
    key_pos = torch.arange(value.shape[2], device=device)
    for row, (start, stop) in enumerate(spans):
        query_pos = torch.linspace(start, stop - 1, min(CHECKED_ROWS, stop - start), device=device).round().long()
        scores = _scores(vectors, row, query_pos, groups)
        distance = query_pos[:, None] - key_pos
        hidden = (distance < 0) | (key_pos < start)
        if vectors.window is not None:
            hidden |= distance >= vectors.window
        pattern = rearrange(
            scores.masked_fill(hidden, -torch.inf).softmax(-1),
            "(group head) query key -> group (head query) key",
            group=groups,
        )
        rebuilt = rearrange(
            torch.matmul(pattern, value[row].float()),
            "group (head query) d -> query (group head) d",
            query=len(query_pos),
        )
        own = attended.output[row, query_pos].float()
        error = float((rebuilt - own).abs().max() / own.abs().max().clamp(min=1e-30))
        if not error <= TOLERANCE[attended.output.dtype]:
            msg = (
                f"layer {rotary.layer}: the softmax of q . k, scaled and masked, misses the output of the model's own "
                f"attention by {error:.2g} of the largest, more than the {TOLERANCE[attended.output.dtype]:.0e} that "
                "rounding explains: its attention has another term (a sink, a bias), so it cannot be scored"
            )
            raise UnsupportedModelError(msg)
