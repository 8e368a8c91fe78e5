"""Profile the contributions of some heads by distance, in one pass over a text, without a T x T tensor."""

from typing import Any

import torch
from torch import Tensor

from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import TransformerLensModel, heads_of_model
from positional_heads.bridge.resolve import layers_of_heads
from positional_heads.bridge.sequences import Mask, Text
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.contributions import contribution_sums, expand_key_heads, remainder_sums
from positional_heads.core.heads import Head, Heads
from positional_heads.core.plan import EntryPlan
from positional_heads.core.rotary import pair_frequencies
from positional_heads.results.profile import ContributionProfile
from positional_heads.scoring.batches import Row, batch_work, capture_batch, run_provenance, sized_batches
from positional_heads.scoring.progress import work_bar


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
    progress: bool = False,
) -> ContributionProfile:
    """Mean contribution of every pair at every distance, for some heads, over all query-key pairs of a text.

    At each distance the contributions and the unrotated remainder add up to the mean attention score before soft-cap
    and mask (docs/equations.md, section 2). As in scoring, every layer must first reproduce the model's own attention
    scores.

    Args:
        model: A TransformerBridge.
        tokens: One text, a list of texts (none longer than the model's context, see `cut_text`), or token ids.
        heads: Which heads, e.g. `scores.top(4)`, or "L3H7" and (3, 7), one or several.
        attention_mask: 1 for real tokens, 0 for padding on either side; only with token ids.
        skip_keys: Ignore the first keys of each sequence, e.g. 1 for an attention sink.
        batch_size: Sequences per forward pass; chosen by length when None.
        beyond_context: Allow sequences longer than the model's context.
        progress: Show a progress bar.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
        ValueError: If a head does not exist or its layer does not rotate, or the input makes no sense.
    """
    chosen = list(dict.fromkeys(heads_of_model(model, heads)))
    if not chosen:
        msg = "no head given: ask for at least one, e.g. scores.top(4)"
        raise ValueError(msg)
    in_range("skip_keys", skip_keys, 0, 2**31)
    rotary = layers_of_heads(model, chosen)
    data = sized_batches(model, tokens, attention_mask, batch_size, beyond_context=beyond_context)
    longest = max(length for batch in data for length in batch.lengths)  # less than the width, if all are padded
    if skip_keys >= longest:
        msg = f"no query-key pair counts: skip_keys {skip_keys} leaves none in sequences of at most {longest} tokens"
        raise ValueError(msg)
    sums = _Sums(chosen, rotary[0].n_pairs, longest, skip_keys)
    work = batch_work(model, data)
    with work_bar(work, (), title="profiling heads", unit="sequences", shown=progress) as bar:
        for number in work:
            capture_batch(model, data[number], rotary, sums.add)
            bar.finish([number])
    return sums.result(run_provenance(model, data, {"skip_keys": skip_keys}))


class _Sums:
    """Sums of contributions, and numbers of entries, by head and distance."""

    def __init__(self, heads: list[Head], n_pairs: int, longest: int, skip_keys: int) -> None:
        self.heads, self.skip_keys = heads, skip_keys
        self.contributions = torch.zeros(len(heads), n_pairs, longest, dtype=torch.float64)
        self.rest = torch.zeros(len(heads), longest, dtype=torch.float64)
        self.counts = torch.zeros(len(heads), longest, dtype=torch.long)
        self.frequencies = torch.zeros(self.contributions.shape[:2], dtype=torch.float64)

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
        # sums exist at every distance; those that a window hides from the model are left out
        for number, head in enumerate(self.heads):
            if head.layer != rotary.layer:
                continue
            for distances, query, key in ranges:
                added = contribution_sums(query[head.head], self._without_skipped(key[head.head]))[:, distances]
                self.contributions[number, :, :length][:, distances] += added * rotary.scale * visible[distances]
            rest = remainder_sums(rest_q[:, head.head], self._without_skipped(rest_k[:, head.head]))
            self.rest[number, :length] += rest * rotary.scale * visible
            self.counts[number, :length] += counts
            self.frequencies[number] = frequencies

    def _without_skipped(self, key: Tensor) -> Tensor:
        """The keys of one head; those that do not count are zero, and so add nothing to any sum."""
        key = key.clone()
        key[: self.skip_keys] = 0
        return key

    def result(self, provenance: dict[str, Any]) -> ContributionProfile:
        counts = self.counts.double()
        return ContributionProfile(
            heads=self.heads,
            mean=self.contributions / counts[:, None],  # NaN at distances where no query-key pair counts
            unrotated=self.rest / counts,
            pair_counts=self.counts,
            edges=torch.arange(counts.shape[1] + 1),
            frequencies=self.frequencies,
            provenance=provenance,
        )
