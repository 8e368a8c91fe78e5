"""Answers that cannot share the library's mistakes: plain loops, complex numbers, scipy. Only tests import it."""

import cmath
import math

import numpy as np
from scipy.stats import spearmanr


def channels(layout: str, pair: int, n_pairs: int) -> tuple[int, int]:
    """The two channels of a rotary pair."""
    return (pair, pair + n_pairs) if layout == "half" else (2 * pair, 2 * pair + 1)


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
    """Softmax-weighted mean pair index."""
    largest = max(contributed)
    weights = [math.exp((value - largest) / temperature) for value in contributed]
    return sum(index * weight for index, weight in enumerate(weights)) / sum(weights)


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


def head_score(q: list[np.ndarray], k: list[np.ndarray], layout: str, n_pairs: int, temperature=1.0, **limits):
    """Spearman's rho and curve of one head over all pairs of all sequences; q and k are rotated, [pos d_head]."""
    distances, dominants = [], []
    for queries, keys in zip(q, k, strict=True):
        for m, n in counted_pairs(len(queries), **limits):
            distances.append(m - n)
            dominants.append(dominant(contributions(queries[m], keys[n], layout, n_pairs), temperature))
    distances, dominants = np.array(distances), np.array(dominants)
    curve = {t: dominants[distances == t].mean() for t in np.unique(distances)}
    return spearmanr(distances, dominants).statistic, curve


def attended_score(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], layout: str, n_pairs: int):
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
    rho = np.array([spearmanr(distance, head).statistic for head in found])
    curve = np.stack([found[:, distance == t].mean(1) for t in range(distance.max() + 1)], axis=1)
    return rho, curve
