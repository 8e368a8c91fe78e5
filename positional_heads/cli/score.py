"""`positional-heads score` and `merge`: a whole run, one shard of it, or the sum of all shards."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from positional_heads.cli.common import load_named, one_line_errors, prepare_folder, read_texts, say

if TYPE_CHECKING:
    from positional_heads.results.scores import HeadScores


def score(  # noqa: PLR0917  one parameter is one option of the command
    model: Annotated[str, typer.Argument(help="'bundled', a local folder in transformers format, or a hub name.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="Text file to score on; repeat for several, '-' for standard input, 'bundled' for ours."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report; made if missing.")] = Path("report"),
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens per sequence; the model's context if not given.")
    ] = None,
    sequences: Annotated[int | None, typer.Option(help="Score only this many sequences, the first ones.")] = None,
    null_repeats: Annotated[
        int, typer.Option(min=0, help="Times positions are shuffled for the null; 0 for none.")
    ] = 20,
    skip_keys: Annotated[
        int, typer.Option(min=0, help="Leading keys that do not count, e.g. 1 for an attention sink.")
    ] = 0,
    min_distance: Annotated[int, typer.Option(min=0, help="Smallest distance that counts, in tokens.")] = 0,
    max_distance: Annotated[int | None, typer.Option(min=0, help="Largest distance that counts, in tokens.")] = None,
    temperature: Annotated[
        str, typer.Option(help="Softmax temperature of the dominant dimension: a number, or 'attention' for sqrt(d).")
    ] = "1",
    plain_text: Annotated[
        bool,
        typer.Option(help="Read special tokens in the text as plain characters; drop byte-order marks and returns."),
    ] = False,
    resolution: Annotated[
        float, typer.Option(help="Pair indices within which two dominant dimensions are equal; 0 tells all apart.")
    ] = 1 / 256,
    pairs: Annotated[
        str | None,
        typer.Option(help="'all', or how many query-key pairs to sample of a sequence; chosen by length if not given."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences per forward pass; chosen if not given.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to run, e.g. cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of shuffles, samples and resamples.")] = 0,
    shard: Annotated[
        str | None, typer.Option(help="Count one shard of the run only, e.g. 3/8; `merge` adds them.")
    ] = None,
    executor: Annotated[str | None, typer.Option(help="'ray' to count on several processes or machines.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster, e.g. auto; workers on this machine if not given.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray workers; as many as fit if not given.")] = None,
    worker_cpus: Annotated[int, typer.Option(min=1, help="Processor cores of a Ray worker.")] = 1,
    worker_gpus: Annotated[float, typer.Option(min=0, help="GPUs of a Ray worker; may be a fraction.")] = 0,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="How often to keep what is counted so far.")] = 60,
    top: Annotated[int, typer.Option(min=1, help="Heads to print.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace results that are already in the folder.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that the model ships. Off unless asked.")] = False,
) -> None:
    """Score every head: does its dominant rotary dimension move with token distance?

    Prints the top heads, a verdict against shuffled positions, and writes a report folder. A run that was stopped goes
    on when the same command is given again.

    Example: positional-heads score bundled --text bundled --sequences 8 --out report
    """
    with one_line_errors():
        from positional_heads.results.files import PARTIAL, SCORES

        settings: dict[str, Any] = {
            "temperature": temperature if temperature == "attention" else _number(temperature, "--temperature"),
            "skip_keys": skip_keys,
            "min_distance": min_distance,
            "max_distance": max_distance,
            "resolution": resolution,
            "pairs": pairs if pairs in {None, "all"} else _whole(str(pairs), "--pairs"),
            "null_repeats": null_repeats,
            "seed": seed,
        }
        if sequences is not None and sequences < 1:
            msg = f"--sequences {sequences} must be at least 1"
            raise ValueError(msg)
        if shard is not None:
            from positional_heads.scoring.shards import shard_of

            shard_of(shard)
        ray = _ray_executor(executor, address, workers, worker_cpus, worker_gpus)
        texts = read_texts(text)
        from positional_heads.bridge.loading import check_dtype
        from positional_heads.scoring.settings import ScoringSettings

        check_dtype(dtype)
        ScoringSettings(**settings)  # refuses what makes no sense before the model is loaded
        settings |= {"batch_size": batch_size, "checkpoint_seconds": checkpoint_seconds, "progress": True}
        prepare_folder(out, SCORES.file_name, overwrite)
        bridge = load_named(model, device, dtype, trust_remote_code)
        from positional_heads.bridge.sequences import cut_text
        from positional_heads.scoring.score import score_heads, score_shard

        pieces = cut_text(bridge, texts, length, plain_text=plain_text)
        chosen = _first(pieces, sequences, len(texts))
        if shard is not None:
            say(f"written: {score_shard(bridge, chosen, shard, out, **settings)}")
            return
        scores = score_heads(bridge, chosen, checkpoint=out, executor=ray, **settings)
        from positional_heads.scoring.head_examples import write_examples

        write_examples(bridge, chosen[0], scores, out)
        _write(scores, out, top, as_json)
        (out / PARTIAL.file_name).unlink(missing_ok=True)


def merge(
    folder: Annotated[Path, typer.Argument(help="Where `score --shard` wrote the shards.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the report; the shards' own if not given.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Heads to print.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace results that are already in the folder.")] = False,
) -> None:
    """Add the shards of a run, and write its report; takes no model.

    Example: positional-heads merge shards --out report
    """
    with one_line_errors():
        from positional_heads.results.files import SCORES
        from positional_heads.scoring.shards import merge_shards

        target = folder if out is None else out
        scores = merge_shards(folder)
        prepare_folder(target, SCORES.file_name, overwrite)
        _write(scores, target, top, as_json)


def show_scores(result: Path, top: int, as_json: bool) -> None:
    """Print scores on disk.

    Args:
        result: Their file or folder.
        top: Heads to print.
        as_json: JSON instead of a table.
    """
    from positional_heads.results.files import SCORES, read_result

    content, _ = read_result(result, SCORES)
    if as_json:
        typer.echo(json.dumps({key: content[key] for key in ("verdict", "table", "provenance")}, indent=1))
        return
    from positional_heads.results.tables import heads_table, scores_line

    typer.echo(scores_line(content["provenance"]))
    typer.echo(heads_table(content["table"], top))
    typer.echo(f"\nVerdict: {content['verdict']}")


def _write(scores: "HeadScores", out: Path, top: int, as_json: bool) -> None:
    from positional_heads.views.report.folder import write_report

    written = write_report(scores, out)
    show_scores(written[0], top, as_json)
    say("written: " + ", ".join(str(file) for file in written))


def _ray_executor(name: str | None, address: str | None, workers: int | None, cpus: int, gpus: float) -> Any:
    if name is None:
        if address is not None or workers is not None:
            msg = "--address and --workers go with --executor ray"
            raise ValueError(msg)
        return None
    if name != "ray":
        msg = f"--executor {name!r}: 'ray' is the only one; leave it out to count in this process"
        raise ValueError(msg)
    from positional_heads.scoring.ray_executor import RayExecutor

    return RayExecutor(address, workers, cpus, gpus)


def _first(pieces: list[Any], sequences: int | None, n_texts: int) -> list[Any]:
    chosen = pieces[:sequences]
    tokens = sum(len(piece) for piece in chosen)
    say(
        f"{n_texts} text(s) cut into {len(pieces)} sequences of at most {max(map(len, pieces))} tokens; scoring "
        f"{'all of them' if len(chosen) == len(pieces) else f'the first {len(chosen)}'}, {tokens} tokens"
    )
    return chosen


def _whole(text: str, option: str) -> int:
    found = _number(text, option)
    if found != int(found):
        msg = f"{option} {text!r} must be a whole number, or 'all'"
        raise ValueError(msg)
    return int(found)


def _number(text: str, option: str) -> float:
    try:
        found = float(text)
        if not math.isfinite(found):
            raise ValueError(text)
        return found
    except ValueError as error:
        word = "'all'" if option == "--pairs" else "'attention'"
        msg = f"{option} {text!r} must be a number, or {word}"
        raise ValueError(msg) from error
