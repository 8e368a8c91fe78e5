"""Do the heads that score high matter more than others, and far away more than nearby? The whole study in one call."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm.auto import tqdm

from positional_heads.bridge.ablation import Reference
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.provenance import data_hash, library_versions, model_provenance
from positional_heads.bridge.retrieval import retrieval_scores
from positional_heads.core.arguments import check_seed, checked, in_range
from positional_heads.core.head_sets import HeadSet, by_kind, distinct_sets, doses, study_cells
from positional_heads.core.heads import Head
from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.scores import HeadScores
from positional_heads.studies.resume import FinishedParts
from positional_heads.studies.tasks.evaluate import make_task, ready_ablation
from positional_heads.studies.tasks.task import AnswerTask, Task

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)
RANKINGS = ("rho", "excess")
SINGLES = ("all", "top", "none")
MOST_RANDOM = 100_000
MOST_SINGLES = 128
"""Heads up to which, if nothing else is asked for, all are ablated alone; in larger models only the top ones."""


@checked
def ablation_study(
    model: TransformerLensModel,
    scores: HeadScores,
    task: str | Task | Callable[[Any], Any] = "passkey",
    *,
    fractions: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
    n_random: int = 20,
    mode: str = "zero",
    reference: Reference | None = None,
    distance: int | None = None,
    rank_by: str = "rho",
    singles: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **task_settings: Any,
) -> AblationStudy:
    """Ablate the top heads, and every control, on the same examples (method section 5).

    Controls: random sets with as many heads in every layer that exclude the top heads, rankings permuted within layers
    (for the p-value), the lowest-scoring heads, the heads with the highest retrieval score, and heads one by one.

    Args:
        model: The TransformerBridge that was scored.
        scores: What `score_heads` returned for it.
        task: Name of a task, a task, or a function from the model to one score per example, higher being better.
        fractions: Shares of the scored heads to ablate; 1, 2, 5, 10 and 20 % when neither these nor counts are given.
        counts: Numbers of heads instead.
        n_random: How many random sets at each size, and how many permuted rankings; below 20 no p-value reaches 0.05.
        mode: What becomes of ablated heads, see `ablated_heads`.
        reference: Text or tokens for `mean` and `resample`; held-out examples of the task when None.
        distance: Distance in tokens for `far` and `near`.
        rank_by: Rank heads by rho, or by its excess over the shuffled null.
        singles: Which heads to ablate alone: all, those of the largest top set, or none; all in models of up to 128
            heads when None, else those of the top set.
        batch_size: Sequences per forward pass; chosen by length when None.
        seed: Seed of random sets and permutations; the task has its own.
        checkpoint: Folder in which finished parts are kept, so that the same call goes on where one was stopped.
        progress: Show a progress bar over the whole study.
        **task_settings: Settings of a task given by name, e.g. length, depths, examples.

    Raises:
        ValueError: If scores are from another model, or task, mode, heads or settings make no sense.
    """
    check_ways(rank_by, singles)
    _refuse_other_model(model, scores)
    in_range("n_random", n_random, 0, MOST_RANDOM)
    in_range("batch_size", batch_size, 1)
    check_seed(seed)
    if n_random < 1:
        msg = f"n_random {n_random}: give at least 1; 20 are needed for a p-value of 0.05"
        raise ValueError(msg)
    made = make_task(model, task, **task_settings)
    ranked_by = _ranking_score(scores, rank_by)
    ranking = sorted((head for head in scores.heads if not ranked_by[head].isnan()), key=lambda head: -ranked_by[head])
    sizes = doses(len(ranking), FRACTIONS if fractions is None and counts is None else fractions, counts)
    alone = _singles(ranking, sizes[-1], singles)
    ablation = ready_ablation(model, made, mode, reference, distance)
    retrieval, notes = _retrieval(model, made)
    fetching = None if retrieval is None else _by_retrieval(retrieval, ranking)
    cells = study_cells(ranking, sizes, n_random, fetching, alone, seed)
    provenance = {
        "versions": library_versions(),
        "model": model_provenance(model),
        "task": {"name": made.name, "sha256": _examples_hash(made), **made.settings},
        "ablation": {"mode": mode, "distance": distance, "reference": ablation.reference_hash},
        "scores": _scores_provenance(scores, rank_by),
        "settings": {"sizes": sizes, "n_random": n_random, "singles": len(alone), "seed": seed},
    }
    identity = {key: provenance[key] for key in ("model", "task", "ablation")}
    finished = FinishedParts(checkpoint, identity)
    wanted = distinct_sets(cells)
    done, title = sum(_part(heads) in finished for heads in wanted), f"ablating for {made.name}"
    bar = tqdm(total=len(wanted), initial=done, unit="set", desc=title, disable=not progress)
    with bar, finished.on_interrupt(len(wanted)):
        if progress:
            finished.say_where(bar)
        for heads in wanted:
            if _part(heads) in finished:
                continue
            with model.hooks(fwd_hooks=ablation.hooks(heads)):
                measured = made.measure(model, batch_size)
            finished.add(_part(heads), {name: values.tolist() for name, values in measured.items()})
            bar.update()
    results = [finished.results[_part(heads)] for heads in wanted]
    return AblationStudy(
        task=made.name,
        rows=made.rows,
        cells=cells,
        values={
            name: torch.tensor([result[name] for result in results], dtype=torch.float64) for name in made.measures
        },
        ranking=ranking,
        ranked_by=ranked_by,
        retrieval=retrieval,
        chance=dict(made.chance),
        notes=[*notes, *_unit_notes(made), *_control_notes(by_kind(cells, "random"), sizes, n_random)],
        provenance=provenance,
    )


def check_ways(rank_by: str, singles: str | None) -> None:
    """Refuse words for the ranking and the heads ablated alone that are not known.

    Raises:
        ValueError: If one is unknown.
    """
    ways = {"rank_by": (rank_by, RANKINGS), "singles": ("all" if singles is None else singles, SINGLES)}
    for name, (given, known) in ways.items():
        if given not in known:
            msg = f"{name} {given!r} is unknown: choose one of {', '.join(known)}"
            raise ValueError(msg)


def _part(heads: HeadSet) -> str:
    return " ".join(str(head) for head in heads)


def _refuse_other_model(model: TransformerLensModel, scores: HeadScores) -> None:
    ours, theirs = model_provenance(model), scores.provenance["model"]
    for key in ("layers", "heads", "weights"):
        if ours[key] != theirs[key]:
            msg = (
                f"these scores are of {theirs['name']} ({theirs['dtype']}, compatibility mode "
                f"{theirs['compatibility_mode']}), this model is {ours['name']} ({ours['dtype']}, compatibility mode "
                f"{ours['compatibility_mode']}) and has other {key}: score this model, loaded this way, first"
            )
            raise ValueError(msg)


def _examples_hash(task: Task) -> str | None:
    return data_hash([(example.tokens, None) for example in task.examples]) if isinstance(task, AnswerTask) else None


def _ranking_score(scores: HeadScores, rank_by: str) -> Float64[Tensor, "layer head"]:
    return (scores.rho if rank_by == "rho" else scores.excess).double()


def _scores_provenance(scores: HeadScores, rank_by: str) -> dict[str, Any]:
    known = {key: scores.provenance.get(key) for key in ("data", "settings")}
    significant = int(scores.significant().sum()) if scores.null is not None else None
    return {**known, "rank_by": rank_by, "significant": significant}


def _singles(ranking: list[Head], largest: int, singles: str | None) -> list[Head]:
    if singles is None:
        singles = "all" if len(ranking) <= MOST_SINGLES else "top"
    return {"all": ranking, "top": ranking[:largest], "none": []}[singles]


def _retrieval(model: TransformerLensModel, task: Task) -> tuple[Tensor | None, list[str]]:
    """Retrieval scores on held-out examples of the task, or of passkey where it has no needle."""
    source = task
    if not _with_needles(task):
        if getattr(model, "tokenizer", None) is None:
            return None, ["No retrieval scores: the task has no needle, and the model no tokenizer to make one."]
        source = make_task(model, "passkey")
        if not _with_needles(source):
            return None, ["No retrieval scores: the text is too short for held-out examples; give a longer haystack."]
    asked = [example for example in source.held_out if example.reach == "long"]  # type: ignore[attr-defined]
    starts = [example.answers[0][0] for example in asked]
    found = retrieval_scores(
        model,
        [example.tokens[:start] for example, start in zip(asked, starts, strict=True)],
        [example.needle for example in asked],
        [example.tokens[start:] for example, start in zip(asked, starts, strict=True)],
    )
    if bool(found.isnan().all()):
        return None, [f"No retrieval scores: the model answers no held-out example of {source.name} right."]
    return found, []


def _with_needles(task: Task) -> bool:
    """Whether it has held-out examples whose answers stand in their context."""
    held_out = task.held_out if isinstance(task, AnswerTask) else ()
    return bool(held_out) and all(example.needle is not None for example in held_out)


def _by_retrieval(retrieval: Float64[Tensor, "layer head"], ranking: Sequence[Head]) -> list[Head]:
    return sorted((head for head in ranking if not retrieval[head].isnan()), key=lambda head: (-retrieval[head], head))


def _unit_notes(task: Task) -> list[str]:
    units = len({row["unit"] for row in task.rows})
    if units >= FEWEST_UNITS:
        return []
    return [f"No intervals: they take {FEWEST_UNITS} units (examples that share no content), {task.name} has {units}."]


def _control_notes(random: Any, sizes: Sequence[int], wanted: int) -> list[str]:
    notes = []
    for size in sizes:
        found = len(random.get(size, []))
        if found < wanted:
            notes.append(
                f"{size} heads: only {found} different random sets with as many heads in each layer exist beside the "
                f"top heads, {wanted} were asked for."
            )
    return notes
