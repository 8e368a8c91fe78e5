"""Profile how attention and scores depend on distance, in models of every encoding of position."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from re import search

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.active_edits import edits_named, model_edits, refuse_edited_pattern
from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.attention_scores import (
    Source,
    refuse_other_mask,
    refuse_other_patterns,
    score_sources,
    scores_read,
)
from positional_heads.bridge.capture import capture
from positional_heads.bridge.found_hooks import original
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import (
    TransformerLensModel,
    UnsupportedModelError,
    layers_with_attention,
    refuse_unreadable,
)
from positional_heads.bridge.prefill import chunk_length, run_in_chunks
from positional_heads.bridge.resolve import NO_ATTENTION, NO_ROTATION, resolve_layers
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.bridge.run_lengths import run_lengths
from positional_heads.bridge.sequences import Batch, Mask, Text, as_sequences, real_tokens
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.attention_sums import query_blocks, visible_pattern
from positional_heads.core.distance_sums import DistanceSums
from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.profile import geometric_edges
from positional_heads.scoring.batches import Row, batch_work, capture_batch, run_provenance, sized_batches
from positional_heads.scoring.distance_counter import DistanceCounter
from positional_heads.scoring.profile_counter import padded_scores
from positional_heads.scoring.progress import work_bar
from positional_heads.scoring.score import origin_of, score_heads

RANGES = 24
"""Ranges of distance if none are asked for."""
PROVEN_ENTRIES = 2**26
"""Entries of the patterns of all layers that are compared with the original's: 256 MiB in float32."""
LEAST_PROVEN = 64
MIXERS = r"Mixer|Mamba|Delta|Rwkv\w*Attention|Recurrent|Conv|LinearAttention|Hyena"
"""Names of modules that mix tokens without attention."""


@checked
def distance_profile(
    model: TransformerLensModel,
    tokens: Text,
    *,
    attention_mask: Mask | None = None,
    layers: Sequence[int] | None = None,
    edges: Sequence[int] | None = None,
    window: int = 256,
    sinks: int = 4,
    batch_size: int | None = None,
    beyond_context: bool = False,
    plain_text: bool = False,
    progress: bool = False,
) -> DistanceProfile:
    """How far every head attends, and how much of its scores distance explains, whatever the encoding of position.

    Dominant dimensions exist only where rotation does. This is what learned, sinusoidal, ALiBi, rotary and no encoding
    have in common (docs/distances.md): attention by distance, against a head that attends evenly, and the share of the
    variance of the score that distance explains. Rotary layers have the curve of D beside it.

    Nothing is measured unless it is the model's own: rotary layers are proven as in `score_heads`; in others the
    pattern must be the softmax of the scores; and each layer must attend as Hugging Face's own model does without the
    bridge, on the beginning of the longest sequence.

    Args:
        model: A TransformerBridge; it need not be rotary. State-space and linear-attention layers are left out.
        tokens: As in `score_heads`.
        attention_mask: As in `score_heads`; padding is cut off before anything runs.
        layers: Layers to profile, all with attention when None.
        edges: First distance of each range, ascending from 0, e.g. (0, 1, 2, 4, 8, 16); the last range is open. When
            None, 24 ranges at most, each about as wide for its distance.
        window: Distances that count as near, 0 to window - 1; attention beyond is distant.
        sinks: First keys of each sequence that count as sinks.
        batch_size: Sequences of equal length per forward pass; chosen by length when None.
        beyond_context: Allow sequences longer than the model's context, where its encoding does.
        plain_text: As in `score_heads`.
        progress: Show progress bars.

    Raises:
        UnsupportedModelError: If the model has no attention, its scores cannot be read, or it does not attend as the
            original model does; or a hook acts on a model that is not rotary, so that this cannot be proven.
        ValueError: If input or settings make no sense, or a layer has no attention.
    """
    in_range("window", window, 1, 2**31)
    in_range("sinks", sinks, 0, 2**20)
    _refuse_edges(edges)
    edges = None if edges is None else list(edges)
    refuse_unreadable(model)
    chosen = _Layers(model, layers)
    rows = [real_tokens(*row) for row in as_sequences(model, tokens, attention_mask, plain_text=plain_text)]
    data = sized_batches(model, rows, None, batch_size, beyond_context=beyond_context)
    lengths = tuple(length for batch in data for length in batch.lengths)
    chosen.refuse_long(max(lengths))
    if sinks >= max(lengths) - 1:
        msg = f"sinks {sinks} leave no two keys of the longest sequence of {max(lengths)} tokens: give fewer"
        raise ValueError(msg)
    first = geometric_edges(max(lengths), RANGES)[:-1].tolist() if edges is None else edges
    if first[-1] >= max(lengths):
        msg = f"edges: the last range begins at {first[-1]} tokens, and the longest sequence has {max(lengths)}"
        raise ValueError(msg)
    with edits_named(model):
        counter = DistanceCounter(lengths, first, window, sinks)
        chosen.prove(max(data, key=lambda batch: batch.tokens.shape[1]).tokens[:1])
        with work_bar(
            batch_work(model, data), (), title="profiling distances", unit="sequences", shown=progress
        ) as bar:
            for number, batch in enumerate(data):
                chosen.count(batch, counter)
                bar.finish([number])
    scores = None
    if chosen.rotary:
        scored = [rotary.layer for rotary in chosen.rotary]
        scores = score_heads(
            model, rows, layers=scored, beyond_context=beyond_context, batch_size=batch_size, progress=progress
        )
    provenance = run_provenance(model, data, {"edges": edges, "window": window, "sinks": sinks})
    provenance["data"] |= {"groups": counter.groups, **origin_of(tokens)}
    return counter.result(
        (int(model.cfg.n_layers), int(model.cfg.n_heads)),
        scores,
        encodings=chosen.encodings,
        reasons=chosen.reasons,
        provenance=provenance,
    )


def _refuse_edges(edges: Sequence[int] | None) -> None:
    if edges is not None and (not len(edges) or edges[0] != 0 or any(a >= b for a, b in pairwise(edges))):
        msg = f"edges {list(edges)} must ascend from 0, e.g. (0, 1, 2, 4, 8, 16): each is the first distance of a range"
        raise ValueError(msg)


class _Layers:
    """The layers of one run: how each is read, and its encoding of position.

    Attributes:
        rotary: Layers whose scores are rebuilt from rotated queries and keys.
        encodings: Encoding of every layer of the model; empty for those left out.
        reasons: Why a layer is left out, or has no dominant dimension.
    """

    def __init__(self, model: TransformerLensModel, layers: Sequence[int] | None) -> None:
        self.model, count = model, int(model.cfg.n_layers)
        attending = layers_with_attention(model)
        self.reasons = {layer: _no_attention(model, layer) for layer in range(count) if layer not in attending}
        if not attending:
            msg = f"no layer of this model can be profiled: {self.reasons[0]}, so no key has a distance"
            raise UnsupportedModelError(msg)
        chosen = attending if layers is None else _existing(layers, count, self.reasons)
        resolved, why = _resolved(model)
        self.rotary = [resolved[layer] for layer in chosen if layer in resolved]
        self._sources: dict[int, Source] = {}
        others = [layer for layer in chosen if layer not in resolved]
        if others:
            self._refuse_unprovable(others)
            self._sources = score_sources(model, others)
        encoding = {"alibi": "alibi", "rotary": "none", "none": "none"}
        usual = encoding.get(str(getattr(model.cfg, "positional_embedding_type", "none")), "added")
        kinds = {**dict.fromkeys(others, usual), **{one.layer: "rotary" for one in self.rotary}}
        self.encodings = [kinds.get(layer, "") for layer in range(count)]
        self.reasons |= {layer: why.get(layer, NO_ROTATION) for layer in others}
        self.reasons |= {layer: "not asked for" for layer in attending if layer not in chosen}

    def refuse_long(self, longest: int) -> None:
        """Refuse sequences beyond the table of positions that are added to embeddings.

        Raises:
            ValueError: If there are some.
        """
        limit = int(self.model.cfg.n_ctx)
        if "added" in self.encodings and longest > limit:
            msg = f"{longest} tokens are more than this model's context of {limit}, where its table of positions ends"
            raise ValueError(msg)

    def prove(self, tokens: Int[Tensor, "1 pos"]) -> None:
        """Compare each layer's pattern on the beginning of a sequence with that of Hugging Face's own model.

        Rotary layers of an edited or extended model, which the original does not know, are proven by `capture` alone.

        Raises:
            UnsupportedModelError: If one differs.
        """
        if model_edits(self.model) or active_extension(self.model) is not None:
            refuse_edited_pattern(self.model, [rotary.layer for rotary in self.rotary])
            return
        attending = len(self.rotary) + len(self._sources)
        most = int((PROVEN_ENTRIES / (attending * int(self.model.cfg.n_heads))) ** 0.5)
        probe, patterns = tokens[:, : max(LEAST_PROVEN, most)].to(self.model.cfg.device), {}
        length = probe.shape[1]

        def keep(vectors: LayerVectors) -> None:
            row = Row(0, 0, 0, length)
            own = visible_pattern(padded_scores(vectors, row)(0, length), 0, length, vectors.window)
            patterns[vectors.rotary.layer] = own[:, :, length:].clone()

        if self.rotary:
            capture(self.model, probe, self.rotary, keep)
        if self._sources:
            whole: dict[int, Tensor] = {}

            def collect(layer: int, start: int, scores: Tensor) -> None:
                queries, keys = scores.shape[2:]
                kept = whole.setdefault(layer, torch.full((scores.shape[1], length, length), -torch.inf))
                kept[:, start : start + queries, start + queries - keys : start + queries] = scores[0].cpu()

            self._run(probe, collect, size=self._chunk(tokens) and -(-length // 2))
            patterns |= {layer: scores.softmax(-1).to(probe.device) for layer, scores in whole.items()}
        refuse_other_patterns(self.model, probe, patterns)

    def count(self, batch: Batch, counter: DistanceCounter) -> None:
        """Run one batch and count every layer of it."""
        length = batch.tokens.shape[1]

        def visit(vectors: LayerVectors, rows: list[Row]) -> None:
            for row in rows:
                heads = vectors.rotary.n_heads
                sums, scores = counter.sums(heads, length), padded_scores(vectors, row)
                for start, stop in query_blocks(heads, length, vectors.rot_q.device):
                    sums.add(scores(start, stop), start, stop, vectors.window)
                counter.add(vectors.rotary.layer, row.sequence, sums)

        if self.rotary:
            capture_batch(self.model, batch, self.rotary, visit)
        if self._sources:
            tokens = batch.tokens.to(self.model.cfg.device)
            open_sums: dict[tuple[int, int], DistanceSums] = {}

            def add(layer: int, start: int, scores: Tensor) -> None:
                for row, own in enumerate(scores):
                    sums = open_sums.setdefault((layer, row), counter.sums(len(own), length))
                    _add_in_blocks(sums, own, start)

            self._run(tokens, add, size=self._chunk(tokens))
            for (layer, row), sums in sorted(open_sums.items()):
                counter.add(layer, batch.first + row, sums)

    def _chunk(self, tokens: Int[Tensor, "batch pos"]) -> int | None:
        """Tokens per pass of the layers that are read by hooks; None for one pass."""
        if {"scaled", "unscaled"} & {*self._sources.values()}:  # hooks show the keys of one pass only
            return None
        size = chunk_length(self.model, *tokens.shape)
        return size if size < tokens.shape[1] else None

    @torch.no_grad()
    def _run(
        self,
        tokens: Int[Tensor, "batch pos"],
        visit: Callable[[int, int, Float[Tensor, "batch head query_pos key_pos"]], None],
        size: int | None,
    ) -> None:
        """Run the model and visit the scores of each layer that is not rotary, with the position of the first query."""
        start = 0

        def prove_and_visit(layer: int, scores: Tensor) -> None:
            if scores.shape[1] != int(self.model.cfg.n_heads):
                msg = f"layer {layer} has {scores.shape[1]} heads, and the model's configuration another number"
                raise UnsupportedModelError(msg)
            refuse_other_mask(layer, scores)
            visit(layer, start, scores)

        def advance(logits: Tensor) -> None:
            nonlocal start
            start += logits.shape[1]

        with scores_read(self.model, self._sources, prove_and_visit):
            if size is not None:
                run_in_chunks(self.model, tokens, size, advance)
                return
            with run_lengths(self.model, [tokens.shape[1]]):
                self.model(tokens, return_type=None)

    def _refuse_unprovable(self, layers: list[int]) -> None:
        """Refuse layers without rotation while something acts on the model: the original does not know it."""
        if model_edits(self.model) or active_extension(self.model) is not None:
            msg = (
                f"layer {layers[0]} does not rotate, so its attention is proven by Hugging Face's own model, which "
                "knows nothing of the hooks, ablations or extension that act on this one: profile it without them, or "
                "the rotary layers alone (layers=)"
            )
            raise UnsupportedModelError(msg)


def _add_in_blocks(sums: DistanceSums, scores: Float[Tensor, "head query_pos key_pos"], first: int) -> None:
    """Add the queries of one pass; keys that a cache has dropped are hidden.

    Args:
        sums: Where to add them.
        scores: -inf at hidden keys; the last key is that of the last query.
        first: Position of the first query.
    """
    heads, queries, keys = scores.shape
    missing = first + queries - keys
    for start, stop in query_blocks(heads, max(keys, queries), scores.device):
        if start >= queries:
            return
        until = min(stop, queries)
        own = scores[:, start:until, : first + until - missing]
        sums.add(
            torch.nn.functional.pad(own, (until - start + missing, 0), value=-torch.inf), first + start, first + until
        )


def _existing(layers: Sequence[int], count: int, without: dict[int, str]) -> list[int]:
    """The layers asked for, in order.

    Raises:
        ValueError: If there is none, one does not exist, or it has no attention.
    """
    if not len(layers):
        msg = f"no layer given: name some of 0 to {count - 1}, or leave layers= out for all with attention"
        raise ValueError(msg)
    for layer in layers:
        if not 0 <= layer < count:
            msg = f"layer {layer} does not exist: the model has layers 0 to {count - 1}"
            raise ValueError(msg)
        if layer in without:
            msg = f"layer {layer} cannot be profiled: {without[layer]}"
            raise ValueError(msg)
    return sorted(set(layers))


def _resolved(model: TransformerLensModel) -> tuple[dict[int, RotaryLayer], dict[int, str]]:
    """The rotary layers, and why others, or all, are none."""
    try:
        found = resolve_layers(model)
    except UnsupportedModelError as error:
        reason = f"no dominant dimensions, because {error}"
        return {}, dict.fromkeys(range(int(model.cfg.n_layers)), reason)
    return found.layers, found.unscored


def _no_attention(model: TransformerLensModel, layer: int) -> str:
    """Why a layer has no attention scores, with what it has instead."""
    modules = original(model.blocks[layer]).named_children()
    kinds = [type(original(module)).__name__ for _, module in modules]
    mixers = [kind for kind in kinds if search(MIXERS, kind) and "Norm" not in kind]
    return f"{NO_ATTENTION}, but a state ({mixers[0]}) without queries and keys" if mixers else NO_ATTENTION
