"""`positional-heads ablate`: the ablation study from the command line."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from positional_heads.cli.common import (
    BUNDLED,
    choice,
    load_named,
    numbers,
    one_line_errors,
    prepare_folder,
    read_text,
    read_texts,
    say,
)

SCORED_SEQUENCES = 12


def ablate(  # noqa: PLR0917  one parameter is one option of the command
    model: Annotated[str, typer.Argument(help="'bundled', a local folder in transformers format, or a hub name.")],
    task: Annotated[str, typer.Option(help="passkey, needle, kv, copy, perplexity or longbench.")] = "passkey",
    scores: Annotated[
        Path | None, typer.Option(help="Result of `score` for this model; without it the model is scored first.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Text to score on where there is no --scores; 'bundled' for ours.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report; made if missing.")] = Path("ablation"),
    length: Annotated[
        list[int] | None,
        typer.Option(min=2, help="Tokens of a sequence; repeat for several. The context if not given."),
    ] = None,
    depths: Annotated[int | None, typer.Option(min=1, help="Depths at which the answer is hidden.")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Examples for every length and depth.")] = None,
    haystack: Annotated[str | None, typer.Option(help="Text file to hide things in; ours if not given.")] = None,
    statement: Annotated[str | None, typer.Option(help="needle: what is hidden, with {answer} in it.")] = None,
    answer: Annotated[str | None, typer.Option(help="needle: the answer.")] = None,
    question: Annotated[str | None, typer.Option(help="needle: what stands before the answer at the end.")] = None,
    keys: Annotated[int | None, typer.Option(min=1, help="kv: number of facts.")] = None,
    file: Annotated[Path | None, typer.Option(help="longbench: JSON-lines file in its schema.")] = None,
    mode: Annotated[str, typer.Option(help="zero, mean, resample, uniform, far or near.")] = "zero",
    distance: Annotated[int | None, typer.Option(min=1, help="far and near: the distance in tokens.")] = None,
    reference: Annotated[str | None, typer.Option(help="mean: text file to average over; else the task's own.")] = None,
    fractions: Annotated[str, typer.Option(help="Shares of the heads to ablate.")] = "0.01,0.02,0.05,0.1,0.2",
    n_random: Annotated[int, typer.Option(min=1, help="Random sets and permuted rankings.")] = 20,
    rank_by: Annotated[str, typer.Option(help="rho, or excess over the shuffled null.")] = "rho",
    singles: Annotated[str | None, typer.Option(help="Heads to ablate alone: all, top or none.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences per forward pass; chosen if not given.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to run, e.g. cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the task, random sets and permutations.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace results that are already in the folder.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that the model ships. Off unless asked.")] = False,
) -> None:
    """Ablate the top heads, and controls: does the model lose more than it loses with other heads?

    Prints effects, contrasts and a verdict, and writes a report folder. A run that was stopped goes on with the same
    command.

    Example: positional-heads ablate bundled --scores report --task passkey --out ablation
    """
    with one_line_errors():
        from positional_heads.results.files import ABLATION

        given: dict[str, Any] = {
            "length": length or None,
            "depths": depths,
            "examples": examples,
            "haystack": None if haystack is None else read_text(haystack),
            "statement": statement,
            "answer": answer,
            "question": question,
            "keys": keys,
            "file": file,
        }
        settings = {name: value for name, value in given.items() if value is not None}
        shares = numbers("--fractions", fractions, "0.05,0.1")
        averaged = None if reference is None else read_text(reference)
        from positional_heads.bridge.ablation import ablation_mode
        from positional_heads.bridge.loading import check_dtype
        from positional_heads.results.scores import HeadScores
        from positional_heads.studies.ablation import RankBy, Singles
        from positional_heads.studies.tasks.evaluate import check_task_name

        check_dtype(dtype)
        check_task_name(task)
        way = ablation_mode(mode, distance)
        ranked_by, alone = choice("--rank-by", rank_by, RankBy), choice("--singles", singles, Singles)
        ranked = None if scores is None else HeadScores.load(scores)
        prepare_folder(out, ABLATION.file_name, overwrite)
        bridge = load_named(model, device, dtype, trust_remote_code)
        from positional_heads.results.files import FINISHED_FILE_NAME
        from positional_heads.studies.ablation import ablation_study
        from positional_heads.studies.tasks.evaluate import make_task
        from positional_heads.views.report.folder import write_ablation_report

        made = make_task(bridge, task, seed=seed, **settings)
        study = ablation_study(
            bridge,
            ranked or _scores(bridge, [BUNDLED] if model == BUNDLED and not text else text, out),
            made,
            fractions=shares,
            n_random=n_random,
            mode=way,
            reference=averaged,
            distance=distance,
            rank_by=ranked_by,
            singles=alone,
            batch_size=batch_size,
            seed=seed,
            checkpoint=out,
            progress=True,
        )
        written = write_ablation_report(study, out)
        (out / FINISHED_FILE_NAME).unlink(missing_ok=True)
        show_study(written[0], as_json)
        say("written: " + ", ".join(str(name) for name in written))


def show_study(result: Path, as_json: bool) -> None:
    """Print a study on disk: its table and verdict."""
    from positional_heads.results.files import ABLATION, read_result

    content, _ = read_result(result, ABLATION)
    if as_json:
        wanted = ("verdict", "contrasts", "effects", "notes", "provenance")
        typer.echo(json.dumps({key: content[key] for key in wanted}, indent=1))
        return
    from positional_heads.results.tables import study_line, study_table

    sets = {tuple(heads) for _, _, _, heads in content["cells"]}
    typer.echo(study_line(content["provenance"], len(content["rows"]), len(sets)))
    typer.echo(f"Change of {content['measures'][0]}; negative is harm.")
    typer.echo(study_table(content["effects"], content["contrasts"]))
    for note in content["notes"]:
        typer.echo(note)
    typer.echo(f"\nVerdict: {content['verdict']}")


def _scores(bridge: Any, text: list[str] | None, out: Path) -> Any:
    """Scores of a first few sequences of a text; kept beside the study, so that a second start is quick."""
    from positional_heads.results.files import SCORES
    from positional_heads.results.scores import HeadScores

    if (out / SCORES.file_name).is_file():
        say(f"scores found in {out / SCORES.file_name}")
        return HeadScores.load(out / SCORES.file_name)
    from positional_heads.bridge.sequences import cut_text
    from positional_heads.scoring.score import score_heads

    if not text:
        msg = "no scores: add --scores DIR (written by positional-heads score), or --text FILE to score on first"
        raise ValueError(msg)
    found = score_heads(bridge, cut_text(bridge, read_texts(text))[:SCORED_SEQUENCES], null_repeats=5, progress=True)
    found.save(out / SCORES.file_name)
    return found
