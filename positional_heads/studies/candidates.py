"""The candidates of a recommendation: methods and factors, their blocks for config.json, and what a budget keeps."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from tqdm.auto import tqdm

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.rope_scaling.config_block import config_block, in_its_place, prove_block, why_not_written
from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rope_scaling.methods import canonical_name, rope_method, takes_factor
from positional_heads.studies.budget import Budget, two_digits
from positional_heads.studies.extrapolation import method_label
from positional_heads.studies.resume import FinishedParts, run_parts
from positional_heads.studies.rotary_kinds import Rotations
from positional_heads.studies.trials import Trial, TrialPlan

BASELINE = "none"


def candidates(
    methods: Sequence[str | Method], factors: Sequence[float] | None, trained: int, target: int
) -> list[Trial]:
    """No extension, and every method with every factor.

    Args:
        methods: Methods by name, or with settings of their own.
        factors: Factors of those by name; target over training length, and twice that, when None.
        trained: Tokens that the model was trained on.
        target: Tokens to extend to.

    Raises:
        ValueError: If a method does not reach the target.
    """
    factors = [target / trained, 2 * target / trained] if factors is None else factors
    trials = [Trial(BASELINE, rope_method(BASELINE), target)]
    for method in methods:
        if not isinstance(method, str):
            trials.append(Trial(method_label(method), method, target))
        elif takes_factor(method) and canonical_name(method) != BASELINE:
            name = canonical_name(method)
            made = [(factor, rope_method(name, factor, training_length=trained)) for factor in factors]
            trials += [Trial(f"{name} {factor:g}", one, target) for factor, one in made]
        elif canonical_name(method) != BASELINE:
            trials.append(Trial(canonical_name(method), rope_method(method, training_length=trained), target))
    for trial in trials:
        reach = trial.method.reach(trained)
        if reach is not None and reach < target:
            msg = (
                f"{trial.label} reaches {reach} tokens from {trained}, not {target}: give larger factors, or leave it "
                "out"
            )
            raise ValueError(msg)
    return trials


def proven_block(
    model: TransformerLensModel, trial: Trial, extended: Callable[[Method], Any], found: Rotations
) -> tuple[dict[str, Any] | None, str | None]:
    """What to put into config.json for a candidate, after a check; or why that cannot be said.

    Args:
        model: A TransformerBridge.
        trial: The candidate.
        extended: Makes the block in which the candidate is measured, from its method.
        found: How the model rotates.
    """
    with extended(trial.method) as extension:
        tables = {layer: extension.table(layer, trial.length) for layer in found.extended}
    if trial.label == BASELINE:
        return None, None
    reason = why_not_written(trial.method)
    if reason is None and len({found.ropes[layer].base for layer in found.extended}) > 1:
        reason = "its extended layers have different bases, for which versions of transformers have no common block"
    if reason is not None:
        return None, reason
    block = in_its_place(model, config_block(trial.method, found.ropes[found.extended[0]], trial.length))
    reason = prove_block(model, block, {**found.tables, **tables}, trial.length)
    return (block, None) if reason is None else (None, reason)


def smaller_plans(trials: Sequence[Trial]) -> list[TrialPlan]:
    """All candidates, and what is left of them as the larger factors go, then the last methods, down to one."""
    plans = [TrialPlan(tuple(trials))]
    factors = sorted({trial.method.settings.get("factor", 0.0) for trial in trials[1:]})
    for factor in factors[:0:-1]:
        kept = tuple(one for one in plans[-1].trials if one.method.settings.get("factor", 0.0) != factor)
        plans += [TrialPlan(kept)] if len(kept) > 1 else []
    while len(plans[-1].trials) > 2:  # noqa: PLR2004  no extension, and one candidate
        plans.append(TrialPlan(plans[-1].trials[:-1]))
    return plans


def within_budget(
    limit: Budget | None,
    trials: list[Trial],
    measure: Callable[[Trial], Any],
    cost: Callable[[Trial], float],
    finished: FinishedParts,
    *,
    progress: bool,
) -> tuple[list[Trial], list[str], dict[str, Any]]:
    """The candidates that fit into a budget, after no extension was timed; notes and provenance of what does not.

    Without a budget all fit, and where progress is shown it is said about how long they will take.

    Args:
        limit: The budget; all fit when None.
        trials: All candidates, no extension first.
        measure: Measures one.
        cost: Cost of one compared with the others.
        finished: The parts that are finished.
        progress: Show a progress bar.
    """
    if limit is None and not progress:
        return trials, [], {}
    plans, first = smaller_plans(trials), trials[0]
    if limit is not None:
        finished.forget_untimed([first.name])
    run_parts({first.name: first}, measure, finished=finished, title="timing", unit="candidate", progress=progress)
    each = finished.seconds.get(first.name, 0.0) / cost(first)

    def seconds(plan: TrialPlan) -> float:
        return each * sum(cost(one) for one in plan.trials if one.name not in finished.results)

    if limit is None:
        left = two_digits(seconds(plans[0]) / 60)
        if each and left:
            line = f"{len(trials) - 1} candidates besides no extension: about {left:g} minutes left to run"
            tqdm.write(f"{line}; a budget leaves out what does not fit", sys.stderr)
        return trials, [], {}
    taken = sum(finished.seconds_of([one.name], each * cost(one)) for one in trials)
    chosen = limit.planned(
        plans,
        seconds,
        finished,
        taken=taken,
        left_out=lambda plan: plan.left_out_of(plans[0]),
        least=" and ".join(plans[-1].labels),
        progress=progress,
    )
    return list(chosen.plan.trials), chosen.notes, {"budget": chosen.account}
