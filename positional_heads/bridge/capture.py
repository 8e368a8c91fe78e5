"""Capture rotated queries and keys of a run, layer by layer, each proven against the model's own attention.

Each layer's vectors are visited during the run and not kept. Where nothing is in the way they come from a plain run;
else from the bridge's hooks, which see attention scores: of these only the mask and a few rows are read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.active_edits import edits_named
from positional_heads.bridge.active_extension import active_bands
from positional_heads.bridge.attention_interface import attention_read
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.masks import proven_chunk_window, proven_window
from positional_heads.bridge.model import SCORES, Record, TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.plain_capture import CHECKED_ROWS, capture_plainly, plain_capture_refusal
from positional_heads.bridge.prefill import run_in_chunks
from positional_heads.bridge.recording import recording_hooks
from positional_heads.bridge.rotary_layer import TOLERANCE, RotaryLayer, refuse_non_finite
from positional_heads.bridge.run_lengths import run_lengths
from positional_heads.bridge.sequences import real_spans


def capture(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[RotaryLayer],
    visit: Callable[[LayerVectors], None],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    chunk: int | None = None,
) -> None:
    """Run the model once and visit each layer's rotated queries and keys, proven against its attention.

    Args:
        model: A TransformerBridge.
        tokens: Token ids.
        layers: The layers to visit, from `resolve_layers`.
        visit: Called with each layer's vectors, first layer first.
        attention_mask: 1 for real tokens, 0 for padding; all real when None.
        chunk: Tokens per forward pass of the bridge, continued with the model's key-value cache; without padding only.
            When None, one pass: a plain one where that is possible.

    Raises:
        UnsupportedModelError: If a layer does not reproduce the model's scores, or causality, padding and one window
            do not explain its mask.
        ValueError: If padded sequences are to be run in chunks.
    """
    with edits_named(model):
        _capture(model, tokens, layers, visit, attention_mask, chunk)


@torch.no_grad()
def _capture(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[RotaryLayer],
    visit: Callable[[LayerVectors], None],
    attention_mask: Int[Tensor, "batch pos"] | None,
    chunk: int | None,
) -> None:
    if chunk is None and plain_capture_refusal(model, layers) is None:
        capture_plainly(model, tokens, layers, visit, attention_mask)
        return
    by_layer = {rotary.layer: rotary for rotary in layers}
    if chunk is not None and chunk < tokens.shape[1]:
        if attention_mask is not None and not bool((attention_mask == 1).all()):
            msg = "padded sequences cannot be run in chunks: give sequences of one length, without padding"
            raise ValueError(msg)
        _capture_chunks(model, tokens, by_layer, visit, chunk)
        return
    positions = padded_positions(tokens, attention_mask)
    spans = real_spans(tokens, attention_mask)

    def prove_and_visit(layer: int, record: Record) -> None:
        rotary, own = by_layer[layer], record[SCORES]
        parts = _proven_parts(model, rotary, record, positions, spans)
        vectors = _vectors(model, rotary, parts, proven_window(rotary, own, spans), tokens.shape[1])
        _prove_scores(vectors, own, spans)
        visit(vectors)

    arguments = {} if attention_mask is None else {"attention_mask": attention_mask}
    lengths = [stop - start for start, stop in spans]
    with run_lengths(model, lengths, attention_mask), _recorded(model, by_layer, prove_and_visit):
        model(tokens, return_type=None, **arguments)


@torch.no_grad()
def _capture_chunks(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    by_layer: dict[int, RotaryLayer],
    visit: Callable[[LayerVectors], None],
    size: int,
) -> None:
    """Capture a long run a chunk of tokens at a time, because scores of the whole run would not fit in memory.

    A layer is visited after the last chunk, since its contributions need all keys; until then the vectors of all layers
    are stored. Each chunk is proven as it runs, because its scores exist only then: its queries against the keys of all
    chunks so far.
    """
    length = tokens.shape[1]
    parts: dict[int, list[Tensor]] = {}
    windows: dict[int, int | None] = {}
    start = 0

    def prove_and_store(layer: int, record: Record) -> None:
        rotary, own = by_layer[layer], record[SCORES]
        stop = start + own.shape[-2]
        positions = torch.arange(start, stop, device=tokens.device)[None]
        spans = [(0, stop - start)] * len(tokens)
        chunk = _proven_parts(model, rotary, record, positions, spans)
        if layer not in parts:  # allocated whole: tensors that grow chunk by chunk would fragment memory
            parts[layer] = [part.new_empty(len(part), length, *part.shape[2:]) for part in chunk]
        for whole, part in zip(parts[layer], chunk, strict=True):
            whole[:, start:stop] = part
        windows[layer] = proven_chunk_window(rotary, own, start, stop)  # the last chunk's, which sees the most keys
        vectors = _vectors(model, rotary, [whole[:, :stop] for whole in parts[layer]], None, length)
        _prove_scores(vectors, own, spans, start)

    def advance(logits: Tensor) -> None:
        nonlocal start
        start += logits.shape[1]

    with _recorded(model, by_layer, prove_and_store):
        run_in_chunks(model, tokens, size, advance)
    for layer, rotary in sorted(by_layer.items()):
        visit(_vectors(model, rotary, parts.pop(layer), windows[layer], length))


def padded_positions(
    tokens: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"] | None
) -> Int[Tensor, "rows pos"]:
    """Position of each token, as Hugging Face counts them: real tokens from zero, also after left padding."""
    if attention_mask is None:
        return torch.arange(tokens.shape[1], device=tokens.device)[None]
    positions = attention_mask.long().cumsum(-1) - 1
    return positions.masked_fill(attention_mask == 0, 1).to(tokens.device)


@contextmanager
def _recorded(
    model: TransformerLensModel, by_layer: dict[int, RotaryLayer], visit: Callable[[int, Record], None]
) -> Iterator[None]:
    """A block inside which every run passes on these layers' records, from hooks or through the interface."""
    hooked = [layer for layer, rotary in sorted(by_layer.items()) if rotary.source != "interface"]
    with (
        model.hooks(fwd_hooks=recording_hooks(model, hooked, visit)),
        attention_read(model, sorted(by_layer.keys() - hooked), visit),
    ):
        yield


def _proven_parts(
    model: TransformerLensModel,
    rotary: RotaryLayer,
    record: Record,
    positions: Int[Tensor, "#batch pos"],
    spans: Sequence[tuple[int, int]],
) -> list[Tensor]:
    """Rotated queries, rotated keys, and phases, from a record; all finite."""
    rot_q, rot_k = rotary.rotated_vectors(model, record, positions)
    refuse_non_finite(rotary.layer, rot_q, rot_k, spans)
    return [rot_q, rot_k, rotary.phase(model, record, positions)]


def _vectors(
    model: TransformerLensModel, rotary: RotaryLayer, parts: Sequence[Tensor], window: int | None, run_length: int
) -> LayerVectors:
    rot_q, rot_k, phases = parts
    bands = active_bands(model, rotary.layer, rot_k.shape[1], rot_k.device, run_length)
    return LayerVectors(rotary, rot_q, rot_k, phases, window, bands)


def _prove_scores(
    vectors: LayerVectors,
    own: Float[Tensor, "batch head query_pos key_pos"],
    spans: Sequence[tuple[int, int]],
    first: int = 0,
) -> None:
    """Compare a few rows of each sequence with scores rebuilt from the vectors.

    Args:
        vectors: Rotated queries and keys from position zero on.
        own: The model's scores, or pattern, for the last keys.
        spans: First, and one past the last, query of each sequence to take rows from.
        first: Position of the first query.
    """
    rotary, keys = vectors.rotary, own.shape[-1]
    for sequence, (start, stop) in enumerate(spans):
        rows = torch.linspace(start, stop - 1, min(CHECKED_ROWS, stop - start), device=own.device).round().long()
        # the cache of a sliding window drops early keys, so the model's scores may be for the last ones only
        rebuilt = vectors.scores(sequence, first + rows)[..., -keys:]
        checked = own[sequence, :, rows][None]
        error = rotary.score_error(rebuilt, checked, rotary.masked_entries(checked))
        if not error <= TOLERANCE[own.dtype]:
            msg = (
                f"layer {rotary.layer}: rotated queries and keys miss the model's own attention scores by "
                f"{error:.2g} of the largest score, more than the {TOLERANCE[own.dtype]:.0e} that rounding explains"
            )
            raise UnsupportedModelError(msg)
