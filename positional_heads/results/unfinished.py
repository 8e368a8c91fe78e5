"""Interrupted runs in a folder and how to resume them, read without a model and without torch."""

import json
from pathlib import Path

from positional_heads.results.files import FINISHED_FILE_NAME, PARTIAL, ResultFileError, earlier_sums, read_result


def unfinished(folder: str | Path) -> str | None:
    """One sentence on every interrupted run in a folder; None if there is none.

    Args:
        folder: The folder of scores, shards or a study.
    """
    folder = Path(folder)
    sums = [folder / PARTIAL.file_name, *sorted(folder.glob("shard-*.unfinished.safetensors"))]
    notes = [_unfinished_scores(file) for file in sums if file.is_file()]
    if (folder / FINISHED_FILE_NAME).is_file():
        notes.append(_unfinished_study(folder / FINISHED_FILE_NAME))
    return " ".join(notes) or None


def _unfinished_scores(file: Path) -> str:
    try:
        content, _ = read_result(file, PARTIAL)
    except ResultFileError as error:
        return f"{error}; delete it to start over."
    if earlier := earlier_sums(file, content):
        return f"{earlier}."
    done, total = len(content["done"]), content["run"]["batches"]
    call = "positional-heads score command, or score_heads call with the same checkpoint="
    if file.name != PARTIAL.file_name:
        call = "positional-heads score --shard command, or score_shard call"
    return f"{file}: unfinished, {done} of {total} batches are counted; to resume, repeat the same {call}."


def _unfinished_study(file: Path) -> str:
    header, *parts = file.read_text(encoding="utf-8").split("\n")[:-1] or ["{}"]
    command, function = (
        ("ablate", "ablation_study") if "ablation" in json.loads(header) else ("extrapolate", "extrapolation_study")
    )
    return (
        f"{file}: unfinished study, {len(parts)} of its parts done; to resume, repeat the same positional-heads "
        f"{command} command, or {function} call with the same checkpoint=."
    )
