"""From a model and text to what each pair adds to the attention of some heads, by distance: one pass, nothing T x T."""

from collections.abc import Sequence
from typing import Any

import torch

from positional_heads.bridge.active import active_extension
from positional_heads.bridge.capture import capture
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.prefill import chunk_length, refuse_fixed_tables
from positional_heads.bridge.provenance import data_hash, library_versions, model_provenance
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.bridge.sequences import Batch, Mask, Text, batches, real_spans
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.contributions import contribution_sums, expand_key_heads, remainder_sums
from positional_heads.core.heads import Head, Heads, as_heads
from positional_heads.core.plan import EntryPlan
from positional_heads.core.rotary import pair_frequencies
from positional_heads.results.profile import ContributionProfile


@checked
def contribution_profile(
    model: TransformerLensModel,
    text_or_tokens: Text,
    heads: Heads,
    *,
    attention_mask: Mask | None = None,
    skip_keys: int = 0,
    batch_size: int = 1,
    beyond_context: bool = False,
) -> ContributionProfile:
    """Mean contribution of every pair at every distance, for some heads, over all query-key pairs of a text.

    At each distance the pairs and the unrotated remainder add up to the mean attention score before soft-cap and mask
    (method section 2). As in scoring, every layer is proven on the model's own attention scores.

    Args:
        model: A TransformerBridge.
        text_or_tokens: One text, a list of texts (none longer than the model's context, see `cut_text`), or token ids.
        heads: Which heads, e.g. `scores.top(4)`, or "L3H7" and (3, 7), one or several.
        attention_mask: 1 for real tokens, 0 for padding on either side; only with token ids.
        skip_keys: Leading keys of each sequence that do not count, e.g. 1 for an attention sink.
        batch_size: Sequences per forward pass.
        beyond_context: Allow sequences longer than the model's context.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
        ValueError: If a head does not exist or its layer does not rotate, or the input makes no sense.
    """
    chosen = list(dict.fromkeys(as_heads(heads, int(model.cfg.n_layers), int(model.cfg.n_heads))))
    in_range("skip_keys", skip_keys, 0, 2**31)
    rotary = _layers_of(model, chosen)
    data = batches(model, text_or_tokens, attention_mask, batch_size, beyond_context=beyond_context)
    refuse_fixed_tables(model, max(batch.tokens.shape[1] for batch in data))
    longest = max(length for batch in data for length in batch.lengths)  # less than the width, if all are padded
    sums = _Sums(chosen, {one.layer: one.n_pairs for one in rotary}, longest, skip_keys)
    for batch in data:
        spans = real_spans(batch.tokens, batch.attention_mask)
        chunk = chunk_length(model, *batch.tokens.shape) if batch.attention_mask is None else None

        def visit(vectors: LayerVectors, spans: list[tuple[int, int]] = spans) -> None:
            for row, (start, stop) in enumerate(spans):
                sums.add(vectors, row, start, stop)

        capture(model, batch.tokens, rotary, visit, batch.attention_mask, chunk)
    return sums.result(_provenance(model, data, skip_keys))


class _Sums:
    """Sums and counts by head and distance, one sequence and layer after the other."""

    def __init__(self, heads: list[Head], n_pairs: dict[int, int], longest: int, skip_keys: int) -> None:
        self.heads, self.skip_keys = heads, skip_keys
        widths = {n_pairs[head.layer] for head in heads}
        if len(widths) > 1:
            msg = f"the heads' layers have {sorted(widths)} pairs: make a profile of each kind of layer on its own"
            raise ValueError(msg)
        self.pairs = torch.zeros(len(heads), widths.pop(), longest, dtype=torch.float64)
        self.rest = torch.zeros(len(heads), longest, dtype=torch.float64)
        self.counts = torch.zeros(len(heads), longest, dtype=torch.long)
        self.frequencies = torch.zeros(self.pairs.shape[:2], dtype=torch.float64)

    def add(self, vectors: LayerVectors, row: int, start: int, stop: int) -> None:
        """Fold in one sequence's real tokens, for those of the heads that are in this layer."""
        rotary, length = vectors.rotary, stop - start
        rot_q, rot_k = vectors.rot_q[row : row + 1, start:stop], vectors.rot_k[row : row + 1, start:stop]
        rest_q, rest_k = (
            expand_key_heads(x, rotary.n_heads)[0, :, :, rotary.rotary_dim :].detach().cpu() for x in (rot_q, rot_k)
        )
        rest_k = rest_k.clone()
        rest_k[: self.skip_keys] = 0
        counts = EntryPlan((length,), vectors.window, self.skip_keys).entry_counts
        seen = counts > 0
        ranges = [
            (slice(nearest, length if furthest is None else min(length, furthest + 1)), query.cpu(), key.cpu())
            for nearest, furthest, (query, key) in vectors.by_distance(row, start, stop)
        ]
        for place, head in enumerate(self.heads):
            if head.layer != rotary.layer:
                continue
            for distances, query, key in ranges:
                own = key[head.head].clone()
                own[: self.skip_keys] = 0
                found = contribution_sums(query[head.head], own)[:, distances] * rotary.scale
                self.pairs[place, :, :length][:, distances] += found * seen[distances]
            rest = remainder_sums(rest_q[:, head.head], rest_k[:, head.head]) * rotary.scale
            self.rest[place, :length] += rest * seen
            self.counts[place, :length] += counts
            self.frequencies[place] = pair_frequencies(vectors.phase(row)[start:stop]).abs().cpu()

    def result(self, provenance: dict[str, Any]) -> ContributionProfile:
        counts = self.counts.double()
        return ContributionProfile(
            heads=self.heads,
            mean=self.pairs / counts[:, None],  # 0 / 0 is NaN: no pair counts
            unrotated=self.rest / counts,
            pair_counts=self.counts,
            edges=torch.arange(counts.shape[1] + 1),
            frequencies=self.frequencies,
            provenance=provenance,
        )


def _layers_of(model: Any, heads: Sequence[Head]) -> list[RotaryLayer]:
    if not heads:
        msg = "no head given: ask for at least one, e.g. scores.top(4)"
        raise ValueError(msg)
    return resolve_layers(model).select([head.layer for head in heads])


def _provenance(model: Any, data: Sequence[Batch], skip_keys: int) -> dict[str, Any]:
    rows = [
        (tokens, None if batch.attention_mask is None else batch.attention_mask[row])
        for batch in data
        for row, tokens in enumerate(batch.tokens)
    ]
    lengths = [length for batch in data for length in batch.lengths]
    extension = active_extension(model)
    return {
        "versions": library_versions(),
        "model": model_provenance(model),
        "data": {
            "sha256": data_hash(rows),
            "sequences": len(lengths),
            "tokens": sum(lengths),
            "longest": max(lengths),
        },
        "settings": {"skip_keys": skip_keys},
        "extension": None if extension is None else extension.provenance,
    }
