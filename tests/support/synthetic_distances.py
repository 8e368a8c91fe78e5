"""Distance profiles made up without a model."""

import torch

from positional_heads.results.distance_profile import MEASURES, DistanceProfile

LAYERS, HEADS = 3, 2


def synthetic_distances(
    *, groups: int = 5, dominant: bool = True, name: str = "made up", heads: int = HEADS
) -> DistanceProfile:
    """A small `DistanceProfile` with every part; its last layer has no attention, the one before does not rotate."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.tensor([0, 1, 2, 4, 8, 16])
    ranges = len(edges) - 1

    def random(*shape: int) -> torch.Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        values[..., -1, :, :] = torch.nan
        return values

    weights = torch.ones(groups, LAYERS, heads, dtype=torch.float64)
    weights[:, -1] = 0
    scale = {"reach": 16.0}
    layer = torch.arange(LAYERS) < LAYERS - 1
    curve = random(LAYERS, heads, ranges)
    curve[1:] = torch.nan
    even = {name: torch.where(layer, value, torch.nan) for name, value in (("reach", 8.0), ("distant_mass", 0.3))}
    even |= {name: torch.where(layer, value, torch.nan) for name, value in (("sink_mass", 0.2), ("half_distance", 6.0))}
    return DistanceProfile(
        sums={one: random(groups, LAYERS, heads).nan_to_num() * scale.get(one, 1.0) for one in MEASURES},
        weights={one: weights.clone() for one in MEASURES},
        half_distance=random(1, LAYERS, heads)[0] * 16,
        even={name: values.double() for name, values in even.items()},
        mass=random(LAYERS, heads, ranges),
        even_mass=random(LAYERS, 1, ranges)[:, 0],
        score=random(LAYERS, heads, ranges) - 0.5,
        score_sd=random(LAYERS, heads, ranges),
        dominant=curve if dominant else None,
        counts=torch.full((LAYERS, ranges), 7),
        edges=edges,
        encodings=["rotary", "none", ""],
        reasons={1: "it has no rotary embedding", 2: "it has no attention"},
        provenance={
            "model": {"name": name, "layers": LAYERS, "heads": heads},
            "data": {"sequences": groups, "longest": 16, "groups": groups},
            "settings": {"edges": None, "window": 8, "sinks": 2},
        },
    )
