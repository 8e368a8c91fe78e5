"""The ablation study: whether tasks need high-scoring heads more than others, and more at long range than at short."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.bridge.ablation import AblationMode, Reference
from positional_heads.bridge.answer_run import runs_plainly
from positional_heads.bridge.kept_residuals import kept_residuals
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.provenance import library_versions, model_provenance
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.head_sets import HeadSet, SetPlan, by_kind, distinct_sets, set_name, set_sizes, smaller_plans
from positional_heads.core.heads import Head
from positional_heads.core.set_order import run_costs, shared_layers, sharing_order
from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.scores import HeadScores
from positional_heads.studies.budget import Budget, Planned
from positional_heads.studies.resume import FinishedParts, run_parts
from positional_heads.studies.retrieval_trials import RetrievalTrials
from positional_heads.studies.tasks.evaluate import make_task, prepared_ablation, refuse_misspelled, task_provenance
from positional_heads.studies.tasks.task import AnswerTask, Task

RankBy = Literal["rho", "excess"]
Singles = Literal["all", "top", "none"]
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)
MOST_RANDOM = 100_000
SHARING = ("zero", "mean")
"""Modes in which sets of heads share the layers below their first difference."""
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
    mode: AblationMode = "zero",
    reference: Reference | None = None,
    distance: int | None = None,
    rank_by: RankBy = "rho",
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
    (for the p-value), the lowest-scoring heads, the heads with the highest retrieval score, and single heads.

    Args:
        model: The TransformerBridge that was scored.
        scores: What `score_heads` returned for it.
        task: Name of a task, a task, or a function from the model to one score per example, higher being better.
        fractions: Shares of the scored heads to ablate; 1, 2, 5, 10 and 20 % if neither fractions nor counts are given.
        counts: Numbers of heads to ablate, instead of fractions.
        n_random: Number of random sets at each size, and of permuted rankings; a p-value below 0.05 needs 20.
        mode: How heads are ablated, see `ablated_heads`.
        reference: Text or tokens for `mean` and `resample`; held-out examples of the task when None.
        distance: Distance in tokens for `far` and `near`.
        rank_by: Rank heads by rho, or by its excess over the null.
        singles: Heads to ablate one by one: all, those of the largest top set, or none; when None, all in models of up
            to 128 scored heads, else those of the top set.
        batch_size: Sequences per forward pass; chosen by length when None.
        seed: Seed of random sets and permutations; the task has its own.
        checkpoint: Folder to save finished parts in; the same call resumes from it.
        progress: Show a progress bar over the whole study.
        budget: Minutes that the study may take. What does not fit is left out before it starts, and the record says so:
            single heads first, then random sets and permutations beyond 20, then the largest sizes, then the retrieval
            control. No limit when None.
        **task_settings: Settings of a task given by name, e.g. length, depths, examples.

    Raises:
        ValueError: If the scores are of another model, the task, mode, heads or settings make no sense, or the budget
            is too small for any study.
    """
    limit = None if budget is None else Budget(budget)
    in_range("n_random", n_random, 1, MOST_RANDOM)
    in_range("batch_size", batch_size, 1)
    in_range("seed", seed, 0)
    refuse_misspelled(ablation_study, task, task_settings)
    scored_model = _scored_model(model, scores)
    # 1. the task, and how heads are ablated in it
    task = make_task(model, task, **task_settings)
    ablation = prepared_ablation(model, task, mode, reference, distance)
    # 2. the ranking of the heads
    ranked_by = (scores.rho if rank_by == "rho" else scores.excess).double()
    ranking = _ranked(scores.heads, ranked_by)
    # 3. what is run of the sets of heads: all that was asked for, or what fits into the budget
    sizes = set_sizes(len(ranking), FRACTIONS if fractions is None and counts is None else fractions, counts)
    identity = {"model": scored_model, **task_provenance(task, ablation)}
    finished = FinishedParts(identity, checkpoint)

    starts: dict[HeadSet, frozenset[int]] = {}
    shares = isinstance(task, AnswerTask) and mode in SHARING and runs_plainly(model)
    costs = partial(run_costs, n_layers=int(model.cfg.n_layers) if shares else 0)

    def measure(heads: HeadSet) -> dict[str, list[float]]:
        residuals.keep(starts.get(heads, ()))
        with model.hooks(fwd_hooks=ablation.hooks(heads)):
            return {name: values.tolist() for name, values in task.measure(model, batch_size).items()}

    trials = RetrievalTrials(model, task)
    alone = len(_single_heads(ranking, sizes[-1], singles))
    plan, account, notes = SetPlan(tuple(sizes), n_random, alone, bool(trials.trials)), None, trials.notes
    with kept_residuals(model) as residuals:
        if limit is not None:
            chosen = _planned(limit, plan, ranking, costs, seed, measure, trials, finished, progress)
            plan, account, notes = chosen.plan, chosen.account, [*chosen.notes, *notes]
        # 4. the sets: the top ones and every control
        retrieval = None
        if plan.retrieval:
            retrieval, missing = trials.scores(finished, progress)
            notes = [*notes, *missing]
        cells = plan.sets(ranking, None if retrieval is None else _ranked(ranking, retrieval), seed)
        # 5. the task under each distinct set, always on the same examples
        order = sharing_order([heads for heads in distinct_sets(cells) if set_name(heads) not in finished.results])
        starts |= shared_layers(order)
        cost = costs(order)
        run_parts(
            {set_name(heads): heads for heads in [*order, *distinct_sets(cells)]},
            measure,
            finished=finished,
            title=f"ablating for {task.name}",
            unit="sets",
            progress=progress,
            cost=lambda heads: cost.get(heads, 1.0),
        )
    results = [finished.results[set_name(heads)] for heads in distinct_sets(cells)]
    # 6. the record
    return AblationStudy(
        task=task.name,
        rows=task.rows,
        cells=cells,
        values={name: torch.tensor([one[name] for one in results], dtype=torch.float64) for name in task.measures},
        ranking=ranking,
        ranked_by=ranked_by,
        retrieval=retrieval,
        chance=dict(task.chance),
        notes=[*notes, *_unit_notes(task), *_control_notes(by_kind(cells, "random"), plan.sizes, plan.n_random)],
        provenance={
            "versions": library_versions(),
            **identity,
            "scores": _scores_provenance(scores, rank_by),
            "settings": {"sizes": list(plan.sizes), "n_random": plan.n_random, "singles": plan.singles, "seed": seed},
            **({} if account is None else {"budget": account}),
        },
    )


def _scored_model(model: TransformerLensModel, scores: HeadScores) -> dict[str, Any]:
    """Provenance of the model, whose weights are hashed for it.

    Raises:
        ValueError: If the scores are of another model.
    """
    ours, theirs = model_provenance(model), scores.provenance["model"]
    for key in ("layers", "heads", "weights"):
        if ours[key] != theirs[key]:
            msg = (
                f"these scores are of {theirs['name']} ({theirs['dtype']}, compatibility mode "
                f"{theirs['compatibility_mode']}), this model is {ours['name']} ({ours['dtype']}, compatibility mode "
                f"{ours['compatibility_mode']}) and has other {key}: score this model, loaded this way, first"
            )
            raise ValueError(msg)
    return ours


def _ranked(heads: Sequence[Head], by: Float64[Tensor, "layer head"]) -> list[Head]:
    """The heads that have a value, the highest first."""
    return sorted((head for head in heads if not by[head].isnan()), key=lambda head: (-by[head], head))


def _scores_provenance(scores: HeadScores, rank_by: RankBy) -> dict[str, Any]:
    significant = None if scores.null is None else int(scores.significant().sum())
    scored = {key: scores.provenance.get(key) for key in ("data", "settings")}
    return {**scored, "rank_by": rank_by, "significant": significant}


def _single_heads(ranking: list[Head], largest: int, singles: Singles | None) -> list[Head]:
    if singles is None:
        singles = "all" if len(ranking) <= MOST_SINGLES else "top"
    return {"all": ranking, "top": ranking[:largest], "none": []}[singles]


def _planned(  # noqa: PLR0917  what a study has prepared
    limit: Budget,
    asked: SetPlan,
    ranking: Sequence[Head],
    costs: Callable[[Sequence[HeadSet]], dict[HeadSet, float]],
    seed: int,
    measure: Callable[[HeadSet], Any],
    trials: RetrievalTrials,
    finished: FinishedParts,
    progress: bool,
) -> Planned[SetPlan]:
    """What fits into a budget, after parts were timed that are needed anyway."""
    top: HeadSet = tuple(sorted(ranking[: asked.sizes[0]]))
    needed = {set_name(heads): heads for heads in ((), top)}  # the un-ablated one first: it warms up
    finished.forget_untimed(needed)
    run_parts(needed, measure, finished=finished, title="timing", unit="sets", progress=progress)
    trials.begin(finished, progress)
    known = None if trials.seconds_left(finished) else trials.scores(finished, progress=False)[0]
    by_retrieval = None if known is None else _ranked(ranking, known)

    def seconds(plan: SetPlan) -> float:
        sets = distinct_sets(plan.sets(ranking, by_retrieval, seed))
        order = sharing_order([heads for heads in sets if set_name(heads) not in finished.results])
        left = sum(costs(order).values()) * finished.seconds[set_name(top)]
        if not plan.retrieval or not trials.seconds_left(finished):
            return left
        return left + len(plan.sizes) * finished.seconds[set_name(top)] + trials.seconds_left(finished)

    plans = smaller_plans(asked, ranking)
    least = f"the top {' and '.join(map(str, plans[-1].sizes))} heads and their controls"
    return limit.planned(
        plans,
        seconds,
        finished,
        taken=finished.seconds_of(
            map(set_name, distinct_sets(asked.sets(ranking, by_retrieval, seed))), finished.seconds[set_name(top)]
        )
        + trials.seconds_taken(finished) * asked.retrieval,
        left_out=lambda plan: plan.left_out_of(asked, ranking, seed),
        least=least,
        progress=progress,
    )


def _unit_notes(task: Task) -> list[str]:
    units = len({row["unit"] for row in task.rows})
    if units >= FEWEST_UNITS:
        return []
    needed = f"{FEWEST_UNITS} units (groups of examples with content of their own)"
    return [f"No intervals: they need {needed}, {task.name} has {units}."]


def _control_notes(random_sets: Mapping[int, Sequence[Any]], sizes: Sequence[int], n_random: int) -> list[str]:
    return [
        f"{size} heads: only {existing} random sets without the top heads and with as many heads in each layer exist; "
        f"{n_random} were asked for."
        for size in sizes
        if (existing := len(random_sets.get(size, []))) < n_random
    ]
