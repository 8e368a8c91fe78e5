"""MHA2MLA's rank tensors: which rotary pairs of each key head matter most (Ji et al., arXiv 2502.14837).

Their `2_norm.py` scores pair i of a key head by the sum, over the query heads that read it, of mean |q^(i)| times mean
|k^(i)|, with norms before rotation and means over tokens, and ranks the pairs of each head, 0 for the largest. A file
holds uint8 `[layer, kv_head, d_head]`: the ranks of all pairs, twice, because channels i and i + d_head / 2 are one
pair (the "half" layout). Their `patch_func.py` keeps the rotation of channels whose rank is below the number of pairs
asked for.

Where we depart from them: ties go to the pair with the lower number (theirs to any); the mean is over all tokens
(theirs over the means of sequences, the same for sequences of one length); where a model normalises its queries and
keys, the norms are those of what it rotates (theirs of what it normalises).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64, Int64
from scipy import stats
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
from positional_heads.results.pair_plan import PairPlan
from positional_heads.results.rotation import (
    profiled_layers,
    refuse_unfit_layers,
    refuse_unfit_rotation,
    summed_over_readers,
)
from positional_heads.results.text import signed

KIND = "a file of MHA2MLA ranks"
UNRANKED = 255
"""Rank of every channel in a layer without ranks: their code keeps no rotation there, and the model has none."""
MOST_PAIRS = 256
"""A rank is one byte."""
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


@dataclass(frozen=True, eq=False, repr=False)
class RankComparison:
    """How far two rankings of the same rotary pairs agree.

    Attributes:
        correlation: Spearman's correlation, over pairs, of the mean rank over all key heads.
        by_head: Spearman's correlation of the ranks of each key head; NaN where either has none, None if the two have
            different key heads.
        ours: Mean rank of each pair in the profile.
        theirs: Mean rank of each pair in the ranks given.
    """

    correlation: float
    by_head: Float64[Tensor, "layer kv_head"] | None
    ours: Float64[Tensor, " pair"]
    theirs: Float64[Tensor, " pair"]

    def __repr__(self) -> str:
        found = f"rank correlation over {len(self.ours)} pairs of the mean rank {signed(self.correlation)}"
        if self.by_head is not None:
            found += f"; of the ranks of a key head {signed(float(self.by_head.nanmean()))}, mean over key heads"
        return f"<RankComparison: {found}>"


@checked
def mha2mla_ranks(profile: HeadProfile | PairPlan) -> Int64[Tensor, "layer kv_head pair"]:
    """Rank of every pair of each key head by MHA2MLA's 2-norm rule: 0 for the largest; -1 in layers without numbers.

    Args:
        profile: A profile of every layer; or a plan of pairs, which ranks them by what it chose them by.

    Raises:
        ValueError: If no layer was measured, or layers have different numbers of key heads.
    """
    if isinstance(profile, PairPlan):
        scores, known = profile.ranked_by, (profile.key_heads >= 0).any(-1)
        if bool(scores[known].isnan().all(-1).any()):
            msg = "layers of this model have different numbers of key heads, and a table needs one"
            raise ValueError(msg)
    else:
        scores, known = summed_over_readers(profile, profile.pairs.band_norm), profiled_layers(profile)
    order = scores.nan_to_num().argsort(dim=-1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).expand_as(order))
    return ranks.masked_fill(~known[:, None, None], -1)


@checked
def write_mha2mla_ranks(profile: HeadProfile | PairPlan, path: str | Path) -> Path:
    """Write the ranks of a profile as MHA2MLA's `qk_tensor_path` takes them, or those of a plan of pairs.

    Their code keeps the rotation of as many pairs as it is asked for: at the plan's budget, the pairs of the plan, by
    whatever measure it chose them. The file holds neither the budget nor what becomes of the other pairs; MHA2MLA
    leaves them unturned at every position, as a plan that freezes does.

    A layer without numbers (it does not rotate, or was left out of the profile) gets rank 255 in every channel, which
    no number of pairs asked for is above.

    Args:
        profile: A profile of every layer, for the 2-norm rule, or a plan of pairs.
        path: The file, e.g. "ranks.pth".

    Returns:
        The file written.

    Raises:
        ValueError: If the model's pairs are not those of MHA2MLA: partial rotation, another layout, more than 256;
            or a plan drops pairs.
        ResultFileError: If another file has this name.
    """
    if isinstance(profile, PairPlan):
        if profile.how == "drop":
            msg = "this plan drops pairs, and MHA2MLA leaves them unturned: write a plan with how='freeze'"
            raise ValueError(msg)
        known = (profile.key_heads >= 0).any(-1)
        uneven = bool(profile.frequencies[known].isnan().any())
        layers = profile.provenance.get("rotary", [])
        refuse_unfit_layers(layers, "MHA2MLA", ("half",), unrotated=False, uneven=uneven)
    else:
        refuse_unfit_rotation(profile, "MHA2MLA", ("half",))
    ranks = mha2mla_ranks(profile)
    if ranks.shape[-1] > MOST_PAIRS:
        msg = f"{ranks.shape[-1]} pairs: MHA2MLA's ranks are single bytes, for up to {MOST_PAIRS}"
        raise ValueError(msg)
    single = ranks.masked_fill(ranks < 0, UNRANKED).to(torch.uint8)
    return write_own_kind(Path(path), torch_bytes(torch.cat([single, single], -1)), KIND, read_mha2mla_ranks)


@checked
def read_mha2mla_ranks(path: str | Path) -> Int64[Tensor, "layer head pair"]:
    """Read the ranks of a file of MHA2MLA's: one per pair, 0 for the pair that matters most.

    Heads are key heads; in files for their conversion of grouped queries to full heads, query heads. A layer that
    `write_mha2mla_ranks` had no numbers for is -1.

    Args:
        path: The file, e.g. "smollm1_135M-2_norm_rank.pth".

    Raises:
        FileNotFoundError: If there is none.
        ResultFileError: If it is damaged, or holds anything but ranks; nothing in it is run.
    """
    file = existing_file(path, KIND)
    ranks = plain_tensor(read_torch(file, KIND), file, "the content")
    if ranks.dtype not in INTEGERS or ranks.ndim != 3 or not ranks.numel() or ranks.shape[-1] % 2:  # noqa: PLR2004
        msg = f"{file}: ranks must be whole numbers [layer, head, d_head], got {ranks.dtype} {list(ranks.shape)}"
        raise ResultFileError(msg)
    first, second = ranks.long().chunk(2, dim=-1)
    if not torch.equal(first, second):
        msg = f"{file}: the two channels of a pair must have one rank, and the two halves of the last axis differ"
        raise ResultFileError(msg)
    unranked = (first == UNRANKED).all(-1, keepdim=True)
    permuted = first.sort(-1).values == torch.arange(first.shape[-1])
    if not bool((permuted.all(-1, keepdim=True) | unranked).all()):
        msg = f"{file}: the ranks of a head must be 0 to {first.shape[-1] - 1}, each once, or all {UNRANKED}"
        raise ResultFileError(msg)
    return first.masked_fill(unranked & ~permuted.all(-1, keepdim=True), -1)


@checked
def compare_mha2mla(profile: HeadProfile, ranks: Int64[Tensor, "layer head pair"]) -> RankComparison:
    """How far a profile agrees with ranks of MHA2MLA, of the same model or of one with as many pairs.

    Args:
        profile: The profile.
        ranks: As `read_mha2mla_ranks` and `published` return them.

    Raises:
        ValueError: If the ranks are of another number of pairs, or there are none.
    """
    own = mha2mla_ranks(profile)
    if ranks.shape[-1] != own.shape[-1]:
        msg = (
            f"ranks of {ranks.shape[-1]} pairs cannot be compared with a profile of {own.shape[-1]}: take a like model"
        )
        raise ValueError(msg)
    if not bool((ranks >= 0).any()):
        msg = "there is no head with ranks: every one is -1"
        raise ValueError(msg)
    by_head = None
    if ranks.shape == own.shape:
        by_head = torch.full(own.shape[:2], torch.nan, dtype=torch.float64)
        for layer, head in ((own >= 0) & (ranks >= 0)).all(-1).nonzero().tolist():
            by_head[layer, head] = _spearman(own[layer, head], ranks[layer, head])
    ours, theirs = _mean_ranks(own), _mean_ranks(ranks)
    return RankComparison(_spearman(ours, theirs), by_head, ours, theirs)


def _mean_ranks(ranks: Int64[Tensor, "layer head pair"]) -> Float64[Tensor, " pair"]:
    return ranks[(ranks >= 0).all(-1)].double().mean(0)


def _spearman(a: Tensor, b: Tensor) -> float:
    if bool((a == a[0]).all() or (b == b[0]).all()):  # without an order there is no correlation
        return torch.nan
    return float(stats.spearmanr(a.numpy(), b.numpy()).statistic)
