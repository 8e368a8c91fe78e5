"""Made-up scores whose sequences are known: each group's rho is planted, and the score is the mean over groups."""

from itertools import product

import torch
from torch import Tensor

from positional_heads.core.statistics import bootstrap_weights
from positional_heads.results.scores import HeadScores, NullScores


def every_resample(groups: int) -> Tensor:
    """Each way to draw so many groups with replacement, once: no randomness is left."""
    drawn = torch.tensor(list(product(range(groups), repeat=groups)))
    return torch.nn.functional.one_hot(drawn, groups).sum(1).double()


def scores_of_groups(
    samples: Tensor,
    null: Tensor | None = None,
    *,
    text: str = "x",
    name: str = "planted",
    weights: Tensor | None = None,
    resamples: int = 400,
    seed: int = 0,
    **settings: object,
) -> HeadScores:
    """Scores whose rho is the mean of `samples` [group layer head] over groups, resampled as `score_heads` does.

    Args:
        samples: rho of each group.
        null: rho of each shuffle, [repeat layer head].
        text: Stands for the fingerprint of the token ids.
        name: Name of the model.
        weights: How often each resample draws each group.
        resamples: Number of resamples where no weights are given.
        seed: Seed of the resamples.
        **settings: More settings of the run.
    """
    groups, layers, heads = samples.shape
    weights = bootstrap_weights(groups, resamples, seed) if weights is None else weights
    rho = samples.mean(0)
    curve = torch.zeros(layers, heads, 4, dtype=torch.float64)
    return HeadScores(
        rho=rho,
        rho_curve=2 * rho,
        curve=curve,
        pair_counts=torch.ones(layers, 4, dtype=torch.long),
        bound=torch.zeros_like(rho),
        frequencies=torch.ones(layers, 2, dtype=torch.float64),
        null=None if null is None else NullScores(null, curve, curve),
        bootstrap_rho=torch.einsum("rg,glh->rlh", weights, samples) / groups,
        reasons={},
        provenance={
            "versions": {"positional-heads": "1"},
            "model": {"name": name, "layers": layers, "heads": heads, "weights": name},
            "data": {"sha256": text, "groups": groups, "sequences": groups, "longest": 4, "tokens": 4 * groups},
            "settings": {"null_repeats": 0 if null is None else len(null), "seed": seed, **settings},
        },
    )


def normal(*shape: int, seed: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted_nulls() -> list[HeadScores]:
    """L0H0 beats its null in both, L0H1 clearly in a only, L0H2 barely in a only, L0H3 in b only, L0H4 in none."""
    excess = {"x": [0.3, 0.3, 0.035, 0.0, 0.0], "y": [0.3, 0.0, 0.012, 0.3, 0.0]}
    sides = []
    for number, (text, planted) in enumerate(excess.items()):
        noise = 0.03 * normal(8, 1, 5, seed=number)
        samples = 0.1 + torch.tensor(planted).double() + noise - noise.mean(0)
        shuffles = 0.01 * normal(20, 1, 5, seed=5 + number)
        sides.append(scores_of_groups(samples, 0.1 + shuffles - shuffles.mean(0), text=text))
    return sides
