"""Batch the sequences of a run, and run each batch through the model, one layer's vectors at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.capture import capture
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.plain_capture import plain_capture_refusal
from positional_heads.bridge.prefill import chunk_length, refuse_fixed_tables
from positional_heads.bridge.provenance import data_hash, library_versions, model_provenance
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.bridge.run_cost import run_costs
from positional_heads.bridge.sequences import Batch, Mask, Text, TokenRow, batches, real_spans
from positional_heads.core.arguments import in_range
from positional_heads.scoring.progress import Work

SCORES_PER_BATCH = 2**22
"""Attention scores per layer in one batch, where no batch size is given: 16 MiB of float32."""


class Row(NamedTuple):
    """The real tokens of one row of a batch.

    Attributes:
        number: Number of the row in the batch.
        sequence: Number of the sequence among all.
        start: First real token.
        stop: One past the last real token.
    """

    number: int
    sequence: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Real tokens."""
        return self.stop - self.start


def sized_batches(
    model: TransformerLensModel, tokens: Text, attention_mask: Mask | None, batch_size: int | None, **allowed: bool
) -> list[Batch]:
    """Check the input and group it into batches.

    Args:
        model: A TransformerBridge.
        tokens: Text or token ids, see `bridge.sequences.as_sequences`.
        attention_mask: 1 for real tokens, 0 for padding; only with token ids.
        batch_size: Sequences per forward pass; chosen by the longest sequence when None.
        **allowed: `beyond_context` and `plain_text`, see `bridge.sequences.batches`.

    Raises:
        ValueError: If there is nothing to run, or the model cannot take it.
    """
    in_range("batch_size", batch_size, 1)
    data = batches(model, tokens, attention_mask, batch_size or 1, **allowed)
    longest = max(batch.tokens.shape[1] for batch in data)
    refuse_fixed_tables(model, longest)
    if batch_size is not None:
        return data
    return batches(model, tokens, attention_mask, fitting_rows(int(model.cfg.n_heads), longest), **allowed)


def fitting_rows(heads: int, longest: int) -> int:
    """Sequences per forward pass where no batch size is given.

    Args:
        heads: Heads of a layer.
        longest: Tokens of the longest sequence.
    """
    return max(1, SCORES_PER_BATCH // (heads * longest**2))


def capture_batch(
    model: TransformerLensModel,
    batch: Batch,
    rotary: list[RotaryLayer],
    visit: Callable[[LayerVectors, list[Row]], None],
) -> None:
    """Run one batch through the model: in one plain pass, or long sequences in chunks where hooks have to be read.

    Args:
        model: A TransformerBridge.
        batch: What to run.
        rotary: The layers to capture.
        visit: Called once per layer, with its vectors and the rows of the batch.
    """
    spans = real_spans(batch.tokens, batch.attention_mask)
    rows = [Row(row, batch.first + row, *span) for row, span in enumerate(spans)]
    chunk = None
    if batch.attention_mask is None and plain_capture_refusal(model, rotary) is not None:
        chunk = chunk_length(model, *batch.tokens.shape)
    tokens, mask = batch.tokens.to(model.cfg.device), batch.attention_mask
    mask = None if mask is None else mask.to(tokens.device)
    capture(model, tokens, rotary, lambda vectors: visit(vectors, rows), mask, chunk)


def batch_work(model: TransformerLensModel, data: list[Batch]) -> dict[int, Work]:
    """What progress bars reckon with: sequences and cost of each batch, by its number."""
    cost = run_costs(model)
    shapes = [batch.tokens.shape for batch in data]
    return {number: Work(rows * cost(length), rows) for number, (rows, length) in enumerate(shapes)}


def token_rows(data: list[Batch]) -> list[TokenRow]:
    """Tokens and mask of every sequence, in order."""
    return [
        (tokens, None if batch.attention_mask is None else batch.attention_mask[row])
        for batch in data
        for row, tokens in enumerate(batch.tokens)
    ]


def run_provenance(model: TransformerLensModel, data: list[Batch], settings: dict[str, Any]) -> dict[str, Any]:
    """Versions, model, data, settings and extension of a run.

    Args:
        model: A TransformerBridge.
        data: Every batch of the run.
        settings: Settings of the run; must be JSON.
    """
    lengths = [length for batch in data for length in batch.lengths]
    extension = active_extension(model)
    return {
        "versions": library_versions(),
        "model": model_provenance(model),
        "data": {
            "sha256": data_hash(token_rows(data)),
            "sequences": len(lengths),
            "tokens": sum(lengths),
            "longest": max(lengths),
        },
        "settings": settings,
        "extension": None if extension is None else extension.provenance,
    }
