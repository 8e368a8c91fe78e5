"""The manipulation study: which rotary pairs of the top heads a task needs, and whether those of others as much.

The slowest, the fastest and the dominant pairs of the top heads are frozen, zeroed or rescaled, always on the same
examples, beside random pairs of the same heads; and the slowest pairs of random heads.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isclose, isnan
from pathlib import Path
from typing import Any, Final, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.bridge.ablation import Reference
from positional_heads.bridge.active_extension import extension_provenance
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.provenance import library_versions
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rope_scaling.manipulated_pairs import manipulated_pairs
from positional_heads.core.arguments import NO_CHANGE, checked, in_range, refuse_twice
from positional_heads.core.head_sets import AnySet, distinct_sets, set_name
from positional_heads.core.heads import Head
from positional_heads.results.ablation import RankBy
from positional_heads.results.manipulation import ManipulationStudy
from positional_heads.results.printed_manipulations import RANDOM_HEADS
from positional_heads.results.scores import HeadScores
from positional_heads.scoring.profile import contribution_profile
from positional_heads.studies.ablation import (
    MOST_RANDOM,
    ranker_by_retrieval,
    scored_model,
    scores_provenance,
    unit_notes,
)
from positional_heads.studies.manipulated_sets import Moved, manipulated_sets, slowest_first
from positional_heads.studies.ranking import RETRIEVAL, Ranker, ranker_of
from positional_heads.studies.resume import FinishedParts, run_parts
from positional_heads.studies.retrieval_trials import RetrievalTrials
from positional_heads.studies.tasks.evaluate import held_out_tokens, make_task, refuse_misspelled, task_provenance
from positional_heads.studies.tasks.task import Task

logger = logging.getLogger(__name__)

Manipulation = Literal["freeze", "zero", "scale"]
SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the pairs of a head that are manipulated if no counts are given."""
SHARED: Final = "split"
"""Query heads are manipulated alone, each as with an own copy of the key head that it shares."""


@checked
def manipulation_study(
    model: TransformerLensModel,
    scores: HeadScores,
    task: str | Task | Callable[[Any], Any] = "passkey",
    *,
    how: Manipulation = "freeze",
    factor: float | None = None,
    counts: Sequence[int] | None = None,
    top: int | float = 0.1,
    rank_by: RankBy | tuple[Any, ...] = "rho",
    reference: Reference | None = None,
    n_random: int = 20,
    n_permuted: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **task_settings: Any,
) -> ManipulationStudy:
    """Manipulate rotary pairs of the top heads and every control on the same examples (docs/equations.md, section 5).

    In the top heads: the slowest pairs, the fastest, the dominant ones, random pairs, and all. In random heads of the
    same layers, and in the top heads of rankings permuted within layers (for the p-value): the slowest pairs. Query
    heads are manipulated alone, each as with an own copy of its key head (`shared="split"`, see `manipulated_pairs`).

    Args:
        model: The TransformerBridge that was scored.
        scores: What `score_heads` returned for it.
        task: Name of a task, a task, or a function from the model to one score per example, higher being better.
        how: "freeze" to turn pairs at every position as at position 0; "zero" to leave them out of scores; "scale" to
            multiply their frequencies by `factor`.
        factor: Factor of the frequencies, for "scale" alone.
        counts: Numbers of pairs of each head to manipulate; an eighth, a quarter and a half of them when None.
        top: The top heads: their number, or, as a decimal fraction, their share of the ranked heads.
        rank_by: Rank heads by rho, by its excess over the null, by the rho of the curve, by retrieval score on held-out
            examples of the task, or by a measure of your own: its name and a value for each head, layers first. Heads
            whose value is NaN are in no set.
        reference: Text or tokens on which the dominant pairs of each head are found, those whose mean contribution at a
            distance is largest in size; held-out examples of the task when None. A task that has none goes without
            dominant pairs.
        n_random: Number of random rankings of the pairs, and of random sets of heads.
        n_permuted: Number of permuted rankings of the heads; a p-value below 0.05 needs 20. As many as random sets
            when None.
        batch_size: Sequences per forward pass; chosen by length when None.
        seed: Seed of random pairs and heads; the task has its own.
        checkpoint: Folder to save finished parts in; the same call resumes from it. Studies of the same task that
            manipulate alike share their parts, whatever their heads and counts.
        progress: Show a progress bar over the whole study.
        **task_settings: Settings of a task given by name, e.g. length, depths, examples.

    Raises:
        ValueError: If the scores are of another model, or the task, heads, counts or settings make no sense.
        UnsupportedModelError: If the model's rotation cannot be manipulated.
    """
    in_range("n_random", n_random, 1, MOST_RANDOM)
    in_range("n_permuted", n_permuted, 0, MOST_RANDOM)
    in_range("batch_size", batch_size, 1)
    in_range("seed", seed, 0)
    _refuse_factor(how, factor)
    refuse_misspelled(manipulation_study, task, task_settings)
    own_model = scored_model(model, scores)
    orders = _pairs_by_speed(scores, how)
    ranker = _rotating(ranker_of(scores, rank_by), orders)
    counts = _checked_counts(counts, ranker, orders)
    _n_top(top, ranker)
    # 1. the task, and what cannot be manipulated is refused before anything is run
    task = make_task(model, task, **task_settings)
    with _manipulated(model, {ranker.ranking[0]: (0,)}, how, factor):
        pass
    for note in unit_notes(task):
        logger.warning("%s Give more examples.", note)
    # 2. the ranking of the heads
    done = {"how": how, "factor": factor, "shared": SHARED}
    identity = {
        "model": own_model,
        **task_provenance(task, None),
        "manipulation": done,
        **extension_provenance(model),
    }
    finished, notes = FinishedParts(identity, checkpoint), []
    if rank_by == RETRIEVAL:
        trials = RetrievalTrials(model, task)
        retrieval, missing = trials.scores(finished, progress)
        ranker = ranker_by_retrieval(ranker, retrieval, [*trials.notes, *missing])
    heads = ranker.ranking[: _n_top(top, ranker)]
    frequencies = scores.frequencies.double()[[head.layer for head in heads]]
    # 3. the dominant pairs of the top heads
    text = held_out_tokens(task) if reference is None else reference
    sizes = None
    if reference is None and not text:
        notes.append(f"No dominant pairs: they need reference=, because {task.name} has no held-out examples.")
    else:
        sizes = _contribution_sizes(model, text, heads, frequencies, batch_size, beyond_context=reference is None)
    # 4. the sets of pairs, and the task under each distinct one
    cells, moved = manipulated_sets(
        ranker.ranking,
        len(heads),
        {head: orders[head.layer] for head in ranker.ranking},
        None if sizes is None else _dominant(heads, sizes, orders),
        counts,
        n_random=n_random,
        n_permuted=n_random if n_permuted is None else n_permuted,
        seed=seed,
    )

    def measure(one: AnySet) -> dict[str, list[float]]:
        with _manipulated(model, moved[one], how, factor):
            return {name: values.tolist() for name, values in task.measure(model, batch_size).items()}

    results = run_parts(
        {set_name(one): one for one in distinct_sets(cells)},
        measure,
        finished=finished,
        title=f"manipulating pairs for {task.name}",
        unit="sets",
        progress=progress,
    )
    return ManipulationStudy(
        task=task.name,
        rows=task.rows,
        cells=cells,
        values={name: torch.tensor([one[name] for one in results], dtype=torch.float64) for name in task.measures},
        heads=heads,
        frequencies=frequencies,
        sizes=sizes,
        how=how,
        factor=None if factor is None else float(factor),
        chance=dict(task.chance),
        notes=[
            *notes,
            *unit_notes(task),
            *_control_notes([cell.number for cell in cells if cell.kind == RANDOM_HEADS], n_random),
            *ranker.tie_notes([len(heads)]),
            *_shared_notes(model, heads),
            *_still_notes(frequencies, how),
        ],
        provenance={
            "versions": library_versions(),
            **identity,
            "scores": scores_provenance(scores, ranker.name),
            "settings": {
                "counts": counts,
                "top": len(heads),
                "ranked": len(ranker.ranking),
                "reference": "held-out examples" if reference is None else "own",
                "n_random": n_random,
                "n_permuted": n_random if n_permuted is None else n_permuted,
                "seed": seed,
            },
        },
    )


@contextmanager
def _manipulated(model: TransformerLensModel, moved: Moved, how: Manipulation, factor: float | None) -> Iterator[None]:
    """A block in which these pairs of each head are manipulated; heads with the same pairs share one block."""
    together: dict[tuple[int, ...], list[Head]] = {}
    for head, pairs in moved.items():
        together.setdefault(pairs, []).append(head)
    with ExitStack() as blocks:
        for pairs, heads in together.items():
            blocks.enter_context(manipulated_pairs(model, heads, list(pairs), how, factor=factor, shared=SHARED))
        yield


def _refuse_factor(how: str, factor: float | None) -> None:
    """Refuse a factor that has no use, changes nothing, or is missing.

    Raises:
        ValueError: If it is so.
    """
    if how == "scale" and factor is None:
        msg = "how='scale' needs factor=, e.g. factor=0.5"
        raise ValueError(msg)
    if factor is not None and isclose(factor, 1, rel_tol=NO_CHANGE):
        msg = "factor=1 leaves every frequency as it is: there would be no effect to measure; give another, e.g. 0.5"
        raise ValueError(msg)
    if how != "scale" and factor is not None:
        msg = f"factor={factor} goes with how='scale', not with how={how!r}: leave it out"
        raise ValueError(msg)


def _pairs_by_speed(scores: HeadScores, how: Manipulation) -> list[list[int]]:
    """The pairs of each layer that can be manipulated, the slowest first; none in one that does not rotate.

    A pair of frequency 0 is left as it is by whatever is done to its rotation.
    """
    layers = [[one for one in layer if not isnan(one)] for layer in scores.frequencies.tolist()]
    return [[pair for pair in slowest_first(layer) if layer[pair] or how == "zero"] for layer in layers]


def _rotating(ranker: Ranker, orders: Sequence[Sequence[int]]) -> Ranker:
    """The ranking without the heads of layers that have no pairs.

    Raises:
        ValueError: If none is left.
    """
    without = torch.tensor([not order for order in orders])
    ranker = Ranker(ranker.name, ranker.values.masked_fill(without[:, None], torch.nan))
    if not ranker.ranking:
        msg = "no head of these scores is ranked and has rotary pairs: there is nothing to manipulate"
        raise ValueError(msg)
    return ranker


def _checked_counts(counts: Sequence[int] | None, ranker: Ranker, orders: Sequence[Sequence[int]]) -> list[int]:
    """Numbers of pairs, ascending, each once.

    Raises:
        ValueError: If there is none, one is given twice, or one leaves nothing to choose.
    """
    fewest = min(len(orders[head.layer]) for head in ranker.ranking)
    if counts is None:
        counts = sorted({max(1, round(share * fewest)) for share in SHARES})  # of few pairs, shares are as many
    refuse_twice("counts", counts)
    counts = sorted(counts)
    if not counts:
        msg = f"no count given: name numbers of pairs, e.g. counts=[{max(1, fewest // 4)}]"
        raise ValueError(msg)
    for count in counts:
        if not 1 <= count < fewest:
            msg = f"counts: {count} of {fewest} pairs leaves nothing to choose: give numbers from 1 to {fewest - 1}"
            raise ValueError(msg)
    return counts


def _n_top(top: float, ranker: Ranker) -> int:
    """Number of the top heads.

    Raises:
        ValueError: If it is none, or more than there are.
    """
    n_heads = len(ranker.ranking)
    number = max(1, round(top * n_heads)) if isinstance(top, float) and 0 < top <= 1 else top
    if isinstance(number, float) or not 1 <= number <= n_heads:
        msg = f"top {top} is no number of heads from 1 to {n_heads}, and no share of them, e.g. 0.1"
        raise ValueError(msg)
    return number


def _contribution_sizes(
    model: TransformerLensModel,
    text: Any,
    heads: Sequence[Head],
    frequencies: Float64[Tensor, "head pair"],
    batch_size: int | None,
    *,
    beyond_context: bool,
) -> Float64[Tensor, "head pair"]:
    """How large the mean contribution of each pair of these heads is at a distance; NaN beyond a layer's last pair."""
    sizes = torch.full_like(frequencies, torch.nan)
    counts = frequencies.isfinite().sum(-1).tolist()
    for n_pairs in {*counts}:
        alike = [number for number, count in enumerate(counts) if count == n_pairs]
        found = contribution_profile(
            model, text, [heads[number] for number in alike], batch_size=batch_size, beyond_context=beyond_context
        )
        sizes[alike, :n_pairs] = found.sizes
    return sizes


def _dominant(
    heads: Sequence[Head], sizes: Float64[Tensor, "head pair"], orders: Sequence[Sequence[int]]
) -> dict[Head, list[int]]:
    """The pairs of each head, those with the largest contributions first; of equal ones the slowest."""
    return {
        head: sorted(orders[head.layer], key=lambda pair, row=row: -row[pair])  # type: ignore[misc]
        for head, row in zip(heads, sizes.tolist(), strict=True)
    }


def _control_notes(numbers: Sequence[int], wanted: int) -> list[str]:
    existing = len({*numbers})
    if existing >= wanted:
        return []
    return [
        f"{existing or 'None'} of the {wanted} random sets asked for exist: with as many heads in each layer as the "
        "top heads, and none of these."
    ]


def _still_notes(frequencies: Float64[Tensor, "head pair"], how: Manipulation) -> list[str]:
    """That pairs which do not turn are in no set, if so."""
    if how == "zero" or not bool((frequencies == 0).any()):
        return []
    return ["Pairs of frequency 0 are in no set: they do not turn, and stay as they are."]


def _shared_notes(model: TransformerLensModel, heads: Sequence[Head]) -> list[str]:
    """That heads which share key heads were manipulated alone, if so."""
    layers = resolve_layers(model).select(sorted({head.layer for head in heads}))
    if all(rotary.n_kv_heads == rotary.n_heads for rotary in layers):
        return []
    return [
        "Query heads that share a key head were manipulated alone, each as with an own copy of it (shared='split')."
    ]
