"""`positional-heads profile`: what every head does, from one pass over a text."""

from pathlib import Path
from typing import Annotated, Any

import typer

from positional_heads.cli import options
from positional_heads.cli.common import load_named, one_line_errors, prepared_folder
from positional_heads.cli.show import finish
from positional_heads.cli.text_cut import TextCut, refuse_sequences


def profile(  # noqa: PLR0917  one parameter is one option of the command
    model: options.Model,
    text: options.Texts = None,
    out: options.Out = Path("profile"),
    length: options.Length = None,
    sequences: options.Sequences = None,
    in_order: options.InOrder = False,
    window: Annotated[
        int, typer.Option(min=1, help="Distances in tokens that count as near; beyond is distant.")
    ] = 256,
    sinks: Annotated[int, typer.Option(min=0, help="First keys of each sequence that count as sinks.")] = 4,
    retrieval: Annotated[
        str, typer.Option(help=f"Task for the retrieval score: {options.RECALL_TASKS}; 'none' for no such score.")
    ] = "passkey",
    retrieval_examples: Annotated[int, typer.Option(min=1, help="Examples of that task at most.")] = 5,
    null_repeats: options.NullRepeats = 20,
    control_keys: options.ControlKeys = 0,
    plain_text: options.PlainText = False,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    offload_folder: options.OffloadFolder = None,
    adapter: options.Adapter = None,
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    checkpoint_seconds: options.CheckpointSeconds = 60,
    examples: options.Examples = 512,
    top: options.Top = 10,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Say what every head does.

    How far it looks, whether it is a sink, a previous-token, induction or retrieval head, which rotary pairs it uses,
    and its rho.

    Prints the heads that look furthest, the heads of each name and a verdict, and writes them with tables and plots to
    a folder. To resume an interrupted run, run the same command again.

    Example: positional-heads profile bundled --text bundled --sequences 8 --out profile
    """
    with one_line_errors():
        refuse_sequences(sequences)
        settings: dict[str, Any] = {"null_repeats": null_repeats, "control_keys": control_keys, "seed": seed}
        own: dict[str, Any] = {"window": window, "sinks": sinks}
        task = None if retrieval == "none" else retrieval
        taken = TextCut.of_options(text, length, sequences, in_order, plain_text, seed)
        _refuse_settings(settings, own, task, dtype)
        from positional_heads.results.files import FINISHED_FILE_NAME, HEAD_PROFILE, PARTIAL

        with prepared_folder(out, HEAD_PROFILE.file_name, overwrite):
            places = {"offload_folder": offload_folder, "adapter": adapter}
            bridge = load_named(model, device, dtype, trust_remote_code, device_map=device_map, **places)
            from positional_heads.scoring.head_examples import write_examples
            from positional_heads.studies.head_profile import profile_heads

            pieces = taken.said("profiling", bridge)
            profiled = profile_heads(
                bridge,
                pieces,
                retrieval=task,
                retrieval_examples=retrieval_examples,
                batch_size=batch_size,
                checkpoint=out,
                checkpoint_seconds=checkpoint_seconds,
                progress=True,
                **own,
                **settings,
            )
            shown = write_examples(bridge, pieces[0], profiled, out, examples)
            more = [] if shown is None else [shown]
            finish(profiled, out, as_json, top=top, progress=[PARTIAL.file_name, FINISHED_FILE_NAME], more=more)


def _refuse_settings(settings: dict[str, Any], own: dict[str, Any], task: str | None, dtype: str | None) -> None:
    """Refuse settings that make no sense before the model is loaded."""
    from positional_heads.bridge.loading import check_dtype
    from positional_heads.scoring.profile_settings import ProfileSettings
    from positional_heads.scoring.settings import ScoringSettings
    from positional_heads.studies.tasks.evaluate import TASKS
    from positional_heads.studies.tasks.recall import RECALL

    check_dtype(dtype)
    ScoringSettings(**settings)
    ProfileSettings(**own)
    if task is not None and task not in RECALL:
        known = "has no needle" if task in TASKS else "is unknown"
        msg = f"--retrieval {task!r} {known}: choose one of {', '.join(RECALL)}, or none"
        raise ValueError(msg)
