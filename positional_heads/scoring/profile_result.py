"""The head profile that counted sums give."""

from dataclasses import asdict

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.pair_statistics import PairStatistics
from positional_heads.results.scores import HeadScores
from positional_heads.scoring.profile_counter import ProfileCounter
from positional_heads.scoring.profile_sums import MEASURES, ProfileSums
from positional_heads.scoring.result import stack

MASSIVE = 5.0
"""A channel is massive if its norm is more than so many times the mean over the channels of its head."""


def profile_of(sums: dict[int, ProfileSums], scores: HeadScores, counter: ProfileCounter) -> HeadProfile:
    """The profile of all sums.

    Args:
        sums: The sums of every profiled layer.
        scores: Scores of the same run.
        counter: What counted them.
    """
    layers, heads = scores.rho.shape
    shape = layers, heads

    def stacked(by_layer: dict[int, Tensor]) -> Tensor:
        return stack(shape, by_layer)

    def each(name: str) -> dict[int, Tensor]:
        return {layer: one.tensors[name] for layer, one in sums.items()}

    groups = next(iter(sums.values())).tensors["sums"].shape[0]
    by_measure = {
        name: torch.stack(
            [stacked({layer: values[group] for layer, values in each(name).items()}) for group in range(groups)]
        )
        for name in ("sums", "weights")
    }
    mass, moment = (stacked(each(name)) for name in ("mass", "moment"))
    total = mass.sum(-1, keepdim=True)
    return HeadProfile(
        scores=scores,
        sums={name: by_measure["sums"][..., at].clone() for at, name in enumerate(MEASURES)},
        weights={name: by_measure["weights"][..., at].clone() for at, name in enumerate(MEASURES)},
        others={f"massive_{name}": stacked(_massive(sums, name)).squeeze(-1) for name in ("query", "key")},
        mass=mass / total,
        reached=moment / mass,
        edges=counter.edges.clone(),
        pairs=_pair_statistics(sums, scores),
        key_heads=_key_heads(sums, shape),
        provenance={
            **scores.provenance,
            "settings": {**scores.provenance["settings"], **asdict(counter.settings)},
        },
    )


def _pair_statistics(sums: dict[int, ProfileSums], scores: HeadScores) -> PairStatistics:
    """Means of the sums of every pair, by query head."""
    layers, heads = scores.rho.shape

    def means(name: str, over: str = "tokens") -> Float64[Tensor, "layer head pair"]:
        return stack(
            (layers, heads),
            {layer: _by_query_head(one.tensors[name] / one.tensors[over], heads) for layer, one in sums.items()},
        )

    def vectors(name: str) -> Float64[Tensor, "layer head pair 2"]:
        parts = [
            stack(
                (layers, heads),
                {
                    layer: _by_query_head(one.tensors[name][..., part] / one.tensors["tokens"], heads)
                    for layer, one in sums.items()
                },
            )
            for part in (0, 1)
        ]
        return torch.stack(parts, -1)

    ranges = next(iter(sums.values())).tensors["entries"].shape[0]
    contribution = [
        stack(
            (layers, heads),
            {
                layer: one.tensors["contribution"][..., number] / one.tensors["entries"][number]
                for layer, one in sums.items()
            },
        )
        for number in range(ranges)
    ]
    counts = torch.zeros(layers, ranges, dtype=torch.long)
    for layer, one in sums.items():
        counts[layer] = one.tensors["entries"].round().long()
    return PairStatistics(
        frequencies=scores.frequencies.double(),
        query_norm=means("query_norm"),
        key_norm=means("key_norm"),
        query_center=vectors("query_center"),
        key_center=vectors("key_center"),
        agreement=means("agreement", "sampled"),
        contribution=torch.stack(contribution, -1),
        unrotated=stack(
            (layers, heads), {layer: one.tensors["unrotated"] / one.tensors["entries"] for layer, one in sums.items()}
        ),
        counts=counts,
        attention_factor=stack(
            (layers, heads),
            {layer: one.tensors["attention_factor"] / one.tensors["tokens"] for layer, one in sums.items()},
        ),
    )


def _by_query_head(values: Shaped[Tensor, "any_head *rest"], heads: int) -> Shaped[Tensor, "head *rest"]:
    return values.repeat_interleave(heads // len(values), 0)


def _key_heads(sums: dict[int, ProfileSums], shape: tuple[int, int]) -> Tensor:
    key_heads = torch.full(shape, -1)
    for layer, one in sums.items():
        key_heads[layer] = _by_query_head(torch.arange(len(one.tensors["key_norm"])), shape[1])
    return key_heads


def _massive(sums: dict[int, ProfileSums], name: str) -> dict[int, Tensor]:
    """Number of massive channels of each head's queries or keys, as rotated (arXiv 2502.01563, section 3)."""
    found = {}
    for layer, one in sums.items():
        norms = one.tensors[f"{name}_squares"].sqrt()
        massive = (norms > MASSIVE * norms.mean(-1, keepdim=True)).double().sum(-1, keepdim=True)
        found[layer] = _by_query_head(massive, len(one.tensors["query_norm"]))
    return found
