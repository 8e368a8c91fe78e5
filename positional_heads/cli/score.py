"""`positional-heads score` and `merge`: a whole run, one shard of it, or the sum of all shards."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from positional_heads.cli import options
from positional_heads.cli.common import load_named, one_line_errors, prepared_folder
from positional_heads.cli.estimate import print_estimate
from positional_heads.cli.show import finish
from positional_heads.cli.text_cut import TextCut, refuse_sequences
from positional_heads.cli.wording import say


def score(  # noqa: PLR0917  one parameter is one option of the command
    model: options.Model,
    text: options.Texts = None,
    out: options.Out = Path("report"),
    length: options.Length = None,
    sequences: options.Sequences = None,
    in_order: options.InOrder = False,
    null_repeats: options.NullRepeats = 20,
    null_pairs: Annotated[
        str | None,
        typer.Option(
            help="Query-key pairs per shuffle: 'all', or a number to sample; if not given, 32 per token, all up to 128 "
            "tokens."
        ),
    ] = None,
    skip_keys: Annotated[
        int, typer.Option(min=0, help="Ignore the first N keys of each sequence (1 drops an attention sink).")
    ] = 0,
    control_keys: options.ControlKeys = 0,
    min_distance: Annotated[int, typer.Option(min=0, help="Smallest distance to count, in tokens.")] = 0,
    max_distance: Annotated[int | None, typer.Option(min=0, help="Largest distance to count, in tokens.")] = None,
    temperature: Annotated[
        str, typer.Option(help="Softmax temperature of the dominant dimension: a number, or 'attention' for sqrt(d).")
    ] = "1",
    plain_text: options.PlainText = False,
    resolution: Annotated[
        float, typer.Option(help="Count dominant dimensions this close, in pair indices, as equal; 0 for none.")
    ] = 1 / 256,
    pairs: Annotated[
        str | None,
        typer.Option(help="Query-key pairs per sequence: 'all', or a number to sample; chosen by length if not given."),
    ] = None,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    offload_folder: options.OffloadFolder = None,
    adapter: options.Adapter = None,
    dtype: options.Dtype = None,
    seed: options.Seed = 0,
    shard: Annotated[
        str | None, typer.Option(help="Count only one shard of the run, e.g. 3/8; `merge` adds the shards.")
    ] = None,
    executor: Annotated[str | None, typer.Option(help="'ray' to count in several processes or machines.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster, e.g. auto; this machine if not given.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray workers; as many as fit if not given.")] = None,
    worker_cpus: Annotated[int, typer.Option(min=1, help="CPU cores per Ray worker.")] = 1,
    worker_gpus: Annotated[float, typer.Option(min=0, help="GPUs per Ray worker; may be a fraction.")] = 0,
    checkpoint_seconds: options.CheckpointSeconds = 60,
    examples: options.Examples = 512,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print what the run would cost, and run nothing; loads no weights.")
    ] = False,
    top: options.Top = 10,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Score every head by rho.

    rho is the correlation between token distance and the dominant rotary dimension.

    Prints the top heads and a verdict against shuffled positions, and writes them and plots to a folder. To resume an
    interrupted run, run the same command again.

    Example: positional-heads score bundled --text bundled --sequences 8 --out report
    """
    with one_line_errors():
        settings: dict[str, Any] = {
            "temperature": _number_or("attention", "--temperature", temperature, float),
            "skip_keys": skip_keys,
            "control_keys": control_keys,
            "min_distance": min_distance,
            "max_distance": max_distance,
            "resolution": resolution,
            "pairs": None if pairs is None else _number_or("all", "--pairs", pairs, int),
            "null_repeats": null_repeats,
            "null_pairs": None if null_pairs is None else _number_or("all", "--null-pairs", null_pairs, int),
            "seed": seed,
        }
        refuse_sequences(sequences)
        ray = _ray_executor(executor, address, workers, worker_cpus, worker_gpus)
        taken = TextCut.of_options(text, length, sequences, in_order, plain_text, seed)
        shards = _refuse_settings(settings, shard, dtype)
        from positional_heads.results.files import PARTIAL, SCORES

        if estimate:
            print_estimate(
                model,
                taken.sequences_for,
                settings,
                shards=shards,
                batch_size=batch_size,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                as_json=as_json,
            )
            return
        with prepared_folder(out, SCORES.file_name, overwrite):
            places = {"offload_folder": offload_folder, "adapter": adapter}
            bridge = load_named(model, device, dtype, trust_remote_code, device_map=device_map, **places)
            from positional_heads.scoring.head_examples import write_examples
            from positional_heads.scoring.score import score_heads, score_shard

            pieces = taken.said("scoring", bridge)
            settings |= {"batch_size": batch_size, "checkpoint_seconds": checkpoint_seconds, "progress": True}
            if shard is not None:
                say(f"written: {score_shard(bridge, pieces, shard, out, **settings)}")
                return
            scores = score_heads(bridge, pieces, checkpoint=out, executor=ray, **settings)
            shown = write_examples(bridge, pieces[0], scores, out, examples)
            more = [] if shown is None else [shown]
            finish(scores, out, as_json, top=top, progress=[PARTIAL.file_name], more=more)


def merge(
    folder: Annotated[Path, typer.Argument(help="Folder that `score --shard` wrote shards to.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the results; that of the shards if not given.")] = None,
    top: options.Top = 10,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Add the shards of a run.

    Writes its report; needs no model.

    Example: positional-heads merge shards --out report
    """
    with one_line_errors():
        from positional_heads.results.files import SCORES
        from positional_heads.scoring.shards import merge_shards

        target = folder if out is None else out
        scores = merge_shards(folder)
        with prepared_folder(target, SCORES.file_name, overwrite):
            finish(scores, target, as_json, top=top)


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


def _refuse_settings(settings: dict[str, Any], shard: str | None, dtype: str | None) -> int:
    """Refuse settings that make no sense before the model is loaded; the number of shards."""
    from positional_heads.bridge.loading import check_dtype
    from positional_heads.scoring.settings import ScoringSettings
    from positional_heads.scoring.shards import parsed_shard

    check_dtype(dtype)
    ScoringSettings(**settings)
    return 1 if shard is None else parsed_shard(shard)[1]


def _number_or(word: str, option: str, text: str, kind: Callable[[float], float]) -> float | str:
    """The number that an option gives, or the one word that it takes instead."""
    if text == word:
        return word
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or kind(number) != number:
        msg = f"{option} {text!r} must be a {'whole ' if kind is int else ''}number, or {word!r}"
        raise ValueError(msg)
    return kind(number)
