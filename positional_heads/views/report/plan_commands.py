"""Commands that reproduce plans, studies of plans and recommendations, from what is in their files.

As in `commands`, what a command cannot repeat stands below it, in comments.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from positional_heads.results.head_plan import CHANCE, HeadPlan
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.pair_plan import PAIR_RULES, PairPlan
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.plan_words import WINDOWS
from positional_heads.results.profile_tables import UNITS as MEASURES
from positional_heads.results.recommendation import Recommendation
from positional_heads.views.report.commands import (
    folders,
    loading_options,
    model_name,
    no_option,
    not_repeated,
    printed,
    profile_command,
    task_options,
    text_names,
)

OF_PLAN_TASK = {"name", "sha256", "lengths", "length", "depths", "examples", "haystack", "seed"}
"""Settings of a task that the options of `plan`, `manipulate` and `recommend` say."""


def plan_commands(profiles: Sequence[HeadProfile], plans: Sequence[HeadPlan | PairPlan]) -> list[str]:
    """The commands that choose the same plans, each below that of its profile, where no other needed this before.

    Args:
        profiles: Profiles whose commands stand above.
        plans: The plans.
    """
    above = {profile_command(one.provenance) for one in profiles}
    named = _profile_folders(profiles, plans)
    commands = []
    for plan, out in zip(plans, folders("plan", len(plans)), strict=True):
        own = profile_command(plan.provenance)
        before = [] if own in above else [profile_command(plan.provenance, named[own])]
        commands.append("\n".join([*before, plan_command(plan, named[own], out)]))
        above.add(own)
    return commands


def profile_folders(profiles: Sequence[HeadProfile], plans: Sequence[HeadPlan | PairPlan]) -> list[str]:
    """The folder of each profile; the same for profiles that one command makes."""
    named = _profile_folders(profiles, plans)
    return [named[profile_command(one.provenance)] for one in profiles]


def _profile_folders(profiles: Sequence[HeadProfile], plans: Sequence[HeadPlan | PairPlan]) -> dict[str, str]:
    """The folder that each profile which is shown or needed is written to, by its command."""
    needed = list(dict.fromkeys(profile_command(one.provenance) for one in (*profiles, *plans)))
    return dict(zip(needed, folders("profile", len(needed)), strict=True))


def plan_command(plan: HeadPlan | PairPlan, profile: str = "profile", out: str = "plan") -> str:
    """The command that chooses the same plan, from the folder of a profile."""
    words = ["positional-heads", "plan", profile, f"--budget={plan.budget:.9g}"]
    words += [f"--window={plan.window}", f"--sinks={plan.sinks}"] if isinstance(plan, HeadPlan) else []
    words += ["--pairs", f"--how={plan.how}"] if isinstance(plan, PairPlan) else []
    own, missing = _by([plan.by], known=[CHANCE])
    if plan.by == CHANCE:
        own.append(f"--seed={plan.provenance['plan']['seed']}")
    return printed([*words, *own, "--out", out], missing)


def plan_study_command(study: PlanStudy, out: str = "study") -> str:
    """The command that tries the same plans; the profile is not in the result."""
    provenance = study.provenance
    settings, task = provenance["settings"], provenance["task"]
    words = ["positional-heads", "plan", "profile", "--study", model_name(provenance)]
    if study.planned == WINDOWS:
        words += [f"--window={settings['window']}", f"--sinks={settings['sinks']}"]
        words += [f"--n-matched={settings['n_matched']}"] if settings.get("n_matched") else []
    else:
        words += ["--pairs", f"--how={settings['how']}"]
    words += [f"--budget={','.join(f'{one:.9g}' for one in study.budgets)}"]
    own, missing = _by(study.by)
    words += [*own, f"--n-random={settings['n_random']}", f"--seed={settings['seed']}"]
    words += ["--task", str(task.get("name", study.task)), *loading_options(provenance)]
    task_words, without = common_task_options(task, settings["seed"])
    missing = ["profile is the --out folder of positional-heads profile for this model", *missing, *without]
    return printed([*words, *task_words, "--out", out], [*missing, *not_repeated(provenance)])


def recommend_command(made: Recommendation, out: str = "recommendation") -> str:
    """The command that tries the same candidates on the same text."""
    provenance = made.provenance
    words = ["positional-heads", "recommend", model_name(provenance), f"--target-length={made.target_length}"]
    words += [f"--training-length={made.training_length}"]
    if not made.labels:  # nothing was run, so no text was read
        return printed([*words, "--text", "TEXT.txt", "--out", out], not_repeated(provenance))
    task, data, missing = provenance["task"], provenance["data"], []
    tried = made.methods[1:]
    names = list(dict.fromkeys(one["method"] for one in tried))
    factors = sorted({float(one["factor"]) for one in tried if "factor" in one})
    words += ["--methods", ",".join(names)]
    words += [f"--factors={','.join(f'{one:.9g}' for one in factors)}"] if factors else []
    if len(tried) != len(names) * max(1, len(factors)):
        missing.append(f"it tries every method with every factor; these were tried: {', '.join(made.labels[1:])}")
    for name in text_names(provenance):
        words += ["--text", name]
    drawn = data.get("drawn")
    words += [f"--sequences={data['sequences']}", *([] if drawn else ["--in-order"])]
    words += ["--task", str(task["name"] or "none"), *loading_options(provenance)]
    seed = task.get("seed", 0)
    task_words, without = common_task_options(task, seed) if task["name"] else ([], [])
    words += [*task_words, f"--seed={seed}"]
    if drawn and drawn["seed"] != seed:
        missing.append(f"--seed is also the seed of the drawn sequences, which was {drawn['seed']} here")
    return printed([*words, "--out", out], [*missing, *without, *not_repeated(provenance)])


def _by(names: Sequence[str], known: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Options that name measures, and a sentence on those that no option can name."""
    known = [*known, *MEASURES, *PAIR_RULES]
    own = [name for name in names if name.removeprefix("-") not in known]
    missing = [f"the command cannot choose by a measure of your own, {', '.join(own)}"] if own else []
    return [f"--by={name}" for name in names if name not in own], missing


def common_task_options(task: Mapping[str, Any], seed: int) -> tuple[list[str], list[str]]:
    """Options for the settings of a task, and sentences on the others."""
    words, missing = task_options({key: value for key, value in task.items() if key in OF_PLAN_TASK})
    others = {key: value for key, value in task.items() if key not in OF_PLAN_TASK and value is not None}
    if others:
        listed = ", ".join(f"{key} {value}" for key, value in others.items())
        missing.append(f"other settings of the task, which must be its defaults, were: {listed}")
    if task.get("seed", seed) != seed:
        missing.append(no_option("the seed of the task apart from --seed, which was", task["seed"]))
    return words, missing
