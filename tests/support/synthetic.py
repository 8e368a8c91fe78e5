"""A made-up result: three layers of four heads, the last without rotation; L0H3 alone beats its null."""

import torch

from positional_heads.core.heads import Head
from positional_heads.results.scores import HeadScores, NullScores


def synthetic_scores(*, null: bool = True, bootstrap: bool = True, seed: int = 0, name: str = "made up") -> HeadScores:
    """A small `HeadScores` with every part, or without null or resamples."""
    generator = torch.Generator().manual_seed(seed)
    rho = torch.tensor([[-0.1, 0.0, 0.2, 0.4], [0.01, 0.02, 0.03, 0.15], [torch.nan] * 4], dtype=torch.float64)
    expected = rho.clone()
    expected[0, 3] = 0.1
    noise = 0.02 * torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
    noise[:, :2] -= noise[:, :2].mean(0)
    curve = torch.rand(3, 4, 9, generator=generator, dtype=torch.float64) + 4
    curve[2] = torch.nan
    shuffled = NullScores(expected + noise, curve - 0.1, torch.full_like(curve, 0.05))
    resampled = rho + 0.01 * torch.randn(200, 3, 4, generator=generator, dtype=torch.float64)
    model = {"name": name, "layers": 3, "heads": 4, "weights": "abc"}
    data = {"sequences": 5, "longest": 9, "tokens": 45, "groups": 5}
    return HeadScores(
        rho=rho,
        rho_curve=rho * 2,
        curve=curve,
        pair_counts=torch.arange(9, 0, -1).repeat(3, 1),
        bound=torch.full_like(rho, 1e-4),
        frequencies=torch.rand(3, 4, generator=generator, dtype=torch.float64),
        null=shuffled if null else None,
        bootstrap_rho=resampled if bootstrap else None,
        reasons={Head(2, head): "it has no rotary embedding" for head in range(4)},
        provenance={
            "versions": {"torch": "0"},
            "model": model,
            "data": data,
            "settings": {"null_repeats": 6, "seed": seed},
        },
    )
