"""`positional-heads recommend`: which extension of the context to take, from the command line."""

from pathlib import Path
from typing import Annotated, Any

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

TARGET = "the target length: give a longer one, a smaller --target-length"


def recommend(  # noqa: PLR0917  one parameter is one option of the command
    model: options.Model,
    target_length: Annotated[int, typer.Option(min=2, help="Tokens to extend the context to.")],
    methods: Annotated[
        str, typer.Option(help=f"Methods, separated by commas: {options.METHODS}.")
    ] = "yarn,ntk,dynamic,llama3,linear",
    factors: Annotated[
        str | None,
        typer.Option(
            help="Factors of the methods, separated by commas; target over training length, and twice that, if not "
            "given."
        ),
    ] = None,
    text: options.Texts = None,
    out: options.Out = Path("recommendation"),
    task: Annotated[str, typer.Option(help=f"{options.RECALL_TASKS}; or none.")] = "passkey",
    depths: options.Depths = 5,
    examples: Annotated[int, typer.Option(min=1, help="Examples for every depth.")] = 2,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences to draw of the text at random.")] = 8,
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
    """Say which extension of the context to take.

    Tries methods and factors on a text, and prints what to put into config.json, after loading it in transformers.

    To resume an interrupted run, run the same command again. With --budget, what does not fit is left out: the larger
    factors first, then the last methods.

    Example: positional-heads recommend bundled --target-length 2048 --text bundled --out recommendation
    """
    with one_line_errors():
        from positional_heads.results.files import FINISHED_FILE_NAME, RECOMMENDATION

        named = [BUNDLED] if model == BUNDLED and not text else text
        texts = read_texts(named) if in_order else text_sources(named)
        times = None if factors is None else numbers("--factors", factors, "4,8")
        names = [name.strip() for name in methods.split(",")]
        asked = None if task == "none" else task
        from positional_heads.bridge.loading import check_dtype
        from positional_heads.studies.budget import check_budget
        from positional_heads.studies.extrapolation import check_choices

        check_dtype(dtype)
        check_budget(budget)
        check_choices(names, [2.0] if times is None else times, asked or "passkey")
        with prepared_folder(out, RECOMMENDATION.file_name, overwrite):
            places = {"offload_folder": offload_folder, "adapter": adapter}
            bridge = load_named(model, device, dtype, trust_remote_code, device_map=device_map, **places)
            from positional_heads.studies.recommendation import recommend_extension
            from positional_heads.studies.rotary_kinds import needs_extension

            of_task: dict[str, Any] = {} if asked is None else {"depths": depths, "examples": examples}
            whole = in_order or not needs_extension(bridge, target_length, training_length)
            found = recommend_extension(
                bridge,
                "\n".join(map(str, texts))
                if whole
                else drawn_whole(bridge, texts, target_length, sequences, seed, TARGET),
                target_length,
                methods=names,
                factors=times,
                task=asked,
                training_length=training_length,
                sequences=sequences,
                checkpoint=out,
                progress=True,
                budget=budget,
                seed=seed,
                **of_task,
            )
            finish(found, out, as_json, progress=[FINISHED_FILE_NAME])
