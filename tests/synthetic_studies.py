"""Ablation studies whose truth is known: every head has its own effect, effects add up, units differ and are noisy."""

from collections.abc import Sequence

import numpy as np
import torch

from positional_heads.heads import Head
from positional_heads.studies.ablation_results import AblationStudy
from positional_heads.studies.head_sets import distinct_sets, study_cells

LAYERS, HEADS = 4, 8


def planted_study(
    long: np.ndarray,
    short: np.ndarray,
    ranking: Sequence[Head],
    *,
    sizes: Sequence[int] = (2, 4),
    units: int = 24,
    noise: float = 0.1,
    n_random: int = 20,
    baseline: float = -0.1,
    retrieval: Sequence[Head] | None = None,
    significant: int | None = None,
    seed: int = 0,
) -> AblationStudy:
    """A study with effects `long[layer, head]` and `short[layer, head]` of each head, summed over a set."""
    rng = np.random.default_rng(seed)
    cells = study_cells(ranking, sizes, n_random, retrieval, ranking, seed)
    rows = [{"unit": unit, "reach": reach} for unit in range(units) for reach in ("long", "short")]
    difficulty = rng.normal(baseline, 0.02, len(rows))
    values = [
        difficulty
        + sum(np.where(np.arange(len(rows)) % 2 == 0, long[head], short[head]) for head in heads)
        + (rng.normal(0, noise, len(rows)) if heads else 0)
        for heads in distinct_sets(cells)
    ]
    score = torch.full((LAYERS, HEADS), torch.nan, dtype=torch.float64)
    for place, head in enumerate(ranking):
        score[head] = -place
    return AblationStudy(
        task="planted",
        rows=rows,
        cells=cells,
        values={"log_prob": torch.tensor(np.array(values))},
        ranking=list(ranking),
        ranked_by=score,
        retrieval=None,
        chance={"log_prob": -2.0},
        notes=[],
        provenance={
            "model": {"name": "planted"},
            "task": {"name": "planted"},
            "ablation": {"mode": "zero", "distance": None},
            "scores": {"significant": significant, "rank_by": "rho"},
        },
    )


def all_heads() -> list[Head]:
    return [Head(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
