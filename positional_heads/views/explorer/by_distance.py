"""What an explorer draws over distance: allocation curves and their null, attention, and contributions by rotary pair.

Distances of curves are binned: single tokens first, then ranges about as wide as they are far, at most 96.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from positional_heads.core.rotary import wavelengths
from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.profile import geometric_edges
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import printable
from positional_heads.views.explorer.numbers import numbers
from positional_heads.views.explorer.runs import Run

MOST_POINTS = 96
"""Points of a curve at most."""
BAND = 2
"""Standard deviations from the mean of a null to the edge of its band."""
NULL = (
    f"mean of the shuffles plus and minus {BAND} standard deviations of one shuffle at one distance; rho pools all "
    "query-key pairs, so a curve inside the band can have a significant excess"
)
"""What the band of a null is."""
MOST_CONTRIBUTIONS, FEWEST_RANGES = 640_000, 6
"""Contributions above which ranges of distance are joined, so that a page of 1000 heads stays one file."""
Part = dict[str, Any]
ByHead = dict[str, Any]
"""What is known of each head, by its name."""


def curve_part(run: Run, scores: HeadScores, heads: list[str]) -> tuple[Part, ByHead] | None:
    """The allocation curves of scores: mean dominant dimension by distance, and that with positions shuffled.

    Args:
        run: The run that they are of.
        scores: The scores.
        heads: Names of all heads, in order.

    Returns:
        What all heads share, and the curve of each that has one; None if the scores have no curves.
    """
    if scores.curve is None or scores.pair_counts is None:
        return None
    edges = geometric_edges(scores.curve.shape[-1], MOST_POINTS)
    counts = scores.pair_counts.double().numpy()[:, None]
    binned = {"mean": binned_means(scores.curve.double().numpy(), counts, edges)}
    null = scores.null
    banded = null is not None and null.curve_mean is not None and null.curve_sd is not None
    if null is not None and null.curve_mean is not None and null.curve_sd is not None:
        middle, spread = (
            binned_means(values.double().numpy(), counts, edges) for values in (null.curve_mean, null.curve_sd)
        )
        binned |= {"null_low": middle - BAND * spread, "null_high": middle + BAND * spread}
    n_heads = len(heads)
    columns = {name: numbers(values.reshape(n_heads, -1)) for name, values in binned.items()}
    absent = dict.fromkeys(("null_low", "null_high")) if not banded else {}
    known = np.isfinite(binned["mean"]).any(-1).flatten()
    curves = {
        head: {name: column[at] for name, column in columns.items()} | absent
        for at, head in enumerate(heads)
        if known[at]
    }
    part = {
        "run": run.id,
        "title": f"Mean dominant dimension by distance, {binned_in_words(edges)}, weighted by query-key pairs",
        "distance": middles(edges),
        "edges": edges.tolist(),
        "unit": "pair index",
        "training_length": run.training_length,
        "null": NULL if banded else None,
        "wavelength": by_layer(wavelengths(scores.frequencies), scores.frequencies),
    }
    return part, curves


def mass_part(run: Run, profile: HeadProfile | DistanceProfile, heads: list[str]) -> tuple[Part, ByHead]:
    """Share of each head's attention in each range of distances; arguments as in `curve_part`."""
    mass = profile.mass.flatten(0, 1)
    known = mass.isfinite().any(-1).tolist()
    rows = numbers(mass)
    sinks = " past the first keys" if isinstance(profile, DistanceProfile) else ""
    part = {
        "run": run.id,
        "title": f"Share of attention{sinks} in each range of distances",
        "unit": "share of attention",
        "edges": profile.edges.tolist(),
    }
    return part, {head: rows[at] for at, head in enumerate(heads) if known[at]}


def pair_part(run: Run, profile: HeadProfile, heads: list[str]) -> tuple[Part, ByHead]:
    """Mean contribution of each rotary pair in each range of distances; arguments as in `curve_part`."""
    pairs = profile.pairs
    frequencies = pairs.frequencies
    lengths = pairs_of_layers(frequencies)
    n_heads, n_ranges = profile.mass.shape[1], len(profile.edges) - 1
    kept = np.arange(n_ranges + 1)
    if pairs.contribution.numel() > MOST_CONTRIBUTIONS:
        most = max(FEWEST_RANGES, MOST_CONTRIBUTIONS * n_ranges // pairs.contribution.numel())
        kept = np.unique(np.linspace(0, n_ranges, min(most, n_ranges) + 1).round().astype(np.int64))
    values = binned_means(pairs.contribution.numpy(), pairs.counts.double().numpy()[:, None, None], kept)
    rows = numbers(values.reshape(len(heads), -1, len(kept) - 1))
    known = np.isfinite(values).any((-1, -2)).flatten().tolist()
    joined = "" if len(kept) > n_ranges else f" ({n_ranges} ranges joined to {len(kept) - 1})"
    part = {
        "run": run.id,
        "title": f"Mean contribution of each rotary pair to the attention score in each range of distances{joined}",
        "unit": "attention score",
        "edges": profile.edges[kept].tolist(),
        "frequency": by_layer(frequencies, frequencies),
        "wavelength": by_layer(wavelengths(frequencies), frequencies),
    }
    return part, {head: rows[at][: lengths[at // n_heads]] for at, head in enumerate(heads) if known[at]}


def extension_part(run: Run, study: ExtrapolationStudy) -> tuple[Part, ByHead]:
    """The allocation curves of some heads under each method of extension, and the plain model's within its length."""
    named = [printable(label, newlines=False) for label in study.labels]
    labels = [
        f"{label} at {length} tokens" if named.count(label) > 1 else label
        for label, length in zip(named, study.lengths, strict=True)
    ]
    plain = f"as trained, {study.training_length} tokens"
    steps = study.curves.shape[-1]
    edges = geometric_edges(steps, MOST_POINTS)
    curves = study.curves.double().numpy()
    within = np.full((1, *curves.shape[1:]), np.nan)
    within[0, :, : study.plain_curves.shape[-1]] = study.plain_curves.double().numpy()
    every = numbers(binned_means(np.concatenate([within, curves]), np.ones(steps), edges))
    methods = [plain, *labels]
    tokens = edges * study.step
    part = {
        "run": run.id,
        "title": f"Mean dominant dimension by distance under each method, {binned_in_words(tokens)}",
        "unit": "pair index",
        "distance": middles(tokens),
        "edges": tokens.tolist(),
        "methods": methods,
        "heads": [str(head) for head in study.heads],
        "training_length": study.training_length,
    }
    return part, {
        str(head): {method: every[row][at] for row, method in enumerate(methods)} for at, head in enumerate(study.heads)
    }


def binned_means(values: np.ndarray, counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Means over ranges of the last axis, weighted; NaN where nothing counts.

    Args:
        values: The values, NaN where none is known.
        counts: The weight of each, of a shape that broadcasts.
        edges: First place of each range, then the first beyond the last.
    """
    weights = np.where(np.isfinite(values), counts, 0.0)
    sums = np.add.reduceat(np.where(weights > 0, values, 0.0) * weights, edges[:-1], axis=-1)
    total = np.add.reduceat(weights, edges[:-1], axis=-1)
    means = np.full(sums.shape, np.nan)
    np.divide(sums, total, out=means, where=total > 0)
    return means


def binned_in_words(edges: np.ndarray) -> str:
    """How distances are binned."""
    if len(edges) - 1 == edges[-1]:
        return "of every distance"
    return f"in {len(edges) - 1} ranges of distance, the wider the farther"


def middles(edges: np.ndarray) -> list[float | int]:
    """The middle of each range of whole distances."""
    return numbers((edges[:-1] + edges[1:] - 1) / 2)


def pairs_of_layers(frequencies: Tensor) -> list[int]:
    """Rotary pairs of each layer."""
    return [int(layer.isfinite().sum()) for layer in frequencies]


def by_layer(values: Tensor, frequencies: Tensor) -> list[list[float | int | None]]:
    """Values of each rotary pair without the places beyond a layer's last pair; null for a pair that does not turn."""
    return [numbers(row[:n]) for row, n in zip(values, pairs_of_layers(frequencies), strict=True)]


def merged(details: Mapping[str, Part], field: str, run: str, by_head: ByHead) -> None:
    """Put what is known of each head into its details."""
    for head, known in by_head.items():
        details[head].setdefault(field, {})[run] = known
