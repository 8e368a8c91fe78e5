"""How attention and scores depend on distance, whatever a model's encoding of position is.

Softmax ignores what is added to all scores of a query, and models add it: ALiBi in Bloom adds a slope times the key's
position, which is minus the slope times the distance plus a constant of the query. So scores count up to a constant of
each query here: s(m, n) = constant(m) + f(m - n) + the rest, by least squares over the keys that a query sees. `f` is
the effect of distance, and the rest is content.

A query must see the nearest keys up to some number, as under causality, a sliding window, or chunks. The first keys,
the sinks, are left out.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.attention_sums import AttentionMass, PaddedScores, along_distances, visible_pattern


class EvenAttention(NamedTuple):
    """Attention that is the same to every key that a query sees, summed over queries.

    Attributes:
        free: Attention at each distance to keys that are no sinks.
        sink: Attention to the sinks, of the queries after them.
    """

    free: Float64[Tensor, " distance"]
    sink: float


class DistanceSums:
    """Sums over the queries of one layer and sequence, added in blocks.

    Attributes:
        mass: Attention by distance.
        score: Sum over the queries of the score at each distance, less the query's mean [head distance].
        squares: Sum of its squares [head distance].
        seen: Number of queries that see so many keys that are no sinks [0 to length].
    """

    def __init__(self, heads: int, length: int, sinks: int) -> None:
        """Nothing is summed yet.

        Args:
            heads: Number of heads.
            length: Tokens of the sequence.
            sinks: First keys that are left out.
        """
        self._sinks, self._even, self._even_sink = sinks, torch.zeros(length + 1, dtype=torch.float64), 0.0
        self.mass = AttentionMass(heads, length, sinks)
        self.score, self.squares = (torch.zeros(heads, length, dtype=torch.float64) for _ in range(2))
        self.seen = torch.zeros(length + 1, dtype=torch.float64)

    def add(self, scores: PaddedScores, start: int, stop: int, window: int | None = None) -> None:
        """Add the queries from one position to another.

        Args:
            scores: Their scores, see `core.attention_sums.PaddedScores`; -inf where the mask hides a key, the same ones
                from all heads. Changed in place.
            start: Position of the first query.
            stop: One past the position of the last.
            window: Distances that the mask lets through, 0 to window - 1; None where causality and the scores say it.
        """
        pattern, sinks = visible_pattern(scores, start, stop, window), self._sinks
        self.mass.add(pattern, start, stop)
        hidden = scores[:1] == -torch.inf
        every = (~hidden[0]).sum(-1).cpu()
        hidden[:, :, stop - start :][:, :, :sinks] = True
        free = (~hidden[0]).sum(-1).cpu()
        self.seen += torch.bincount(free, minlength=len(self.seen))
        self._even.index_add_(0, free, 1 / every.double())
        after = torch.arange(start, stop) >= sinks
        self._even_sink += float((1 - free / every.double())[after].sum())
        scores.masked_fill_(hidden, 0)
        scores.sub_(scores.sum(-1, keepdim=True) / free.clamp(min=1)[:, None].to(scores)).masked_fill_(hidden, 0)
        self.score[:, :stop] += along_distances(scores, stop).cpu().double()
        self.squares[:, :stop] += along_distances(scores.square_(), stop).cpu().double()

    @property
    def even(self) -> EvenAttention:
        """What the same queries would do if they attended evenly: a query that sees so many keys, each as much."""
        return EvenAttention(self._even.flip(0).cumsum(0).flip(0)[1:], self._even_sink)


def entry_counts(seen: Float64[Tensor, "*batch seen"]) -> Float64[Tensor, "*batch distance"]:
    """Number of query-key pairs at each distance, given how many queries see how many keys."""
    return seen.flip(-1).cumsum(-1).flip(-1)[..., 1:]


def distance_effect(
    score: Float64[Tensor, "*batch head distance"], seen: Float64[Tensor, "*batch seen"]
) -> Float64[Tensor, "*batch head distance"]:
    """The effect of distance on the score, f, by least squares with a constant for each query; its mean is 0.

    The normal equations are n(t) f(t) - sum_t' c(max(t, t')) f(t') = r(t), with n(t) the number of queries that see
    distance t, r(t) the sum of their scores there less each query's mean, and c(t) the sum of 1 / K over the queries
    that see K > t keys. Two neighbouring ones differ in terms up to t only, so f follows step by step; its constant is
    free. 0 at distances that no query sees.

    Args:
        score: r, see `DistanceSums`.
        seen: Number of queries that see so many keys.
    """
    counts, effect = entry_counts(seen), torch.zeros_like(score)
    total = effect[..., 0].clone()
    for t in range(score.shape[-1] - 1):
        above = counts[..., t, None] * effect[..., t] - seen[..., t + 1, None] * total / (t + 1)
        step = (above - score[..., t] + score[..., t + 1]) / counts[..., t + 1, None]
        effect[..., t + 1] = torch.where(counts[..., t + 1, None] > 0, step, 0)
        total += effect[..., t + 1]
    known = counts[..., None, :]
    return (effect - (effect * known).sum(-1, keepdim=True) / known.sum(-1, keepdim=True)) * (known > 0)
