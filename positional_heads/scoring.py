"""From a model and text to "these are its Positional Heads", in one pass over the text.

A small pilot run on a few sequences finds each layer's window and places the bins of D. Then every batch goes through
the model once; each layer's rotated queries and keys are scored while they are at hand, as they are and with their
positions shuffled, and only integer sums are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from positional_heads.bands import rotated_in, unrotated
from positional_heads.binning import equal_mass_edges
from positional_heads.contributions import head_planes
from positional_heads.correlation import Correlation, PairStatistics
from positional_heads.dominance import pilot_sample
from positional_heads.heads import Head
from positional_heads.host.admission import UnsupportedModelError
from positional_heads.host.capture import LayerVectors, capture
from positional_heads.host.extrapolation.active import active_extension
from positional_heads.host.layers import RotaryLayer, RotaryModel, resolve_layers
from positional_heads.host.model import TransformerLensModel
from positional_heads.host.prefill import chunk_length, refuse_fixed_tables
from positional_heads.host.provenance import data_hash, library_versions, model_provenance
from positional_heads.host.sequences import Batch, batches, real_spans
from positional_heads.kernels.eager import EagerKernel
from positional_heads.plan import PairPlan
from positional_heads.results import HeadScores, NullScores
from positional_heads.rotary import move, pair_frequencies
from positional_heads.statistics import bootstrap_weights

PILOT_SEQUENCES = 4
MOST_GROUPS = 64
SCORES_PER_BATCH = 2**22
"""Attention scores that the model holds per layer at once, where no batch size is given: 16 MiB of float32."""

Text = str | Sequence[str] | Int[Tensor, "batch pos"] | Int[Tensor, " pos"] | Sequence[Int[Tensor, " _"]]


@dataclass(frozen=True)
class ScoringSettings:
    """What can be chosen about a score; kept with the result.

    Attributes:
        temperature: Softmax temperature of the dominant dimension: 1 is the source's literal reading, "attention" takes
            the model's own attention scale (sqrt(d_head) where that is usual).
        skip_keys: Leading keys of each sequence that do not count, e.g. 1 for an attention sink.
        min_distance: Smallest distance that counts, in tokens.
        max_distance: Largest distance that counts, in tokens; None for no limit.
        null_repeats: How often positions are shuffled for the null; 0 for no null.
        resamples: How often sequences are resampled for intervals.
        bins: Bins of D per head; rho is within about 1 / bins of the unbinned one.
        divide_attention_factor: Take the factor that YaRN and others put on cos and sin out of contributions before D,
            so that methods compare by what they do to angles; in plain RoPE it is 1.
        seed: Seed of shuffles and resamples.
    """

    temperature: float | Literal["attention"] = 1.0
    skip_keys: int = 0
    min_distance: int = 0
    max_distance: int | None = None
    null_repeats: int = 0
    resamples: int = 1000
    bins: int = 2048
    divide_attention_factor: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != "attention" and not float(self.temperature) > 0:
            msg = f"temperature {self.temperature} must be positive, or 'attention' for the model's attention scale"
            raise ValueError(msg)
        if self.null_repeats < 0 or self.null_repeats == 1:
            msg = f"null_repeats {self.null_repeats}: give 0 for none, or at least 2 to know its spread (20 is usual)"
            raise ValueError(msg)
        if self.resamples < 2:  # noqa: PLR2004
            msg = f"resamples {self.resamples}: an interval needs at least 2, 1000 is usual"
            raise ValueError(msg)

    def temperature_of(self, rotary: RotaryLayer) -> float:
        """The temperature in one layer."""
        return 1 / rotary.scale if self.temperature == "attention" else float(self.temperature)


def score_heads(
    model: TransformerLensModel,
    text_or_tokens: Text,
    *,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    beyond_context: bool = False,
    progress: bool = False,
    **settings: Any,
) -> HeadScores:
    """Score every head by how much its dominant rotary dimension moves with token distance.

    Spearman's rho between distance and dominant dimension over all causal pairs of all sequences (Hong et al.,
    arXiv 2410.08703; method sections 2 to 4). Every layer is first proven on the model's own attention scores.

    Args:
        model: A TransformerBridge.
        text_or_tokens: One text, a list of texts (none longer than the model's context, see `cut_text`), or token ids.
        attention_mask: 1 for real tokens, 0 for padding on either side; only with token ids.
        layers: Layers to score, all when None; the others are NaN in the result, with the reason.
        batch_size: Sequences per forward pass; chosen by length when None.
        beyond_context: Allow sequences longer than the model's context; long ones go through in chunks, so that memory
            does not grow with length squared.
        progress: Show a progress bar.
        **settings: See `ScoringSettings`: temperature, skip_keys, min_distance, max_distance, null_repeats, resamples,
            bins, seed.

    Returns:
        Scores, curves, null and intervals of every head, with their provenance.

    Raises:
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
        ValueError: If input or settings make no sense; the message says what to do.
    """
    chosen = ScoringSettings(**settings)
    resolved = resolve_layers(model)
    rotary = resolved.select(None if layers is None else list(layers), int(model.cfg.n_layers))
    data = batches(model, text_or_tokens, attention_mask, batch_size or 1, beyond_context=beyond_context)
    longest = max(batch.tokens.shape[1] for batch in data)
    refuse_fixed_tables(model, longest)
    if batch_size is None:
        batch_size = max(1, SCORES_PER_BATCH // (int(model.cfg.n_heads) * longest**2))
        data = batches(model, text_or_tokens, attention_mask, batch_size, beyond_context=beyond_context)
    run = _Run(model, rotary, data, chosen)
    run.place_bins()
    run.count(progress)
    return run.result(resolved)


class _Run:
    """One scoring run: a plan and bins per layer, then sums per layer, then the record."""

    def __init__(
        self, model: TransformerLensModel, rotary: list[RotaryLayer], data: list[Batch], settings: ScoringSettings
    ) -> None:
        self.model = model
        self.rotary = rotary
        self.data = data
        self.settings = settings
        self.lengths = tuple(length for batch in data for length in batch.lengths)
        self.n_groups = min(len(self.lengths), MOST_GROUPS)
        self.actual: dict[int, PairStatistics] = {}
        self.shuffled: dict[int, list[PairStatistics]] = {}
        self.frequencies: dict[int, Tensor] = {}

    def place_bins(self) -> None:
        """Find each layer's window on the longest sequence, and place bins by D on a few sequences."""
        longest = max(range(len(self.lengths)), key=self.lengths.__getitem__)
        spread = np.linspace(0, len(self.lengths) - 1, PILOT_SEQUENCES).round().astype(int).tolist()
        plans: dict[int, PairPlan] = {}
        samples: dict[int, list[Tensor]] = {rotary.layer: [] for rotary in self.rotary}

        def visit(vectors: LayerVectors, spans: list[tuple[int, int]]) -> None:
            layer = vectors.rotary.layer
            start, stop = spans[0]
            if layer not in plans:
                plans[layer] = self._plan(vectors.window)
                self.frequencies[layer] = pair_frequencies(vectors.phase[0, start:stop]).cpu()
            temperature = self._temperature(vectors)
            for part, planes in _planes(vectors, plans[layer], 0, start, stop):
                samples[layer].append(pilot_sample(*planes, part, temperature))

        for sequence in dict.fromkeys([longest, *spread]):
            self._capture(self._single(sequence), visit)
        for layer, plan in plans.items():
            if int(plan.pair_counts.sum()) == 0:
                msg = (
                    "no query-key pair counts: skip_keys, min_distance and max_distance leave none in sequences of at "
                    f"most {max(self.lengths)} tokens"
                )
                raise ValueError(msg)
            edges = equal_mass_edges(torch.cat(samples[layer], dim=1), self.settings.bins)
            self.actual[layer] = PairStatistics(plan, edges)
            ungrouped = replace(plan, n_groups=1)
            self.shuffled[layer] = [PairStatistics(ungrouped, edges) for _ in range(self.settings.null_repeats)]

    def count(self, progress: bool) -> None:
        """Run every batch through the model once and fold every layer's pairs into the sums."""
        with tqdm(total=len(self.lengths), unit="sequence", desc="scoring heads", disable=not progress) as bar:
            for batch in self.data:
                orders = [self._shuffles(batch.first + row, length) for row, length in enumerate(batch.lengths)]

                def visit(vectors: LayerVectors, spans: list[tuple[int, int]], batch: Batch = batch) -> None:
                    self._refuse_other_window(vectors, max(batch.lengths))
                    for row, (start, stop) in enumerate(spans):
                        self._count_sequence(vectors, batch.first + row, (row, start, stop), orders[row])  # noqa: B023

                self._capture(batch, visit)
                bar.update(len(batch.tokens))

    def result(self, resolved: RotaryModel) -> HeadScores:
        """The frozen record."""
        shape = (int(self.model.cfg.n_layers), int(self.model.cfg.n_heads))
        actual = {layer: statistics.correlation() for layer, statistics in self.actual.items()}
        shuffled = {layer: [one.correlation() for one in many] for layer, many in self.shuffled.items()}
        rho = _stack(shape, {layer: correlation.rho for layer, correlation in actual.items()})
        return HeadScores(
            rho=rho,
            rho_curve=_stack(shape, {layer: correlation.rho_curve for layer, correlation in actual.items()}),
            curve=_stack(shape, {layer: correlation.curve for layer, correlation in actual.items()}),
            pair_counts=self._pair_counts(shape[0]),
            bound=_stack(shape, {layer: correlation.bound for layer, correlation in actual.items()}),
            frequencies=_stack(shape[:1], self.frequencies),
            null=_null(shape, shuffled) if self.settings.null_repeats else None,
            bootstrap_rho=self._bootstrap(shape, actual),
            reasons=self._reasons(rho, resolved),
            provenance=self._provenance(),
        )

    def _plan(self, window: int | None) -> PairPlan:
        settings = self.settings
        return PairPlan(
            self.lengths, window, settings.skip_keys, settings.min_distance, settings.max_distance, self.n_groups
        )

    def _single(self, sequence: int) -> Batch:
        batch = next(batch for batch in reversed(self.data) if batch.first <= sequence)
        row = slice(sequence - batch.first, sequence - batch.first + 1)
        mask = None if batch.attention_mask is None else batch.attention_mask[row]
        return Batch(batch.tokens[row], mask, sequence)

    def _capture(self, batch: Batch, visit: Callable[[LayerVectors, list[tuple[int, int]]], None]) -> None:
        spans = real_spans(batch.tokens, batch.attention_mask)
        chunk = chunk_length(self.model, *batch.tokens.shape) if batch.attention_mask is None else None
        capture(
            self.model, batch.tokens, self.rotary, lambda vectors: visit(vectors, spans), batch.attention_mask, chunk
        )

    def _refuse_other_window(self, vectors: LayerVectors, length: int) -> None:
        layer, planned = vectors.rotary.layer, self.actual[vectors.rotary.layer].plan.window
        expected = planned if planned is not None and planned < length else None
        if vectors.window != expected:
            msg = f"layer {layer} has a window of {vectors.window} tokens now, {expected} when the run was planned"
            raise UnsupportedModelError(msg)

    def _count_sequence(
        self, vectors: LayerVectors, sequence: int, place: tuple[int, int, int], orders: list[Tensor]
    ) -> None:
        layer = vectors.rotary.layer
        temperature = self._temperature(vectors)
        for order, statistics in zip([None, *orders], [self.actual[layer], *self.shuffled[layer]], strict=True):
            for part, planes in _planes(vectors, statistics.plan, *place, order):
                sums = EagerKernel().every_pair(*planes, part, temperature, statistics.bins, statistics.ranks)
                statistics.add(sums, sequence)

    def _temperature(self, vectors: LayerVectors) -> float:
        """Softmax temperature on contributions as they are, the attention factor squared among them."""
        temperature = self.settings.temperature_of(vectors.rotary)
        return temperature * vectors.attention_factor**2 if self.settings.divide_attention_factor else temperature

    def _shuffles(self, sequence: int, length: int) -> list[Int[Tensor, " pos"]]:
        """Which position's content each position gets, per repeat; keys that are skipped stay where they are."""
        fixed = min(self.settings.skip_keys, length)
        orders = []
        for repeat in range(self.settings.null_repeats):
            rng = np.random.default_rng([self.settings.seed, sequence, repeat])
            order = np.concatenate([np.arange(fixed), fixed + rng.permutation(length - fixed)])
            orders.append(torch.from_numpy(order))
        return orders

    def _pair_counts(self, n_layers: int) -> Int[Tensor, "layer distance"]:
        counts = torch.zeros(n_layers, max(self.lengths), dtype=torch.long)
        for layer, statistics in self.actual.items():
            counts[layer] = statistics.plan.pair_counts
        return counts

    def _bootstrap(
        self, shape: tuple[int, int], actual: dict[int, Correlation]
    ) -> Float[Tensor, "resample layer head"] | None:
        if self.n_groups < 2:  # noqa: PLR2004
            return None
        weights = bootstrap_weights(self.n_groups, self.settings.resamples, self.settings.seed)
        everything = torch.ones(1, self.n_groups, dtype=torch.float64)
        draws = {}
        for layer, correlation in actual.items():
            centre = correlation.rho - correlation.resampled_rho(everything)[0]
            draws[layer] = (correlation.resampled_rho(weights) + centre).T
        return _stack(shape, draws).movedim(-1, 0).contiguous()

    def _reasons(self, rho: Float[Tensor, "layer head"], resolved: RotaryModel) -> dict[Head, str]:
        reasons = {}
        for layer, head in rho.isnan().nonzero().tolist():
            if layer in resolved.unscored:
                reason = resolved.unscored[layer]
            elif layer not in self.actual:
                reason = "its layer was not asked for"
            else:
                reason = "its dominant dimension, or the distance, is the same for every pair"
            reasons[Head(layer, head)] = reason
        return reasons

    def _provenance(self) -> dict[str, Any]:
        rows = [
            (tokens, None if batch.attention_mask is None else batch.attention_mask[row])
            for batch in self.data
            for row, tokens in enumerate(batch.tokens)
        ]
        return {
            "versions": library_versions(),
            "model": model_provenance(self.model),
            "rotary": [asdict(rotary) | {"window": self.actual[rotary.layer].plan.window} for rotary in self.rotary],
            "data": {
                "sha256": data_hash(rows),
                "sequences": len(self.lengths),
                "tokens": sum(self.lengths),
                "longest": max(self.lengths),
                "groups": self.n_groups,
            },
            "settings": asdict(self.settings),
            "extension": _extension_provenance(self.model),
        }


def _extension_provenance(model: Any) -> dict[str, Any] | None:
    extension = active_extension(model)
    return None if extension is None else extension.provenance


Planes = tuple[Float[Tensor, "head pos pair 2"], Float[Tensor, "head pos pair 2"]]


def _planes(
    vectors: LayerVectors, plan: PairPlan, row: int, start: int, stop: int, order: Int[Tensor, " pos"] | None = None
) -> Iterator[tuple[PairPlan, Planes]]:
    """Rotary planes of one sequence's real tokens, at their own positions or with their content shuffled.

    One entry with all pairs that count; or, where an extension rewrites scores, one for each range of distances, with
    the part of the plan that lies in it.
    """
    rotary = vectors.rotary
    rot_q, rot_k = vectors.rot_q[row : row + 1, start:stop], vectors.rot_k[row : row + 1, start:stop]
    if order is not None:
        order = order.to(rot_q.device)
        phase = vectors.phase[min(row, len(vectors.phase) - 1)][None, start:stop]
        rot_q = move(rot_q[:, order], phase[:, order], phase, rotary.layout)
        rot_k = move(rot_k[:, order], phase[:, order], phase, rotary.layout)
    shape = (rotary.layout, rotary.rotary_dim, rotary.n_heads)
    query, key = head_planes(rot_q, *shape)[0], head_planes(rot_k, *shape)[0]
    if vectors.bands is None:
        yield plan, (query, key)
        return
    own = vectors.phase[min(row, len(vectors.phase) - 1)][start:stop]
    free_query, free_key = unrotated(query, own), unrotated(key, own)
    for band in vectors.bands:
        nearest = max(plan.min_distance, band.nearest)
        limits = [limit for limit in (plan.max_distance, band.furthest) if limit is not None]
        if nearest < stop - start and nearest <= min(limits, default=nearest):
            part = replace(plan, min_distance=nearest, max_distance=min(limits, default=None))
            yield part, rotated_in(band.first(stop - start), free_query, free_key)


def _null(shape: tuple[int, int], shuffled: dict[int, list[Correlation]]) -> NullScores:
    curves = {layer: torch.stack([one.curve for one in many]) for layer, many in shuffled.items()}
    rho = {layer: torch.stack([one.rho for one in many], dim=-1) for layer, many in shuffled.items()}
    return NullScores(
        rho=_stack(shape, rho).movedim(-1, 0).contiguous(),
        curve_mean=_stack(shape, {layer: curve.mean(0) for layer, curve in curves.items()}),
        curve_sd=_stack(shape, {layer: curve.std(0) for layer, curve in curves.items()}),
    )


def _stack(shape: tuple[int, ...], by_layer: dict[int, Tensor]) -> Tensor:
    """One tensor over layers, NaN where a layer has no value."""
    first = next(iter(by_layer.values()))
    tail = first.shape if len(shape) == 1 else first.shape[1:]
    stacked = torch.full((*shape, *tail), torch.nan, dtype=torch.float64)
    for layer, values in by_layer.items():
        stacked[layer] = values
    return stacked
