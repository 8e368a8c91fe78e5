"""Count a distance profile: fold what each sequence says of each layer into sums, and make the record of them."""

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.distance_sums import DistanceSums, distance_effect, entry_counts
from positional_heads.core.pair_sums import range_sums
from positional_heads.core.plan import EntryPlan
from positional_heads.results.distance_profile import MEASURES, DistanceProfile
from positional_heads.results.scores import HeadScores

MOST_GROUPS = 16
"""Groups of neighbouring sequences at most: each keeps a number for every head and distance."""
Ratio = tuple[Tensor | float, Tensor | float]


class DistanceCounter:
    """Counts the distance profile of one run.

    Attributes:
        edges: First distance of each range, then the longest sequence.
        groups: Number of groups of sequences that count as independent.
    """

    def __init__(self, lengths: tuple[int, ...], edges: list[int], window: int, sinks: int) -> None:
        """Nothing is counted yet.

        Args:
            lengths: Tokens of every sequence.
            edges: First distance of each range.
            window: Distances that count as near, 0 to window - 1.
            sinks: First keys of each sequence that count as sinks.
        """
        self.edges, self.groups = torch.tensor([*edges, max(lengths)]), min(len(lengths), MOST_GROUPS)
        self.window, self.sinks = window, sinks
        self._plan, self._longest = EntryPlan(lengths, None, n_groups=self.groups), max(lengths)
        self._layers: dict[int, dict[str, Tensor]] = {}

    def sums(self, heads: int, length: int) -> DistanceSums:
        """Where the scores of one layer and sequence are to be added."""
        return DistanceSums(heads, length, self.sinks)

    def add(self, layer: int, sequence: int, found: DistanceSums) -> None:
        """Fold in one layer of one sequence."""
        heads, length = found.score.shape
        sums = self._layers.setdefault(layer, self._at_zero(heads))
        group, even = self._plan.group(sequence), found.even
        sums["score"][group, :, :length] += found.score
        sums["total"][group] += found.squares.sum(-1)
        sums["seen"][group, : length + 1] += found.seen
        sums["squares"][:, :length] += found.squares
        sums["mass"][:, :length] += found.mass.free
        sums["even_mass"][:length] += even.free
        ratios = self._ratios(found.mass.free, found.mass.sink, length)
        even_ratios = self._ratios(even.free, even.sink, length)
        for at, (own, evenly) in enumerate(zip(ratios, even_ratios, strict=True)):
            for part, (value, even_value) in enumerate(zip(own, evenly, strict=True)):
                sums["ratios"][part, group, :, at] += value
                sums["even_ratios"][part, at] += even_value

    def _at_zero(self, heads: int) -> dict[str, Tensor]:
        groups, longest = self.groups, self._longest
        shapes: dict[str, tuple[int, ...]] = {
            "score": (groups, heads, longest),
            "total": (groups, heads),
            "seen": (groups, longest + 1),
            "squares": (heads, longest),
            "mass": (heads, longest),
            "even_mass": (longest,),
            "ratios": (2, groups, heads, 3),
            "even_ratios": (2, 3),
        }
        return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def _ratios(self, free: Tensor, sink: Tensor | float, length: int) -> list[Ratio]:
        """Sum and weight of reach, distant mass and sink mass, as a head profile defines them."""
        distance = torch.arange(length).double()
        return [
            (free @ distance, free.sum(-1)),
            (free[..., self.window :].sum(-1), max(0, length - self.window - self.sinks)),
            (sink, max(0, length - self.sinks) if self.sinks else 0),
        ]

    def result(self, shape: tuple[int, int], dominant: HeadScores | None, **known: Any) -> DistanceProfile:
        """The record of everything counted.

        Args:
            shape: Layers and heads of the model.
            dominant: Scores of the same run, for the curve of D; None where no layer rotates.
            **known: Encodings, reasons and provenance, see `DistanceProfile`.
        """

        def stacked(name: str) -> Tensor:
            return torch.stack([one[name] for one in self._layers.values()], -1 - trailing[name])

        trailing = {"score": 2, "total": 1, "seen": 1, "squares": 2, "mass": 2, "even_mass": 1}
        score, total, seen = (
            stacked("score"),
            stacked("total"),
            stacked("seen"),
        )  # [group layer ...]
        pooled, squares = score.sum(0), stacked("squares")
        counts = entry_counts(seen.sum(0))
        in_range = range_sums(counts, self.edges)[:, None]
        effect = range_sums(distance_effect(pooled, seen.sum(0)) * counts[:, None], self.edges) / in_range
        mean, square = (range_sums(values, self.edges) / in_range for values in (pooled, squares))
        mass, even_mass = stacked("mass"), stacked("even_mass")
        queries = seen.sum(0)[:, 1:].sum(-1)
        ratios = torch.stack([one["ratios"] for one in self._layers.values()], 2)  # [part group layer head measure]
        even = torch.stack([one["even_ratios"] for one in self._layers.values()], 1)  # [part layer measure]
        explained = [
            (score * one).sum(-1) for one in (distance_effect(score, seen), self._effect_of_others(score, seen))
        ]
        sums = [*ratios[0].unbind(-1), *explained]
        weights = [*ratios[1].unbind(-1), total, torch.where(explained[1].isnan(), 0, total)]

        def whole(values: Tensor, lead: int = 0, unknown: float = torch.nan) -> Tensor:
            """The same for every layer of the model, with those left out."""
            every = values.new_full((*values.shape[:lead], shape[0], *values.shape[lead + 1 :]), unknown)
            every[(slice(None),) * lead + ([*self._layers],)] = values
            return every

        layer_counts = torch.zeros(shape[0], len(self.edges) - 1, dtype=torch.long)
        layer_counts[[*self._layers]] = in_range[:, 0].round().long()
        return DistanceProfile(
            sums={name: whole(values.nan_to_num(), 1, 0) for name, values in zip(MEASURES, sums, strict=True)},
            weights={name: whole(values, 1, 0) for name, values in zip(MEASURES, weights, strict=True)},
            half_distance=whole(_half_distance(mass)),
            even={
                **{name: whole(even[0, :, at] / even[1, :, at]) for at, name in enumerate(MEASURES[: even.shape[-1]])},
                "half_distance": whole(_half_distance(even_mass)),
            },
            mass=whole(range_sums(mass, self.edges) / queries[:, None, None]),
            even_mass=whole(range_sums(even_mass, self.edges) / queries[:, None]),
            score=whole(effect),
            score_sd=whole((square - mean.square()).clamp(min=0).sqrt()),
            dominant=None if dominant is None else self._dominant(dominant),
            counts=layer_counts,
            edges=self.edges,
            **known,
        )

    def _effect_of_others(self, score: Tensor, seen: Tensor) -> Tensor:
        """The effect of distance in all groups but each one; NaN with a single group."""
        if self.groups == 1:
            return torch.full_like(score, torch.nan)
        return distance_effect(score.sum(0) - score, seen.sum(0) - seen)

    def _dominant(self, scores: HeadScores) -> Float64[Tensor, "layer head range"]:
        """Mean D in each range."""
        assert scores.curve is not None
        assert scores.pair_counts is not None
        counts = scores.pair_counts[:, None].double() * scores.curve.isfinite()
        return range_sums(scores.curve.double().nan_to_num() * counts, self.edges) / range_sums(counts, self.edges)


def _half_distance(mass: Float64[Tensor, "*lead distance"]) -> Float64[Tensor, "*lead"]:
    """The distance up to which half of the attention goes; NaN without any."""
    reached = mass.cumsum(-1) >= mass.sum(-1, keepdim=True) / 2
    return torch.where(mass.sum(-1) > 0, reached.double().argmax(-1).double(), torch.nan)
