"""FASA's Contextual Agreement per head and pair, as JSON (Wang et al., arXiv 2602.03152).

FASA keeps its agreements in `dimension_rankings/<model>/<dataset>_agreement.pkl`: a pickled tensor `[budget, layer,
chunk, head]`, the share of the top keys of a head that are also top keys of one chunk of its channels, for each of six
numbers of keys. A pickle runs what is in it, so we neither open nor write one. Ours is JSON, with the axes of one
budget of theirs, and states the channels of every pair.

**Chunk i of their published code is channels 2i and 2i + 1.** That is rotary pair i under the "adjacent" layout only.
The models that they support have the "half" layout, in which those channels belong to two pairs, each without its
partner; pair i is channels i and i + d_head / 2. So a ranking of ours is not one of their chunks, nor the reverse,
unless the layout is "adjacent": whoever selects channels by a ranking of ours takes them from `channels`.
"""

import json
import math
from pathlib import Path
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.results.files import ResultFileError
from positional_heads.results.formats.foreign_files import (
    existing_file,
    plain_tensor,
    read_own_json,
    read_torch,
    table_of_numbers,
    write_own_kind,
)
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.rotation import layout_of, profiled_layers
from positional_heads.results.text import printable

KIND = "a file of contextual agreements"
FORMAT, VERSION = "positional_heads.ContextualAgreement", 1
KEYS = ("model", "definition", "axes", "channels", "agreement", "ranking")
BUDGETS = (128, 256, 512, 1024, 2048, 4096)
"""Numbers of top keys along the first axis of their files."""
ZIPPED = b"PK"


@checked
def write_fasa_agreement(profile: HeadProfile, path: str | Path) -> Path:
    """Write the Contextual Agreement of every head and pair, and each head's pairs from the highest to the lowest.

    Layers without numbers, and pairs that a layer does not have, are null.

    Args:
        profile: A profile.
        path: The file, e.g. "agreement.json".

    Returns:
        The file written.

    Raises:
        ValueError: If no layer was measured.
        ResultFileError: If another file has this name.
    """
    profiled_layers(profile)
    agreement = profile.pairs.agreement
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": printable(profile.model_name, newlines=False),
        "definition": "share of a head's top keys that are also top keys of one rotary pair (arXiv 2602.03152)",
        "axes": ["layer", "pair", "head"],
        "channels": _channels(layout_of(profile), agreement.shape[-1]),
        "agreement": _with_null(agreement.transpose(1, 2).tolist()),
        "ranking": [[_ranking(head) for head in layer] for layer in agreement],
    }
    return write_own_kind(Path(path), json.dumps(content, allow_nan=False) + "\n", KIND, read_fasa_agreement)


@checked
def read_fasa_agreement(path: str | Path, budget: int | None = None) -> Float64[Tensor, "layer head pair"]:
    """Read agreements: ours, or FASA's own once they are a torch file; NaN where there is none.

    Their pickle is refused, because opening it would run what is in it. Whoever trusts it converts it where it was
    made, by `import pickle, torch; torch.save(pickle.load(open("qasper_agreement.pkl", "rb")), "agreement.pt")`.
    Of their files, the last axis is their chunk, channels 2i and 2i + 1, whatever the model's layout.

    Args:
        path: The file.
        budget: Which of their numbers of top keys: 128, 256, 512, 1024, 2048 or 4096; only for their files.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If their file is read without a budget, or ours with one.
        ResultFileError: If it is a pickle, damaged, or another file; nothing in it is run.
    """
    file = existing_file(path, KIND)
    with file.open("rb") as stream:
        start = stream.read(2)
    if start == ZIPPED:
        return _of_their_file(file, budget)
    if start[:1] != b"{":
        msg = f"{file}: a pickle, or no {KIND.removeprefix('a ')}: pickles are not opened, because that runs what is in"
        msg += ' them; if you trust it, convert it: torch.save(pickle.load(open(name, "rb")), "agreement.pt")'
        raise ResultFileError(msg)
    if budget is not None:
        msg = f"{file} has one number of top keys: leave budget {budget} out"
        raise ValueError(msg)
    content = read_own_json(file, KIND, FORMAT, VERSION, KEYS)
    return _shares(table_of_numbers(content["agreement"], 3, file, "agreement"), file)


def _of_their_file(file: Path, budget: int | None) -> Float64[Tensor, "layer head pair"]:
    tensor = plain_tensor(read_torch(file, KIND), file, "the content")
    if tensor.ndim != 4 or len(tensor) != len(BUDGETS) or not tensor.is_floating_point() or not tensor.numel():  # noqa: PLR2004
        msg = (
            f"{file}: agreements must be numbers [{len(BUDGETS)} budgets, layer, chunk, head], got {list(tensor.shape)}"
        )
        raise ResultFileError(msg)
    if budget not in BUDGETS:
        msg = f"budget {budget} must be one of {', '.join(map(str, BUDGETS))}: the file has agreements for each"
        raise ValueError(msg)
    return _shares(tensor[BUDGETS.index(budget)].double(), file)


def _shares(by_pair: Float64[Tensor, "layer pair head"], file: Path) -> Float64[Tensor, "layer head pair"]:
    if not bool((by_pair.isnan() | ((by_pair >= 0) & (by_pair <= 1))).all()):
        msg = f"{file}: agreements are shares, between 0 and 1; this file has others"
        raise ResultFileError(msg)
    return by_pair.transpose(1, 2).contiguous()


def _channels(layout: str | None, n_pairs: int) -> list[list[int]] | None:
    if layout is None:
        return None
    return [[pair, pair + n_pairs] if layout == "half" else [2 * pair, 2 * pair + 1] for pair in range(n_pairs)]


def _ranking(agreement: Float64[Tensor, " pair"]) -> list[int] | None:
    known = int((~agreement.isnan()).sum())
    order = agreement.nan_to_num(-1.0).argsort(descending=True, stable=True)
    return order[:known].tolist() or None


def _with_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_null(one) for one in value]
    return None if math.isnan(value) else value
