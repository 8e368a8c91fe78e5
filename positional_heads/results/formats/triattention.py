"""TriAttention's statistics file: where the queries of each head lie before rotation (arXiv 2604.04921).

A file of theirs (`scripts/calibrate.py`) is `{"metadata": ..., "stats": {"layer00_head00": {"q_mean_real",
"q_mean_imag", "q_abs_mean"}}}`, float32, one number per rotary pair: the pair's two channels before rotation are the
real and the imaginary part of a complex number q, of which there are the mean E[q] and the mean length E[|q|]. Rotation
by an angle a multiplies q by exp(ia), as here, so that our centres are theirs: first channel real, second imaginary.
Their files hold no keys.

Where we depart from them: the attention factor of YaRN is in none of our numbers (theirs keep it once; it is one factor
on a whole head); where a model normalises its queries, ours are the normalised ones, which the model rotates (their
script measures what it normalises).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.results.files import ResultFileError
from positional_heads.results.formats.foreign_files import (
    existing_file,
    plain_tensor,
    read_torch,
    torch_bytes,
    write_own_kind,
)
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.rotation import layout_of, profiled_layers, refuse_unfit_rotation
from positional_heads.results.text import printable

KIND = "a file of TriAttention's statistics"
STYLES = {"half": "half", "adjacent": "interleaved"}
"""Their name of each layout."""
PARTS = ("q_mean_real", "q_mean_imag", "q_abs_mean")
MOST = 10_000
"""Layers, heads and pairs that a file may name: more would make a table that no model needs."""
ROUNDING = 0.02
"""How far a mean length may be below the length of the mean: their numbers come from bfloat16."""
_KEY = re.compile(r"layer(\d{2,5})_head(\d{2,5})")


@dataclass(frozen=True, eq=False)
class TriAttentionStatistics:
    """What a file of TriAttention holds; NaN for heads that are not in it.

    Attributes:
        query_center: Mean of the query before rotation, in the two channels of each pair.
        query_norm: Mean length of the query in each pair.
        metadata: Everything else in the file: numbers, texts, and lists of them.
    """

    query_center: Float64[Tensor, "layer head pair 2"]
    query_norm: Float64[Tensor, "layer head pair"]
    metadata: dict[str, Any]


@checked
def write_triattention(profile: HeadProfile, path: str | Path) -> Path:
    """Write the query centres of a profile as TriAttention's `load_head_frequency_stats` reads them.

    Heads of layers without numbers (they do not rotate, or were left out) are not written: their loader gives the
    heads it does not find no statistics. `metadata` has what their script writes, and `inv_freq`, which their plugins
    for vLLM and SGLang take before they would build the frequencies again from a model's configuration.

    Args:
        profile: A profile of every layer.
        path: The file, e.g. "stats.pt".

    Returns:
        The file written.

    Raises:
        ValueError: If the model's pairs are not those of TriAttention: partial or clockwise rotation, mixed layouts.
        ResultFileError: If another file has this name.
    """
    refuse_unfit_rotation(profile, "TriAttention", tuple(STYLES))
    known, pairs = profiled_layers(profile), profile.pairs
    sampled = [[layer, head] for layer in known.nonzero().flatten().tolist() for head in range(known_heads(profile))]
    stats = {}
    for layer, head in sampled:
        numbers = (*pairs.query_center[layer, head].unbind(-1), pairs.query_norm[layer, head])
        stats[f"layer{layer:02d}_head{head:02d}"] = {
            part: one.float().clone() for part, one in zip(PARTS, numbers, strict=True)
        }
    metadata = {
        "num_traces": int(profile.provenance.get("data", {}).get("sequences", 1)),
        "head_dim": 2 * pairs.query_norm.shape[-1],
        "dtype": str(profile.provenance.get("model", {}).get("dtype", "unknown")),
        "use_chat_template": False,
        "system_prompt": "",
        "rope_style": STYLES[layout_of(profile) or "half"],
        "num_layers": len(known),
        "num_attention_heads": known_heads(profile),
        "num_kv_heads": int(profile.key_heads.max()) + 1,
        "sampled_heads": sampled,
        "measured_by": "positional_heads",
        "measured_model": printable(profile.model_name, newlines=False),
    }
    frequencies = pairs.frequencies[known]
    if bool((frequencies == frequencies[0]).all()):  # their file has one set for all layers
        metadata["inv_freq"] = frequencies[0].tolist()
    content = torch_bytes({"metadata": metadata, "stats": stats})
    return write_own_kind(Path(path), content, KIND, read_triattention)


def known_heads(profile: HeadProfile) -> int:
    """Query heads of each layer."""
    return profile.key_heads.shape[-1]


@checked
def read_triattention(path: str | Path) -> TriAttentionStatistics:
    """Read a file of TriAttention's statistics, made by their script, their tools or `write_triattention`.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
        ResultFileError: If it is damaged, or holds anything but statistics; nothing in it is run.
    """
    file = existing_file(path, KIND)
    content = read_torch(file, KIND)
    stats, metadata = (content.get(part) if isinstance(content, dict) else None for part in ("stats", "metadata"))
    if not isinstance(stats, dict) or not isinstance(metadata, dict) or not stats:
        msg = f"{file}: is not {KIND}: it has no 'metadata' and 'stats' with heads as layer00_head00"
        raise ResultFileError(msg)
    if other := {*content} - {"stats", "metadata"}:
        msg = (
            f"{file}: has besides 'metadata' and 'stats' {', '.join(sorted(map(repr, other)))[:60]}, of unknown meaning"
        )
        raise ResultFileError(msg)
    heads = {_head_of(key, file): value for key, value in stats.items()}
    _refuse_missing(metadata, heads, file)
    n_layers, n_heads = (1 + max(axis) for axis in zip(*heads, strict=True))
    read = {head: _numbers_of(value, file, f"layer{head[0]:02d}_head{head[1]:02d}") for head, value in heads.items()}
    n_pairs = {numbers.shape[-1] for numbers in read.values()}
    if n_layers * n_heads > max(MOST, 100 * len(heads)):
        msg = f"{file}: names layer {n_layers - 1} and head {n_heads - 1}, and has only {len(heads)} heads"
        raise ResultFileError(msg)
    head_dim = metadata.get("head_dim", 2 * max(n_pairs))
    if type(head_dim) is not int or n_pairs != {head_dim // 2} or head_dim % 2:
        msg = f"{file}: heads of {sorted(n_pairs)} pairs: each must have half of head_dim, {head_dim!r:.20}"
        raise ResultFileError(msg)
    numbers = torch.full((n_layers, n_heads, len(PARTS), head_dim // 2), torch.nan, dtype=torch.float64)
    for (layer, head), values in read.items():
        numbers[layer, head] = values
    real, imaginary, norm = numbers.unbind(2)
    return TriAttentionStatistics(torch.stack([real, imaginary], -1), norm, metadata)


def _head_of(key: Any, file: Path) -> tuple[int, int]:
    match = _KEY.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        msg = f"{file}: heads must be called like layer00_head00, got {key!r:.40}"
        raise ResultFileError(msg)
    return int(match[1]), int(match[2])


def _refuse_missing(metadata: dict[Any, Any], heads: Iterable[tuple[int, int]], file: Path) -> None:
    """Refuse statistics of other heads than the file says it has."""
    stated = metadata.get("sampled_heads")
    if stated is None:
        return
    pairs = [[*one] for one in stated if isinstance(one, list | tuple)] if isinstance(stated, list | tuple) else []
    if not pairs or len(pairs) != len(stated) or any([*map(type, one)] != [int, int] for one in pairs):
        msg = f"{file}: sampled_heads must be a list of layer and head for each head"
        raise ResultFileError(msg)
    if missing := {(layer, head) for layer, head in pairs} ^ {*heads}:
        msg = f"{file}: its sampled_heads and its statistics differ in {len(missing)} heads, e.g. {min(missing)}"
        raise ResultFileError(msg)


def _numbers_of(value: Any, file: Path, name: str) -> Float64[Tensor, "part pair"]:
    if not isinstance(value, dict) or set(PARTS) != set(value):
        msg = f"{file}: {name} must have {', '.join(PARTS)}, and nothing else"
        raise ResultFileError(msg)
    rows = [plain_tensor(value[part], file, f"{name} {part}") for part in PARTS]
    if any(row.shape != rows[0].shape or row.ndim != 1 or not row.is_floating_point() for row in rows):
        msg = f"{file}: {name} must have one number per pair in each of {', '.join(PARTS)}"
        raise ResultFileError(msg)
    numbers = torch.stack([row.double() for row in rows])
    center = numbers[:2].norm(dim=0)
    if not bool(numbers.isfinite().all()) or bool((numbers[2] < center * (1 - ROUNDING)).any()):
        msg = f"{file}: {name} must have finite numbers, and no mean length below the length of the mean"
        raise ResultFileError(msg)
    return numbers
