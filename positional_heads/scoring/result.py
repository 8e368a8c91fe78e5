"""The scores that sums give, once every batch has been counted. Nothing here needs the model."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from positional_heads.core.correlation import Correlation
from positional_heads.core.heads import Head
from positional_heads.core.null import NullSums
from positional_heads.core.plan import EntryPlan
from positional_heads.core.statistics import bootstrap_weights
from positional_heads.results.null_scores import NullScores
from positional_heads.results.scores import HeadScores
from positional_heads.scoring.layer_sums import LayerSums

PER_HEAD = ("rho", "rho_curve", "curve", "bound", "saturation")
"""Properties of `Correlation` that become fields of `HeadScores`."""


def scores_of(
    layers: dict[int, LayerSums], run: dict[str, Any], kernels: set[str], control: HeadScores | None = None
) -> HeadScores:
    """The scores of counted sums.

    Args:
        layers: The sums of every scored layer.
        run: What identifies the run.
        kernels: Names of the kernels that counted.
        control: Scores of the same run without the first keys.
    """
    shape = tuple(run["shape"])
    own = {layer: one.own.correlation() for layer, one in layers.items()}
    nulls = {layer: one.null for layer, one in layers.items() if one.null is not None}
    by_head = {name: stack(shape, {layer: getattr(one, name) for layer, one in own.items()}) for name in PER_HEAD}
    plans = {layer: one.plan for layer, one in own.items()}
    sampled = any(plan.step is not None for plan in plans.values())
    data = run["provenance"]["data"]
    data = data | {"groups": min(data["groups"], int(_counted_groups(plans.values()).sum()))}
    return HeadScores(
        **by_head,
        pair_counts=_pair_counts(shape[0], plans),
        sampling_sd=stack(shape, {layer: one.sampling_sd for layer, one in own.items()}) if sampled else None,
        frequencies=stack(shape[:1], {layer: one.frequencies for layer, one in layers.items()}),
        null=_null(shape, nulls) if nulls else None,
        bootstrap_rho=_bootstrap(shape, own, run["provenance"]["settings"]),
        reasons=_reasons(by_head["rho"], run, set(layers)),
        provenance={**run["provenance"], "data": data, "kernels": sorted(kernels)},
        control=control,
    )


def run_of_control(run: dict[str, Any]) -> dict[str, Any]:
    """What identifies a run that scores without the first keys what this one has as its control."""
    settings = run["provenance"]["settings"]
    settings = settings | {"skip_keys": settings["control_keys"], "control_keys": 0}
    return {**run, "provenance": {**run["provenance"], "settings": settings}}


def _reasons(rho: Float[Tensor, "layer head"], run: dict[str, Any], scored: set[int]) -> dict[Head, str]:
    constant = "its dominant dimension, at this resolution, or the distance, is the same for every query-key pair"
    reasons = {}
    for layer, head in rho.isnan().nonzero().tolist():
        unscored = run["unscored"].get(str(layer), "its layer was not asked for")
        reasons[Head(layer, head)] = constant if layer in scored else unscored
    return reasons


def stack(shape: tuple[int, ...], by_layer: dict[int, Tensor]) -> Tensor:
    """One tensor over layers, NaN where a layer has no value, or fewer of them (Gemma-4: fewer pairs in some layers).

    Args:
        shape: Layers, or layers and heads.
        by_layer: One tensor of each layer that has one.
    """
    widest = max(by_layer.values(), key=lambda values: values.shape[-1])
    tail = widest.shape if len(shape) == 1 else widest.shape[1:]
    stacked = torch.full((*shape, *tail), torch.nan, dtype=torch.float64)
    for layer, values in by_layer.items():
        stacked[layer, ..., : values.shape[-1]] = values
    return stacked


def _pair_counts(n_layers: int, plans: dict[int, EntryPlan]) -> Tensor:
    counts = torch.zeros(n_layers, next(iter(plans.values())).distances, dtype=torch.long)
    for layer, plan in plans.items():
        counts[layer] = plan.entry_counts
    return counts


def _bootstrap(shape: tuple[int, ...], own: dict[int, Correlation], settings: dict[str, Any]) -> Tensor | None:
    counted = _counted_groups(one.plan for one in own.values())
    n_groups = int(counted.sum())
    if n_groups < 2:  # noqa: PLR2004
        return None
    weights = torch.zeros(settings["resamples"], len(counted), dtype=torch.float64)
    weights[:, counted] = bootstrap_weights(n_groups, settings["resamples"], settings["seed"])
    all_once = counted.double()[None]
    distinct, drawn = weights.unique(dim=0, return_inverse=True)  # a few sequences can be drawn in few ways
    # Coarse bins bias a resample's rho: subtract the bias that the sample itself has on them.
    resampled = {
        layer: (one.resampled_rho(distinct)[drawn] + one.rho - one.resampled_rho(all_once)[0]).T
        for layer, one in own.items()
    }
    return stack(shape, resampled).movedim(-1, 0).contiguous()


def _counted_groups(plans: Iterable[EntryPlan]) -> Bool[Tensor, " group"]:
    """Which groups of sequences have entries that count: a distance or key may be in none of a group's sequences."""
    return torch.stack([plan.group_entry_counts.sum(-1) > 0 for plan in plans]).any(0)


def _null(shape: tuple[int, ...], nulls: dict[int, NullSums]) -> NullScores:
    for null in nulls.values():
        null.refuse_incomplete()
    curves = {layer: (null.pooled_curve, _spread(null.curve)) for layer, null in nulls.items()}
    errors = {layer: null.sampling_sd for layer, null in nulls.items()}
    sampled = {layer: error for layer, error in errors.items() if error is not None}
    exact = {layer: torch.zeros(nulls[layer].rho.shape[1]).double() for layer in errors if layer not in sampled}
    return NullScores(
        rho=stack(shape, {layer: null.rho.T for layer, null in nulls.items()}).movedim(-1, 0).contiguous(),
        curve_mean=stack(shape, {layer: mean for layer, (mean, _) in curves.items()}),
        curve_sd=stack(shape, {layer: sd for layer, (_, sd) in curves.items()}),
        sampling_sd=stack(shape, sampled | exact) if sampled else None,
    )


def _spread(curve: Float[Tensor, "shuffle head distance"]) -> Float[Tensor, "head distance"]:
    """Standard deviation over the shuffles that have entries at a distance; NaN with fewer than two."""
    defined = ~curve.isnan()
    number = defined.sum(0)
    away = torch.where(defined, curve - curve.nan_to_num().sum(0) / number, 0)
    return (away.square().sum(0) / (number - 1).clamp(min=0)).sqrt()
