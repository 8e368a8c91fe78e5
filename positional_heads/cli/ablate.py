"""`positional-heads ablate`: the ablation study from the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from positional_heads.cli import options
from positional_heads.cli.common import (
    BUNDLED,
    choice,
    load_named,
    numbers,
    one_line_errors,
    prepared_folder,
    read_text,
    text_sources,
)
from positional_heads.cli.show import finish
from positional_heads.cli.wording import say

if TYPE_CHECKING:
    from positional_heads.bridge.model import TransformerLensModel
    from positional_heads.results.scores import HeadScores

SCORED_SEQUENCES = 12


def ablate(  # noqa: PLR0917  one parameter is one option of the command
    model: options.Model,
    task: Annotated[str, typer.Option(help=f"{options.RECALL_TASKS}, exam, perplexity or longbench.")] = "passkey",
    scores: Annotated[
        Path | None, typer.Option(help="Result of `score` for this model; the model is scored first if not given.")
    ] = None,
    text: options.Texts = None,
    out: options.Out = Path("ablation"),
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
    statement: Annotated[str | None, typer.Option(help="needle: the sentence to hide, with {answer} in it.")] = None,
    answer: Annotated[str | None, typer.Option(help="needle: the answer.")] = None,
    question: Annotated[str | None, typer.Option(help="needle: the end of the text, before the answer.")] = None,
    digits: Annotated[int | None, typer.Option(min=1, help="passkey, exam: digits of a number.")] = None,
    keys: Annotated[int | None, typer.Option(min=1, help="kv, exam: number of facts.")] = None,
    updates: Annotated[int | None, typer.Option(min=2, help="latest: number of values stated for the name.")] = None,
    passage: Annotated[int | None, typer.Option(min=2, help="copy, exam: tokens of a passage.")] = None,
    cue: Annotated[
        int | None, typer.Option(min=1, help="copy, exam: tokens of its second occurrence that are given.")
    ] = None,
    near: Annotated[
        int | None,
        typer.Option(min=1, help="perplexity: tokens of the truncated context; exam: of a block of text, at least 2."),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(min=1, help="exam: further examples of every length, to find retrieval heads; 10 if not given."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="longbench: name of one of its datasets.")] = None,
    file: Annotated[Path | None, typer.Option(help="longbench: JSON-lines file in LongBench's schema.")] = None,
    mode: Annotated[str, typer.Option(help="zero, mean, resample, uniform, far or near.")] = "zero",
    distance: Annotated[int | None, typer.Option(min=1, help="far and near: the cut-off in tokens.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="mean and resample: text file to take other activations from; held-out examples if not given."
        ),
    ] = None,
    fractions: Annotated[
        str, typer.Option(help="Shares of the heads to ablate; 'none' with --singles all for single heads alone.")
    ] = "0.01,0.02,0.05,0.1,0.2",
    n_random: Annotated[int, typer.Option(min=1, help="Number of random sets with as many heads in every layer.")] = 20,
    permutations: Annotated[
        int | None, typer.Option(min=0, help="Number of permuted rankings; as many as random sets if not given.")
    ] = None,
    anywhere: Annotated[int, typer.Option(min=0, help="Number of random sets of heads of any layer.")] = 0,
    rank_by: Annotated[str, typer.Option(help="rho, excess (over the null), rho_curve or retrieval.")] = "rho",
    singles: Annotated[str | None, typer.Option(help="Heads to ablate one by one: all, top or none.")] = None,
    batch_size: options.BatchSize = None,
    budget: options.Budget = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    offload_folder: options.OffloadFolder = None,
    adapter: options.Adapter = None,
    dtype: options.Dtype = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the task, random sets and permutations.")] = 0,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Ablate the top heads and random heads.

    Shows whether the model needs the top heads more. Prints effects, contrasts and a verdict, and writes a report
    folder. To resume an interrupted run, run the same command again. With --budget,
    what does not fit is left out: single heads first.

    Example: positional-heads ablate bundled --scores report --task passkey --out ablation
    """
    options_given = {name: value for name, value in locals().items() if value is not None and value != []}
    with one_line_errors():
        if scores is not None and text:
            msg = "--scores and --text: a text is only scored where no scores are given; leave one of them out"
            raise ValueError(msg)
        shares = [] if fractions.strip() == "none" else numbers("--fractions", fractions, "0.05,0.1")
        averaged = None if reference is None else read_text(reference)
        if haystack is not None:
            options_given["haystack"] = read_text(haystack)
        if length is not None and len(length) == 1:  # LongBench takes a single one
            options_given["length"] = length[0]
        from positional_heads.bridge.ablation import ablation_mode
        from positional_heads.bridge.loading import check_dtype
        from positional_heads.results.ablation import RankBy
        from positional_heads.results.files import ABLATION, FINISHED_FILE_NAME
        from positional_heads.results.scores import HeadScores
        from positional_heads.studies.ablation import Singles, ablation_study
        from positional_heads.studies.budget import check_budget
        from positional_heads.studies.tasks.evaluate import (
            TASKS,
            check_task_name,
            make_task,
            task_setting_names,
        )
        from positional_heads.studies.tasks.exam import check_exam

        check_dtype(dtype)
        check_budget(budget)
        check_task_name(task)
        study_settings: dict[str, Any] = {
            "fractions": shares,
            "n_random": n_random,
            "n_permuted": permutations,
            "n_anywhere": anywhere,
            "mode": ablation_mode(mode, distance),
            "reference": averaged,
            "distance": distance,
            "rank_by": choice("--rank-by", rank_by, RankBy),
            "singles": choice("--singles", singles, Singles),
            "batch_size": batch_size,
            "budget": budget,
            "seed": seed,
        }
        known_settings = {setting for name in TASKS for setting in task_setting_names(name)}
        task_settings = {name: value for name, value in options_given.items() if name in known_settings}
        if "seed" not in task_setting_names(task):
            del task_settings["seed"]
        if task == "exam":
            check_exam(**task_settings)
        ranked = None if scores is None else HeadScores.load(scores)
        with prepared_folder(out, ABLATION.file_name, overwrite):
            places = {"offload_folder": offload_folder, "adapter": adapter}
            bridge = load_named(model, device, dtype, trust_remote_code, device_map=device_map, **places)
            asked = make_task(bridge, task, **task_settings)
            ranked = ranked or _scores(bridge, text, out, seed, bundled=model == BUNDLED)
            study = ablation_study(bridge, ranked, asked, **study_settings, checkpoint=out, progress=True)
            finish(study, out, as_json, progress=[FINISHED_FILE_NAME])


def _scores(
    bridge: "TransformerLensModel", text: list[str] | None, out: Path, seed: int, *, bundled: bool
) -> "HeadScores":
    """Scores of a few sequences of a text; saved with the study, so that a resumed run need not score again.

    Raises:
        ValueError: If there is no text, or the scores saved are not those that were asked for.
    """
    from positional_heads.bridge.cutting import cut_text
    from positional_heads.results.files import SCORES
    from positional_heads.results.scores import HeadScores
    from positional_heads.results.tables import text_label

    file = out / SCORES.file_name
    pieces = cut_text(bridge, text_sources(text), sequences=SCORED_SEQUENCES, seed=seed) if text else None
    if file.is_file():
        saved = HeadScores.load(file)
        data = saved.provenance["data"]
        if pieces is not None and data.get("drawn") != getattr(pieces, "drawn", None):
            msg = (
                f"{file}: holds scores of other sequences than these {len(pieces)} of --text (--seed {seed}); choose "
                f"another --out, or rank by what is there: --scores {out} instead of --text"
            )
            raise ValueError(msg)
        of = text_label(saved.provenance) or "a text"
        say(f"using the scores in {file}, of {data['sequences']} sequences of {of}")
        return saved
    from positional_heads.scoring.score import score_heads

    if pieces is None and not bundled:
        msg = "no scores: add --scores DIR (written by positional-heads score), or --text FILE to score on first"
        raise ValueError(msg)
    if pieces is None:
        pieces = cut_text(bridge, text_sources([BUNDLED]), sequences=SCORED_SEQUENCES, seed=seed)
    scores = score_heads(bridge, pieces, null_repeats=5, progress=True)
    scores.save(file)
    return scores
