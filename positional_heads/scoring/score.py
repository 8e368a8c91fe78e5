"""Score every head of a model on a text, in one pass over it, or one shard of it.

Sequences go through the model in batches, and the sums of batches add in any order, on any machine. The scores are the
sum over all batches, a shard is the sum over some, and a checkpoint is the sum so far.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from typing_extensions import Unpack

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.sequences import Mask, Text
from positional_heads.core.arguments import checked, keyword_names
from positional_heads.core.logs import warn_once
from positional_heads.results.scores import HeadScores
from positional_heads.scoring.batches import batch_work, sized_batches
from positional_heads.scoring.checkpoint import Checkpoint, interrupt_delayed
from positional_heads.scoring.counter import EntryCounter
from positional_heads.scoring.profile_settings import ProfileSettings
from positional_heads.scoring.progress import work_bar
from positional_heads.scoring.ray_executor import RayExecutor
from positional_heads.scoring.settings import ScoringOptions, ScoringSettings, updated_settings
from positional_heads.scoring.shards import parsed_shard, shard_file
from positional_heads.scoring.sums import ScoreSums
from positional_heads.zoo.bundled import text_names

CHECKPOINT_SECONDS = 60.0
WIDE = 0.05
"""Bound on rho above which a warning is logged."""

logger = logging.getLogger(__name__)


class RunOptions(ScoringOptions, total=False):
    """Keywords that `score_heads` and `score_shard` share."""

    attention_mask: Mask | None
    layers: Sequence[int] | None
    batch_size: int | None
    beyond_context: bool
    plain_text: bool
    settings: ScoringSettings | None


@checked
def score_heads(
    model: TransformerLensModel,
    tokens: Text,
    *,
    attention_mask: Mask | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    beyond_context: bool = False,
    plain_text: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    executor: Literal["ray"] | RayExecutor | None = None,
    progress: bool = False,
    settings: ScoringSettings | None = None,
    **options: Unpack[ScoringOptions],
) -> HeadScores:
    """Score every head by how its dominant rotary dimension changes with token distance.

    Spearman's rho between distance and dominant dimension over all causal query-key pairs of all sequences (Hong et
    al., arXiv 2410.08703; docs/equations.md, sections 2 to 4). Every layer must first reproduce the model's own
    attention scores.

    Args:
        model: A TransformerBridge.
        tokens: One text, a list or column of texts (none longer than the model's context, see `cut_text`), or token
            ids: a tensor, an array, lists, or what a tokenizer returns.
        attention_mask: 1 for real tokens, 0 for padding on either side; only with token ids.
        layers: Layers to score, all when None; heads of the others are NaN in the result, with the reason.
        batch_size: Sequences per forward pass; chosen by length when None.
        beyond_context: Allow sequences longer than the model's context. Memory does not grow with length squared: plain
            runs keep no scores, and where hooks are read, long sequences go through in chunks.
        plain_text: Read special tokens in texts as plain characters, and drop byte-order marks and carriage returns. If
            False, special tokens are control tokens, with a warning.
        checkpoint: Folder to resume from: progress is saved there, and the same call resumes.
        checkpoint_seconds: Seconds between saves; saving takes at most a twentieth of the time.
        executor: "ray" or a `RayExecutor` to count in several processes or machines; this process when None.
        progress: Show a progress bar.
        settings: Settings of the score; the defaults when None.
        **options: Fields of `ScoringSettings`, e.g. `null_repeats=20`; they take precedence over `settings`.

    Returns:
        Scores, curves, null and intervals of every head, with their provenance.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
        ValueError: If input or settings make no sense, or the checkpoint is of another run.
    """
    saved = Checkpoint(model, checkpoint, checkpoint_seconds)
    ray = RayExecutor() if executor == "ray" else executor
    run: RunOptions = {"attention_mask": attention_mask, "layers": layers, "batch_size": batch_size}
    run |= {"beyond_context": beyond_context, "plain_text": plain_text, "settings": settings, **options}
    counter = prepared_counter(score_heads, model, tokens, **run)
    with nullcontext() if ray is None else ray.started(model):
        scores = count_batches(counter, range(len(counter.data)), saved, ray, progress).result()
    warn_of_wide_bounds(scores)
    return scores


@checked
def score_shard(
    model: TransformerLensModel,
    tokens: Text,
    shard: str | tuple[int, int],
    folder: str | Path,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: bool = False,
    **options: Unpack[RunOptions],
) -> Path:
    """Count one shard of a run and write its sums to one file; `merge_shards` makes the scores of all of them.

    A finished shard is checked and left as it is; an interrupted one resumes.

    Args:
        model: A TransformerBridge.
        tokens: All of the run's text, the same for every shard.
        shard: Which of how many, counted from 1: "3/8" or (3, 8).
        folder: Where the file goes.
        checkpoint_seconds: Seconds between saves.
        progress: Show a progress bar.
        **options: As in `score_heads`: `attention_mask`, `layers`, `batch_size`, `beyond_context`, `plain_text`,
            `settings` and the fields of `ScoringSettings`.

    Returns:
        The file.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
        ValueError: If the shard, input or settings make no sense, or the folder holds another run.
    """
    number, total = parsed_shard(shard)
    file = Path(folder) / shard_file(number, total)
    saved = Checkpoint(model, folder, checkpoint_seconds, name=f"{file.stem}.unfinished{file.suffix}")
    finished = ScoreSums.load(file) if file.exists() else None  # a file that cannot be read is refused at once
    counter = prepared_counter(score_shard, model, tokens, **options)
    numbers = range(number - 1, len(counter.data), total)
    if finished is not None:
        counter.refuse_other_run(finished, file)
        saved.remove()  # left where the run was killed just after it had finished
        return file
    count_batches(counter, numbers, saved, None, progress).save(file)
    saved.remove()
    return file


@checked
def prepared_counter(
    owner: Callable[..., Any],
    model: TransformerLensModel,
    tokens: Text,
    *,
    attention_mask: Mask | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    beyond_context: bool = False,
    plain_text: bool = False,
    settings: ScoringSettings | None = None,
    profile: ProfileSettings | None = None,
    **options: Unpack[ScoringOptions],
) -> EntryCounter:
    """The counter of a run, after every check of its arguments, model and text; nothing is counted."""
    chosen = updated_settings(owner.__name__, settings, options, [*keyword_names(owner), *RunOptions.__annotations__])
    resolved = resolve_layers(model)
    allowed = {"beyond_context": beyond_context, "plain_text": plain_text}
    data = sized_batches(model, tokens, attention_mask, batch_size, **allowed)
    longest = max(batch.tokens.shape[1] for batch in data)
    chosen.refuse_short(max(length for batch in data for length in batch.lengths))
    settled = chosen.by_length(longest)
    if chosen.pairs is None and settled.pairs != "all":
        warning = (
            f"sequences of {longest} tokens have {longest * (longest + 1) // 2} query-key pairs: {settled.pairs} are "
            "sampled of each (pairs='all' counts all)"
        )
        warn_once(__name__, warning)
    return EntryCounter(model, data, resolved, layers, settled, origin_of(tokens), profile)


def origin_of(tokens: Text) -> dict[str, Any]:
    """What sequences know of their texts: names, where any is known, and how they were drawn."""
    known = text_names()
    names = [known.get(str(text["sha256"]), text["name"]) for text in getattr(tokens, "texts", ())]
    drawn = getattr(tokens, "drawn", None)
    return {**({"texts": names} if any(names) else {}), **({} if drawn is None else {"drawn": drawn})}


def count_batches(
    counter: EntryCounter,
    numbers: Sequence[int],
    saved: Checkpoint,
    ray: RayExecutor | None,
    progress: bool,
) -> ScoreSums:
    """The sums over numbered batches, resumed from a checkpoint if there is one."""
    sums = saved.load(lambda sums: counter.refuse_other_run(sums, saved.file))
    done = set() if sums is None else sums.done
    every = batch_work(counter.model, counter.data)
    work = {number: every[number] for number in numbers}
    with work_bar(work, done, title="scoring heads", unit="sequences", shown=progress) as bar:
        if sums is None:
            sums = counter.begin(count_longest=counter.longest in numbers)
        elif sums.kernels:
            counter.use_kernel(min(sums.kernels))  # as before the interruption, so all D are rounded alike
        left = [number for number in numbers if number not in sums.done]
        with saved.on_interrupt(sums):
            bar.finish(sums.done)
            if ray is None:
                for number in left:
                    with interrupt_delayed():
                        counter.count(number, sums)
                    bar.finish([number], saved.file if saved.save_if_due(sums) else None)
            else:
                for part in ray.sums(counter, sums.empty(), left):
                    with interrupt_delayed():
                        sums.absorb(part)
                    bar.finish(part.done, saved.file if saved.save_if_due(sums) else None)
    saved.save(sums)
    return sums


def warn_of_wide_bounds(scores: HeadScores) -> None:
    """Log a warning if binning may have moved the rho of a head."""
    wide = scores.bound.nan_to_num() > WIDE
    if bool(wide.any()):
        logger.warning(
            "rho of %d heads has a bound of up to %.2g (scores.bound): their D is in few bins, or differs between "
            "sequences more than the pilot shows; compare with batch_size=1 or another temperature",
            int(wide.sum()),
            float(scores.bound[wide].max()),
        )
