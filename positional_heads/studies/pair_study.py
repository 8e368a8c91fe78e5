"""The study of pair plans: which measure chooses the rotary pairs whose rotation a task needs, and does chance as well.

Every plan is run as an extension, `kept_pairs`: a key head that loses a pair does so for all query heads that read it.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from positional_heads.bridge.active_extension import active_block, active_extension
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.provenance import library_versions
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.head_sets import AnySet, distinct_sets, set_name
from positional_heads.results.head_plan import CHANCE
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.pair_plan import DONE, PAIR_RULES, How, PairPlan, pair_plan
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.plan_tables import TriedPlan
from positional_heads.studies.ablation import MOST_RANDOM, unit_notes
from positional_heads.studies.plan_study import BUDGETS, profiled_model
from positional_heads.studies.resume import FinishedParts, run_parts
from positional_heads.studies.tasks.evaluate import make_task, refuse_misspelled, task_provenance
from positional_heads.studies.tasks.task import Task

logger = logging.getLogger(__name__)


@checked
def pair_study(
    model: TransformerLensModel,
    profile: HeadProfile,
    task: str | Task | Callable[[Any], Any] = "passkey",
    *,
    budgets: Sequence[float] = BUDGETS,
    by: Sequence[Any] | None = None,
    how: How = "freeze",
    n_random: int = 20,
    batch_size: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **task_settings: Any,
) -> PlanStudy:
    """Freeze, or drop, the pairs that each measure, or chance, ranks lowest, always on the same examples.

    Every plan is that of `pair_plan`. Also run: the model as it is, and no pair that keeps its rotation.

    Args:
        model: The TransformerBridge that was profiled.
        profile: What `profile_heads` returned for it.
        task: Name of a task, a task, or a function from the model to one score per example, higher being better.
        budgets: Shares of the pairs of each key head that keep their rotation, between 0 and 1.
        by: What chooses pairs, each as in `pair_plan`; when None, all of its measures and MHA2MLA's rules.
        how: What becomes of the other pairs: "freeze" or "drop".
        n_random: Number of random rankings, each with a plan at every budget; a p-value of 0.05 needs 20.
        batch_size: Sequences per forward pass; chosen by length when None.
        seed: Seed of random plans; the task has its own.
        checkpoint: Folder to save finished parts in; the same call resumes from it. Studies of the same task that
            freeze, or drop, share their parts, whatever their measures and budgets.
        progress: Show a progress bar over the whole study.
        **task_settings: Settings of a task given by name, e.g. length, depths, examples.

    Raises:
        ValueError: If the profile is of another model, or the task, a budget, a measure or a setting makes no sense.
        RuntimeError: If the rotation of the model is extended.
        UnsupportedModelError: If its rotation cannot be edited.
    """
    in_range("n_random", n_random, 1, MOST_RANDOM)
    in_range("batch_size", batch_size, 1)
    in_range("seed", seed, 0)
    refuse_misspelled(pair_study, task, task_settings)
    cells, plans, notes = _tried_plans(profile, budgets, by, how, n_random, seed)
    if active_extension(model) is not None:
        block = active_block(model)
        msg = f"the model's rotation is extended, and plans of pairs extend it: leave the {block} block first"
        raise RuntimeError(msg)
    own_model = profiled_model(model, profile)
    with extended_rope(model, **plans[cells[-1].heads].extension):
        pass  # what cannot be edited is refused before anything is run
    task = make_task(model, task, **task_settings)
    for note in unit_notes(task):
        logger.warning("%s Give more examples.", note)
    identity = {"model": own_model, **task_provenance(task, None), "pairs": {"how": how}}

    def measure(one: AnySet) -> dict[str, list[float]]:
        if not one:
            return {name: values.tolist() for name, values in task.measure(model, batch_size).items()}
        with extended_rope(model, **plans[one].extension):
            return {name: values.tolist() for name, values in task.measure(model, batch_size).items()}

    results = run_parts(
        {set_name(one): one for one in distinct_sets(cells)},
        measure,
        finished=FinishedParts(identity, checkpoint),
        title=f"trying pairs on {task.name}",
        unit="sets",
        progress=progress,
    )
    return PlanStudy(
        task=task.name,
        rows=task.rows,
        cells=cells,
        values={name: torch.tensor([one[name] for one in results], dtype=torch.float64) for name in task.measures},
        chance=dict(task.chance),
        planned=f"{DONE[how]} pairs",
        notes=[*notes, *unit_notes(task)],
        provenance={
            "versions": library_versions(),
            **identity,
            "profile": {key: profile.provenance.get(key) for key in ("data", "settings", "retrieval")},
            "settings": {
                "budgets": list(budgets),
                "how": how,
                "by": list(dict.fromkeys(one.by for one in cells if one.kind == "plan")),
                "n_random": n_random,
                "pairs": cells[-1].k,
                "seed": seed,
            },
        },
    )


def _tried_plans(
    profile: HeadProfile, budgets: Sequence[float], by: Sequence[Any] | None, how: How, n_random: int, seed: int
) -> tuple[list[TriedPlan], dict[AnySet, PairPlan], list[str]]:
    """Every plan and its role, the plans by their sets, and what their choice left undecided, in sentences.

    Raises:
        ValueError: If a budget leaves nothing to choose or repeats another, or a measure is chance, none or unknown.
    """
    measures = list(PAIR_RULES) if by is None else list(by)
    if not measures or CHANCE in [one for one in measures if isinstance(one, str)]:
        msg = f"by={measures}: name at least one measure, e.g. band_norm; chance is always tried, n_random times"
        raise ValueError(msg)
    _refuse_budgets(profile, budgets)
    cells, plans = [TriedPlan("none", 0, 0, (), "none", 1.0)], {}
    notes: list[str] = []

    def add(kind: str, number: int, plan: PairPlan, name: str) -> None:
        kept, n = plan.counts
        cells.append(TriedPlan(kind, n - kept, number, plan_set(plan), name, plan.budget))
        plans[cells[-1].heads] = plan

    for one in measures:
        tried = [pair_plan(profile, budget, one, how) for budget in budgets]
        name = tried[0].by
        if any(cell.by == name for cell in cells):
            msg = f"by has {name!r} twice: give each measure once"
            raise ValueError(msg)
        for plan in tried:
            add("plan", 0, plan, name)
            notes += [f"Budget {plan.budget:g}: {note}" if name in note else note for note in plan.notes]
    for number in range(n_random):
        for budget in budgets:
            add("chance", number, pair_plan(profile, budget, CHANCE, how, seed=seed * MOST_RANDOM + number), CHANCE)
    add("all", 0, pair_plan(profile, 0.0, "high", how), "all")
    return cells, plans, list(dict.fromkeys(notes))


def plan_set(plan: PairPlan) -> tuple[str, ...]:
    """The key heads that lose pairs, each with the digits of the pairs that it keeps, in base 16."""
    return tuple(
        f"L{layer}K{head}:{int(digits, 2):0{-(-len(digits) // 4)}x}"
        for layer, heads in enumerate(plan.digits)
        for head, digits in enumerate(heads)
        if "0" in digits
    )


def _refuse_budgets(profile: HeadProfile, budgets: Sequence[float]) -> None:
    """Refuse budgets at which there is nothing to choose, or that keep as many pairs as another.

    Raises:
        ValueError: If there are some, or no budget at all.
    """
    if not budgets:
        msg = "no budget given: name shares of the pairs that keep their rotation, e.g. budgets=(0.25, 0.5, 0.75)"
        raise ValueError(msg)
    counts = {budget: pair_plan(profile, budget, "high").counts for budget in budgets}
    for budget, (kept, n) in counts.items():
        if kept in {0, n}:
            msg = f"budget {budget:g} keeps {kept} of {n} pairs: there is nothing to choose; give one nearer to 0.5"
            raise ValueError(msg)
    if len(set(counts.values())) < len(budgets):
        listed = ", ".join(f"{budget:g}" for budget in budgets)
        msg = f"two of the budgets {listed} keep as many pairs: give ones farther apart"
        raise ValueError(msg)
