"""Plan studies whose truth is known, and profiles of real models with made-up measures."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from positional_heads.core.head_sets import distinct_sets
from positional_heads.core.heads import Head
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.pair_statistics import PairStatistics
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.scores import HeadScores
from positional_heads.studies.plan_study import _tried_plans

SHAPE = (6, 4)
"""Layers and key heads, each read by two query heads."""


def profile_of(scores: HeadScores, key_heads: torch.Tensor, **measures: torch.Tensor) -> HeadProfile:
    """A profile with these scores and measures; of everything else it has nothing."""
    layers, heads = key_heads.shape
    sums = {name: values.double()[None] for name, values in measures.items()}
    nothing = torch.full((layers, heads, 1), torch.nan, dtype=torch.float64)
    pairs = PairStatistics(
        frequencies=nothing[:, 0],
        query_norm=nothing,
        key_norm=nothing,
        query_center=nothing[..., None].expand(-1, -1, -1, 2),
        key_center=nothing[..., None].expand(-1, -1, -1, 2),
        agreement=nothing,
        contribution=nothing[..., None],
        unrotated=nothing,
        counts=torch.zeros(layers, 1, dtype=torch.long),
    )
    return HeadProfile(
        scores=scores,
        sums=sums,
        weights={name: torch.ones_like(values) for name, values in sums.items()},
        others={},
        mass=nothing,
        reached=nothing,
        edges=torch.tensor([0, 1]),
        pairs=pairs,
        key_heads=key_heads,
        provenance=scores.provenance,
    )


def planted_scores(layers: int, heads: int, name: str) -> HeadScores:
    """Scores of heads of which nothing is known but rho, which is 0."""
    zero = torch.zeros(layers, heads, dtype=torch.float64)
    return HeadScores(
        rho=zero,
        rho_curve=zero,
        curve=zero[..., None],
        pair_counts=torch.zeros(layers, 1, dtype=torch.long),
        bound=zero,
        frequencies=zero[:, :1],
        null=None,
        bootstrap_rho=None,
        reasons={},
        provenance={"model": {"name": name}},
    )


def planted_plans(
    costs: np.ndarray,
    measures: Mapping[str, np.ndarray],
    *,
    budgets: Sequence[float] = (0.25, 0.5, 0.75),
    units: int = 16,
    noise: float = 0.02,
    n_random: int = 20,
    n_matched: int = 0,
    baseline: float = -0.5,
    name: str = "planted",
    seed: int = 0,
) -> PlanStudy:
    """A study in which a window on a key head costs `costs[layer, kv_head]` at long range, and nothing at short.

    Args:
        costs: The costs.
        measures: Values of key heads by measure; the lowest get windows.
        budgets: Shares that keep all keys.
        units: Units, each with an answer at both ranges.
        noise: Standard deviation of every answer's change.
        n_random: Random rankings.
        n_matched: Random plans within layers.
        baseline: Measure without windows.
        name: Name of the model.
        seed: Seed of noise and random plans.
    """
    layers, kv_heads = SHAPE
    key_heads = torch.arange(kv_heads).repeat_interleave(2).repeat(layers, 1)
    by = [(one, torch.from_numpy(values)) for one, values in measures.items()]
    profile = profile_of(planted_scores(layers, 2 * kv_heads, name), key_heads)
    cells, notes = _tried_plans(profile, budgets, 16, 2, by, n_random, n_matched, seed)
    rng = np.random.default_rng(seed)
    rows = [{"unit": unit, "reach": reach} for unit in range(units) for reach in ("long", "short")]
    difficulty = rng.normal(baseline, 0.02, len(rows))
    cost = {Head(layer, head): costs[layer, head // 2] / 2 for layer in range(layers) for head in range(2 * kv_heads)}
    values = [
        difficulty
        - np.tile([sum(cost[head] for head in heads), 0.0], units)
        + (rng.normal(0, noise, len(rows)) if heads else 0)
        for heads in distinct_sets(cells)
    ]
    return PlanStudy(
        task="planted",
        rows=rows,
        cells=cells,
        values={"log_prob": torch.tensor(np.array(values))},
        chance={"log_prob": -2.0},
        planned="windows",
        notes=notes,
        provenance={
            "model": {"name": name},
            "task": {"name": "planted"},
            "ablation": {"mode": "far", "distance": 15, "sinks": 2},
            "settings": {"window": 16, "sinks": 2},
        },
    )


def crossed_plans() -> PlanStudy:
    """A study in which "many" costs least over all, and at 18 windows, but "few", and "same" as it, at 6."""
    number = np.arange(24)
    few = np.where((number >= 6) & (number < 12), 100, number).reshape(SHAPE)  # the 6 cheapest first, 6 cheap ones last
    many = np.where(number < 6, number + 11.5, number).reshape(SHAPE)  # the 18 cheapest first, the 6 cheapest not
    measures = {"few": few, "many": many, "same": 2 * few}
    return planted_plans(number.reshape(SHAPE) / 100, measures, budgets=(0.25, 0.75), units=6)
