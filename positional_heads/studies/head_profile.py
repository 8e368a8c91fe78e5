"""Profile every head: one pass over a text for all measures but retrieval, then a few passkeys for that."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import Unpack

from positional_heads.bridge.active_edits import refuse_edited_pattern
from positional_heads.bridge.active_extension import extension_provenance
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.provenance import model_provenance
from positional_heads.bridge.sequences import Mask, Text
from positional_heads.core.arguments import checked, in_range
from positional_heads.results.head_profile import HeadProfile
from positional_heads.scoring.checkpoint import Checkpoint
from positional_heads.scoring.counted_profile import counted_profile
from positional_heads.scoring.profile_settings import ProfileSettings
from positional_heads.scoring.score import CHECKPOINT_SECONDS, prepared_counter
from positional_heads.scoring.settings import ScoringOptions, ScoringSettings
from positional_heads.studies.resume import FinishedParts
from positional_heads.studies.retrieval_trials import RetrievalTrials, has_needles
from positional_heads.studies.tasks.evaluate import TASKS, make_task
from positional_heads.studies.tasks.recall import RECALL
from positional_heads.studies.tasks.task import Task

LONGEST, SHORTEST = 512, 64
"""Tokens of a passkey example at most, and least."""


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
    retrieval: str | Task | Callable[[Any], Any] | None = "passkey",
    retrieval_examples: int = 5,
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
    r"""Every known measure of every head in one table, from one pass over a text (docs/profile.md defines each).

    Each measure is a mean over all queries of all sequences. A is the attention pattern, m a query, n a key, and
    t = m - n their distance in tokens:

    - `rho`, `rho_curve`, `excess`: as `score_heads` gives them, in the same pass.
    - `mean_distance`: `sum A t / sum A`. `reach`: the same without the first `sinks` keys.
    - `distant_mass`: attention at `t >= window` to keys that are no sinks, of the queries that have such keys: what
      DuoAttention-style tools classify heads by. `sink_mass`: attention to the sinks, of the queries after them.
    - `current_token`, `previous_token`, `duplicate_token`, `induction`: shares of all attention; the last three are
      TransformerLens' `detect_head`, to rounding.
    - `copying`: attention to keys that hold the next token, of the queries that have such keys.
    - `semantic`, `positional`: see `core.pair_sums.semantic_and_positional` (after RoPE Profiler, arXiv 2609.39929).
    - `massive_query`, `massive_key`: number of rotated channels whose norm over all tokens is more than five times the
      mean over the head's channels (arXiv 2502.01563).
    - `kernel`: from the weights alone, see `core.kernel_score` (after LPS, ICML 2026).
    - `retrieval`: Wu et al. (arXiv 2404.15574), on examples of a task that the model answers.

    A query has the keys before it in the text, also where the layer's window hides them: a hidden key gets no
    attention, so a head that cannot look far has no distant mass, and copies nothing from afar.

    Norms, centres, agreement and contributions of every rotary pair are in `HeadProfile.pairs`. Attention is that among
    keys: a learned sink (GPT-OSS) is left out of all shares.

    Args:
        model: A TransformerBridge.
        tokens: As in `score_heads`.
        window: Distances that count as near, 0 to window - 1.
        sinks: First keys of each sequence that count as sinks.
        ranges: Ranges of distance at most, each about as wide for its distance.
        queries: Queries sampled of each sequence for agreement, semantic and positional score.
        agreement_keys: K of Contextual Agreement, and keys that are moved for the semantic and positional score.
        retrieval: Task for the retrieval score: the name of one with a needle, or a task; None for no such score.
        retrieval_examples: Examples of it at most, each at another depth as far as there are depths.
        attention_mask: As in `score_heads`.
        layers: Layers to profile, all when None.
        batch_size: As in `score_heads`.
        beyond_context: As in `score_heads`.
        plain_text: As in `score_heads`.
        checkpoint: Folder to resume from: progress is saved there, and the same call resumes.
        checkpoint_seconds: Seconds between saves.
        progress: Show progress bars.
        settings: Settings of the score; the defaults when None.
        **options: Fields of `ScoringSettings`, e.g. `null_repeats=20`, without which there is no excess.

    Raises:
        UnsupportedModelError: If the model is not rotary, its scores cannot be reproduced, or a hook acts on the
            attention pattern of a layer.
        ValueError: If input or settings make no sense, the task for the retrieval score has no needle, or the
            checkpoint is of another run.
    """
    chosen = ProfileSettings(window, sinks, ranges, queries, agreement_keys)
    if isinstance(retrieval, str):
        refuse_without_needle(retrieval)
    in_range("retrieval_examples", retrieval_examples, 1, 100_000)
    saved = Checkpoint(model, checkpoint, checkpoint_seconds)
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
    refuse_edited_pattern(model, [rotary.layer for rotary in counter.rotary])
    asked = None if retrieval is None else retrieval_task(model, retrieval, max(counter.lengths))
    if asked is None or isinstance(asked, str):
        profile = counted_profile(counter, saved, progress)
        return profile if asked is None else _noted(profile, asked)
    trials = RetrievalTrials(model, asked)
    trials.trials = trials.trials[:retrieval_examples]
    identity = {"model": model_provenance(model), "retrieval": {"name": asked.name, **asked.settings}}
    finished = FinishedParts({**identity, **extension_provenance(model)}, checkpoint)  # read before anything is run
    profile = counted_profile(counter, saved, progress)
    answered, notes = trials.each(finished, progress)
    if answered is None:
        return _noted(profile, " ".join(notes))
    asked_for = {"task": asked.name, **asked.settings, "examples_tried": retrieval_examples}
    return _with_retrieval(profile, answered, {**asked_for, "answered": len(answered)})


def refuse_without_needle(retrieval: str) -> None:
    """Refuse the name of a task that the retrieval score cannot be asked with.

    Raises:
        ValueError: If there is no such task, or it has no needle.
    """
    if retrieval not in RECALL:
        known = "has no needle" if retrieval in TASKS else "is unknown"
        msg = f"retrieval {retrieval!r} {known}: choose one of {', '.join(RECALL)}, or None for no such score"
        raise ValueError(msg)


def retrieval_task(
    model: TransformerLensModel, retrieval: str | Task | Callable[[Any], Any], longest: int
) -> Task | str:
    """The task for the retrieval score, or why there is none; a task by name is as long as the text, within limits.

    Args:
        model: A TransformerBridge.
        retrieval: Name of a task, a task, or a function.
        longest: Tokens of the longest sequence of the text.

    Raises:
        ValueError: If a task that is not given by name has no needle.
    """
    if not isinstance(retrieval, str):
        task = make_task(model, retrieval)
        if not has_needles(task):
            msg = (
                f"task {task.name} has no held-out example whose answer repeats tokens of its context, which the "
                f"retrieval score needs: give one of {', '.join(RECALL)}, or None for no such score"
            )
            raise ValueError(msg)
        return task
    if getattr(model, "tokenizer", None) is None:
        return "No retrieval scores: the model has no tokenizer to make examples with."
    length = min(int(model.cfg.n_ctx), max(SHORTEST, min(longest, LONGEST)))
    try:
        return make_task(model, retrieval, length=length)
    except ValueError as error:
        return f"No retrieval scores: {error}"


def _noted(profile: HeadProfile, note: str) -> HeadProfile:
    return replace(profile, provenance={**profile.provenance, "retrieval": note})


def _with_retrieval(
    profile: HeadProfile, answered: Float64[Tensor, "trial layer head"], provenance: dict[str, Any]
) -> HeadProfile:
    """The profile with retrieval scores, whose groups are the examples; heads that were not profiled have none."""
    answered = answered.masked_fill(profile.key_heads < 0, torch.nan)
    return replace(
        profile,
        sums={**profile.sums, "retrieval": answered},
        weights={**profile.weights, "retrieval": torch.ones_like(answered)},
        provenance={**profile.provenance, "retrieval": provenance},
    )
