"""`positional-heads extrapolate`: the extrapolation study from the command line."""

from pathlib import Path
from typing import Annotated

import typer

from positional_heads.cli import options
from positional_heads.cli.common import (
    BUNDLED,
    load_named,
    numbers,
    one_line_errors,
    prepared_folder,
    read_texts,
    text_sources,
)
from positional_heads.cli.drawing import drawn_whole
from positional_heads.cli.show import finish

LONGEST = "the largest factor times the training length: give a longer one, smaller --factors"


def extrapolate(  # noqa: PLR0917  one parameter is one option of the command
    model: options.Model,
    methods: Annotated[
        str, typer.Option(help=f"Methods, separated by commas: {options.METHODS}.")
    ] = "none,linear,ntk,yarn,self_extend",
    factors: Annotated[
        str, typer.Option(help="Lengths as multiples of the training length, separated by commas.")
    ] = "2,4",
    text: options.Texts = None,
    out: options.Out = Path("extrapolation"),
    task: Annotated[str, typer.Option(help=f"{options.RECALL_TASKS}.")] = "passkey",
    depths: options.Depths = 5,
    examples: Annotated[int, typer.Option(min=1, help="Examples for every length and depth.")] = 2,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences to draw of the text at random.")] = 2,
    in_order: Annotated[
        bool, typer.Option("--in-order", help="Take the first sequences, of all texts joined, instead of drawing them.")
    ] = False,
    training_length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens the model was trained on; read from its configuration if not given."),
    ] = None,
    budget: options.Budget = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    offload_folder: options.OffloadFolder = None,
    adapter: options.Adapter = None,
    dtype: options.Dtype = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn sequences and of the task.")] = 0,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Compare methods of extending the context.

    Scores heads and measures a task beyond the training length, under each method.

    To resume an interrupted run, run the same command again. With --budget, what does not fit is left out: the longest
    lengths first.

    Example: positional-heads extrapolate bundled --methods none,linear,yarn --factors 2 --out extrapolation
    """
    with one_line_errors():
        from positional_heads.results.files import EXTRAPOLATION, FINISHED_FILE_NAME

        named = [BUNDLED] if model == BUNDLED and not text else text
        texts = read_texts(named) if in_order else text_sources(named)
        times = numbers("--factors", factors, "2,4")
        names = [name.strip() for name in methods.split(",")]
        from positional_heads.bridge.loading import check_dtype
        from positional_heads.studies.budget import check_budget
        from positional_heads.studies.extrapolation import check_choices

        check_dtype(dtype)
        check_budget(budget)
        check_choices(names, times, task)
        with prepared_folder(out, EXTRAPOLATION.file_name, overwrite):
            places = {"offload_folder": offload_folder, "adapter": adapter}
            bridge = load_named(model, device, dtype, trust_remote_code, device_map=device_map, **places)
            from positional_heads.studies.extrapolation import extrapolation_study, trained_length

            longest = round(max(times) * trained_length(bridge, training_length))
            study = extrapolation_study(
                bridge,
                "\n".join(map(str, texts))
                if in_order
                else drawn_whole(bridge, texts, longest, sequences, seed, LONGEST),
                names,
                times,
                task=task,
                training_length=training_length,
                sequences=sequences,
                checkpoint=out,
                progress=True,
                budget=budget,
                depths=depths,
                examples=examples,
                seed=seed,
            )
            finish(study, out, as_json, progress=[FINISHED_FILE_NAME])
