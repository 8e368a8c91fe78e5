"""The ablation study: whether tasks need high-scoring heads more than others, and more at long range than at short."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.bridge.ablation import AblationMode, Reference
from positional_heads.bridge.kept_residuals import kept_residuals
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.provenance import library_versions, model_provenance
from positional_heads.bridge.retrieval import retrieval_scores
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.head_sets import HeadSet, by_kind, distinct_sets, set_sizes, study_sets
from positional_heads.core.heads import Head
from positional_heads.core.set_order import shared_layers, sharing_order
from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.scores import HeadScores
from positional_heads.studies.resume import run_parts
from positional_heads.studies.tasks.evaluate import make_task, prepared_ablation, refuse_misspelled, task_provenance
from positional_heads.studies.tasks.task import AnswerTask, Task

RankBy = Literal["rho", "excess"]
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
    mode: AblationMode = "zero",
    reference: Reference | None = None,
    distance: int | None = None,
    rank_by: RankBy = "rho",
    singles: Singles | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
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
        **task_settings: Settings of a task given by name, e.g. length, depths, examples.

    Raises:
        ValueError: If the scores are of another model, or the task, mode, heads or settings make no sense.
    """
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
    # 3. the sets of heads: the top ones and every control
    sizes = set_sizes(len(ranking), FRACTIONS if fractions is None and counts is None else fractions, counts)
    retrieval, notes = _retrieval(model, task)
    by_retrieval = None if retrieval is None else _ranked(ranking, retrieval)
    alone = _single_heads(ranking, sizes[-1], singles)
    cells = study_sets(ranking, sizes, n_random, by_retrieval, alone, seed)
    # 4. the task under each distinct set, always on the same examples
    identity = {"model": scored_model, **task_provenance(task, ablation)}

    sets = distinct_sets(cells)
    order = sharing_order(sets)
    starts = shared_layers(order)

    def measure(heads: HeadSet) -> dict[str, list[float]]:
        residuals.keep(starts[heads])
        with model.hooks(fwd_hooks=ablation.hooks(heads)):
            return {name: values.tolist() for name, values in task.measure(model, batch_size).items()}

    with kept_residuals(model) as residuals:
        in_order = run_parts(
            {" ".join(map(str, heads)): heads for heads in order},
            measure,
            study=identity,
            folder=checkpoint,
            title=f"ablating for {task.name}",
            unit="set",
            progress=progress,
        )
    by_set = dict(zip(order, in_order, strict=True))
    # 5. the record
    return AblationStudy(
        task=task.name,
        rows=task.rows,
        cells=cells,
        values={
            name: torch.tensor([by_set[heads][name] for heads in sets], dtype=torch.float64) for name in task.measures
        },
        ranking=ranking,
        ranked_by=ranked_by,
        retrieval=retrieval,
        chance=dict(task.chance),
        notes=[*notes, *_unit_notes(task), *_control_notes(by_kind(cells, "random"), sizes, n_random)],
        provenance={
            "versions": library_versions(),
            **identity,
            "scores": _scores_provenance(scores, rank_by),
            "settings": {"sizes": sizes, "n_random": n_random, "singles": len(alone), "seed": seed},
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


def _retrieval(model: TransformerLensModel, task: Task) -> tuple[Float64[Tensor, "layer head"] | None, list[str]]:
    """Retrieval scores on held-out examples of the task, or of passkey if it has no needle; None with a note why."""
    if not _has_needles(task):
        if getattr(model, "tokenizer", None) is None:
            return None, ["No retrieval scores: the task has no needle, and the model has no tokenizer to make one."]
        task = make_task(model, "passkey")
        if not _has_needles(task):
            return None, ["No retrieval scores: the text is too short for held-out examples; give a longer haystack."]
    assert isinstance(task, AnswerTask)
    far = [example for example in task.held_out if example.reach == "long"]
    starts = [example.answers[0][0] for example in far]
    retrieval = retrieval_scores(
        model,
        [example.tokens[:start] for example, start in zip(far, starts, strict=True)],
        [example.needle for example in far if example.needle is not None],
        [example.tokens[start:] for example, start in zip(far, starts, strict=True)],
    )
    if bool(retrieval.isnan().all()):
        return None, [f"No retrieval scores: the model answers no held-out example of `{task.name}` correctly."]
    return retrieval, []


def _has_needles(task: Task) -> bool:
    """Whether it has held-out examples, and each repeats tokens of its context."""
    held_out = task.held_out if isinstance(task, AnswerTask) else ()
    return bool(held_out) and all(example.needle is not None for example in held_out)


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
