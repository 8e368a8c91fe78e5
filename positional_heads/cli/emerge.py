"""`positional-heads emerge`: every head through the checkpoints of a training run, beside loss and a task."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from positional_heads.cli import options
from positional_heads.cli.common import BUNDLED, choice, one_line_errors, prepared_folder, read_text, say
from positional_heads.cli.show import finish
from positional_heads.cli.text_cut import TextCut, refuse_sequences

if TYPE_CHECKING:
    from positional_heads.results.emergence import EmergenceStudy


def emerge(  # noqa: PLR0917  one parameter is one option of the command
    checkpoints: Annotated[
        str,
        typer.Argument(
            help="A folder of checkpoints in transformers format, each in a folder named by its step (checkpoint-500, "
            "step_500, step500, 500), or 'bundled'; with --revisions a hub name."
        ),
    ],
    revisions: Annotated[
        str | None,
        typer.Option(help="Revisions of the hub name, separated by commas, which end in their step: step0,step1000."),
    ] = None,
    text: options.Texts = None,
    out: options.Out = Path("emergence"),
    length: options.Length = None,
    sequences: options.Sequences = None,
    in_order: options.InOrder = False,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"The skill to follow: {options.RECALL_TASKS}, exam, perplexity or longbench; none if not given."
        ),
    ] = None,
    task_length: Annotated[
        list[int] | None,
        typer.Option(min=2, help="Tokens of a sequence of the task, repeatable; the context if not given."),
    ] = None,
    depths: options.Depths = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Examples for every length and depth.")] = None,
    haystack: Annotated[
        str | None,
        typer.Option(
            help="Text file to hide the answer in, or bundled:prose and the like; the bundled text if not given."
        ),
    ] = None,
    retrieval: Annotated[
        str, typer.Option(help=f"Task for the retrieval score: {options.RECALL_TASKS}; 'none' for no such score.")
    ] = "passkey",
    retrieval_examples: Annotated[int, typer.Option(min=1, help="Examples of that task at most.")] = 5,
    births: Annotated[
        str | None,
        typer.Option(
            help="What births of heads go by: excess (a head beats its null), rho or retrieval (it has --threshold). "
            "excess if not given, or rho without a null."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="rho, retrieval: the least value that counts; 0.2 of rho and 0.1 of retrieval if not given."),
    ] = None,
    null_repeats: options.NullRepeats = 20,
    control_keys: options.ControlKeys = 0,
    plain_text: options.PlainText = False,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    top: options.Top = 10,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Follow every head through training: score each checkpoint, beside its loss and a task.

    Prints every checkpoint, when heads and the skill were born, and which came first. Each finished checkpoint is saved
    at once: to resume an interrupted run, run the same command again. A finished study is not added to: --overwrite
    starts anew. In Python, emergence_study(..., checkpoint=DIR) keeps what is finished, and runs only what is new.

    Example: positional-heads emerge bundled --text bundled --sequences 4 --task passkey --out emergence
    """
    with one_line_errors():
        refuse_sequences(sequences)
        taken = TextCut.of_options(text, length, sequences, in_order, plain_text, seed)
        settings: dict[str, Any] = {"null_repeats": null_repeats, "control_keys": control_keys, "seed": seed}
        asked = None if retrieval == "none" else retrieval
        of_task = {"length": task_length, "depths": depths, "examples": examples, "haystack": haystack}
        given: dict[str, Any] = {name: value for name, value in of_task.items() if value not in (None, [])}
        _refuse_settings(settings, asked, task, given, dtype)
        _refuse_births(births, threshold, null_repeats, asked)
        if haystack is not None:
            given["haystack"] = read_text(haystack)
        from positional_heads.results.files import EMERGENCE, FINISHED_FILE_NAME

        with prepared_folder(out, EMERGENCE.file_name, overwrite):
            from positional_heads.studies.checkpoint_sources import training_checkpoints
            from positional_heads.studies.emergence import emergence_study

            loading = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
            loading = {name: value for name, value in loading.items() if value not in (None, False)}
            places = _places(checkpoints, revisions)
            first = training_checkpoints(places, loading)[0]
            say(f"loading TransformerLens and {first.name}, whose tokenizer cuts the text ...")
            cut = taken.said("following heads on", first.load())
            gc.collect()  # that model, before the first is loaded again
            found = emergence_study(
                places,
                cut,
                task,
                retrieval=asked,
                retrieval_examples=retrieval_examples,
                batch_size=batch_size,
                load_options=loading,
                checkpoint=out,
                progress=True,
                **settings,
                **given,
            )
            finish(_judged(found, births, threshold), out, as_json, top=top, progress=[FINISHED_FILE_NAME])


def _places(checkpoints: str, revisions: str | None) -> Any:
    """What `emergence_study` takes for them.

    Raises:
        ValueError: If no revision is named, or the bundled model has none.
    """
    if revisions is not None and checkpoints == BUNDLED:
        msg = f"--revisions {revisions}: {BUNDLED!r} has none; leave it out to follow all checkpoints of that model"
        raise ValueError(msg)
    if revisions is not None:
        names = [name.strip() for name in revisions.split(",") if name.strip()]
        if not names:
            msg = f"--revisions {revisions!r} names none: separate them by commas, e.g. step0,step1000"
            raise ValueError(msg)
        return (checkpoints, names)
    if checkpoints == BUNDLED:
        from functools import partial

        from positional_heads.zoo.bundled import bundled_steps, load_bundled_model

        return {step: partial(load_bundled_model, step) for step in bundled_steps()}
    return Path(checkpoints) if checkpoints else checkpoints


def _refuse_births(births: str | None, threshold: float | None, null_repeats: int, retrieval: str | None) -> None:
    """Refuse births by what will not be measured, before a model is loaded.

    Raises:
        ValueError: If these are some.
    """
    from positional_heads.results.emergence_births import HeadMeasure, check_threshold

    measure: HeadMeasure = choice("--births", births, HeadMeasure) or ("excess" if null_repeats else "rho")
    if measure == "excess" and not null_repeats:
        msg = "--births excess needs a null: leave out --null-repeats 0, or give --births rho"
        raise ValueError(msg)
    if measure == "retrieval" and retrieval is None:
        msg = "--births retrieval needs retrieval scores: leave out --retrieval none"
        raise ValueError(msg)
    check_threshold(measure, threshold)


def _judged(found: "EmergenceStudy", births: str | None, threshold: float | None) -> "EmergenceStudy":
    """The study by what births were asked to go by, if it was measured."""
    if births == "retrieval" and found.retrieval is None:
        say("--births retrieval: no retrieval score could be measured, see the notes; births go by the default")
        return found
    if births is None and threshold is None:
        return found
    return found.judged_by(births or found.default_measure, threshold)  # type: ignore[arg-type]


def _refuse_settings(
    settings: dict[str, Any], retrieval: str | None, task: str | None, given: dict[str, Any], dtype: str | None
) -> None:
    """Refuse settings that make no sense before a model is loaded."""
    from positional_heads.bridge.loading import check_dtype
    from positional_heads.scoring.settings import ScoringSettings
    from positional_heads.studies.head_profile import refuse_without_needle
    from positional_heads.studies.tasks.evaluate import check_task_name, task_setting_names

    check_dtype(dtype)
    ScoringSettings(**settings)
    if retrieval is not None:
        refuse_without_needle(retrieval)
    if task is not None:
        check_task_name(task)
    wrong = [name for name in given if task is None or name not in task_setting_names(task)]
    if wrong:
        names = ", ".join("--task-length" if name == "length" else f"--{name}" for name in wrong)
        why = "for a task, name one with --task" if task is None else f"task {task} has no such setting"
        msg = f"{names}: {why}"
        raise ValueError(msg)
