"""The plan study: which measure chooses the key heads whose windows cost a task least, and whether chance does as well.

Windows are ablations (mode `far`, with sinks): exactly the query heads that read a windowed key head see the first keys
and the last ones only.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from positional_heads.bridge.ablation import Ablation
from positional_heads.bridge.active_extension import extension_provenance
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.provenance import library_versions
from positional_heads.core.arguments import checked, in_range, refuse_twice
from positional_heads.core.head_sets import distinct_sets
from positional_heads.core.key_heads import lowest, permuted_within_layers, readers
from positional_heads.results.edits import measured_under
from positional_heads.results.head_plan import CHANCE
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.key_cache import key_cache
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.plan_tables import TriedPlan
from positional_heads.results.plan_words import WINDOWS
from positional_heads.results.window_plan import plan_window, ranking, window_plan, windowable, windowed_count
from positional_heads.studies.ablation import MOST_RANDOM, scored_model, unit_notes
from positional_heads.studies.resume import FinishedParts
from positional_heads.studies.set_runs import set_runs
from positional_heads.studies.tasks.evaluate import make_task, refuse_misspelled, task_provenance
from positional_heads.studies.tasks.task import AnswerTask, Task

logger = logging.getLogger(__name__)

BUDGETS = (0.25, 0.5, 0.75)
MEASURES = ("reach", "retrieval", "distant_mass", "rho", "excess")
"""Measures whose plans are tried by default, of those that a profile has."""


@checked
def plan_study(
    model: TransformerLensModel,
    profile: HeadProfile,
    task: str | Task | Callable[[Any], Any] = "passkey",
    *,
    budgets: Sequence[float] = BUDGETS,
    window: int | None = None,
    sinks: int | None = None,
    by: Sequence[Any] | None = None,
    n_random: int = 20,
    n_matched: int = 0,
    batch_size: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **task_settings: Any,
) -> PlanStudy:
    """Give windows to the key heads that each measure, or chance, ranks lowest, always on the same examples.

    Every plan is that of `window_plan`. Also run: no window, and a window on every key head that can get one.

    The retrieval score of a profile is measured on passkeys unless told otherwise, and so is the default task: there, a
    choice by retrieval has seen the same kind of question. The verdict says so; another task tests it better.

    Args:
        model: The TransformerBridge that was profiled.
        profile: What `profile_heads` returned for it.
        task: Name of a task, a task, or a function from the model to one score per example, higher being better.
            Windows only matter in sequences longer than `sinks + window`.
        budgets: Shares of the key heads to choose from that keep all keys, between 0 and 1.
        window: Last keys that the others see, the query's own among them; at least 2. The profile's own when None.
        sinks: First keys of the text that they see. Those of the profile when None.
        by: What chooses key heads, each as in `window_plan`; when None, reach, retrieval score, distant mass, rho and
            excess, as far as the profile has them.
        n_random: Number of random rankings, each with a plan at every budget; a p-value of 0.05 needs 20.
        n_matched: Number of further random plans for each measure and budget, with as many windows in every layer as
            the measure's plan has: a second control, which shows whether a measure tells more than layers apart.
        batch_size: Sequences per forward pass; chosen by length when None.
        seed: Seed of random plans; the task has its own.
        checkpoint: Folder to save finished parts in; the same call resumes from it. Studies of the same task and
            windows share their parts, whatever their measures and budgets.
        progress: Show a progress bar over the whole study.
        **task_settings: Settings of a task given by name, e.g. length, depths, examples.

    Raises:
        ValueError: If the profile is of another model, the task, a budget, a measure or a setting makes no sense, or no
            sequence of the task is long enough for a window to hide a key.
        UnsupportedModelError: If the attention scores of a layer cannot be edited.
    """
    in_range("n_random", n_random, 1, MOST_RANDOM)
    in_range("n_matched", n_matched, 0, MOST_RANDOM)
    in_range("batch_size", batch_size, 1)
    in_range("seed", seed, 0)
    refuse_misspelled(plan_study, task, task_settings)
    window, sinks = plan_window(profile, 1, window, sinks)
    cells, notes = _tried_plans(profile, budgets, window, sinks, by, n_random, n_matched, seed)
    own_model = profiled_model(model, profile)
    task = make_task(model, task, **task_settings)
    _refuse_short(task, window + sinks)
    for note in unit_notes(task):
        logger.warning("%s Give more examples.", note)
    ablation = Ablation(model, "far", distance=window - 1, sinks=sinks)
    ablation.hooks(list(cells[-1].heads))  # refuses layers whose scores cannot be edited before anything runs
    identity = {"model": own_model, **task_provenance(task, ablation), **extension_provenance(model)}
    identity["windows"] = {"window": window, "sinks": sinks}
    finished = FinishedParts(identity, checkpoint)
    with set_runs(model, task, ablation, finished, batch_size) as runs:
        results = runs.run(distinct_sets(cells), title=f"trying windows on {task.name}", progress=progress)
    return PlanStudy(
        task=task.name,
        rows=task.rows,
        cells=cells,
        values={name: torch.tensor([one[name] for one in results], dtype=torch.float64) for name in task.measures},
        chance=dict(task.chance),
        planned=WINDOWS,
        notes=[*notes, *unit_notes(task)],
        provenance={
            "versions": library_versions(),
            **identity,
            "profile": {key: profile.provenance.get(key) for key in ("data", "settings", "retrieval")},
            "settings": {
                "budgets": list(budgets),
                "window": window,
                "sinks": sinks,
                "by": list(dict.fromkeys(one.by for one in cells if one.kind == "plan")),
                "n_random": n_random,
                "n_matched": n_matched,
                "windowable": int(windowable(profile).sum()),
                "seed": seed,
            },
        },
    )


def profiled_model(model: TransformerLensModel, profile: HeadProfile) -> dict[str, Any]:
    """Provenance of the model that plans are tried on.

    Raises:
        ValueError: If the profile is of another model, or of one that was ablated or extended otherwise. What hooks of
            others do is not known: results name them, and checkpoints refuse them.
    """
    own = scored_model(model, profile.scores, ("this profile is", "profile"))
    now, then = {"model": own, **extension_provenance(model)}, profile.provenance
    acting = [[(of["model"].get("edits") or {}).get("ablated"), of.get("extension")] for of in (now, then)]
    if json.dumps(acting[0]) != json.dumps(acting[1]):
        msg = (
            f"this profile was measured under {measured_under(then) or 'nothing'}, and "
            f"{measured_under(now) or 'nothing'} acts on the model now: profile the model as it is to be run"
        )
        raise ValueError(msg)
    return own


def _tried_plans(  # noqa: PLR0917  the settings of a study
    profile: HeadProfile,
    budgets: Sequence[float],
    window: int,
    sinks: int,
    by: Sequence[Any] | None,
    n_random: int,
    n_matched: int,
    seed: int,
) -> tuple[list[TriedPlan], list[str]]:
    """Every set of windows, and what their choice left undecided, in sentences.

    Raises:
        ValueError: If a budget leaves nothing to choose or repeats another, or a measure is chance, none or unknown.
    """
    refuse_twice("budgets", budgets)
    among, key_heads, keys_of = windowable(profile), profile.key_heads, key_cache(profile).keys_of
    counts = _counts(int(among.sum()), {budget: _count(profile, budget, window, sinks) for budget in budgets})
    measures = [name for name in MEASURES if name in profile.names] if by is None else list(by)
    if not measures or CHANCE in [one for one in measures if isinstance(one, str)]:
        msg = f"by={measures}: name at least one measure, e.g. reach; chance is always tried, n_random times"
        raise ValueError(msg)
    cells, notes = [TriedPlan("none", 0, 0, (), "none", 1.0)], []
    for one in measures:
        name, values = ranking(profile, one)
        if any(cell.by == name for cell in cells):
            msg = f"by has {name!r} twice: give each measure once"
            raise ValueError(msg)
        for budget, k in counts.items():
            plan = window_plan(profile, budget, window, sinks, one)
            cells.append(TriedPlan("plan", k, 0, tuple(plan.heads), name, budget))
            notes += [f"Budget {budget:g}: {note}" if name in note else note for note in plan.notes]
            for number in range(n_matched):
                drawn = lowest(permuted_within_layers(values, among, f"{name}-{seed}-{number}"), among, k)
                cells.append(TriedPlan("layers", k, number, tuple(readers(drawn, key_heads, keys_of)), name, budget))
    for number in range(n_random):
        for budget, k in counts.items():
            plan = window_plan(profile, budget, window, sinks, CHANCE, seed=seed * MOST_RANDOM + number)
            cells.append(TriedPlan("chance", k, number, tuple(plan.heads), CHANCE, budget))
    cells.append(TriedPlan("all", int(among.sum()), 0, tuple(readers(among, key_heads, keys_of)), "all", 0.0))
    return cells, list(dict.fromkeys(notes))


def _count(profile: HeadProfile, budget: float, window: int, sinks: int) -> int:
    plan_window(profile, budget, window, sinks)
    return windowed_count(windowable(profile), budget)


def _counts(n_heads: int, counts: dict[float, int]) -> dict[float, int]:
    """How many key heads get a window at each budget.

    Raises:
        ValueError: If none or all do, or as many at two budgets.
    """
    if not counts:
        msg = "no budget given: name shares of the key heads that keep all keys, e.g. budgets=(0.25, 0.5, 0.75)"
        raise ValueError(msg)
    for budget, k in counts.items():
        if k in {0, n_heads}:
            msg = (
                f"budget {budget:g} gives windows to {k} of {n_heads} key heads: there is nothing to choose; give one "
                "nearer to 0.5"
            )
            raise ValueError(msg)
    if len(set(counts.values())) < len(counts):
        msg = f"two of the budgets {', '.join(f'{budget:g}' for budget in counts)} give windows to as many key heads"
        raise ValueError(f"{msg}: give ones farther apart")
    return counts


def _refuse_short(task: Task, seen: int) -> None:
    """Refuse a task in whose sequences a window hides no key.

    Raises:
        ValueError: If all are too short.
    """
    if not isinstance(task, AnswerTask):
        return
    longest = max(len(example.tokens) for example in task.examples)
    if longest <= seen:
        msg = (
            f"the longest sequence of {task.name} has {longest} tokens, and sinks and window show {seen}: they hide "
            "nothing; give a larger length, or a smaller window"
        )
        raise ValueError(msg)
