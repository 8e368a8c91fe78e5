"""Count a head profile: fold the vectors of each layer and sequence into sums, as they are captured for scoring."""

from collections.abc import Callable, Iterator

import einops
import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from positional_heads.bridge.layer_vectors import LayerVectors, contributions_by_distance
from positional_heads.core.attention_sums import attention_sums
from positional_heads.core.contributions import head_planes
from positional_heads.core.pair_sums import (
    agreement,
    contribution_range_sums,
    moved_distances,
    moved_scores,
    range_sums,
    semantic_and_positional,
)
from positional_heads.core.plan import EntryPlan
from positional_heads.core.rotary import pair_frequencies
from positional_heads.core.token_matches import TokenMatches
from positional_heads.results.profile import geometric_edges
from positional_heads.scoring.batches import Row
from positional_heads.scoring.profile_settings import ProfileSettings
from positional_heads.scoring.profile_sums import MEASURES, ProfileSums

Content = tuple[Complex[Tensor, "head pos pair"], Complex[Tensor, "kv_head pos pair"]]
"""Queries and keys of one sequence before rotation."""


class ProfileCounter:
    """Counts the profile of layers under one setting.

    Attributes:
        settings: Settings of the profile.
        edges: First distance of each range, then the first beyond the last.
    """

    def __init__(self, settings: ProfileSettings, lengths: tuple[int, ...], groups: int) -> None:
        """Nothing is counted yet.

        Args:
            settings: Settings of the profile.
            lengths: Real tokens of every sequence of the run.
            groups: Groups of neighbouring sequences that count as independent.
        """
        self.settings = settings
        self.edges = torch.from_numpy(geometric_edges(max(lengths), settings.ranges))
        self._plan = EntryPlan(lengths, None, n_groups=groups)
        self._matches: dict[tuple[int, torch.device], TokenMatches] = {}
        self._known: tuple[Tensor, int, Tensor] | None = None

    def forget(self) -> None:
        """Drop what was found in the tokens of a batch."""
        self._matches.clear()
        self._known = None

    def begin(self, vectors: LayerVectors) -> ProfileSums:
        """Sums of a layer, nothing counted."""
        rotary, kv_heads = vectors.rotary, vectors.rot_k.shape[2]
        sizes = rotary.n_heads, kv_heads, vectors.rot_q.shape[-1], rotary.n_pairs, len(self.edges) - 1
        return ProfileSums.at_zero(self._plan.n_groups, *sizes)

    def count(
        self, sums: ProfileSums, vectors: LayerVectors, rows: list[Row], tokens: Int[Tensor, "batch pos"]
    ) -> None:
        """Fold one layer of one batch into its sums.

        Args:
            sums: Sums of the layer; changed in place.
            vectors: Queries and keys of the layer.
            rows: Rows of the batch.
            tokens: Tokens of the batch.
        """
        for row in rows:
            key = row.sequence, vectors.rot_q.device
            if key not in self._matches:
                self._matches[key] = TokenMatches(tokens[row.number, row.start : row.stop].to(key[1]))
            self._count_attention(sums, vectors, row, self._matches[key])
            self._count_contributions(sums, vectors, row)
            content = vectors.content(row.number, row.start, row.stop)
            _count_pairs(sums, vectors, row, content)
            if row.length > 1:
                self._count_sampled(sums, vectors, row, content)

    def _add(self, sums: ProfileSums, row: Row, name: str, value: Tensor | float, weight: Tensor | float) -> None:
        group, at = self._plan.group(row.sequence), MEASURES.index(name)
        sums.tensors["sums"][group, :, at] += value
        sums.tensors["weights"][group, :, at] += weight

    def _count_attention(self, sums: ProfileSums, vectors: LayerVectors, row: Row, matches: TokenMatches) -> None:
        window, sinks, length = self.settings.window, self.settings.sinks, row.length
        found = attention_sums(padded_scores(vectors, row), vectors.rotary.n_heads, matches, vectors.window, sinks)
        distance = torch.arange(length).double()
        total, free = found.by_distance.sum(-1), found.free.sum(-1)
        ratios: dict[str, tuple[Tensor, Tensor | float]] = {
            "mean_distance": (found.by_distance @ distance, total),
            "reach": (found.free @ distance, free),
            "distant_mass": (found.free[:, window:].sum(-1), max(0, length - window - sinks)),
            "sink_mass": (found.sink, max(0, length - sinks) if sinks else 0),
            "current_token": (found.by_distance[:, 0], total),
            "previous_token": (found.by_distance[:, 1:2].sum(-1), total),
            "duplicate_token": (found.duplicate, total),
            "induction": (found.induction, total),
            "copying": (found.copying, found.copyable),
        }
        for name, (value, weight) in ratios.items():
            self._add(sums, row, name, value, weight)
        mass, moment = (range_sums(values, self.edges) for values in (found.by_distance, found.by_distance * distance))
        sums.add(mass=mass, moment=moment, tokens=length)

    def _count_contributions(self, sums: ProfileSums, vectors: LayerVectors, row: Row) -> None:
        """Contributions of every pair, and of the channels without rotation, at the distances that the mask shows."""
        rotary, counts = vectors.rotary, EntryPlan((row.length,), vectors.window).entry_counts
        shown = (counts > 0).to(vectors.rot_q.device)
        distance = torch.arange(row.length, device=shown.device)
        for nearest, furthest, query, key in _complex_ranges(vectors, row):
            inside = shown & (distance >= nearest) & (distance <= (row.length if furthest is None else furthest))
            sums.add(contribution=contribution_range_sums(query, key, inside, self.edges) * rotary.scale)
        if rotary.rotary_dim < rotary.d_head:
            query, key = (x.to(torch.complex64) for x in _unrotated_channels(vectors, row))
            sums.add(unrotated=contribution_range_sums(query, key, shown, self.edges).sum(1) * rotary.scale)
        sums.add(entries=range_sums(counts.double(), self.edges))

    def _count_sampled(self, sums: ProfileSums, vectors: LayerVectors, row: Row, content: Content) -> None:
        """Agreement of every pair, and the semantic and positional score, for a few queries."""
        length = row.length
        queries = _spread(max(1, length // 2), length - 1, self.settings.queries)
        ranges, scores = list(vectors.by_distance(row.number, row.start, row.stop)), padded_scores(vectors, row)
        for query in queries:
            seen = slice(0 if vectors.window is None else max(0, query + 1 - vectors.window), query + 1)
            if seen.stop - seen.start > 1:
                contributions = contributions_by_distance(ranges, queries=slice(query, query + 1))[:, 0, seen]
                own = scores(query, query + 1)[:, 0, 1:][:, seen]
                sums.add(agreement=agreement(contributions, own, self.settings.agreement_keys), sampled=1)
        distances = moved_distances(length)
        if len(distances) > 1:
            keys = _spread(0, length - 1, self.settings.agreement_keys)
            chosen = _chosen(vectors, row, content, queries, keys)
            moved = [moved_scores(*chosen, self._frequencies(vectors, row), distances + step) for step in (0, 1)]
            for name, values in zip(("semantic", "positional"), semantic_and_positional(*moved), strict=True):
                # where all keys score the same there is no order and no spread
                self._add(sums, row, name, values.nansum(1), values.isfinite().sum(1))

    def _frequencies(self, vectors: LayerVectors, row: Row) -> Float[Tensor, " pair"]:
        """Frequency of each pair, negative where it rotates clockwise; layers that share a table share them."""
        table, length = vectors.phases, row.length
        if self._known is None or self._known[0] is not table or self._known[1] != length:
            self._known = table, length, pair_frequencies(vectors.phase(row.number)[row.start : row.stop])
        return self._known[2]


def _spread(first: int, last: int, most: int) -> list[int]:
    """Whole positions from the first to the last, evenly, each once."""
    positions: list[int] = np.unique(np.linspace(first, last, most).round().astype(int)).tolist()
    return positions


def _count_pairs(sums: ProfileSums, vectors: LayerVectors, row: Row, content: Content) -> None:
    """Norms and centres before rotation, and squares of every channel after it."""
    query, key = content
    squares = [x[row.number, row.start : row.stop].float().square().sum(0) for x in (vectors.rot_q, vectors.rot_k)]
    sums.add(
        query_norm=query.abs().sum(1),
        key_norm=key.abs().sum(1),
        query_center=torch.view_as_real(query.sum(1)),
        key_center=torch.view_as_real(key.sum(1)),
        attention_factor=vectors.attention_factors * row.length,
        query_squares=squares[0],
        key_squares=squares[1],
    )


def _chosen(
    vectors: LayerVectors, row: Row, content: Content, queries: list[int], keys: list[int]
) -> tuple[Complex[Tensor, "head query pair"], Complex[Tensor, "head key pair"], Float[Tensor, "head query key"]]:
    """Some queries and keys before rotation, and q . k of their channels without rotation."""
    heads, device = vectors.rotary.n_heads, vectors.rot_q.device
    at = [torch.tensor(positions, device=device) for positions in (queries, keys)]
    query, key, rest_q, rest_k = (
        x[:, positions].repeat_interleave(heads // len(x), 0)
        for pair in (content, _unrotated_channels(vectors, row))
        for x, positions in zip(pair, at, strict=True)
    )
    return query, key, rest_q @ rest_k.mT


def _unrotated_channels(vectors: LayerVectors, row: Row) -> list[Float[Tensor, "any_head pos rest"]]:
    """The channels of queries and keys that are not rotated."""
    first, span = vectors.rotary.rotary_dim, slice(row.start, row.stop)
    return [x[row.number, span, :, first:].float().transpose(0, 1) for x in (vectors.rot_q, vectors.rot_k)]


def padded_scores(
    vectors: LayerVectors, row: Row
) -> Callable[[int, int], Float[Tensor, "head query_pos padded_key_pos"]]:
    """Attention scores of a block of queries of one sequence, see `core.attention_sums`."""
    rotary, span = vectors.rotary, slice(row.start, row.stop)
    if vectors.bands is not None:

        def rewritten(start: int, stop: int) -> Tensor:
            queries = torch.arange(row.start + start, row.start + stop, device=vectors.rot_q.device)
            own = vectors.scores(row.number, queries)[0, :, :, row.start : row.start + stop]
            return torch.nn.functional.pad(own, (stop - start, 0))

        return rewritten
    query = vectors.rot_q[row.number, span].float().transpose(0, 1) * rotary.scale
    key = vectors.rot_k[row.number, span].float().transpose(0, 1)

    def plain(start: int, stop: int) -> Tensor:
        grouped = einops.rearrange(
            query[:, start:stop], "(kv_head group) pos d -> kv_head (group pos) d", kv_head=len(key)
        )
        padded = torch.nn.functional.pad(key[:, :stop], (0, 0, stop - start, 0))
        scores = einops.rearrange(
            grouped @ padded.mT, "kv_head (group pos) key_pos -> (kv_head group) pos key_pos", pos=stop - start
        )
        return rotary.soft_capped(scores)

    return plain


def _complex_ranges(
    vectors: LayerVectors, row: Row
) -> Iterator[tuple[int, int | None, Complex[Tensor, "head pos pair"], Complex[Tensor, "any_head pos pair"]]]:
    """Queries and keys as they are rotated at each range of distances; key heads are repeated only if they differ."""
    if vectors.bands is not None:
        for nearest, furthest, (query, key) in vectors.by_distance(row.number, row.start, row.stop):
            yield nearest, furthest, _complex(query), _complex(key)
        return
    rotary, span = vectors.rotary, slice(row.start, row.stop)
    query, key = (
        head_planes(x[row.number : row.number + 1, span], rotary.layout, rotary.rotary_dim, x.shape[2])[0]
        for x in (vectors.rot_q, vectors.rot_k)
    )
    yield 0, None, _complex(query), _complex(key)


def _complex(planes: Float[Tensor, "head pos pair 2"]) -> Complex[Tensor, "head pos pair"]:
    return torch.view_as_complex(planes.float().contiguous())
