"""`positional-heads ablate`: the ablation study from the command line."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from positional_heads.cli import options
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
    model: options.Model,
    task: Annotated[str, typer.Option(help="passkey, needle, kv, copy, latest, perplexity or longbench.")] = "passkey",
    scores: Annotated[
        Path | None, typer.Option(help="Result of `score` for this model; the model is scored first if not given.")
    ] = None,
    text: options.Texts = None,
    out: options.Out = Path("ablation"),
    length: Annotated[
        list[int] | None, typer.Option(min=2, help="Tokens of a sequence, repeatable; the context if not given.")
    ] = None,
    depths: options.Depths = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Examples for every length and depth.")] = None,
    haystack: Annotated[
        str | None, typer.Option(help="Text file to hide the answer in; the bundled text if not given.")
    ] = None,
    statement: Annotated[str | None, typer.Option(help="needle: the sentence to hide, with {answer} in it.")] = None,
    answer: Annotated[str | None, typer.Option(help="needle: the answer.")] = None,
    question: Annotated[str | None, typer.Option(help="needle: the end of the text, before the answer.")] = None,
    keys: Annotated[int | None, typer.Option(min=1, help="kv: number of facts.")] = None,
    updates: Annotated[int | None, typer.Option(min=2, help="latest: number of values of the one name.")] = None,
    file: Annotated[Path | None, typer.Option(help="longbench: JSON-lines file in LongBench's schema.")] = None,
    mode: Annotated[str, typer.Option(help="zero, mean, resample, uniform, far or near.")] = "zero",
    distance: Annotated[int | None, typer.Option(min=1, help="far and near: the cut-off in tokens.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="mean: text file to average over; held-out examples if not given.")
    ] = None,
    fractions: Annotated[str, typer.Option(help="Shares of the heads to ablate.")] = "0.01,0.02,0.05,0.1,0.2",
    n_random: Annotated[int, typer.Option(min=1, help="Number of random sets and of permuted rankings.")] = 20,
    rank_by: Annotated[str, typer.Option(help="rho, or excess over the null.")] = "rho",
    singles: Annotated[str | None, typer.Option(help="Heads to ablate one by one: all, top or none.")] = None,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the task, random sets and permutations.")] = 0,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Ablate the top heads and compare with random heads: does the model need the top heads more?

    Prints effects, contrasts and a verdict, and writes a report folder. To resume an interrupted run, run the same
    command again.

    Example: positional-heads ablate bundled --scores report --task passkey --out ablation
    """
    with one_line_errors():
        given: dict[str, Any] = {
            "length": length or None,
            "depths": depths,
            "examples": examples,
            "haystack": None if haystack is None else read_text(haystack),
            "statement": statement,
            "answer": answer,
            "question": question,
            "keys": keys,
            "updates": updates,
            "file": file,
        }
        task_settings = {name: value for name, value in given.items() if value is not None}
        shares = numbers("--fractions", fractions, "0.05,0.1")
        averaged = None if reference is None else read_text(reference)
        from positional_heads.bridge.ablation import ablation_mode
        from positional_heads.bridge.loading import check_dtype
        from positional_heads.results.files import ABLATION, FINISHED_FILE_NAME
        from positional_heads.results.scores import HeadScores
        from positional_heads.studies.ablation import RankBy, Singles, ablation_study
        from positional_heads.studies.tasks.evaluate import check_task_name, make_task, task_setting_names

        check_dtype(dtype)
        check_task_name(task)
        study_settings: dict[str, Any] = {
            "fractions": shares,
            "n_random": n_random,
            "mode": ablation_mode(mode, distance),
            "reference": averaged,
            "distance": distance,
            "rank_by": choice("--rank-by", rank_by, RankBy),
            "singles": choice("--singles", singles, Singles),
            "batch_size": batch_size,
            "seed": seed,
        }
        if "seed" in task_setting_names(task):
            task_settings["seed"] = seed
        ranked = None if scores is None else HeadScores.load(scores)
        prepare_folder(out, ABLATION.file_name, overwrite)
        bridge = load_named(model, device, dtype, trust_remote_code)
        from positional_heads.views.report.folder import write_report

        asked = make_task(bridge, task, **task_settings)
        ranked = ranked or _scores(bridge, [BUNDLED] if model == BUNDLED and not text else text, out)
        study = ablation_study(bridge, ranked, asked, **study_settings, checkpoint=out, progress=True)
        written = write_report(study, out)
        (out / FINISHED_FILE_NAME).unlink(missing_ok=True)
        show_study(written[0], as_json)
        say("written: " + ", ".join(str(name) for name in written))


def show_study(result: Path, as_json: bool) -> None:
    """Print the table and verdict of a study on disk."""
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
    """Scores of the first few sequences of a text; saved with the study, so that a resumed run need not score again."""
    from positional_heads.results.files import SCORES
    from positional_heads.results.scores import HeadScores

    if (out / SCORES.file_name).is_file():
        say(f"using the scores in {out / SCORES.file_name}")
        return HeadScores.load(out / SCORES.file_name)
    from positional_heads.bridge.tokenizing import cut_text
    from positional_heads.scoring.score import score_heads

    if not text:
        msg = "no scores: add --scores DIR (written by positional-heads score), or --text FILE to score on first"
        raise ValueError(msg)
    scores = score_heads(bridge, cut_text(bridge, read_texts(text))[:SCORED_SEQUENCES], null_repeats=5, progress=True)
    scores.save(out / SCORES.file_name)
    return scores
