"""A recommendation with planted losses and answers, made without a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from positional_heads.core.heads import Head
from positional_heads.results.recommendation import Recommendation, RotaryKind

WRITTEN = {"ntk", "linear", "yarn", "llama3", "dynamic"}
WOBBLE = torch.tensor([0.0, 0.3, -0.2, 0.1, 0.25, -0.15, 0.05, -0.3], dtype=torch.float64)
"""What sequences differ by, whatever the extension."""


def planted_recommendation(
    losses: Mapping[str, float] | None = None,
    answers: Mapping[str, float] | None = None,
    *,
    within: Mapping[str, float] | None = None,
    name: str = "planted",
    sequences: int = 8,
    noise: float = 0.01,
    notes: Sequence[str] = (),
) -> Recommendation:
    """Mean losses, and mean log-probabilities of answers, by candidate, e.g. "yarn 4"; the first is no extension.

    Losses of short texts are 1 where `within` has none. Paired differences vary by `noise` over sequences.
    """
    losses = {"none": 2.0, "yarn 4": 1.2, "ntk 4": 1.5} if losses is None else losses
    generator = torch.Generator().manual_seed(0)

    def table(means: Mapping[str, float], units: int) -> torch.Tensor:
        own = noise * torch.randn(len(means), units, generator=generator, dtype=torch.float64)
        own -= own.mean(-1, keepdim=True)
        common = WOBBLE.repeat(units)[:units] - WOBBLE.repeat(units)[:units].mean()
        return torch.tensor([*means.values()], dtype=torch.float64).view(-1, 1) + common + own

    methods, blocks = [], []
    for label in losses:
        method, _, factor = label.partition(" ")
        settings: dict[str, Any] = {"factor": float(factor)} if factor else {}
        methods.append({"method": method, **settings})
        rope = {"rope_type": method, **settings, "rope_theta": 10_000.0}
        blocks.append({"max_position_embeddings": 64, "rope_scaling": rope} if method in WRITTEN else None)
    given = {} if answers is None else {"log_prob": table(answers, 10), "exact": torch.ones(len(answers), 10).double()}
    frequencies = 10.0 ** -torch.arange(4, dtype=torch.float64)
    padded = torch.full((4,), torch.nan, dtype=torch.float64)
    padded[:2] = torch.tensor([0.5, 0.05])
    return Recommendation(
        labels=[*losses],
        methods=methods,
        losses=table(losses, sequences),
        losses_within=table(dict.fromkeys(losses, 1.0) | dict(within or {}), sequences),
        answers=given,
        blocks=blocks,
        reasons=["it rewrites attention scores" if one["method"] == "self_extend" else None for one in methods],
        kinds=[RotaryKind([0, 2], None, True), RotaryKind([1], 16, False)],
        frequencies=torch.stack([frequencies, padded]),
        heads=[Head(0, 1), Head(2, 0)],
        jumps=torch.tensor([0.5, -4.0], dtype=torch.float64),
        rho=torch.tensor([0.1, 0.3], dtype=torch.float64),
        training_length=64,
        target_length=256,
        provenance={"model": {"name": name}, "data": {"sequences": sequences}},
        notes=[*notes],
    )
