"""Answers that cannot share the library's mistakes: plain loops, complex numbers, scipy. Only tests import it."""

import cmath
import math

import numpy as np
import torch
from scipy.stats import spearmanr


def channels(layout: str, pair: int, n_pairs: int) -> tuple[int, int]:
    """The two channels of a rotary pair."""
    return (pair, pair + n_pairs) if layout == "half" else (2 * pair, 2 * pair + 1)


def plain_phases(positions: torch.Tensor, base: float, rotary_dim: int) -> torch.Tensor:
    """cos + i sin of plain RoPE, `position * base ** (-2 i / rotary_dim)` radians; angles in float64, rounded once."""
    frequencies = base ** (-torch.arange(0, rotary_dim, 2).double() / rotary_dim)
    return torch.exp(1j * positions.double()[:, None] * frequencies).to(torch.complex64)


def rotated(vector: np.ndarray, angles: np.ndarray, layout: str) -> np.ndarray:
    """One vector turned by one angle per pair, as multiplication by exp(i angle)."""
    turned = vector.astype(float).copy()
    for pair, angle in enumerate(angles):
        a, b = channels(layout, pair, len(angles))
        z = complex(vector[a], vector[b]) * cmath.exp(1j * float(angle))
        turned[a], turned[b] = z.real, z.imag
    return turned


def contributions(q: np.ndarray, k: np.ndarray, layout: str, n_pairs: int) -> list[float]:
    """What each pair adds to q . k."""
    found = []
    for pair in range(n_pairs):
        a, b = channels(layout, pair, n_pairs)
        found.append(float(q[a]) * float(k[a]) + float(q[b]) * float(k[b]))
    return found


def dominant(contributed: list[float], temperature: float = 1.0) -> float:
    """Softmax-weighted mean pair index, as the index of the largest and the deviation from it."""
    largest = max(contributed)
    weights = [math.exp((value - largest) / temperature) for value in contributed]
    at = contributed.index(largest)
    return at + math.fsum((index - at) * weight for index, weight in enumerate(weights)) / math.fsum(weights)


def dominants(contributed: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The same of many in float64, pairs last, and the share of the softmax that the largest holds."""
    exponents = contributed.astype(np.float64) / temperature
    at = exponents.argmax(-1)
    weights = np.exp(exponents - exponents.max(-1, keepdims=True))
    deviations = (np.arange(exponents.shape[-1]) - at[..., None]) * weights
    return at + deviations.sum(-1) / weights.sum(-1), 1 / weights.sum(-1)


def rho(distances: np.ndarray, dominants: np.ndarray, resolution: float = 0.0) -> float:
    """Spearman's rho where values of D nearest to the same multiple of the resolution are equal."""
    values = np.round(dominants / resolution) if resolution else dominants
    constant = len(set(values)) == 1 or len(set(distances)) == 1
    return math.nan if constant else spearmanr(distances, values).statistic


def counted_pairs(length: int, *, window=None, skip_keys=0, min_distance=0, max_distance=None):
    """Every (query, key) that counts, by looking at all of them."""
    return [
        (m, n)
        for m in range(length)
        for n in range(skip_keys, m + 1)
        if m - n >= min_distance
        and (max_distance is None or m - n <= max_distance)
        and (window is None or m - n < window)
    ]


def head_score(
    q: list[np.ndarray], k: list[np.ndarray], layout: str, n_pairs: int, temperature=1.0, resolution=1 / 256, **limits
):
    """Spearman's rho and curve of one head over all pairs of all sequences; q and k are rotated, [pos d_head]."""
    distances, dominants = [], []
    for queries, keys in zip(q, k, strict=True):
        for m, n in counted_pairs(len(queries), **limits):
            distances.append(m - n)
            dominants.append(dominant(contributions(queries[m], keys[n], layout, n_pairs), temperature))
    distances, dominants = np.array(distances), np.array(dominants)
    curve = {t: dominants[distances == t].mean() for t in np.unique(distances)}
    return rho(distances, dominants, resolution), curve


def attended_score(
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], layout: str, n_pairs: int, resolution: float = 1 / 256
):
    """rho and curve of every head of a layer, from what each sequence attends with: (q, k [head pos d_head], visible).

    As `head_score`, for whole arrays in float64 and for whatever pairs the model's own mask shows.
    """
    dominants, distances = [], []
    leading, step = (n_pairs, 1) if layout == "half" else (1, 2)
    first, second = (slice(start, start + step * n_pairs, step) for start in (0, leading))
    for q, k, visible in rows:
        m, n = np.nonzero(visible)
        added = q[:, m, first] * k[:, n, first] + q[:, m, second] * k[:, n, second]
        weights = np.exp(added - added.max(-1, keepdims=True))
        dominants.append((weights * np.arange(n_pairs)).sum(-1) / weights.sum(-1))
        distances.append(m - n)
    found, distance = np.concatenate(dominants, axis=1), np.concatenate(distances)
    rhos = np.array([rho(distance, head, resolution) for head in found])
    curve = np.stack([found[:, distance == t].mean(1) for t in range(distance.max() + 1)], axis=1)
    return rhos, curve
