"""Shards of a run, one file each: written on any machine, in any order, and merged without the model."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from positional_heads.core.arguments import checked, is_integer
from positional_heads.results.scores import HeadScores
from positional_heads.scoring.sums import ScoreSums, differences

_NAME = re.compile(r"shard-(\d+)-of-(\d+)\.safetensors")


def shard_file(number: int, total: int) -> str:
    """Name of the file of a shard."""
    return f"shard-{number:04d}-of-{total:04d}.safetensors"


def parsed_shard(shard: str | tuple[int, int]) -> tuple[int, int]:
    """Number of a shard, counted from 1, and how many there are.

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


@checked
def merge_shards(folder: str | Path) -> HeadScores:
    """The scores of a run whose shards are all in a folder; takes no model.

    Args:
        folder: Where `score_shard` wrote them.

    Raises:
        FileNotFoundError: If there are none, or some are missing.
        ValueError: If some are of another run, have other bins, or hold the same batches.
        ResultFileError: If one is damaged.
    """
    files = sorted(Path(folder).glob("shard-*-of-*.safetensors"))
    shards = {(int(match[1]), int(match[2])): file for file in files if (match := _NAME.fullmatch(file.name))}
    totals = {total for _, total in shards}
    if not shards:
        msg = f"{folder}: no shards in it; positional-heads score --shard 1/8 --out {folder} writes the first of eight"
        raise FileNotFoundError(msg)
    if len(totals) > 1:
        msg = f"{folder}: holds shards of several runs, of {_named(totals)} shards: move those of one elsewhere"
        raise ValueError(msg)
    (total,) = totals
    if missing := sorted(set(range(1, total + 1)) - {number for number, _ in shards}):
        msg = f"{folder}: {len(missing)} of {total} shards are missing: {_named(missing)}; count those and merge again"
        raise FileNotFoundError(msg)
    (first, *others) = shards.values()
    sums = ScoreSums.load(first)
    kernels, holder = set(sums.kernels), dict.fromkeys(sums.done, first)
    for file in others:
        part = ScoreSums.load(file)
        if changed := differences(sums.run, part.run):
            what = ", ".join(changed)
            msg = f"{file}: of another run than {first.name} (different: {what}): count it again, or remove it"
            raise ValueError(msg)
        _refuse_other_bins(sums, kernels, first, part, file)
        if twice := part.done & set(holder):
            other = holder[min(twice)]
            msg = (
                f"{file}: holds {len(twice)} of the same batches as {other.name}, as a copy would, and they would "
                "count twice: delete it and count that shard again"
            )
            raise ValueError(msg)
        sums.absorb(part)
        holder |= dict.fromkeys(part.done, file)
    return sums.result()


def _refuse_other_bins(sums: ScoreSums, kernels: set[str], first: Path, part: ScoreSums, file: Path) -> None:
    """Each shard places bins on its own run of the pilot; another kernel or machine may round them differently."""
    pairs = ((sums.layers, part.layers), (sums.control, part.control))
    if all(torch.equal(one.bins.edges, theirs[at].bins.edges) for ours, theirs in pairs for at, one in ours.items()):
        return
    ours, theirs = (", ".join(sorted(names)) for names in (kernels, part.kernels))
    remedy = f"set POSITIONAL_HEADS_KERNEL={ours}" if ours != theirs else "use the machine and libraries of the others"
    msg = (
        f"{file}: its bins are not those of {first.name} (kernel {theirs} here, {ours} there), so their sums "
        f"cannot be added: delete it, {remedy} and count it again"
    )
    raise ValueError(msg)


def _named(numbers: Sequence[int] | set[int], most: int = 12) -> str:
    """The first numbers, and how many more there are."""
    named = [str(number) for number in sorted(numbers)]
    return ", ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")
