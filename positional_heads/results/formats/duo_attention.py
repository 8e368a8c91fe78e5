"""DuoAttention's patterns: which key heads need every key, and which only sinks and a window (arXiv 2410.10819).

A folder of theirs has `full_attention_heads.tsv`, one row per layer with a number per key head, 1 for a head that
needs all keys and 0 for one that streams, and `config.json` with `sink_size` and `recent_size`. A streaming head sees
the first `sink_size` keys and the last `recent_size`, the query's own key among them: distances 0 to `recent_size - 1`.
Their loader clips the numbers to 0 to 1, because training leaves some a little below 0; so do we.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from positional_heads.core.arguments import LIMIT, checked, in_range
from positional_heads.core.whole_files import write_atomically
from positional_heads.results.files import ResultFileError
from positional_heads.results.formats.foreign_files import existing_file, read_json, refuse_other_kind
from positional_heads.results.formats.planned_heads import refuse_uneven, sizes
from positional_heads.results.head_plan import HeadPlan

TABLE, CONFIG = "full_attention_heads.tsv", "config.json"
KIND = "a table of DuoAttention's heads"
CONFIG_KIND = "a configuration of DuoAttention with sink_size and recent_size"
BELOW, ABOVE = -0.01, 1.01
"""Numbers as far outside of 0 to 1 as training may leave them (published ones: -0.0015); others are of another kind."""


@dataclass(frozen=True, eq=False)
class HeadPattern:
    """How much each key head needs the keys that a window would hide.

    Attributes:
        values: 1 for a head that needs every key, 0 for one that streams, and between.
        sinks: Keys at the beginning that a streaming head sees.
        window: Keys at the end that it sees, the query's own among them.
    """

    values: Float64[Tensor, "layer kv_head"]
    sinks: int
    window: int

    @checked
    def streaming(self, share: float) -> Bool[Tensor, "layer kv_head"]:
        """The heads that stream if a share of them has to: those with the lowest values, earlier heads first.

        Args:
            share: Share of all key heads, 0 to 1; their `sparsity`, and kvpress' `head_compression_ratio`.

        Raises:
            ValueError: If the share is not between 0 and 1.
        """
        in_range("share", share, 0, 1)
        flat = self.values.flatten()
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[flat.argsort(stable=True)[: round(len(flat) * share)]] = True
        return chosen.view_as(self.values)


@checked
def write_duo_attention(
    values: Float[Tensor, "layer kv_head"] | HeadPlan,
    folder: str | Path,
    *,
    sinks: int | None = None,
    window: int | None = None,
) -> Path:
    """Write a pattern as DuoAttention's `load_attn_pattern` reads it.

    A head without a number (NaN: its layer does not rotate, or was not measured) is written as 1: what nobody measured
    keeps every key. Of a plan, key heads with a window have 0 and all others 1. The files do not hold the share of
    heads that stream, DuoAttention's `sparsity`: give it `float(plan.windowed.double().mean())`.

    Args:
        values: A plan; or 1 for a key head that needs every key, 0 for one that streams, or any number between.
        folder: Where the two files go; made if missing.
        sinks: Keys at the beginning that a streaming head sees; a plan has its own.
        window: Keys at the end that it sees, the query's own among them; a plan has its own.

    Returns:
        The folder.

    Raises:
        ValueError: If a value is outside of 0 to 1, or there is none; if layers of a plan hold different numbers of key
            heads; if sinks or window are missing, or are not those of the plan.
        ResultFileError: If other files have these names.
    """
    plan = values if isinstance(values, HeadPlan) else None
    sinks, window = sizes(plan, sinks, window)
    if isinstance(values, HeadPlan):
        refuse_uneven(values, "DuoAttention")
        values = values.full_attention
    known = values.double().nan_to_num(1.0)
    if not values.numel() or not bool(((known >= 0) & (known <= 1)).all()):
        msg = f"values must be between 0 (streams) and 1 (needs every key), got {list(values.shape)} numbers"
        msg += f" from {float(known.min()):g} to {float(known.max()):g}" if values.numel() else ""
        raise ValueError(msg)
    folder = Path(folder)
    refuse_other_kind(folder / TABLE, KIND, _read_values)
    refuse_other_kind(folder / CONFIG, CONFIG_KIND, _read_sizes)
    rows = ["\t".join(repr(value) for value in row) for row in known.tolist()]
    write_atomically(folder / CONFIG, json.dumps({"sink_size": sinks, "recent_size": window}, indent=1) + "\n")
    write_atomically(folder / TABLE, "\n".join(rows) + "\n")
    return folder


@checked
def read_duo_attention(folder: str | Path) -> HeadPattern:
    """Read a pattern of DuoAttention's, trained by their code or written by `write_duo_attention`.

    Args:
        folder: The folder with full_attention_heads.tsv and config.json.

    Raises:
        FileNotFoundError: If a file is missing.
        ResultFileError: If one is damaged or of another kind.
    """
    values = _read_values(Path(folder) / TABLE)
    return HeadPattern(values, *_read_sizes(Path(folder) / CONFIG))


def _read_values(file: Path) -> Float64[Tensor, "layer kv_head"]:
    try:
        lines = existing_file(file, KIND).read_text(encoding="ascii").splitlines()
        values = torch.tensor([[float(cell) for cell in line.split("\t")] for line in lines], dtype=torch.float64)
    except ValueError as error:
        msg = f"{file}: is not {KIND}: rows of numbers with tabs between them, as many in each row"
        raise ResultFileError(msg) from error
    if values.ndim != 2 or not bool(((values >= BELOW) & (values <= ABOVE)).all()):  # noqa: PLR2004
        msg = f"{file}: is not {KIND}: its numbers must be between 0 and 1"
        raise ResultFileError(msg)
    return values.clamp(0, 1)


def _read_sizes(file: Path) -> tuple[int, int]:
    return sinks_and_window(read_json(file, CONFIG_KIND), file, CONFIG_KIND)


def sinks_and_window(content: Any, file: Path, kind: str) -> tuple[int, int]:
    """`sink_size` and `recent_size` of a JSON file.

    Args:
        content: What was read.
        file: Where from.
        kind: What it should be, for the message.

    Raises:
        ResultFileError: If they are not whole numbers, of at least 0 and 1.
    """
    sinks, window = (content.get(key) if isinstance(content, dict) else None for key in ("sink_size", "recent_size"))
    if type(sinks) is not int or type(window) is not int or not (0 <= sinks < LIMIT and 1 <= window < LIMIT):
        msg = f"{file}: is not {kind}: sink_size and recent_size must be whole numbers, of at least 0 and 1"
        raise ResultFileError(msg)
    return sinks, window
