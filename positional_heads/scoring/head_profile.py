"""Profile every head of a model on a text, in the same pass over it as scoring."""

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Unpack

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.sequences import Mask, Text
from positional_heads.core.arguments import checked
from positional_heads.results.head_profile import HeadProfile
from positional_heads.scoring.checkpoint import Checkpoint
from positional_heads.scoring.profile_result import profile_of
from positional_heads.scoring.profile_settings import ProfileSettings
from positional_heads.scoring.score import (
    CHECKPOINT_SECONDS,
    count_batches,
    prepared_counter,
    warn_of_wide_bounds,
)
from positional_heads.scoring.settings import ScoringOptions, ScoringSettings


@checked
def profile_heads(
    model: TransformerLensModel,
    tokens: Text,
    *,
    window: int = 256,
    sinks: int = 4,
    ranges: int = 24,
    queries: int = 4,
    agreement_keys: int = 64,
    attention_mask: Mask | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    beyond_context: bool = False,
    plain_text: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: bool = False,
    settings: ScoringSettings | None = None,
    **options: Unpack[ScoringOptions],
) -> HeadProfile:
    """Every known measure of every head in one table, in one pass over a text."""
    chosen = ProfileSettings(window, sinks, ranges, queries, agreement_keys)
    saved = Checkpoint(checkpoint, checkpoint_seconds)
    counter = prepared_counter(
        profile_heads,
        model,
        tokens,
        attention_mask=attention_mask,
        layers=layers,
        batch_size=batch_size,
        beyond_context=beyond_context,
        plain_text=plain_text,
        settings=settings,
        profile=chosen,
        **options,
    )
    sums = count_batches(counter, range(len(counter.data)), saved, None, progress)
    scores = sums.result()
    warn_of_wide_bounds(scores)
    assert counter.profile is not None
    return profile_of(sums.profile, scores, counter.profile, {})
