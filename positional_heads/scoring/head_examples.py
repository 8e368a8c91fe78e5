"""Record the attention, dominant dimensions and contributions of some heads on one text, for `views` to draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.capture import capture
from positional_heads.bridge.contribution_hooks import CONTRIBUTIONS, DOMINANT
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import (
    PATTERN,
    TransformerLensModel,
    UnsupportedModelError,
    heads_of_model,
    hook_name,
)
from positional_heads.bridge.plain_capture import plain_capture_refusal
from positional_heads.bridge.provenance import library_versions, model_provenance
from positional_heads.bridge.resolve import layers_of_heads
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.bridge.sequences import Batch, Text, as_sequences, batches, real_tokens
from positional_heads.core.arguments import Temperature, check_temperature, checked, in_range
from positional_heads.core.heads import Head, Heads, as_heads
from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.head_names import MIXED
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import readable_tokens
from positional_heads.scoring.batches import run_provenance
from positional_heads.scoring.per_query import kept_entries, kept_keys, key_means, layer_parts, rebuilt_rows

if TYPE_CHECKING:
    from transformer_lens import ActivationCache

MOST_TOKENS = 8192
MOST_READ = 2048
"""Tokens where the pattern itself has to be read: it is of size T x T, for every head of a layer."""
MOST_DETAILED = 128
MOST_HEADS = 8
FEWEST_TOKENS = 2
REPORTED_TOKENS = 512
REPORTED_HEADS = 5
BEST_HEADS = 3
"""Of the heads shown of a profile, those that come before the clearest one of each name."""


@checked
@torch.no_grad()
def head_examples(
    model: TransformerLensModel,
    tokens: Text,
    heads: Heads,
    *,
    detailed: int = 48,
    temperature: Temperature = 1.0,
) -> HeadExamples:
    """Attention, dominant dimensions and contributions of some heads on one text.

    Of every query the keys with the most attention are kept: all keys of a text of up to 512 tokens, 32 of one of 8192.

    The attention of a plain run is rebuilt from rotated queries and keys a block of queries at a time, after the run
    has proven that it gives the output of the model's own attention. 5 heads of SmolLM2 (135M) on 8192 tokens take
    140 s on one core of a CPU and 3 GiB at most, of which the model has 0.9; on 512 tokens they take 3 s.

    Where no plain run is possible (see `bridge.plain_capture`), the model's own pattern is read, of size T x T for each
    head of a layer, so at most the first 2048 tokens are run.

    Args:
        model: A TransformerBridge.
        tokens: One text, or the token ids of one sequence, as in `score_heads`; at most the first 8192 tokens are run.
        heads: Which heads, at most 8: as Head(3, 7), (3, 7) or "L3H7", one or several.
        detailed: Number of leading tokens of which every query-key pair is kept, at most 128.
        temperature: Softmax temperature of the dominant dimension; "attention" takes the model's attention scale.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
        ValueError: If a head does not exist or its layer does not rotate, or the input makes no sense.
    """
    notes: list[str] = []
    check_temperature(temperature)
    in_range("detailed", detailed, 1, MOST_DETAILED)
    chosen = _first_heads(heads_of_model(model, heads), notes)
    rotary = layers_of_heads(model, chosen)
    plain = plain_capture_refusal(model, rotary) is None
    batch = _first_tokens(model, tokens, MOST_TOKENS if plain else MOST_READ, notes)
    ids = batch.tokens[0]
    detailed = min(detailed, len(ids))
    vectors, patterns = _run(model, ids, [] if plain else chosen, rotary)
    parts: dict[Head, dict[str, Tensor]] = {}
    for one in vectors:
        own = [head for head in chosen if head.layer == one.rotary.layer]
        parts |= layer_parts(one, own, partial(_rows, one, patterns), detailed, temperature)
    provenance = run_provenance(model, [batch], {"temperature": temperature, "detailed": detailed})
    return _record(token_strings(model, ids), chosen, parts, notes, provenance)


@checked
def examples_from_cache(
    cache: "ActivationCache", heads: Heads, tokens: Sequence[str], *, row: int = 0, detailed: int = 48
) -> HeadExamples:
    """The same from a run's own cache, merged with one of `dominant_dimension_cache(..., contributions=True)`.

    Args:
        cache: With hook_pattern, hook_dominant_dim and hook_contributions of the heads' layers, of an unpadded run.
        heads: Which heads, at most 8.
        tokens: Text of each token, as the tokenizer's pieces or decoded.
        row: Which sequence of the batch.
        detailed: Number of leading tokens of which every query-key pair is kept, at most 128.

    Raises:
        ValueError: If the cache lacks an entry or a head, or tokens do not fit.
    """
    notes: list[str] = []
    in_range("detailed", detailed, 1, MOST_DETAILED)
    chosen = _first_heads(as_heads(heads), notes)
    if not hasattr(cache, "cache_dict"):
        msg = f"cache must be an ActivationCache, got a {type(cache).__name__}: take it from model.run_with_cache"
        raise TypeError(msg)
    parts = {}
    for head in chosen:
        pattern, dominant, contributions = (
            _cached(cache, head, name, row) for name in (PATTERN, DOMINANT, CONTRIBUTIONS)
        )
        if len(tokens) != len(pattern):
            msg = f"{len(tokens)} tokens, but the cache is of a run over {len(pattern)}: give that run's tokens"
            raise ValueError(msg)
        detail = {"pattern": pattern, "dominant": dominant, "contributions": contributions}
        parts[head] = {name: part[:detailed, :detailed].clone() for name, part in detail.items()}
        parts[head] |= key_means(pattern, dominant, contributions, 0)
        parts[head] |= kept_entries(pattern, dominant, kept_keys(len(pattern)))
    provenance = {"versions": library_versions(), "model": model_provenance(cache.model), "settings": {}}
    return _record(readable_tokens(tokens), chosen, parts, notes, provenance)


def write_examples(
    model: TransformerLensModel,
    tokens: Int[Tensor, " pos"],
    result: HeadScores | HeadProfile,
    folder: Path,
    most: int = REPORTED_TOKENS,
) -> Path | None:
    """Write the examples that a report shows: the heads to look at first, on the first tokens of a sequence.

    Args:
        model: The model that was scored.
        tokens: A sequence that it was scored on.
        result: What `score_heads` or `profile_heads` returned.
        folder: Folder of the result.
        most: Tokens at most; 0 for no examples. One token has no other to attend to, and gives none either.

    Returns:
        The file; None if none are asked for, no head has a score, or the attention of the model cannot be read.
    """
    scores = result.scores if isinstance(result, HeadProfile) else result
    tokens = tokens[:most]
    if len(tokens) < FEWEST_TOKENS or not scores.n_scored:
        return None
    temperature = scores.provenance["settings"].get("temperature", 1.0)
    try:
        examples = head_examples(model, tokens, shown_heads(result), temperature=temperature)
    except UnsupportedModelError:
        return None
    return examples.save(folder)


def shown_heads(result: HeadScores | HeadProfile) -> list[Head]:
    """The heads to look at first: the one that an explorer opens with, `HeadScores.notable` ones, then the next ones.

    They are ranked by excess, or by rho where there is no null. Of a profile the first three are followed by the
    clearest one of each name.
    """
    scores = result.scores if isinstance(result, HeadProfile) else result
    values = scores.rho if scores.null is None else scores.excess
    best = sorted((head for head in scores.heads if not values[head].isnan()), key=lambda head: -float(values[head]))
    if isinstance(result, HeadScores):
        return list(dict.fromkeys([*best[:1], *scores.notable(REPORTED_HEADS), *best]))[:REPORTED_HEADS]
    named = [heads[0] for name, heads in result.by_name.items() if name != MIXED.name]
    return list(dict.fromkeys([*best[:BEST_HEADS], *named, *scores.notable(MOST_HEADS), *best]))[:MOST_HEADS]


def token_strings(model: TransformerLensModel, tokens: Int[Tensor, " pos"]) -> list[str]:
    """Readable text of each token, or its id if the model has no tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return [str(int(token)) for token in tokens]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = "ByteLevel" in repr(backend.decoder) if backend is not None else None
    pieces = tokenizer.convert_ids_to_tokens(tokens.tolist())
    return readable_tokens([piece or "" for piece in pieces], byte_level=byte_level)


def _first_heads(heads: list[Head], notes: list[str]) -> list[Head]:
    heads = list(dict.fromkeys(heads))
    if not heads:
        msg = "no head given: name at least one, e.g. scores.top(4)"
        raise ValueError(msg)
    if len(heads) > MOST_HEADS:
        notes.append(f"The first {MOST_HEADS} of {len(heads)} heads are kept.")
    return heads[:MOST_HEADS]


def _first_tokens(model: TransformerLensModel, tokens: Text, most: int, notes: list[str]) -> Batch:
    sequences = as_sequences(model, tokens)
    if len(sequences) > 1:
        msg = f"{len(sequences)} sequences given, examples are of one: give one of them, e.g. the first as tokens[:1]"
        raise ValueError(msg)
    ids = real_tokens(*sequences[0])
    most = min(most, int(model.cfg.n_ctx))
    if len(ids) > most:
        notes.append(f"The first {most} of {len(ids)} tokens were run.")
    (batch,) = batches(model, ids[:most], None, 1)
    return batch


def _run(
    model: TransformerLensModel, ids: Int[Tensor, " pos"], heads: list[Head], rotary: list[RotaryLayer]
) -> tuple[list[LayerVectors], dict[Head, Tensor]]:
    """Vectors of every layer asked for, and the attention of these heads, in one forward pass."""
    patterns: dict[Head, Tensor] = {}
    vectors: list[LayerVectors] = []
    readers = {head.layer: _PatternReader(head.layer, heads, patterns) for head in heads}
    with model.hooks(fwd_hooks=[(hook_name(layer, PATTERN), reader) for layer, reader in readers.items()]):
        capture(model, ids[None], rotary, vectors.append)
    for head in heads:
        if head not in patterns:
            msg = f"layer {head.layer}: its hook_pattern does not fire, so there is no attention of {head} to show"
            raise UnsupportedModelError(msg)
    return vectors, patterns


def _rows(
    vectors: LayerVectors, patterns: Mapping[Head, Tensor], head: Head, queries: slice, keys: int
) -> Float[Tensor, "query_pos key_pos"]:
    """Attention of some queries of a head to the first keys: as the model has it, or rebuilt."""
    return patterns[head][queries, :keys] if head in patterns else rebuilt_rows(vectors, head, queries, keys)


def _record(
    tokens: list[str],
    heads: list[Head],
    parts: dict[Head, dict[str, Tensor]],
    notes: list[str],
    provenance: dict[str, Any],
) -> HeadExamples:
    stacked = {name: torch.stack([parts[head][name] for head in heads]) for name in parts[heads[0]]}
    return HeadExamples(tokens=tokens, heads=heads, **stacked, notes=notes, provenance=provenance)


@dataclass(frozen=True, eq=False)
class _PatternReader:
    """A hook that stores the attention of some heads of a layer."""

    layer: int
    heads: Sequence[Head]
    patterns: dict[Head, Tensor]
    edit: Mapping[str, Any] = field(default_factory=dict)  # it changes nothing

    def __call__(self, tensor: Tensor, hook: Any) -> None:  # noqa: ARG002
        for head in self.heads:
            if head.layer == self.layer:
                self.patterns[head] = tensor[0, head.head].float().clone()


def _cached(cache: "ActivationCache", head: Head, name: str, row: int) -> Tensor:
    key = hook_name(head.layer, name)
    if key not in cache.cache_dict:
        msg = (
            f"the cache has no {key}: merge the run's own cache with that of "
            "ph.dominant_dimension_cache(model, tokens, contributions=True) by run.cache_dict.update(other.cache_dict)"
        )
        raise ValueError(msg)
    tensor = cache.cache_dict[key]
    if not (0 <= row < len(tensor) and 0 <= head.head < tensor.shape[1]):
        msg = f"{key} has {len(tensor)} sequences and {tensor.shape[1]} heads: no head {head.head} of sequence {row}"
        raise ValueError(msg)
    return tensor[row, head.head].float().cpu()
