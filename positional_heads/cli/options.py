"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

RECALL_TASKS = "passkey, needle, kv, copy, latest"
METHODS = "none, linear, ntk, dynamic, yarn, llama3, p_rope, self_extend, rerope"
"""Names for help, which must not load torch; a test compares both with the lists in the library."""

Model = Annotated[
    str,
    typer.Argument(
        help="'bundled', 'smollm2', a folder in transformers format or with an adapter, a GGUF file or its folder, or "
        "a hub name."
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        help="Text file to score on, repeatable; '-' for standard input, 'bundled' for the Revelation, "
        "'bundled:prose', ':code', ':dialogue' or ':technical' for other kinds."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the results; created if missing.")]
Length = Annotated[int | None, typer.Option(min=2, help="Tokens per sequence; the model's context if not given.")]
Sequences = Annotated[int | None, typer.Option(help="Draw N sequences at random; all of the text if not given.")]
InOrder = Annotated[
    bool, typer.Option("--in-order", help="Take the first sequences of the text instead of drawing them.")
]
PlainText = Annotated[
    bool,
    typer.Option(
        help="Read special tokens in the text as plain characters; drop byte-order marks and carriage returns."
    ),
]
NullRepeats = Annotated[int, typer.Option(min=0, help="Shuffles of the positions for the null; 0 for none.")]
ControlKeys = Annotated[
    int,
    typer.Option(
        min=0, help="In the same pass, score again without the first N keys, e.g. 64, and report which heads stay."
    ),
]
Examples = Annotated[
    int,
    typer.Option(
        min=0,
        max=8192,
        help="Tokens of the first sequence to show a few heads on, token by token, at least 2; 0 for none.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the drawn sequences, shuffles, samples and resamples.")]
CheckpointSeconds = Annotated[float, typer.Option(min=0, help="Seconds between two saves of the progress.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Sequences per forward pass; chosen if not given.")]
Device = Annotated[
    str | None, typer.Option(help="Device to run on, e.g. cpu or cuda; 'auto' is short for --device-map auto.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="For a model that needs several devices: auto, balanced, sequential, or a JSON table from names of "
        "modules to devices or 'disk'."
    ),
]
OffloadFolder = Annotated[
    Path | None, typer.Option(help="Folder for weights on disk that cannot be read from the checkpoint itself.")
]
Adapter = Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter to put onto the model.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Top = Annotated[int, typer.Option(min=1, help="Heads to print.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]
Overwrite = Annotated[bool, typer.Option(help="Replace results that are already in the folder.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code that the model's repository contains.")]
Depths = Annotated[int | None, typer.Option(min=1, help="Number of depths to hide the answer at.")]
Budget = Annotated[
    float | None,
    typer.Option(help="Minutes that the study may take; it first says what it leaves out. No limit if not given."),
]
