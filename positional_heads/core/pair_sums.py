"""Sums over the queries and keys of one sequence, for each rotary pair of each head.

Contributions are summed in ranges of distance; agreement, and how scores change as keys are moved, are measured for a
few sampled queries, because they need every key's contribution of every pair.
"""

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Float64, Int
from torch import Tensor

GRID = 16
"""Distances to which keys are moved."""


def range_sums(values: Float[Tensor, "*lead distance"], edges: Int[Tensor, " edge"]) -> Float64[Tensor, "*lead range"]:
    """Sums over ranges of distances; ranges beyond the last distance are 0.

    Args:
        values: One value for each distance from 0 on.
        edges: First distance of each range, then the first beyond the last.
    """
    until = torch.nn.functional.pad(values.cpu().double().cumsum(-1), (1, 0))
    return until[..., edges.clamp(max=values.shape[-1])].diff(dim=-1)


def contribution_range_sums(
    query: Complex[Tensor, "head pos channel"],
    key: Complex[Tensor, "kv_head pos channel"],
    shown: Bool[Tensor, " distance"],
    edges: Int[Tensor, " edge"],
) -> Float64[Tensor, "head channel range"]:
    """Sum of Re(q conj k) over all queries and keys in each range of distances: contributions, of rotary pairs.

    Cross-correlations by Fourier transforms, one key head at a time, in the precision given: in complex64 the error of
    a sum is that of rounding its largest terms (`core.contributions.contribution_sums` is the same in float64).

    Args:
        query: Queries, as rotated.
        key: Keys, one head per group of query heads, or one for each.
        shown: Distances that count.
        edges: See `range_sums`.
    """
    length = query.shape[1]
    size = 2 * length  # padded, so that nothing wraps around
    parts = []
    for queries, own in zip(query.view(len(key), -1, *query.shape[1:]), key, strict=True):
        spectrum = torch.fft.fft(queries.mT.contiguous(), size) * torch.fft.fft(own.mT.contiguous(), size).conj()
        parts.append(range_sums(torch.fft.ifft(spectrum).real[..., :length] * shown, edges))
    return torch.cat(parts)


def agreement(
    contributions: Float[Tensor, "head key_pos pair"], scores: Float[Tensor, "head key_pos"], keys: int
) -> Float[Tensor, "head pair"]:
    """Contextual Agreement of one query: `|TopK(g_i) & TopK(score)| / K`, over the keys that it sees.

    FASA (arXiv 2602.03152). K is `keys`, or half of the keys where there are fewer than twice as many.

    Args:
        contributions: Contribution of each pair, of the keys that the query sees.
        scores: The head's own scores.
        keys: K.
    """
    most = min(keys, scores.shape[1] // 2)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(most, sorted=False).indices, value=True)
    by_pair = contributions.mT.topk(most, sorted=False).indices
    return chosen[:, None].expand(-1, by_pair.shape[1], -1).gather(2, by_pair).float().mean(-1)


def moved_scores(
    query: Complex[Tensor, "head query pair"],
    key: Complex[Tensor, "head key pair"],
    rest: Float[Tensor, "head query key"],
    frequencies: Float[Tensor, " pair"],
    distances: Int[Tensor, " distance"],
) -> Float[Tensor, "head query key distance"]:
    """Scores of some queries and keys if the key were at other distances: `S(m) = rest + Re sum_i z_i e^(i m f_i)`.

    `z_i = q_i conj(k_i)`, of queries and keys before rotation; unscaled.

    Args:
        query: Queries before rotation.
        key: Keys before rotation, one head for each query head.
        rest: q . k of the channels without rotation.
        frequencies: Radians per token.
        distances: Where to move the keys, in tokens.
    """
    angles = distances[:, None].double().cpu() * frequencies.double().cpu()
    phase = torch.polar(torch.ones_like(angles), angles).to(query.device, query.dtype)
    products = query[:, :, None] * key[:, None].conj()
    return (products @ phase.T).real + rest[..., None]


def semantic_and_positional(
    scores: Float[Tensor, "head query key distance"], next_scores: Float[Tensor, "head query key distance"]
) -> tuple[Float64[Tensor, "head query"], Float64[Tensor, "head query"]]:
    """How stable the order of a query's keys is, and how much scores change by one token, as distance changes.

    After RoPE Profiler (arXiv 2609.39929): a semantic head prefers the same keys wherever they are, a positional one
    reacts to a shift by one token. Its code and equations were not at hand, so these are our definitions:

    - semantic: Pearson correlation over keys of `S(m)` and `S(m')`, mean over all `m < m'` of the distances.
    - positional: root mean square of `S(m + 1) - S(m)` over keys and distances, over the standard deviation of S.

    Args:
        scores: S, see `moved_scores`; at two or more distances.
        next_scores: The same one token further away.
    """
    scores, next_scores = (x.cpu().double() for x in (scores, next_scores))
    away = scores - scores.mean(2, keepdim=True)
    unit = away / away.norm(dim=2, keepdim=True)
    correlations = torch.einsum("hqkm,hqkn->hqmn", unit, unit)
    later = torch.ones(correlations.shape[-2:], dtype=torch.bool).triu(1)
    steps = (next_scores - scores).square().mean((2, 3)).sqrt()
    spread = scores.flatten(2).std(-1, correction=0)
    return correlations[..., later].mean(-1), torch.where(spread > 0, steps / spread, torch.nan)


def moved_distances(length: int) -> Int[Tensor, " distance"]:
    """Whole distances from 1 to the last one of a sequence, in proportion to distance, at most `GRID`."""
    return torch.from_numpy(np.unique(((length - 1) ** np.linspace(0, 1, GRID)).round().astype(np.int64)))
