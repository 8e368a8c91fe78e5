"""`positional-heads plan`: which key heads may see only a window, or which pairs keep their rotation; what it costs."""

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from positional_heads.cli import options
from positional_heads.cli.common import load_named, numbers, one_line_errors, prepared_folder, read_text, say
from positional_heads.cli.show import finish

if TYPE_CHECKING:
    from positional_heads.results.files import ResultKind
    from positional_heads.results.head_plan import HeadPlan
    from positional_heads.results.head_profile import HeadProfile
    from positional_heads.results.pair_plan import PairPlan
    from positional_heads.results.plan_study import PlanStudy

WINDOW_TOOLS, PAIR_TOOLS = ("duo-attention", "kvpress"), ("mha2mla",)
EXPORTED = {"duo-attention": "duo_attention", "kvpress": "kvpress.json", "mha2mla": "mha2mla.pth"}
"""Folder or file that a plan is written to for each tool."""


def plan(  # noqa: PLR0917  one parameter is one option of the command
    profile: Annotated[Path, typer.Argument(help="Result of `profile` for the model: a folder, or the file in it.")],
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="A measure of the profile, e.g. reach or -sink_mass, or chance: the key heads with its lowest values "
            "get windows; repeatable with --study. reach if not given; with --study reach, retrieval, distant_mass, "
            "rho and excess. With --pairs band_norm, agreement, contribution, center, high, low, uniform or chance: "
            "band_norm if not given, with --study all of them."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Share of the key heads that keep all keys, or, with --pairs, of the pairs that keep their rotation: "
            "0.5 if not given; with --study several, 0.25,0.5,0.75 if not given."
        ),
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Choose the rotary pairs of each key head that keep their rotation.")
    ] = False,
    how: Annotated[
        str | None, typer.Option(help="With --pairs: freeze the other pairs, or drop them; freeze if not given.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=2, help="Last keys that the others see, the query's own among them; the profile's if not given."
        ),
    ] = None,
    sinks: Annotated[
        int | None, typer.Option(min=0, help="First keys of the text that they see; the profile's if not given.")
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            help="Write the plan for another tool as well: duo-attention or kvpress, with --pairs mha2mla; repeatable."
        ),
    ] = None,
    out: options.Out = Path("plan"),
    study: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Try plans on this model: the one that was profiled, named as there."),
    ] = None,
    task: Annotated[
        str, typer.Option(help=f"With --study: {options.RECALL_TASKS}, exam, perplexity or longbench.")
    ] = "passkey",
    length: Annotated[
        list[int] | None, typer.Option(min=2, help="Tokens of a sequence, repeatable; the context if not given.")
    ] = None,
    depths: options.Depths = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="Examples for every length and depth; exam: for every length.")
    ] = None,
    haystack: Annotated[
        str | None,
        typer.Option(
            help="Text file to hide the answer in, or bundled:prose and the like; the bundled text if not given."
        ),
    ] = None,
    n_random: Annotated[int, typer.Option(min=1, help="Number of random rankings, each with a plan per budget.")] = 20,
    n_matched: Annotated[
        int | None,
        typer.Option(
            min=0, help="Random plans with as many windows in every layer, per measure and budget; 0 if not given."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="With --study: keep finished parts in this folder. Studies of the same task and windows, or of pairs "
            "and how, share them: run again with more measures, and only these are tried."
        ),
    ] = None,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    offload_folder: options.OffloadFolder = None,
    adapter: options.Adapter = None,
    dtype: options.Dtype = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the task and of random plans.")] = 0,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Choose key heads that may see only the first keys and a window, or the rotary pairs that keep their rotation.

    Writes the plan of one measure, and with --export a file for a tool that runs it. With --study, tries plans of
    several measures and random ones on a task, and says which cost least; it writes no plan. To resume an interrupted
    study, run the same command again.

    Example: positional-heads plan profile --by reach --budget 0.5 --out plan
    """
    of_task = {"length": length, "depths": depths, "examples": examples}
    with one_line_errors():
        usual = "0.5" if study is None else "0.25,0.5,0.75"
        budgets = numbers("--budget", usual if budget is None else budget, usual)
        if study is None:
            _refuse_study_options(by, budgets, checkpoint)
        _refuse_exports(export or [], pairs, study)
        of_plan = _settings_of_plan(pairs, window=window, sinks=sinks, n_matched=n_matched, how=how)
        from positional_heads.results.files import FINISHED_FILE_NAME, PLAN_STUDY
        from positional_heads.results.head_profile import HeadProfile

        profiled = HeadProfile.load(profile)
        if study is None:
            plan = _chosen(profiled, budgets[0], by[0] if by else None, seed, pairs, of_plan)
            _write_plan(plan, out, overwrite, as_json, export or [])
            return
        from positional_heads.bridge.loading import check_dtype
        from positional_heads.studies.pair_study import pair_study
        from positional_heads.studies.plan_study import plan_study
        from positional_heads.studies.tasks.evaluate import check_task_name, task_setting_names

        check_dtype(dtype)
        check_task_name(task)
        task_settings: dict[str, Any] = {name: value for name, value in of_task.items() if value not in (None, [])}
        if length is not None and len(length) == 1:  # LongBench takes a single one
            task_settings["length"] = length[0]
        if haystack is not None:
            task_settings["haystack"] = read_text(haystack)
        if "seed" in task_setting_names(task):
            task_settings["seed"] = seed
        with _prepared(out, PLAN_STUDY, overwrite):
            places = {"offload_folder": offload_folder, "adapter": adapter}
            bridge = load_named(study, device, dtype, trust_remote_code, device_map=device_map, **places)
            from positional_heads.studies.tasks.evaluate import make_task

            result = (pair_study if pairs else plan_study)(
                bridge,
                profiled,
                make_task(bridge, task, **task_settings),
                budgets=budgets,
                by=by or None,
                n_random=n_random,
                batch_size=batch_size,
                seed=seed,
                checkpoint=checkpoint or out,
                progress=True,
                **of_plan,
            )
            finish(result, out, as_json, progress=[FINISHED_FILE_NAME] if checkpoint is None else [])
            say(_next_step(result, profile, pairs))


def _settings_of_plan(pairs: bool, **given: Any) -> dict[str, Any]:
    """The settings given for this kind of plan.

    Raises:
        ValueError: If one of the other kind is given.
    """
    known = {name: value for name, value in given.items() if value is not None}
    for name in known:
        if (name == "how") != pairs:
            msg = f"--{name.replace('_', '-')} goes with {'--pairs' if name == 'how' else 'windows, not with --pairs'}"
            raise ValueError(msg)
    return known


@contextmanager
def _prepared(out: Path, kind: "ResultKind", overwrite: bool) -> Iterator[None]:
    """`prepared_folder`, which also refuses a folder whose plan or study this result would hide.

    Raises:
        ValueError: If it has one of another kind.
    """
    from positional_heads.results.files import HEAD_PLAN, PAIR_PLAN, PLAN_STUDY, lies_in

    for other in (HEAD_PLAN, PAIR_PLAN, PLAN_STUDY):
        if other != kind and lies_in(out, other.file_name):
            name = other.label.removeprefix("positional_heads.")
            msg = (
                f"{out}: already holds a {name} ({other.file_name}), which this result would hide: choose another --out"
            )
            raise ValueError(msg)
    with prepared_folder(out, kind.file_name, overwrite):
        yield


def _chosen(
    profiled: "HeadProfile", budget: float, by: str | None, seed: int, pairs: bool, settings: dict[str, Any]
) -> "HeadPlan | PairPlan":
    """The plan of one measure."""
    from positional_heads.results.pair_plan import pair_plan
    from positional_heads.results.window_plan import window_plan

    if pairs:
        return pair_plan(profiled, budget, "band_norm" if by is None else by, seed=seed, **settings)
    settings.pop("n_matched", None)  # controls of a study
    return window_plan(profiled, budget, by="reach" if by is None else by, seed=seed, **settings)


def _write_plan(plan: "HeadPlan | PairPlan", out: Path, overwrite: bool, as_json: bool, exports: Sequence[str]) -> None:
    """Write and print one plan, and write it for other tools."""
    with _prepared(out, plan.saved_as, overwrite):
        finish(plan, out, as_json, more=_exported(exports, plan, out))  # refused before the plan itself is written


def _exported(exports: Sequence[str], plan: Any, out: Path) -> list[Path]:
    """Files for other tools; if one is refused, none is left that was not there before."""
    there = {out / name for name in EXPORTED.values() if (out / name).exists()}
    try:
        return [write_for(tool, plan, out) for tool in dict.fromkeys(exports)]
    except Exception:
        for new in {out / EXPORTED[tool] for tool in exports} - there:
            shutil.rmtree(new) if new.is_dir() else new.unlink(missing_ok=True)
        raise


def write_for(tool: str, plan: Any, out: Path) -> Path:
    """Write a plan for another tool, into a folder."""
    from positional_heads.results import formats

    if tool == "duo-attention":
        return formats.write_duo_attention(plan, out / EXPORTED[tool])
    if tool == "kvpress":
        return formats.write_kvpress(plan, out / EXPORTED[tool])
    return formats.write_mha2mla_ranks(plan, out / EXPORTED[tool])


def _next_step(study: "PlanStudy", profile: Path, pairs: bool) -> str:
    """Which command writes the plan that cost least at the middle budget, in a sentence."""
    from positional_heads.results.plan_verdict import cheapest

    budget = study.budgets[len(study.budgets) // 2]
    by = cheapest(study.contrasts(), study.reaches[0], budget)[0]
    settings = study.provenance["settings"]
    window = f" --window {settings['window']} --sinks {settings['sinks']}" if not pairs else ""
    how = f" --pairs --how {settings['how']}" if pairs else ""
    command = f"positional-heads plan {shlex.quote(str(profile))}{how} --by={shlex.quote(by)}{window}"
    return f"next: {command} --budget {budget:g} --out NEW_FOLDER writes a plan"


def _refuse_study_options(by: list[str] | None, budgets: list[float], checkpoint: Path | None) -> None:
    """Refuse several measures or budgets for one plan, and a folder for parts of a study.

    Raises:
        ValueError: If there are some.
    """
    if len(by or []) > 1 or len(budgets) > 1:
        msg = "a plan has one --by and one --budget: give one of each, or compare several with --study MODEL"
        raise ValueError(msg)
    if checkpoint is not None:
        msg = "--checkpoint goes with --study MODEL: a plan is written at once"
        raise ValueError(msg)


def _refuse_exports(exports: Sequence[str], pairs: bool, study: str | None) -> None:
    """Refuse tools that are unknown or take plans of the other kind.

    Raises:
        ValueError: If there are some, or a study is run.
    """
    known = PAIR_TOOLS if pairs else WINDOW_TOOLS
    for tool in exports:
        if tool not in known:
            msg = f"--export {tool!r}: {'with' if pairs else 'without'} --pairs it is {' or '.join(known)}"
            raise ValueError(msg)
    if exports and study is not None:
        msg = "--export goes with a plan: leave --study out, and give one --by and one --budget"
        raise ValueError(msg)
