"""The command line. Nothing heavy is imported until a model is needed: help and reading results take no time.

Every mistake of the user's ends in one line that names the cause and the way out, and exit status 1; wrong usage in 2;
Ctrl-C in 130. Files appear whole or not at all.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from positional_heads.cli_ablate import ablate, show_study
from positional_heads.cli_extrapolate import extrapolate, show_extrapolation
from positional_heads.cli_io import load_named, one_line_errors, prepare_folder, read_texts, say

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which attention heads of a rotary language model carry long distances?",
)


def main() -> None:
    """Entry point of `positional-heads`."""
    app()


@app.command()
def score(  # noqa: PLR0917  one parameter is one option of the command
    model: Annotated[str, typer.Argument(help="'bundled', a local folder in transformers format, or a hub name.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text file to score on; repeat for several, '-' for standard input, 'bundled' for ours."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report; made if missing.")] = Path("report"),
    length: Annotated[int | None, typer.Option(help="Tokens per sequence; the model's context if not given.")] = None,
    sequences: Annotated[int | None, typer.Option(help="Score only this many sequences, the first ones.")] = None,
    null_repeats: Annotated[int, typer.Option(help="Times positions are shuffled for the null; 0 for none.")] = 20,
    skip_keys: Annotated[int, typer.Option(help="Leading keys that do not count, e.g. 1 for an attention sink.")] = 0,
    min_distance: Annotated[int, typer.Option(help="Smallest distance that counts, in tokens.")] = 0,
    max_distance: Annotated[int | None, typer.Option(help="Largest distance that counts, in tokens.")] = None,
    temperature: Annotated[
        str, typer.Option(help="Softmax temperature of the dominant dimension: a number, or 'attention' for sqrt(d).")
    ] = "1",
    batch_size: Annotated[int | None, typer.Option(help="Sequences per forward pass; chosen if not given.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run, e.g. cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of shuffles and resamples.")] = 0,
    top: Annotated[int, typer.Option(help="Heads to print.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace results that are already in the folder.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that the model ships. Off unless asked.")] = False,
) -> None:
    """Score every head: does its dominant rotary dimension move with token distance?

    Prints the top heads, a verdict against shuffled positions, and writes a report folder.

    Example: positional-heads score bundled --text bundled --sequences 8 --out report
    """
    with one_line_errors():
        from positional_heads.result_files import FILE_NAME

        texts = read_texts(text)
        prepare_folder(out, FILE_NAME, overwrite)
        bridge = load_named(model, device, dtype, trust_remote_code)
        from positional_heads.host.sequences import cut_text
        from positional_heads.scoring import score_heads

        pieces = cut_text(bridge, texts, length)
        chosen = _first(pieces, sequences, len(texts))
        scores = score_heads(
            bridge,
            chosen,
            batch_size=batch_size,
            progress=True,
            temperature=temperature if temperature == "attention" else _number(temperature),
            skip_keys=skip_keys,
            min_distance=min_distance,
            max_distance=max_distance,
            null_repeats=null_repeats,
            seed=seed,
        )
        from positional_heads.report import write_report

        written = write_report(scores, out)
        _show(written[0], top, as_json)
        say("written: " + ", ".join(str(file) for file in written))


@app.command()
def show(
    result: Annotated[Path, typer.Argument(help="A report folder, or a result file in it.")],
    top: Annotated[int, typer.Option(help="Heads to print.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
) -> None:
    """Print a result on disk, scores or a study, checked for damage; takes no model and no time."""
    with one_line_errors():
        from positional_heads.result_files import EXTRAPOLATION_FILE_NAME, STUDY_FILE_NAME

        for name, printed in ((STUDY_FILE_NAME, show_study), (EXTRAPOLATION_FILE_NAME, show_extrapolation)):
            if result.name == name or (result / name).is_file():
                printed(result, as_json)
                return
        _show(result, top, as_json)


app.command()(ablate)
app.command()(extrapolate)


def _first(pieces: list[Any], sequences: int | None, n_texts: int) -> list[Any]:
    if sequences is not None and sequences < 1:
        msg = f"--sequences {sequences} must be at least 1"
        raise ValueError(msg)
    chosen = pieces[:sequences]
    tokens = sum(len(piece) for piece in chosen)
    say(
        f"{n_texts} text(s) cut into {len(pieces)} sequences of at most {max(map(len, pieces))} tokens; scoring "
        f"{'all of them' if len(chosen) == len(pieces) else f'the first {len(chosen)}'}, {tokens} tokens"
    )
    return chosen


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        msg = f"--temperature {text!r} must be a number, or 'attention'"
        raise ValueError(msg) from error


def _show(result: Path, top: int, as_json: bool) -> None:
    from positional_heads.result_files import read_result

    content, _ = read_result(result)
    if as_json:
        typer.echo(json.dumps({key: content[key] for key in ("verdict", "table", "provenance")}, indent=1))
        return
    from positional_heads.tables import heads_table, summary_line

    typer.echo(summary_line(content["provenance"]))
    typer.echo(heads_table(content["table"], top))
    typer.echo(f"\nVerdict: {content['verdict']}")
