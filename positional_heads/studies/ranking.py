"""How an ablation study ranks heads: by a score, by retrieval score, or by a measure of the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.heads import Head, head_values
from positional_heads.results.ablation import RankBy
from positional_heads.results.scores import HeadScores

RETRIEVAL = "retrieval"
LONGEST_NAME = 80


@dataclass(frozen=True)
class Ranker:
    """What ranks the heads.

    Attributes:
        name: What the record calls it.
        values: Its value for each head; NaN for heads that are not ranked.
    """

    name: str
    values: Float64[Tensor, "layer head"]

    @property
    def ranking(self) -> list[Head]:
        """The heads that have a value, the highest first; equal ones by layer and number."""
        return ranked(self.values)

    def tie_notes(self, sizes: Sequence[int]) -> list[str]:
        """For each top set: whether equal values leave it to the order of the heads who is in it, in a sentence."""
        ordered = [float(self.values[head]) for head in self.ranking]
        notes = []
        for size in sizes:
            if size < len(ordered) and ordered[size - 1] == ordered[size]:
                same, inside = (values.count(ordered[size]) for values in (ordered, ordered[:size]))
                notes.append(
                    f"{size} heads by {self.name}: {same} heads share the value {ordered[size]:g}; {inside} of them "
                    "are in the set, the first by layer and number, for no other reason."
                )
        return notes


def ranker_of(scores: HeadScores, rank_by: RankBy | tuple[Any, ...]) -> Ranker:
    """What ranks the heads; retrieval scores are not known yet, so it then has the heads only.

    Raises:
        ValueError: If there is no null for the excess, or a measure of the user's own does not fit the model.
        TypeError: If it is not a name with numbers.
    """
    if isinstance(rank_by, tuple):
        return _own(rank_by, scores)
    if rank_by == RETRIEVAL:
        return Ranker(rank_by, torch.where(scores.rho.isnan(), torch.nan, 0.0).double())
    return Ranker(rank_by, getattr(scores, rank_by).double())


def ranked(values: Float64[Tensor, "layer head"]) -> list[Head]:
    """The heads that have a value, the highest first; equal ones by layer and number."""
    layers, heads = values.shape
    every = [Head(layer, head) for layer in range(layers) for head in range(heads)]
    return sorted((head for head in every if not values[head].isnan()), key=lambda head: (-values[head], head))


def _own(rank_by: tuple[Any, ...], scores: HeadScores) -> Ranker:
    if len(rank_by) != 2 or not isinstance(rank_by[0], str) or not rank_by[0].strip():  # noqa: PLR2004
        msg = 'rank_by is a tuple, but not of a name and values: give ("name", values), values a tensor [layer head]'
        raise TypeError(msg)
    name = rank_by[0].strip()
    if name in get_args(RankBy) or len(name) > LONGEST_NAME:
        msg = f"rank_by: {name[:LONGEST_NAME]!r} is a name of ours, or too long: name your measure otherwise"
        raise ValueError(msg)
    return Ranker(name, head_values(name, rank_by[1], scores.rho.shape))
