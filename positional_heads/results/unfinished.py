"""What of a run that was stopped lies in a folder, and how does it go on? Read without a model, and without torch."""

import json
from pathlib import Path

from positional_heads.results.files import FINISHED_FILE_NAME, PARTIAL, ResultFileError, read_result


def unfinished(folder: str | Path) -> str | None:
    """One sentence on every run in a folder that was stopped; None where there is none.

    Args:
        folder: Where scores, shards or a study were to be written.
    """
    folder = Path(folder)
    sums = [folder / PARTIAL.file_name, *sorted(folder.glob("shard-*.unfinished.safetensors"))]
    said = [_said_of_sums(file) for file in sums if file.is_file()]
    if (folder / FINISHED_FILE_NAME).is_file():
        said.append(_said_of_study(folder / FINISHED_FILE_NAME))
    return " ".join(said) or None


def _said_of_sums(file: Path) -> str:
    try:
        content, _ = read_result(file, PARTIAL)
    except ResultFileError as error:
        return f"{error}; delete it to begin anew."
    done, total = len(content["done"]), content["run"]["batches"]
    way = "positional-heads score command, or score_heads call with the same checkpoint="
    if file.name != PARTIAL.file_name:
        way = "positional-heads score --shard command, or score_shard call"
    return f"{file}: unfinished, {done} of {total} batches are counted; give the same {way}, to go on."


def _said_of_study(file: Path) -> str:
    header, *parts = file.read_text(encoding="utf-8").split("\n")[:-1] or ["{}"]
    command, function = (
        ("ablate", "ablation_study") if "ablation" in json.loads(header) else ("extrapolate", "extrapolation_study")
    )
    return (
        f"{file}: unfinished study, {len(parts)} of its parts done; give the same positional-heads {command} "
        f"command, or {function} call with the same checkpoint=, to go on."
    )
