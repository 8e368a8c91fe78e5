"""`positional-heads manipulate`: the manipulation study from the command line."""

from pathlib import Path
from typing import Annotated, Any

import typer

from positional_heads.cli import options
from positional_heads.cli.common import (
    choice,
    load_named,
    numbers,
    one_line_errors,
    prepared_folder,
    read_text,
)
from positional_heads.cli.show import finish


def manipulate(  # noqa: PLR0917  one parameter is one option of the command
    model: options.Model,
    scores: Annotated[Path, typer.Option(help="Result of `score` for this model: a folder, or the file in it.")],
    task: Annotated[str, typer.Option(help=f"{options.RECALL_TASKS}, exam, perplexity or longbench.")] = "passkey",
    out: options.Out = Path("manipulation"),
    how: Annotated[
        str,
        typer.Option(
            help="freeze: turn pairs at every position as at position 0; zero: leave them out of scores; scale: "
            "multiply their frequencies by --factor."
        ),
    ] = "freeze",
    factor: Annotated[float | None, typer.Option(help="scale: the factor, e.g. 0.5.")] = None,
    counts: Annotated[
        str | None,
        typer.Option(
            help="Numbers of pairs of each head to manipulate, e.g. 4,8,16; an eighth, a quarter and a half of them if "
            "not given."
        ),
    ] = None,
    top: Annotated[
        str, typer.Option(help="The top heads: their number, or with a decimal point, their share of the ranked heads.")
    ] = "0.1",
    rank_by: Annotated[str, typer.Option(help="rho, excess (over the null), rho_curve or retrieval.")] = "rho",
    reference: Annotated[
        str | None,
        typer.Option(help="Text file to find the dominant pairs on; held-out examples of the task if not given."),
    ] = None,
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
    n_random: Annotated[
        int, typer.Option(min=1, help="Number of random rankings of the pairs, and of random sets of heads.")
    ] = 20,
    permutations: Annotated[
        int | None,
        typer.Option(min=0, help="Number of permuted rankings of the heads; as many as random sets if not given."),
    ] = None,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    offload_folder: options.OffloadFolder = None,
    adapter: options.Adapter = None,
    dtype: options.Dtype = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the task, random pairs and random heads.")] = 0,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Freeze, zero or rescale rotary pairs of the top heads.

    Shows which pairs a task needs, the slowest, the fastest or the dominant ones, beside random pairs and random heads.
    Prints effects, contrasts and a verdict, and writes a report folder. To resume an interrupted run, run the same
    command again.

    Example: positional-heads manipulate bundled --scores report --how freeze --counts 2,4,8 --out manipulation
    """
    of_task = {"length": length, "depths": depths, "examples": examples}
    with one_line_errors():
        from positional_heads.bridge.loading import check_dtype
        from positional_heads.results.ablation import RankBy
        from positional_heads.results.files import FINISHED_FILE_NAME, MANIPULATION
        from positional_heads.results.scores import HeadScores
        from positional_heads.studies.manipulation import Manipulation, manipulation_study
        from positional_heads.studies.tasks.evaluate import check_task_name, make_task, task_setting_names

        check_dtype(dtype)
        check_task_name(task)
        study_settings: dict[str, Any] = {
            "how": choice("--how", how, Manipulation),
            "factor": factor,
            "counts": None if counts is None else _whole_numbers(counts),
            "top": _top(top),
            "rank_by": choice("--rank-by", rank_by, RankBy),
            "reference": None if reference is None else read_text(reference),
            "n_random": n_random,
            "n_permuted": permutations,
            "batch_size": batch_size,
            "seed": seed,
        }
        task_settings: dict[str, Any] = {name: value for name, value in of_task.items() if value not in (None, [])}
        if length is not None and len(length) == 1:  # LongBench takes a single one
            task_settings["length"] = length[0]
        if haystack is not None:
            task_settings["haystack"] = read_text(haystack)
        if "seed" in task_setting_names(task):
            task_settings["seed"] = seed
        ranked = HeadScores.load(scores)
        with prepared_folder(out, MANIPULATION.file_name, overwrite):
            places = {"offload_folder": offload_folder, "adapter": adapter}
            bridge = load_named(model, device, dtype, trust_remote_code, device_map=device_map, **places)
            asked = make_task(bridge, task, **task_settings)
            study = manipulation_study(bridge, ranked, asked, **study_settings, checkpoint=out, progress=True)
            finish(study, out, as_json, progress=[FINISHED_FILE_NAME])


def _whole_numbers(text: str) -> list[int]:
    """Numbers of pairs, separated by commas.

    Raises:
        ValueError: If a part is no whole number.
    """
    values = numbers("--counts", text, "4,8,16")
    if any(value != int(value) for value in values):
        msg = f"--counts {text!r} must be whole numbers separated by commas, e.g. 4,8,16"
        raise ValueError(msg)
    return [int(value) for value in values]


def _top(text: str) -> float:
    """A number of heads, or a share of them.

    Raises:
        ValueError: If it is neither.
    """
    (value, *more) = numbers("--top", text, "0.1")
    if more:
        msg = f"--top {text!r} must be one number of heads, e.g. 8, or one share of them, e.g. 0.1"
        raise ValueError(msg)
    return int(value) if text.strip().lstrip("+-").isdigit() else value
