"""Record the attention, dominant dimensions and contributions of some heads on one text, for `views` to draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
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
from positional_heads.bridge.provenance import library_versions, model_provenance
from positional_heads.bridge.resolve import layers_of_heads
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.bridge.sequences import Batch, Text, as_sequences, batches, real_tokens
from positional_heads.core.arguments import Temperature, check_temperature, checked, in_range
from positional_heads.core.heads import Head, Heads, as_heads
from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import readable_tokens
from positional_heads.scoring.batches import run_provenance
from positional_heads.scoring.per_query import key_means, layer_parts

if TYPE_CHECKING:
    from transformer_lens import ActivationCache

MOST_TOKENS = 2048
MOST_DETAILED = 128
MOST_HEADS = 8
REPORTED_TOKENS = 48
REPORTED_HEADS = 5


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

    Args:
        model: A TransformerBridge.
        tokens: One text, or the token ids of one sequence, as in `score_heads`; at most the first 2048 tokens are run.
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
    batch = _first_tokens(model, tokens, notes)
    ids = batch.tokens[0]
    detailed = min(detailed, len(ids))
    rotary = layers_of_heads(model, chosen)
    vectors, patterns = _run(model, ids, chosen, rotary)
    parts: dict[Head, dict[str, Tensor]] = {}
    for one in vectors:
        own = [head for head in chosen if head.layer == one.rotary.layer]
        parts |= layer_parts(one, own, patterns, detailed, temperature)
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
    provenance = {"versions": library_versions(), "model": model_provenance(cache.model), "settings": {}}
    return _record(readable_tokens(tokens), chosen, parts, notes, provenance)


def write_examples(
    model: TransformerLensModel, tokens: Int[Tensor, " pos"], scores: HeadScores, folder: Path
) -> Path | None:
    """Write the examples that a report shows: `scores.notable` heads on the first tokens of a sequence.

    Args:
        model: The model that was scored.
        tokens: A sequence that it was scored on.
        scores: What `score_heads` returned.
        folder: Folder of the scores.

    Returns:
        The file; None if no head has a score, or the attention of the model cannot be read.
    """
    if not scores.n_scored:
        return None
    temperature = scores.provenance["settings"].get("temperature", 1.0)
    shown = scores.notable(REPORTED_HEADS)
    try:
        examples = head_examples(model, tokens[:REPORTED_TOKENS], shown, temperature=temperature)
    except UnsupportedModelError:
        return None
    return examples.save(folder)


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


def _first_tokens(model: TransformerLensModel, tokens: Text, notes: list[str]) -> Batch:
    sequences = as_sequences(model, tokens)
    if len(sequences) > 1:
        msg = f"{len(sequences)} sequences given, examples are of one: give one of them, e.g. the first as tokens[:1]"
        raise ValueError(msg)
    ids = real_tokens(*sequences[0])
    most = min(MOST_TOKENS, int(model.cfg.n_ctx))
    if len(ids) > most:
        notes.append(f"The first {most} of {len(ids)} tokens were run.")
    (batch,) = batches(model, ids[:most], None, 1)
    return batch


def _run(
    model: TransformerLensModel, ids: Int[Tensor, " pos"], heads: list[Head], rotary: list[RotaryLayer]
) -> tuple[list[LayerVectors], dict[Head, Tensor]]:
    """Vectors of every layer asked for, and the attention of every head, in one forward pass."""
    patterns: dict[Head, Tensor] = {}
    vectors: list[LayerVectors] = []
    hooks = [(hook_name(one.layer, PATTERN), _PatternReader(one.layer, heads, patterns)) for one in rotary]
    with model.hooks(fwd_hooks=hooks):
        capture(model, ids[None], rotary, vectors.append)
    for head in heads:
        if head not in patterns:
            msg = f"layer {head.layer}: its hook_pattern does not fire, so there is no attention of {head} to show"
            raise UnsupportedModelError(msg)
    return vectors, patterns


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
