"""Ablation studies whose truth is known: every head has its own effect, effects add up, units differ and are noisy."""

from collections.abc import Sequence

import numpy as np
import torch

from positional_heads.core.head_sets import distinct_sets, study_sets
from positional_heads.core.heads import Head
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.jump_study import JumpStudy

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
    n_anywhere: int = 0,
    rank_by: str = "rho",
    baseline: float = -0.1,
    retrieval: Sequence[Head] | None = None,
    significant: int | None = None,
    singles: int | None = None,
    seed: int = 0,
) -> AblationStudy:
    """A study with effects `long[layer, head]` and `short[layer, head]` of each head, summed over a set."""
    rng = np.random.default_rng(seed)
    chosen = study_sets(ranking, sizes, n_random, retrieval, ranking[:singles], seed, n_anywhere=n_anywhere)
    rows = [{"unit": unit, "reach": reach} for unit in range(units) for reach in ("long", "short")]
    difficulty = rng.normal(baseline, 0.02, len(rows))
    effects = {head: np.tile([long[head], short[head]], units) for head in all_heads()}
    values = [
        difficulty + sum(effects[head] for head in heads) + (rng.normal(0, noise, len(rows)) if heads else 0)
        for heads in distinct_sets(chosen)
    ]
    score = torch.full((LAYERS, HEADS), torch.nan, dtype=torch.float64)
    for place, head in enumerate(ranking):
        score[head] = -place
    return AblationStudy(
        task="planted",
        rows=rows,
        cells=chosen,
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
            "scores": {"significant": significant, "rank_by": rank_by},
        },
    )


def all_heads() -> list[Head]:
    return [Head(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def planted_extrapolation(
    name: str = "planted",
    methods: Sequence[str] = ("none", "linear", "yarn"),
    lengths: Sequence[int] = (64, 128),
    *,
    trained: int = 32,
    seed: int = 0,
) -> ExtrapolationStudy:
    """An extrapolation study of two heads with random curves, each method at each length."""
    generator = torch.Generator().manual_seed(seed)
    labels = [method for method in methods for _ in lengths]
    tried = [length for _ in methods for length in lengths]
    curves = torch.rand(len(labels), 2, max(lengths), generator=generator, dtype=torch.float64) + 2
    for index, length in enumerate(tried):
        curves[index, :, length:] = torch.nan

    def values(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return ExtrapolationStudy(
        labels=labels,
        lengths=tried,
        methods=[{"name": label} for label in labels],
        heads=[Head(0, 1), Head(1, 0)],
        curves=curves,
        frequencies=(10.0 ** -torch.arange(4, dtype=torch.float64)).repeat(len(labels), 1),
        rho_within=values(len(labels), 2),
        rho_beyond=values(len(labels), 2),
        performance={key: -values(len(labels)) for key in ("exact", "log_prob", "loss")},
        plain={"exact": 1.0, "log_prob": -0.1},
        plain_curves=values(2, trained) + 2,
        training_length=trained,
        provenance={"model": {"name": name}, "task": {"name": "planted"}, "data": {"sequences": 1}},
    )


def planted_jumps(name: str = "planted", heads: int = 12) -> JumpStudy:
    """Curves that step at 64 tokens by other amounts for each head; predictions miss these by a tenth, or by more."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.linspace(-1, 2, heads, dtype=torch.float64)[:, None]
    noise = torch.randn(3, heads, 1, generator=generator, dtype=torch.float64)
    places = torch.tensor([*range(0, 60, 5), *range(60, 68)])
    measured = 4 + steps * (torch.arange(68) >= 64) + torch.randn(heads, 68, generator=generator).double() / 20
    predicted = 4 + (steps + noise[0] / 10) * (places >= 64)
    held = 4 + (steps / 2 + noise[1] / 10) * (places >= 64)
    frequencies = torch.tensor([1.0, 0.1, 0.01]).double().expand(heads, 3)
    named = [Head(0, head) for head in range(heads)]
    return JumpStudy(named, measured, places, predicted, held, frequencies, 64, {"model": {"name": name}})
