"""A made-up head profile: the heads of `synthetic_scores`, two key heads per layer, the last layer without rotation."""

import torch

from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.pair_statistics import PairStatistics
from tests.support.synthetic import synthetic_scores

MEASURES = ("mean_distance", "reach", "distant_mass", "sink_mass", "current_token", "previous_token")
MEASURES += ("duplicate_token", "induction", "copying", "semantic", "positional", "retrieval")


def synthetic_profile(*, null: bool = True, groups: int = 5, seed: int = 0, name: str = "made up") -> HeadProfile:
    """A small `HeadProfile` with every part; every query head reads the key head of its half of the layer."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def unprofiled(values: torch.Tensor, axis: int = 0) -> torch.Tensor:
        return values.index_fill(axis, torch.tensor([2]), torch.nan)

    scale = {name: 9.0 if name in {"mean_distance", "reach"} else 1.0 for name in MEASURES}
    sums = {name: unprofiled(drawn(groups, 3, 4) * scale[name], 1) for name in MEASURES}
    pairs = PairStatistics(
        frequencies=unprofiled(10000 ** -(torch.arange(4).double() / 4).repeat(3, 1)),
        query_norm=unprofiled(drawn(3, 4, 4)),
        key_norm=unprofiled(drawn(3, 2, 4).repeat_interleave(2, 1)),
        query_center=unprofiled(drawn(3, 4, 4, 2) - 0.5),
        key_center=unprofiled((drawn(3, 2, 4, 2) - 0.5).repeat_interleave(2, 1)),
        agreement=unprofiled(drawn(3, 4, 4)),
        contribution=unprofiled(drawn(3, 4, 4, 3)),
        unrotated=unprofiled(torch.zeros(3, 4, 3, dtype=torch.float64)),
        counts=torch.tensor([[45, 60, 120], [45, 60, 120], [0, 0, 0]]),
        attention_factor=unprofiled(torch.ones(3, 4, dtype=torch.float64)),
    )
    scores = synthetic_scores(null=null, seed=seed, name=name)
    return HeadProfile(
        scores=scores,
        sums=sums,
        weights={name: torch.ones(groups, 3, 4, dtype=torch.float64) for name in MEASURES},
        others={name: unprofiled(drawn(3, 4)) for name in ("massive_query", "massive_key", "kernel")},
        mass=unprofiled(drawn(3, 4, 3).softmax(-1)),
        reached=unprofiled(torch.tensor([0.0, 2.0, 6.0]).double().repeat(3, 4, 1)),
        edges=torch.tensor([0, 1, 4, 9]),
        pairs=pairs,
        key_heads=torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [-1, -1, -1, -1]]),
        provenance=scores.provenance
        | {
            "settings": {**scores.provenance["settings"], "window": 4, "sinks": 1},
            "cache": [{"layer": layer, "keys_of": layer, "key_heads": 2, "window": None} for layer in range(3)],
        },
    )
