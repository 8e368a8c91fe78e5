"""`positional-heads distances`: how far every head attends, in models of every encoding of position."""

from pathlib import Path
from typing import Annotated

import typer

from positional_heads.cli import options
from positional_heads.cli.common import load_named, one_line_errors, prepared_folder
from positional_heads.cli.show import finish
from positional_heads.cli.text_cut import TextCut, refuse_sequences


def distances(  # noqa: PLR0917  one parameter is one option of the command
    model: options.Model,
    text: options.Texts = None,
    out: options.Out = Path("distances"),
    length: options.Length = None,
    sequences: options.Sequences = None,
    in_order: options.InOrder = False,
    window: Annotated[
        int, typer.Option(min=1, help="Distances in tokens that count as near; beyond is distant.")
    ] = 256,
    sinks: Annotated[int, typer.Option(min=0, help="First keys of each sequence that count as sinks.")] = 4,
    plain_text: options.PlainText = False,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    offload_folder: options.OffloadFolder = None,
    adapter: options.Adapter = None,
    dtype: options.Dtype = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn sequences.")] = 0,
    top: options.Top = 10,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Say how far every head attends, whatever the model's encoding of position.

    The model need not be rotary: learned and sinusoidal positions, ALiBi and layers without any are measured alike.

    Prints the heads that look furthest and a verdict, and writes them with tables and plots to a folder.

    Example: positional-heads distances openai-community/gpt2 --text bundled --sequences 8 --out distances
    """
    with one_line_errors():
        refuse_sequences(sequences)
        taken = TextCut.of_options(text, length, sequences, in_order, plain_text, seed)
        from positional_heads.bridge.loading import check_dtype
        from positional_heads.results.files import DISTANCE_PROFILE

        check_dtype(dtype)
        with prepared_folder(out, DISTANCE_PROFILE.file_name, overwrite):
            places = {"offload_folder": offload_folder, "adapter": adapter}
            bridge = load_named(model, device, dtype, trust_remote_code, device_map=device_map, **places)
            from positional_heads.scoring.distance_profile import distance_profile

            profiled = distance_profile(
                bridge,
                taken.said("profiling", bridge),
                window=window,
                sinks=sinks,
                batch_size=batch_size,
                progress=True,
            )
            finish(profiled, out, as_json, top=top)
