"""The ablation study: whether tasks need high-scoring heads more than others, and more at long range than at short."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.bridge.ablation import AblationMode, Reference
from positional_heads.bridge.active_extension import extension_provenance
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.provenance import library_versions, model_provenance
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.head_sets import (
    HeadSet,
    SetPlan,
    StudySet,
    by_kind,
    distinct_sets,
    set_name,
    set_sizes,
    smaller_plans,
)
from positional_heads.core.heads import Head
from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.ablation import AblationStudy, RankBy
from positional_heads.results.scores import HeadScores
from positional_heads.results.verdicts import ALPHA
from positional_heads.studies.budget import Budget, Planned
from positional_heads.studies.ranking import RETRIEVAL, Ranker, ranked, ranker_of
from positional_heads.studies.resume import FinishedParts, run_parts
from positional_heads.studies.retrieval_trials import RetrievalTrials
from positional_heads.studies.set_runs import SetRuns, set_runs
from positional_heads.studies.tasks.evaluate import make_task, prepared_ablation, refuse_misspelled, task_provenance
from positional_heads.studies.tasks.task import Task

logger = logging.getLogger(__name__)

Singles = Literal["all", "top", "none"]
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)
MOST_RANDOM = 100_000
MOST_SINGLES = 128
"""Up to this many scored heads, all are ablated one by one by default; in larger models only the top ones."""


@checked
def ablation_study(
    model: TransformerLensModel,
    scores: HeadScores,
    task: str | Task | Callable[[Any], Any] = "passkey",
    *,
    fractions: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
    n_random: int = 20,
    n_permuted: int | None = None,
    n_anywhere: int = 0,
    mode: AblationMode = "zero",
    reference: Reference | None = None,
    distance: int | None = None,
    rank_by: RankBy | tuple[Any, ...] = "rho",
    singles: Singles | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    budget: float | None = None,
    **task_settings: Any,
) -> AblationStudy:
    """Ablate the top heads and every control on the same examples (docs/equations.md, section 5).

    Controls: random sets with as many heads in every layer that exclude the top heads, rankings permuted within layers
    (for the p-value), random heads of any layer (`n_anywhere`), the lowest-scoring heads, the heads with the highest
    retrieval score, and single heads.

    Args:
        model: The TransformerBridge that was scored.
        scores: What `score_heads` returned for it.
        task: Name of a task, a task, or a function from the model to one score per example, higher being better.
        fractions: Shares of the scored heads to ablate; 1, 2, 5, 10 and 20 % if neither fractions nor counts are given.
        counts: Numbers of heads to ablate, instead of fractions. An empty list, with singles="all", is a study of
            single heads alone.
        n_random: Number of random sets at each size.
        n_permuted: Number of permuted rankings, each with a set of each size; a p-value below 0.05 needs 20. As many
            as random sets when None.
        n_anywhere: Number of sets of as many heads of any layer, at each size: a weaker control, because it also shows
            in which layers the top heads lie.
        mode: How heads are ablated, see `ablated_heads`.
        reference: Text or tokens for `mean` and `resample`; held-out examples of the task when None.
        distance: Distance in tokens for `far` and `near`.
        rank_by: Rank heads by rho, by its excess over the null, by the rho of the curve, by retrieval score on held-out
            examples of the task, or by a measure of your own: its name and a value for each head, layers first, e.g.
            ("control excess", scores.control.excess). Heads whose value is NaN are in no set. The verdict says how many
            of the top heads beat their null.
        singles: Heads to ablate one by one: all, those of the largest top set, or none; when None, all in models of up
            to 128 ranked heads, else those of the top set.
        batch_size: Sequences per forward pass; chosen by length when None.
        seed: Seed of random sets and permutations; the task has its own.
        checkpoint: Folder to save finished parts in; the same call resumes from it.
        progress: Show a progress bar over the whole study.
        budget: Minutes that the study may take. What does not fit is left out before it starts, and the record says so:
            single heads first, then sets of any layer, then random sets and permutations beyond 20, then the largest
            sizes, then the retrieval control. No limit when None.
        **task_settings: Settings of a task given by name, e.g. length, depths, examples.

    Raises:
        ValueError: If the scores are of another model, the task, mode, heads or settings make no sense, the model
            answers none of the examples that would rank its heads, or the budget is too small for any study.
    """
    limit = None if budget is None else Budget(budget)
    in_range("n_random", n_random, 1, MOST_RANDOM)
    in_range("n_permuted", n_permuted, 0, MOST_RANDOM)
    in_range("n_anywhere", n_anywhere, 0, MOST_RANDOM)
    in_range("batch_size", batch_size, 1)
    in_range("seed", seed, 0)
    refuse_misspelled(ablation_study, task, task_settings)
    own_model = scored_model(model, scores)
    # 1. the task, and how heads are ablated in it
    task = make_task(model, task, **task_settings)
    ablation = prepared_ablation(model, task, mode, reference, distance)
    for note in unit_notes(task):
        logger.warning("%s Give more examples.", note)
    # 2. the ranking of the heads
    ranker = ranker_of(scores, rank_by)
    sizes = _sizes(len(ranker.ranking), fractions, counts, singles)
    identity = {"model": own_model, **task_provenance(task, ablation), **extension_provenance(model)}
    finished, trials = FinishedParts(identity, checkpoint), RetrievalTrials(model, task)
    retrieval, notes = None, trials.notes
    if rank_by == RETRIEVAL:
        retrieval, missing = trials.scores(finished, progress)
        ranker = ranker_by_retrieval(ranker, retrieval, [*notes, *missing])
        sizes = _sizes(len(ranker.ranking), fractions, counts, singles)  # a head may have no retrieval score
        notes = [*notes, "Heads are ranked by retrieval score, so its control is the top set itself."]
    ranking = ranker.ranking
    # 3. what is run of the sets of heads: all that was asked for, or what fits into the budget
    alone = len(_single_heads(ranking, sizes, singles))
    n_permuted = n_random if n_permuted is None else n_permuted
    numbers = (n_random, n_permuted, n_anywhere) if sizes else (0, 0, 0)
    plan = SetPlan(tuple(sizes), *numbers, alone, retrieval is None and bool(trials.trials))

    account = None
    with set_runs(model, task, ablation, finished, batch_size) as runs:
        if limit is not None:
            chosen = _planned(limit, plan, ranking, runs, seed, trials, progress)
            plan, account, notes = chosen.plan, chosen.account, [*chosen.notes, *notes]
        # 4. the sets: the top ones and every control
        if plan.retrieval:
            retrieval, missing = trials.scores(finished, progress)
            notes = [*notes, *missing]
        control = None if retrieval is None else _masked(retrieval, ranker)
        cells = plan.sets(ranking, None if control is None else control.ranking, seed)
        # 5. the task under each distinct set, always on the same examples
        results = runs.run(distinct_sets(cells), title=f"ablating for {task.name}", progress=progress)
    # 6. the record
    return AblationStudy(
        task=task.name,
        rows=task.rows,
        cells=cells,
        values={name: torch.tensor([one[name] for one in results], dtype=torch.float64) for name in task.measures},
        ranking=ranking,
        ranked_by=ranker.values,
        retrieval=retrieval,
        chance=dict(task.chance),
        notes=[*notes, *unit_notes(task), *_control_notes(cells, plan), *_tie_notes(plan, ranker, control)],
        provenance={
            "versions": library_versions(),
            **identity,
            "scores": scores_provenance(scores, ranker.name),
            "settings": {**{name: one for name, one in plan.as_json().items() if name != "retrieval"}, "seed": seed},
            **({} if account is None else {"budget": account}),
        },
    )


def scored_model(
    model: TransformerLensModel, scores: HeadScores, made: tuple[str, str] = ("these scores are", "score")
) -> dict[str, Any]:
    """Provenance of the model, whose weights are hashed for it.

    Args:
        model: A TransformerBridge.
        scores: Scores that must be of this model.
        made: What they are called, and how they are made.

    Raises:
        ValueError: If the scores are of another model.
    """
    ours, theirs = model_provenance(model), scores.provenance["model"]
    for key in ("layers", "heads", "weights"):
        if ours[key] != theirs[key]:
            msg = (
                f"{made[0]} of {_as_loaded(theirs)}, this model is {_as_loaded(ours)} and has other {key}: "
                f"{made[1]} this model, loaded this way, first"
            )
            raise ValueError(msg)
    return ours


def _as_loaded(model: Mapping[str, Any]) -> str:
    """Name of a model, and everything recorded of how it was loaded that changes its weights."""
    how = [str(model["dtype"]), f"compatibility mode {model['compatibility_mode']}"]
    how += [f"quantised by {model['quantization']}"] if "quantization" in model else []
    how += [f"with the adapter {model['adapter']}"] if "adapter" in model else []
    return f"{model['name']} ({', '.join(how)})"


def scores_provenance(scores: HeadScores, rank_by: str) -> dict[str, Any]:
    """What is known of the scores: text, settings, and which heads beat their null and stay."""
    beating = staying = None
    if scores.null is not None:
        beating = [str(head) for head in scores.positional_heads(alpha=ALPHA)]
        if scores.control is not None:
            staying = [str(head) for head in scores.positional_heads(alpha=ALPHA, stays=True)]
    scored = {key: scores.provenance.get(key) for key in ("data", "settings")}
    known = {"significant": None if beating is None else len(beating), "beats_null": beating, "stays": staying}
    return {**scored, "rank_by": rank_by, **known}


def _sizes(
    n_heads: int, fractions: Sequence[float] | None, counts: Sequence[int] | None, singles: Singles | None
) -> list[int]:
    sizes = set_sizes(n_heads, FRACTIONS if fractions is None and counts is None else fractions, counts)
    if not sizes and singles != "all":
        msg = (
            'no fraction or count of heads given: there is nothing to ablate; for single heads alone, add singles="all"'
        )
        raise ValueError(msg)
    return sizes


def _single_heads(ranking: list[Head], sizes: Sequence[int], singles: Singles | None) -> list[Head]:
    if singles is None:
        singles = "all" if len(ranking) <= MOST_SINGLES else "top"
    return {"all": ranking, "top": ranking[: max(sizes, default=0)], "none": []}[singles]


def ranker_by_retrieval(known: Ranker, retrieval: Float64[Tensor, "layer head"] | None, notes: Sequence[str]) -> Ranker:
    """The ranking by retrieval score, of the heads that have a rho.

    Raises:
        ValueError: If there are no retrieval scores; the notes say why.
    """
    if retrieval is None:
        msg = f"rank_by='retrieval' has nothing to rank by. {' '.join(notes)} Rank by rho, or give an easier task."
        raise ValueError(msg)
    return _masked(retrieval, known)


def _masked(retrieval: Float64[Tensor, "layer head"], ranker: Ranker) -> Ranker:
    """Retrieval scores of the heads that are ranked, as a ranking of their own."""
    return Ranker(RETRIEVAL, torch.where(ranker.values.isnan(), torch.nan, retrieval.double()))


def _planned(  # noqa: PLR0917  what a study has prepared
    limit: Budget,
    asked: SetPlan,
    ranking: Sequence[Head],
    runs: SetRuns,
    seed: int,
    trials: RetrievalTrials,
    progress: bool,
) -> Planned[SetPlan]:
    """What fits into a budget, after parts were timed that are needed anyway."""
    finished = runs.finished
    top: HeadSet = tuple(sorted(ranking[: min(asked.sizes, default=1)]))
    needed = {set_name(heads): heads for heads in ((), top)}  # the un-ablated one first: it warms up
    finished.forget_untimed(needed)
    run_parts(needed, runs.measure, finished=finished, title="timing", unit="sets", progress=progress)
    trials.begin(finished, progress)
    known = None if trials.seconds_left(finished) else trials.scores(finished, progress=False)[0]
    chosen = {*ranking}
    by_retrieval = None if known is None else [head for head in ranked(known) if head in chosen]

    def seconds(plan: SetPlan) -> float:
        order = runs.unfinished(distinct_sets(plan.sets(ranking, by_retrieval, seed)))
        left = sum(runs.costs(order).values()) * finished.seconds[set_name(top)]
        if not plan.retrieval or not trials.seconds_left(finished):
            return left
        return left + len(plan.sizes) * finished.seconds[set_name(top)] + trials.seconds_left(finished)

    plans = smaller_plans(asked, ranking)
    least = "every head alone"
    if asked.sizes:
        least = f"the top {' and '.join(map(str, plans[-1].sizes))} heads and their controls"
    return limit.planned(
        plans,
        seconds,
        finished,
        taken=finished.seconds_of(
            map(set_name, distinct_sets(asked.sets(ranking, by_retrieval, seed))), finished.seconds[set_name(top)]
        )
        + trials.seconds_taken(finished),  # of the control, or of the ranking
        left_out=lambda plan: plan.left_out_of(asked, ranking, seed),
        least=least,
        progress=progress,
    )


def unit_notes(task: Task) -> list[str]:
    """That a task has too few units for intervals, if so."""
    units = len({row["unit"] for row in task.rows})
    if units >= FEWEST_UNITS:
        return []
    needed = f"{FEWEST_UNITS} units (groups of examples with content of their own)"
    return [f"No intervals: they need {needed}, {task.name} has {units}."]


def _control_notes(cells: Sequence[StudySet], plan: SetPlan) -> list[str]:
    asked = {
        "random": (plan.n_random, "random sets without the top heads and with as many heads in each layer"),
        "anywhere": (plan.n_anywhere, "sets of as many other heads of any layer"),
    }
    return [
        f"{size} heads: {f'only {existing}' if existing else 'no'} {words} exist; {wanted} were asked for."
        for kind, (wanted, words) in asked.items()
        for size in plan.sizes
        if (existing := len(by_kind(cells, kind).get(size, []))) < wanted
    ]


def _tie_notes(plan: SetPlan, ranker: Ranker, by_retrieval: Ranker | None) -> list[str]:
    control = by_retrieval.tie_notes(plan.sizes) if plan.retrieval and by_retrieval is not None else []
    return [*ranker.tie_notes(plan.sizes), *control]
