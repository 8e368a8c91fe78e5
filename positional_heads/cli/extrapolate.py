"""`positional-heads extrapolate`: methods of length extrapolation from the command line."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from positional_heads.cli.common import BUNDLED, load_named, numbers, one_line_errors, prepare_folder, read_texts, say


def extrapolate(  # noqa: PLR0917  one parameter is one option of the command
    model: Annotated[str, typer.Argument(help="'bundled', a local folder in transformers format, or a hub name.")],
    methods: Annotated[
        str, typer.Option(help="Methods with commas between them: none, linear, ntk, dynamic, yarn, llama3, ...")
    ] = "none,linear,ntk,yarn,self_extend",
    factors: Annotated[str, typer.Option(help="How many times the training length to go, with commas.")] = "2,4",
    text: Annotated[list[str] | None, typer.Option(help="Long text to score on; 'bundled' for ours.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report; made if missing.")] = Path("extrapolation"),
    task: Annotated[str, typer.Option(help="passkey, needle, kv or copy.")] = "passkey",
    depths: Annotated[int, typer.Option(min=1, help="Depths at which the answer is hidden.")] = 5,
    examples: Annotated[int, typer.Option(min=1, help="Examples for every length and depth.")] = 2,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences of the text to score on.")] = 2,
    training_length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens the model was trained on; found in its configuration if not given."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to run, e.g. cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the task.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace results that are already in the folder.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that the model ships. Off unless asked.")] = False,
) -> None:
    """Extend the context by each method: does the allocation of dimensions go on, and does the task go with it?

    Example: positional-heads extrapolate bundled --methods none,linear,yarn --factors 2 --out extrapolation
    """
    with one_line_errors():
        from positional_heads.results.files import EXTRAPOLATION

        texts = read_texts([BUNDLED] if model == BUNDLED and not text else text)
        times = numbers("--factors", factors, "2,4")
        names = [name.strip() for name in methods.split(",")]
        from positional_heads.bridge.loading import check_dtype
        from positional_heads.studies.extrapolation import check_choices

        check_dtype(dtype)
        check_choices(names, times, task)
        prepare_folder(out, EXTRAPOLATION.file_name, overwrite)
        bridge = load_named(model, device, dtype, trust_remote_code)
        from positional_heads.results.files import FINISHED_FILE_NAME
        from positional_heads.studies.extrapolation import extrapolation_study
        from positional_heads.views.report.folder import write_extrapolation_report

        study = extrapolation_study(
            bridge,
            "\n".join(texts),
            names,
            times,
            task=task,
            training_length=training_length,
            sequences=sequences,
            checkpoint=out,
            progress=True,
            depths=depths,
            examples=examples,
            seed=seed,
        )
        written = write_extrapolation_report(study, out)
        (out / FINISHED_FILE_NAME).unlink(missing_ok=True)
        show_extrapolation(written[0], as_json)
        say("written: " + ", ".join(str(name) for name in written))


def show_extrapolation(result: Path, as_json: bool) -> None:
    """Print a study on disk: its table and verdict."""
    from positional_heads.results.files import EXTRAPOLATION, read_result

    content, _ = read_result(result, EXTRAPOLATION)
    if as_json:
        wanted: tuple[Any, ...] = ("verdict", "table", "link", "provenance")
        typer.echo(json.dumps({key: content[key] for key in wanted}, indent=1))
        return
    from positional_heads.results.tables import extrapolation_line, extrapolation_table

    typer.echo(extrapolation_line(content["provenance"], content["training_length"], content["heads"]))
    typer.echo(extrapolation_table(content["table"]))
    typer.echo(f"\nVerdict: {content['verdict']}")
