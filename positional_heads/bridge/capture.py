"""Rotated queries and keys of a real run, layer by layer, each checked against the model's own scores as it passes.

Nothing is kept: a layer's vectors are visited while they are at hand and then let go. Of the model's scores only the
mask and a few rows are looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from positional_heads.bridge.active import active_extension
from positional_heads.bridge.attention_interface import reading_attention
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import SCORES, TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.prefill import run_in_chunks
from positional_heads.bridge.recording import Record, recording_hooks
from positional_heads.bridge.resolve import (
    RotaryLayer,
    layer_phase,
    mask_limit,
    masked_entries,
    rebuilt_scores,
    rotated_vectors,
    score_error,
    soft_capped,
    tolerance,
)
from positional_heads.bridge.run_lengths import run_lengths
from positional_heads.bridge.sequences import real_spans
from positional_heads.core.bands import banded_scores, unrotated
from positional_heads.core.contributions import head_planes, unrotated_remainder

CHECKED_ROWS = 16
"""Query positions per layer and run at which rebuilt scores are compared with the model's own."""


@torch.no_grad()
def capture(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    layers: Sequence[RotaryLayer],
    visit: Callable[[LayerVectors], None],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    chunk: int | None = None,
) -> None:
    """Run the model once and visit each layer's rotated queries and keys, proven against its attention scores.

    Args:
        model: A TransformerBridge.
        tokens: Token ids.
        layers: The layers to visit, from `resolve_layers`.
        visit: Called with each layer's vectors, first layer first.
        attention_mask: 1 for real tokens, 0 for padding; all real when None.
        chunk: Tokens to run at a time, with the model's key-value cache; without padding only. All when None.

    Raises:
        UnsupportedModelError: If a layer does not reproduce the model's scores, or hides pairs in a way that
            causality, padding and one window do not explain.
    """
    by_layer = {rotary.layer: rotary for rotary in layers}
    if chunk is not None and chunk < tokens.shape[1]:
        if attention_mask is not None and not bool((attention_mask == 1).all()):
            msg = "padded sequences cannot be run in chunks: give sequences of one length, without padding"
            raise ValueError(msg)
        _capture_chunks(model, tokens, by_layer, visit, chunk)
        return
    positions = padded_positions(tokens, attention_mask)
    spans = real_spans(tokens, attention_mask)

    def check(layer: int, record: Record) -> None:
        rotary = by_layer[layer]
        rot_q, rot_k = rotated_vectors(model, rotary, record, positions)
        _refuse_non_finite(layer, rot_q, rot_k, spans)
        window = _proven_window(rotary, record[SCORES], spans)
        phase = layer_phase(model, rotary, record, positions)
        extension = active_extension(model)
        bands = extension.bands(layer, tokens.shape[1], rot_q.device) if extension is not None else None
        vectors = LayerVectors(rotary, rot_q, rot_k, phase, window, bands)
        _prove_scores(vectors, record[SCORES], spans)
        visit(vectors)

    arguments = {} if attention_mask is None else {"attention_mask": attention_mask}
    lengths = [stop - start for start, stop in spans]
    with run_lengths(model, lengths, attention_mask), _recorded(model, by_layer, check):
        model(tokens, return_type=None, **arguments)


@contextmanager
def _recorded(
    model: TransformerLensModel, by_layer: dict[int, RotaryLayer], check: Callable[[int, Record], None]
) -> Iterator[None]:
    """A block inside which every run hands over these layers' records, from hooks or through the interface."""
    hooked = [layer for layer, rotary in sorted(by_layer.items()) if rotary.source != "interface"]
    with (
        model.hooks(fwd_hooks=recording_hooks(model, hooked, check)),
        reading_attention(model, sorted(by_layer.keys() - hooked), check),
    ):
        yield


@torch.no_grad()
def _capture_chunks(
    model: TransformerLensModel,
    tokens: Int[Tensor, "batch pos"],
    by_layer: dict[int, RotaryLayer],
    visit: Callable[[LayerVectors], None],
    size: int,
) -> None:
    """The same with the tokens a chunk at a time: vectors of all layers are kept, scores of a chunk only."""
    kept: dict[int, list[Tensor]] = {}
    windows: dict[int, int | None] = dict.fromkeys(by_layer)
    done = [0]

    def check(layer: int, record: Record) -> None:
        rotary, held = by_layer[layer], record[SCORES]
        queries, keys = held.shape[-2:]
        known = done[0] + queries
        positions = torch.arange(done[0], known, device=tokens.device)[None]
        rot_q, rot_k = rotated_vectors(model, rotary, record, positions)
        _refuse_non_finite(layer, rot_q, rot_k, [(0, queries)] * len(tokens))
        found = (rot_q, rot_k, layer_phase(model, rotary, record, positions))
        if layer not in kept:  # whole from the start: pieces between what each chunk needs for itself scatter memory
            kept[layer] = [part.new_empty(len(part), tokens.shape[1], *part.shape[2:]) for part in found]
        for whole, part in zip(kept[layer], found, strict=True):
            whole[:, done[0] : known] = part
        vectors = _vectors(model, rotary, [whole[:, :known] for whole in kept[layer]], None, tokens.shape[1])
        windows[layer] = _window_behind_cache(rotary, held, done[0], known)
        rows = _spread_rows(0, queries, held.device)
        for sequence in range(len(tokens)):
            rebuilt = _rebuilt_rows(vectors, sequence, done[0] + rows)[..., known - keys :]
            _refuse_error(rotary, rebuilt, held[sequence, :, rows][None])

    def count(logits: Tensor) -> None:
        done[0] += logits.shape[1]

    with _recorded(model, by_layer, check):
        run_in_chunks(model, tokens, size, count)
    for layer, rotary in sorted(by_layer.items()):
        visit(_vectors(model, rotary, kept.pop(layer), windows[layer], tokens.shape[1]))


def _vectors(
    model: TransformerLensModel, rotary: RotaryLayer, kept: Sequence[Tensor], window: int | None, run_length: int
) -> LayerVectors:
    rot_q, rot_k, phase = kept
    extension = active_extension(model)
    bands = None
    if extension is not None:
        bands = extension.bands(rotary.layer, rot_k.shape[1], rot_k.device, run_length=run_length)
    return LayerVectors(rotary, rot_q, rot_k, phase, window, bands)


def _window_behind_cache(
    rotary: RotaryLayer, held: Float[Tensor, "batch head query_pos key_pos"], first: int, known: int
) -> int | None:
    """The window that a chunk's mask shows; its keys are the last of all known ones, a cache may have dropped some."""
    keys = held.shape[-1]
    window = _window_of_row(rotary, held[0, 0, -1]) if rotary.records == "scores" else known
    for row in held:
        _refuse_unexplained(
            rotary, row, first - (known - keys), window, "causality and one sliding window do not explain"
        )
    return window if window < known else None


def padded_positions(
    tokens: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"] | None
) -> Int[Tensor, "rows pos"]:
    """Position of each token, as the host counts them: real tokens from zero, also behind left padding."""
    if attention_mask is None:
        return torch.arange(tokens.shape[1], device=tokens.device)[None]
    positions = attention_mask.long().cumsum(-1) - 1
    return positions.masked_fill(attention_mask == 0, 1).to(tokens.device)


def visible_entries(length: int, window: int | None, device: torch.device) -> Bool[Tensor, "{length} {length}"]:
    """Which keys a query sees: none after itself, and none further back than the window."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < (length if window is None else window))


def _proven_window(
    rotary: RotaryLayer, held: Float[Tensor, "batch head query_pos key_pos"], spans: Sequence[tuple[int, int]]
) -> int | None:
    longest = max(stop - start for start, stop in spans)
    window = longest
    if rotary.records == "scores":
        last = (
            _window_of_row(rotary, row[0, stop - 1, start:stop]) for row, (start, stop) in zip(held, spans, strict=True)
        )
        window = max(last)
    unexplained = (
        "causality, padding and one sliding window do not explain (a document mask, chunks, a mask of one head, an "
        "ignored attention_mask): it cannot be scored"
    )
    for row, (start, stop) in zip(held, spans, strict=True):
        _refuse_unexplained(rotary, row[:, start:stop, start:stop], 0, window, unexplained)
        _refuse_unexplained(rotary, row[:, start:stop, :start], start, 0, unexplained)
    return window if window < longest else None


def _refuse_unexplained(
    rotary: RotaryLayer,
    held: Float[Tensor, "head query_pos key_pos"],
    offset: int,
    window: int,
    why: str,
) -> None:
    """Refuse masks but the one that the window says, for every head and query.

    Args:
        rotary: How the layer rotates.
        held: Scores after the mask, or the pattern.
        offset: Position of the first query less that of the first key.
        window: Distances that the mask lets through.
        why: What to say.
    """
    queries, keys = held.shape[1:]
    visible = torch.ones(queries, keys, dtype=torch.bool, device=held.device).tril_(offset).triu_(offset - window + 1)
    smallest, largest = held.amin(0), held.amax(0)  # of all heads: a third of the time of looking at each
    if rotary.records == "scores":
        limit = mask_limit(smallest)
        wrong = torch.where(visible, smallest <= limit, ~(largest <= limit))
    else:
        wrong = ~visible & ~((smallest == 0) & (largest == 0))
    if bool(wrong.any()):
        msg = f"layer {rotary.layer} masks query-key pairs in a way that {why}"
        raise UnsupportedModelError(msg)


def _spread_rows(start: int, stop: int, device: torch.device) -> Int[Tensor, " row"]:
    """Query positions at which scores are rebuilt."""
    return torch.linspace(start, stop - 1, min(CHECKED_ROWS, stop - start), device=device).round().long()


def _window_of_row(rotary: RotaryLayer, held: Float[Tensor, " key_pos"]) -> int:
    """Number of keys that the last query sees."""
    return int((~masked_entries(rotary, held)).sum())


def _prove_scores(
    vectors: LayerVectors, held: Float[Tensor, "batch head query_pos key_pos"], spans: Sequence[tuple[int, int]]
) -> None:
    for sequence, (start, stop) in enumerate(spans):
        rows = _spread_rows(start, stop, held.device)
        rebuilt = _rebuilt_rows(vectors, sequence, rows)
        _refuse_error(vectors.rotary, rebuilt, held[sequence, :, rows][None])


def _refuse_error(
    rotary: RotaryLayer,
    rebuilt: Float[Tensor, "batch head row key_pos"],
    held: Float[Tensor, "batch head row key_pos"],
) -> None:
    error = score_error(rotary, rebuilt, held, masked_entries(rotary, held))
    if not error <= tolerance(held.dtype):
        msg = (
            f"layer {rotary.layer}: rotated queries and keys miss the model's own attention scores by "
            f"{error:.2g} of the largest score, more than the {tolerance(held.dtype):.0e} that rounding explains. "
            "Is a hook on hook_attn_scores changing them? Nothing was scored"
        )
        raise UnsupportedModelError(msg)


def _rebuilt_rows(
    vectors: LayerVectors, sequence: int, rows: Int[Tensor, " row"]
) -> Float[Tensor, "batch head row key_pos"]:
    """Scores that some queries of a sequence give every key, from its vectors alone."""
    rotary, query, key = vectors.rotary, vectors.rot_q[sequence, rows][None], vectors.rot_k[sequence][None]
    if vectors.bands is None:
        return rebuilt_scores(rotary, query, key)
    phase = vectors.phase[min(sequence, len(vectors.phase) - 1)]
    planes = [head_planes(x, rotary.layout, rotary.rotary_dim, rotary.n_heads)[0] for x in (query, key)]
    rotated = banded_scores(vectors.bands, unrotated(planes[0], phase[rows]), unrotated(planes[1], phase), rows)
    scores = (rotated + unrotated_remainder(query, key, rotary.rotary_dim)) * rotary.scale
    return scores if rotary.soft_cap is None else soft_capped(scores, rotary.soft_cap)


def _refuse_non_finite(layer: int, rot_q: Tensor, rot_k: Tensor, spans: Sequence[tuple[int, int]]) -> None:
    for sequence, (start, stop) in enumerate(spans):
        for name, tensor in (("query", rot_q), ("key", rot_k)):
            if tensor[sequence, start:stop].sum(dtype=torch.float32).isfinite():
                continue  # a tenth of the time that looking at every value takes
            bad = ~torch.isfinite(tensor[sequence, start:stop]).all(dim=-1).all(dim=0)
            if bad.any():
                msg = (
                    f"layer {layer}, {name} head {int(bad.nonzero()[0])}: not finite. A weight is NaN or infinite, or "
                    "the model overflows in this precision: check the checkpoint, or load it in float32"
                )
                raise UnsupportedModelError(msg)
