"""A run in n files, one for each shard: written anywhere, in any order, and added here without the model."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from positional_heads.core.arguments import checked, is_integer
from positional_heads.results.scores import HeadScores
from positional_heads.scoring.sums import ScoreSums, differing

_NAME = re.compile(r"shard-(\d+)-of-(\d+)\.safetensors")


def shard_file(number: int, total: int) -> str:
    """What a shard's file is called."""
    return f"shard-{number:04d}-of-{total:04d}.safetensors"


def shard_of(shard: str | tuple[int, int]) -> tuple[int, int]:
    """Which one of how many, counted from 1.

    Args:
        shard: "3/8" or (3, 8).

    Raises:
        ValueError: If it is neither, or there is no such shard.
    """
    if isinstance(shard, str):
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", shard)
        if match is None:
            msg = f"shard {shard!r} must be one of how many, e.g. 3/8"
            raise ValueError(msg)
        shard = int(match[1]), int(match[2])
    if not isinstance(shard, (tuple, list)) or len(shard) != 2 or not all(map(is_integer, shard)):  # noqa: PLR2004
        msg = f"shard {shard!r} must be one of how many, e.g. (3, 8)"
        raise ValueError(msg)
    number, total = shard
    if not 1 <= number <= total:
        msg = f"there is no shard {number} of {total}: they are counted from 1 to {total}"
        raise ValueError(msg)
    return number, total


def read_shard(file: Path) -> ScoreSums:
    """The sums of one shard.

    Raises:
        ResultFileError: If the file is damaged or foreign.
    """
    return ScoreSums.load(file)


@checked
def merge_shards(folder: str | Path) -> HeadScores:
    """The scores of a run whose shards are all in a folder; takes no model.

    Args:
        folder: Where `score_shard` wrote them.

    Raises:
        FileNotFoundError: If there are none, or some are missing: they are named.
        ValueError: If some are of another run, were binned otherwise, or hold the same batches: they are named, with
            what differs.
        ResultFileError: If one is damaged.
    """
    files = sorted(Path(folder).glob("shard-*-of-*.safetensors"))
    found = {(int(match[1]), int(match[2])): file for file in files if (match := _NAME.fullmatch(file.name))}
    totals = {total for _, total in found}
    if not found:
        msg = f"{folder}: no shards there; positional-heads score --shard 1/8 --out {folder} writes the first of eight"
        raise FileNotFoundError(msg)
    if len(totals) > 1:
        msg = f"{folder}: holds shards of several runs, of {_listed(totals)} shards: move those of one elsewhere"
        raise ValueError(msg)
    (total,) = totals
    if missing := sorted(set(range(1, total + 1)) - {number for number, _ in found}):
        msg = f"{folder}: {len(missing)} of {total} shards are missing: {_listed(missing)}; count those and merge again"
        raise FileNotFoundError(msg)
    (first, *others) = found.values()
    sums = read_shard(first)
    own, holds = set(sums.kernels), dict.fromkeys(sums.done, first)
    for file in others:
        part = read_shard(file)
        if changed := differing(sums.run, part.run):
            what = ", ".join(changed)
            msg = f"{file}: of another run than {first.name} (different: {what}): count it again, or remove it"
            raise ValueError(msg)
        _refuse_other_bins(sums, own, first, part, file)
        if twice := part.done & set(holds):
            other = holds[min(twice)]
            msg = (
                f"{file}: holds {len(twice)} of the same batches as {other.name}, as a copy would, and they would "
                "count twice: delete it and count that shard again"
            )
            raise ValueError(msg)
        sums.absorb(part)
        holds |= dict.fromkeys(part.done, file)
    return sums.result()


def _refuse_other_bins(sums: ScoreSums, own: set[str], first: Path, part: ScoreSums, file: Path) -> None:
    """Each shard places its bins anew; another kernel, or another machine, places them a little elsewhere."""
    pairs = (
        (one.statistics[0].bins.edges, part.layers[layer].statistics[0].bins.edges)
        for layer, one in sums.layers.items()
    )
    if all(torch.equal(mine, theirs) for mine, theirs in pairs):
        return
    ours, theirs = (", ".join(sorted(kernels)) for kernels in (own, part.kernels))
    remedy = f"set POSITIONAL_HEADS_KERNEL={ours}" if ours != theirs else "use the machine and libraries of the others"
    msg = (
        f"{file}: its bins are not those of {first.name} (kernel {theirs} here, {ours} there), so that their sums "
        f"cannot be added: delete it, {remedy} and count it again"
    )
    raise ValueError(msg)


def _listed(numbers: Sequence[int] | set[int], most: int = 12) -> str:
    """Numbers in words, not too many of them."""
    named = [str(number) for number in sorted(numbers)]
    return ", ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")
