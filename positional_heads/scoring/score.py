"""From a model and text to "these are its Positional Heads", in one pass over the text.

Sequences go through the model in batches; a batch's sums add to the others' in any order, on any machine. So a score is
the sum over all batches, a shard the sum over some, and a checkpoint the sum so far.
"""

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.prefill import refuse_fixed_tables
from positional_heads.bridge.resolve import RotaryModel, resolve_layers
from positional_heads.bridge.sequences import Batch, Mask, Text, batches
from positional_heads.core.arguments import check_settings, checked, in_range
from positional_heads.results.scores import HeadScores
from positional_heads.scoring.checkpoint import Checkpoint, whole_step
from positional_heads.scoring.counter import EntryCounter
from positional_heads.scoring.executors import Executor, named_executor
from positional_heads.scoring.settings import ScoringSettings
from positional_heads.scoring.shards import read_shard, shard_file, shard_of
from positional_heads.scoring.sums import ScoreSums

SCORES_PER_BATCH = 2**22
"""Attention scores that the model holds per layer at once, where no batch size is given: 16 MiB of float32."""
MOST_EXACT = 2**25
"""Pairs of a sequence up to which all are counted unless told otherwise: sequences of 8192 tokens."""
SAMPLED = 2**20
"""Pairs that are sampled of longer ones; the error that this adds to rho is about 0.001."""
CHECKPOINT_SECONDS = 60.0
WIDE = 0.05
"""A bound on rho that is worth a word in the log."""

logger = logging.getLogger(__name__)


@checked
def score_heads(
    model: TransformerLensModel,
    text_or_tokens: Text,
    *,
    attention_mask: Mask | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    beyond_context: bool = False,
    plain_text: bool = False,
    pairs: str | int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    executor: str | Executor | None = None,
    progress: bool = False,
    **settings: Any,
) -> HeadScores:
    """Score every head by how much its dominant rotary dimension moves with token distance.

    Spearman's rho between distance and dominant dimension over all causal pairs of all sequences (Hong et al.,
    arXiv 2410.08703; method sections 2 to 4). Every layer is first proven on the model's own attention scores.

    Args:
        model: A TransformerBridge.
        text_or_tokens: One text, a list or column of texts (none longer than the model's context, see `cut_text`), or
            token ids: a tensor, an array, lists, or what a tokenizer returns.
        attention_mask: 1 for real tokens, 0 for padding on either side; only with token ids.
        layers: Layers to score, all when None; the others are NaN in the result, with the reason.
        batch_size: Sequences per forward pass; chosen by length when None.
        beyond_context: Allow sequences longer than the model's context; long ones go through in chunks, so that memory
            does not grow with length squared.
        plain_text: Read special tokens in texts as the characters that they are written with, and leave out byte-order
            marks and carriage returns; as control tokens, with a warning, if not.
        pairs: "all", or how many query-key pairs to sample of the longest sequence (of shorter ones proportionally
            fewer), stratified by distance; `scores.sampling_sd` says what it costs. When None, all up to 8192 tokens a
            sequence, 2^20 pairs beyond.
        checkpoint: Folder in which the sums so far are kept, so that the same call goes on where one was stopped.
        checkpoint_seconds: How often to write them, at most a twentieth of the time goes into it.
        executor: "ray", or a `RayExecutor`, to count on several processes or machines; here when None.
        progress: Show a progress bar.
        **settings: See `ScoringSettings`: temperature, skip_keys, min_distance, max_distance, resolution,
            null_repeats, resamples, bins, seed.

    Returns:
        Scores, curves, null and intervals of every head, with their provenance.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
        ValueError: If input or settings make no sense, or the checkpoint is of another run; the message says what to
            do.
    """
    chosen = _chosen(score_heads, pairs, settings)
    kept, elsewhere = Checkpoint(checkpoint, checkpoint_seconds), named_executor(executor)
    given = _Given(text_or_tokens, attention_mask, beyond_context, plain_text)
    counter, resolved = _prepared(model, given, layers, batch_size, chosen)
    with nullcontext() if elsewhere is None else elsewhere.started(model):
        scores = _counted(counter, resolved, range(len(counter.data)), kept, elsewhere, progress).result()
    _say_wide(scores)
    return scores


@checked
def score_shard(
    model: TransformerLensModel,
    text_or_tokens: Text,
    shard: str | tuple[int, int],
    folder: str | Path,
    *,
    attention_mask: Mask | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    beyond_context: bool = False,
    plain_text: bool = False,
    pairs: str | int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: bool = False,
    **settings: Any,
) -> Path:
    """Count one shard of a run and write its sums to one file; `merge_shards` makes the scores of all of them.

    A shard that is there already is checked and left as it is; one that was stopped goes on.

    Args:
        model: A TransformerBridge.
        text_or_tokens: All of the run's text, the same for every shard.
        shard: Which one of how many, counted from 1: "3/8" or (3, 8).
        folder: Where to.
        attention_mask: As in `score_heads`, like the rest.
        layers: Layers to score, all when None.
        batch_size: Sequences per forward pass; chosen by length when None.
        beyond_context: Allow sequences longer than the model's context.
        plain_text: Read special tokens in texts as plain characters.
        pairs: "all", or how many query-key pairs to sample.
        checkpoint_seconds: How often to write the sums so far.
        progress: Show a progress bar.
        **settings: See `ScoringSettings`.

    Returns:
        The file.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
        ValueError: If the shard, input or settings make no sense, or the folder holds another run.
    """
    number, total = shard_of(shard)
    chosen = _chosen(score_shard, pairs, settings)
    given = _Given(text_or_tokens, attention_mask, beyond_context, plain_text)
    counter, resolved = _prepared(model, given, layers, batch_size, chosen)
    file = Path(folder) / shard_file(number, total)
    numbers = range(number - 1, len(counter.data), total)
    if file.exists():
        counter.refuse_other_run(read_shard(file), resolved, file)
        return file
    kept = Checkpoint(folder, checkpoint_seconds, name=f"{file.stem}.unfinished{file.suffix}")
    _counted(counter, resolved, numbers, kept, None, progress).save(file)
    kept.remove()
    return file


def _chosen(function: Callable[..., Any], pairs: str | int | None, settings: dict[str, Any]) -> ScoringSettings:
    if isinstance(pairs, str) and pairs != "all":
        msg = f"pairs {pairs!r} must be 'all' or a whole number, e.g. 65536"
        raise ValueError(msg)
    own = [name for name, one in signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY]
    own += [field.name for field in fields(ScoringSettings) if field.name != "pairs"]
    check_settings(function.__name__, settings, own)
    return ScoringSettings(**settings, pairs=pairs)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Given:
    """What to score, as it came in."""

    text_or_tokens: Text
    attention_mask: Mask | None
    beyond_context: bool
    plain_text: bool

    def batches(self, model: Any, batch_size: int) -> list[Batch]:
        allowed = {"beyond_context": self.beyond_context, "plain_text": self.plain_text}
        return batches(model, self.text_or_tokens, self.attention_mask, batch_size, **allowed)


def _prepared(
    model: Any, given: _Given, layers: Sequence[int] | None, batch_size: int | None, settings: ScoringSettings
) -> tuple[EntryCounter, RotaryModel]:
    in_range("batch_size", batch_size, 1)
    resolved = resolve_layers(model)
    rotary = resolved.select(layers)
    data = given.batches(model, batch_size or 1)
    longest = max(batch.tokens.shape[1] for batch in data)
    refuse_fixed_tables(model, longest)
    if batch_size is None:
        batch_size = max(1, SCORES_PER_BATCH // (int(model.cfg.n_heads) * longest**2))
        data = given.batches(model, batch_size)
    if settings.pairs is None:
        every = longest * (longest + 1) // 2
        settings = replace(settings, pairs="all" if every <= MOST_EXACT else SAMPLED)
        if settings.pairs != "all":
            _say_sampled(longest, every)
    return EntryCounter(model, data, rotary, settings), resolved


def _say_wide(scores: HeadScores) -> None:
    wide = scores.bound.nan_to_num() > WIDE
    if bool(wide.any()):
        logger.warning(
            "rho of %d heads is known to within %.2g only (scores.bound): their D lie in few bins, or differ between "
            "sequences, of which bins see a few; see that batch_size=1 or another temperature agrees",
            int(wide.sum()),
            float(scores.bound[wide].max()),
        )


@functools.cache  # once for each length, however often a study scores
def _say_sampled(longest: int, every: int) -> None:
    logger.warning(
        "sequences of %d tokens have %d query-key pairs: %d are sampled of each (pairs='all' counts all)",
        longest,
        every,
        SAMPLED,
    )


def _counted(
    counter: EntryCounter,
    resolved: RotaryModel,
    numbers: Sequence[int],
    kept: Checkpoint,
    executor: Executor | None,
    progress: bool,
) -> ScoreSums:
    sums = kept.restored(lambda found: counter.refuse_other_run(found, resolved, kept.file))
    rows = [len(batch.lengths) for batch in counter.data]
    with tqdm(
        total=sum(rows[number] for number in numbers),
        initial=0 if sums is None else sum(rows[number] for number in sums.done),
        unit="sequence",
        desc="scoring heads",
        disable=not progress,
    ) as bar:
        if sums is not None:
            counter.go_on_with(sums.kernels)
        else:
            sums = counter.opened(resolved, count=counter.longest in numbers)
        if progress and kept.file is not None:
            bar.write(f"sums so far are kept in {kept.file}: the same call goes on where it was stopped", sys.stderr)
        with kept.on_interrupt(sums):
            bar.update(sum(rows[number] for number in sums.done) - bar.n)
            left = [number for number in numbers if number not in sums.done]
            if executor is not None:
                for part in executor.counted(counter, sums.empty(), left):
                    with whole_step():
                        sums.absorb(part)
                    kept.keep(sums)
                    bar.update(sum(rows[number] for number in part.done))
            else:
                for number in left:
                    with whole_step():
                        counter.count(number, sums)
                    kept.keep(sums)
                    bar.update(rows[number])
    kept.keep(sums, now=True)
    return sums
