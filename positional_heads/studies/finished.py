"""What has a study that was stopped already run? One line per set of heads, added when it is finished.

A line that was being written when the process died is not counted; lines of another study are never mixed in.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.files import write_atomically
from positional_heads.heads import Head
from positional_heads.studies.head_sets import HeadSet

FILE_NAME = "cells.jsonl"

Measures = dict[str, Float64[Tensor, " row"]]


class FinishedSets:
    """Results by set of heads, in memory and, if a file is given, on disk.

    Args:
        file: Where to keep them; nowhere when None.
        study: What makes the study this study: model, task, mode; must be JSON.

    Raises:
        ValueError: If the file belongs to another study.
    """

    def __init__(self, file: Path | None, study: Mapping[str, Any]) -> None:
        self.file = file
        self.results: dict[HeadSet, Measures] = {}
        if file is None:
            return
        header = json.loads(json.dumps(study))
        lines = _whole_lines(file)
        if not lines:
            write_atomically(file, json.dumps(header) + "\n")
            return
        if lines[0] != header:
            changed = sorted(key for key in {*header, *lines[0]} if header.get(key) != lines[0].get(key))
            msg = (
                f"{file}: holds the finished part of another study (different: {', '.join(changed)}); run that one to "
                "its end with its own settings, choose another folder, or delete the file"
            )
            raise ValueError(msg)
        write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))
        for line in lines[1:]:
            heads = tuple(Head.parse(name) for name in line["heads"])
            self.results[heads] = {
                name: torch.tensor(values, dtype=torch.float64) for name, values in line["measures"].items()
            }

    def add(self, heads: HeadSet, measures: Measures) -> None:
        """Keep the results of one set."""
        self.results[heads] = measures
        if self.file is None:
            return
        values = {name: row.tolist() for name, row in measures.items()}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"heads": [str(head) for head in heads], "measures": values}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """Every line that was written to its end."""
    if not file.exists():
        return []
    # what follows the last end of line was being written
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
