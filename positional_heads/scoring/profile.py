"""Profile the contributions of some heads by distance, in one pass over a text, without a T x T tensor."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.bridge.sequences import Mask, Text
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.contributions import contribution_sums, expand_key_heads, remainder_sums
from positional_heads.core.heads import Head, Heads, as_heads
from positional_heads.core.plan import EntryPlan
from positional_heads.core.rotary import pair_frequencies
from positional_heads.results.profile import ContributionProfile
from positional_heads.scoring.batches import Row, capture_batch, run_provenance, sized_batches


@checked
def contribution_profile(
    model: TransformerLensModel,
    tokens: Text,
    heads: Heads,
    *,
    attention_mask: Mask | None = None,
    skip_keys: int = 0,
    batch_size: int | None = None,
    beyond_context: bool = False,
) -> ContributionProfile:
    """Mean contribution of every pair at every distance, for some heads, over all query-key pairs of a text.

    At each distance the contributions and the unrotated remainder add up to the mean attention score before soft-cap
    and mask (method section 2). As in scoring, every layer must first reproduce the model's own attention scores.

    Args:
        model: A TransformerBridge.
        tokens: One text, a list of texts (none longer than the model's context, see `cut_text`), or token ids.
        heads: Which heads, e.g. `scores.top(4)`, or "L3H7" and (3, 7), one or several.
        attention_mask: 1 for real tokens, 0 for padding on either side; only with token ids.
        skip_keys: Ignore the first keys of each sequence, e.g. 1 for an attention sink.
        batch_size: Sequences per forward pass; chosen by length when None.
        beyond_context: Allow sequences longer than the model's context.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
        ValueError: If a head does not exist or its layer does not rotate, or the input makes no sense.
    """
    chosen = list(dict.fromkeys(as_heads(heads, int(model.cfg.n_layers), int(model.cfg.n_heads))))
    in_range("skip_keys", skip_keys, 0, 2**31)
    rotary = _rotary_layers(model, chosen)
    data = sized_batches(model, tokens, attention_mask, batch_size, beyond_context=beyond_context)
    longest = max(length for batch in data for length in batch.lengths)  # less than the width, if all are padded
    if skip_keys >= longest:
        msg = f"no query-key pair counts: skip_keys {skip_keys} leaves none in sequences of at most {longest} tokens"
        raise ValueError(msg)
    sums = _Sums(chosen, rotary[0].n_pairs, longest, skip_keys)
    for batch in data:
        capture_batch(model, batch, rotary, sums.add)
    return sums.result(run_provenance(model, data, {"skip_keys": skip_keys}))


class _Sums:
    """Sums and counts by head and distance."""

    def __init__(self, heads: list[Head], n_pairs: int, longest: int, skip_keys: int) -> None:
        self.heads, self.skip_keys = heads, skip_keys
        self.pairs = torch.zeros(len(heads), n_pairs, longest, dtype=torch.float64)
        self.rest = torch.zeros(len(heads), longest, dtype=torch.float64)
        self.counts = torch.zeros(len(heads), longest, dtype=torch.long)
        self.frequencies = torch.zeros(self.pairs.shape[:2], dtype=torch.float64)

    def add(self, vectors: LayerVectors, rows: list[Row]) -> None:
        """Fold in one layer of one batch, for the heads that are in it."""
        for row in rows:
            self._add_row(vectors, row)

    def _add_row(self, vectors: LayerVectors, row: Row) -> None:
        rotary, length, span = vectors.rotary, row.length, slice(row.start, row.stop)
        rest_q, rest_k = (
            expand_key_heads(x[row.number : row.number + 1, span], rotary.n_heads)[0, :, :, rotary.rotary_dim :].cpu()
            for x in (vectors.rot_q.detach(), vectors.rot_k.detach())
        )
        ranges = [
            (slice(nearest, length if furthest is None else min(length, furthest + 1)), query.cpu(), key.cpu())
            for nearest, furthest, (query, key) in vectors.by_distance(row.number, row.start, row.stop)
        ]
        counts = EntryPlan((length,), vectors.window, self.skip_keys).entry_counts
        visible = counts > 0
        frequencies = pair_frequencies(vectors.phase(row.number)[span]).abs().cpu()
        for number, head in enumerate(self.heads):
            if head.layer != rotary.layer:
                continue
            for distances, query, key in ranges:
                added = contribution_sums(query[head.head], self._without_skipped(key[head.head]))[:, distances]
                self.pairs[number, :, :length][:, distances] += added * rotary.scale * visible[distances]
            rest = remainder_sums(rest_q[:, head.head], self._without_skipped(rest_k[:, head.head]))
            self.rest[number, :length] += rest * rotary.scale * visible
            self.counts[number, :length] += counts
            self.frequencies[number] = frequencies

    def _without_skipped(self, key: Tensor) -> Tensor:
        """The keys of one head, with those that do not count set to zero: they then add nothing to any sum."""
        kept = key.clone()
        kept[: self.skip_keys] = 0
        return kept

    def result(self, provenance: dict[str, Any]) -> ContributionProfile:
        counts = self.counts.double()
        return ContributionProfile(
            heads=self.heads,
            mean=self.pairs / counts[:, None],  # NaN at distances where no query-key pair counts
            unrotated=self.rest / counts,
            pair_counts=self.counts,
            edges=torch.arange(counts.shape[1] + 1),
            frequencies=self.frequencies,
            provenance=provenance,
        )


def _rotary_layers(model: TransformerLensModel, heads: Sequence[Head]) -> list[RotaryLayer]:
    if not heads:
        msg = "no head given: ask for at least one, e.g. scores.top(4)"
        raise ValueError(msg)
    rotary = resolve_layers(model).select([head.layer for head in heads])
    widths = {one.n_pairs for one in rotary}
    if len(widths) > 1:
        msg = f"the heads' layers have {sorted(widths)} pairs: make a profile of each kind of layer on its own"
        raise ValueError(msg)
    return rotary
