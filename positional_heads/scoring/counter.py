"""One scoring run on one machine: a pilot places the bins, then every batch's pairs are folded into the sums.

Each layer's rotated queries and keys are counted while they are at hand, as they are and with their positions shuffled.
The pilot is the batch with the longest sequence, which also shows each layer's window, and a few more where there are
many; it is the same for every shard, so that all place the same bins.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.active import active_extension
from positional_heads.bridge.capture import capture
from positional_heads.bridge.layer_vectors import LayerVectors, Planes
from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.prefill import chunk_length
from positional_heads.bridge.provenance import data_hash, library_versions, model_provenance
from positional_heads.bridge.resolve import RotaryModel
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.bridge.sequences import Batch, real_spans
from positional_heads.core.correlation import CorrelationSums
from positional_heads.core.kernels.choosing import choose_kernel
from positional_heads.core.kernels.eager import EagerKernel
from positional_heads.core.kernels.sums import Kernel
from positional_heads.core.pilot import PilotSample
from positional_heads.core.plan import REPLICATES, EntryPlan, Positions
from positional_heads.core.rotary import pair_frequencies
from positional_heads.core.statistics import one_token_rules
from positional_heads.scoring.settings import MOST_GROUPS, ScoringSettings
from positional_heads.scoring.sums import LayerSums, ScoreSums, SharedPlans, differing

logger = logging.getLogger(__name__)

LISTED_DEARER = 4
"""What a listed pair costs the eager kernel, by one in a matrix product."""
PILOT_BATCHES = 4
BATCHES_PER_PILOT = 16
PILOT_ROWS = 4
PILOT_ENTRIES = 2**15
"""Pairs by which the bins of a head are placed: 16 for each of 2048 bins."""
CHECKED_ENTRIES = 2**13
"""Pairs of them whose D is also computed in float64, to see how many fall into another bin by rounding."""


class EntryCounter:
    """Counts the pairs of numbered batches of one run with one model."""

    def __init__(
        self, model: TransformerLensModel, data: list[Batch], rotary: list[RotaryLayer], settings: ScoringSettings
    ) -> None:
        """Count nothing yet.

        Args:
            model: A TransformerBridge.
            data: Every batch of the run, in order.
            rotary: The layers to score.
            settings: What was chosen.
        """
        self.model = model
        self.data = data
        self.rotary = rotary
        self.settings = settings
        self._plans = SharedPlans(lambda window: settings.plan(self.lengths, window))
        self._drawn: dict[tuple[int | None, ...], list[Positions]] = {}
        self.kernel = self._kernel(self._terms())

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Real tokens of every sequence."""
        return tuple(length for batch in self.data for length in batch.lengths)

    @property
    def longest(self) -> int:
        """Number of the batch with the longest sequence."""
        return max(range(len(self.data)), key=lambda number: max(self.data[number].lengths))

    def go_on_with(self, kernels: set[str]) -> None:
        """Count with the kernel that has counted so far, so that a run that was stopped ends with the same numbers.

        Args:
            kernels: Names of those that have counted; none changes nothing.
        """
        if kernels:
            self.kernel = self._kernel(0, min(kernels))

    def opened(self, resolved: RotaryModel, *, count: bool) -> ScoreSums:
        """Sums over nothing, or over the pilot batch: windows found and bins placed on it.

        Args:
            resolved: All layers of the model, for the reasons why some are not scored.
            count: Count the batch with the longest sequence in the same run.

        Raises:
            ValueError: If no pair counts.
            UnsupportedModelError: If a layer does not reproduce the model's scores.
        """
        samples: dict[int, list[PilotSample]] = {rotary.layer: [] for rotary in self.rotary}
        layers: dict[int, LayerSums] = {}
        *others, longest = self._pilots()

        def look(vectors: LayerVectors, batch: Batch, spans: list[tuple[int, int]]) -> None:
            samples[vectors.rotary.layer].append(self._pilot_sample(vectors, batch, spans, 1 + len(others)))

        def place(vectors: LayerVectors, batch: Batch, spans: list[tuple[int, int]]) -> None:
            look(vectors, batch, spans)
            layer = vectors.rotary.layer
            layers[layer] = self._layer_sums(vectors, spans, PilotSample.joined(samples.pop(layer)))
            if count:
                self._count_batch(layers[layer], vectors, batch, spans)

        for number in others:
            self._capture(number, look)
        self._capture(longest, place)
        sums = ScoreSums(layers, {longest} if count else set(), {}, {self.kernel.name})
        sums.run = self.description(resolved, sums.windows)
        return sums

    def count(self, number: int, sums: ScoreSums) -> None:
        """Run one batch through the model and fold every layer's pairs into the sums.

        Args:
            number: Which batch.
            sums: Of this run; changed in place, and spoilt if this raises.
        """

        def visit(vectors: LayerVectors, batch: Batch, spans: list[tuple[int, int]]) -> None:
            self._count_batch(sums.layers[vectors.rotary.layer], vectors, batch, spans)

        self._capture(number, visit)
        sums.done.add(number)
        sums.kernels.add(self.kernel.name)

    def refuse_other_run(self, found: ScoreSums, resolved: RotaryModel, file: Path | None) -> None:
        """Refuse sums that are not of this run.

        Args:
            found: Sums from a file.
            resolved: All layers of the model.
            file: Where they come from.

        Raises:
            ValueError: If model, data or settings differ; the message says which.
        """
        if changed := differing(self.description(resolved, found.windows), found.run):
            msg = (
                f"{file}: holds sums of another run (different: {', '.join(changed)}); run that one to its end with "
                "its own settings, choose another folder, or delete the file"
            )
            raise ValueError(msg)

    def _kernel(self, terms: int, name: str | None = None) -> Kernel:
        device = torch.device(str(self.model.cfg.device))
        if self.settings.dtype == torch.float32:
            return choose_kernel(device, terms, name)
        if device.type == "mps":
            msg = (
                f"resolution {self.settings.resolution} needs float64, which {device} does not have: give 0.001 or more"
            )
            raise ValueError(msg)
        return EagerKernel()

    def _terms(self) -> int:
        """Query x key x pair terms of the whole run, or what costs as much."""
        plan = self.settings.plan(self.lengths, None)
        every = int(plan.all_entry_counts.sum())
        counted = every if plan.step is None else round(every / plan.step * REPLICATES)
        width = sum(rotary.n_heads * rotary.rotary_dim // 2 for rotary in self.rotary)
        listed = 1 if plan.step is None else LISTED_DEARER
        return counted * listed * width * (1 + self.settings.null_repeats)

    def _pilots(self) -> list[int]:
        """Batches to place bins on, that with the longest sequence last."""
        pairs = sum(length * (length + 1) // 2 for length in self.data[self.longest].lengths)
        extra = min(PILOT_BATCHES - 1, max(len(self.data) // BATCHES_PER_PILOT, -(-PILOT_ENTRIES // pairs) - 1))
        extra = min(extra, len(self.data) - 1)
        spread = np.linspace(0, len(self.data) - 1, extra + 2)[1:-1].round().astype(int).tolist()
        chosen = [number for number in dict.fromkeys(spread) if number != self.longest]
        others = [number for number in range(len(self.data)) if number not in {*chosen, self.longest}]
        return [*chosen, *others[: extra - len(chosen)], self.longest]

    def _pilot_sample(
        self, vectors: LayerVectors, batch: Batch, spans: list[tuple[int, int]], batches: int
    ) -> PilotSample:
        rows = sorted(set(np.linspace(0, len(spans) - 1, PILOT_ROWS).round().astype(int).tolist()))
        found, dtype = [], self.settings.dtype
        for row in rows:
            start, stop = spans[row]
            plan = self.settings.plan((stop - start,), vectors.window)
            plan = replace(plan, most_entries=PILOT_ENTRIES // (len(rows) * batches), seed=batch.first + row)
            for part, (query, key) in vectors.parts(
                plan, row, (start, stop), divide=self.settings.divide_attention_factor
            ):
                drawn = (torch.cat(positions) for positions in zip(*self._listed(plan, 0), strict=True))
                places = _within((next(drawn), next(drawn)), part, query.device)
                planes, checked = (query.to(dtype), key.to(dtype)), CHECKED_ENTRIES // (len(rows) * batches)
                found.append(PilotSample.of(self.kernel, planes, places, self._temperature(vectors), checked))
        return PilotSample.joined(found)

    def _layer_sums(self, vectors: LayerVectors, spans: list[tuple[int, int]], pilot: PilotSample) -> LayerSums:
        if pilot.sample.shape[1] == 0:
            msg = (
                "no query-key pair counts: skip_keys, min_distance and max_distance leave none in sequences of at most "
                f"{max(self.lengths)} tokens"
            )
            raise ValueError(msg)
        every = int(self._plans.own(vectors.window).entry_counts.sum())
        bins = pilot.bins(self.settings.bins, self.settings.resolution, every)
        row = max(range(len(spans)), key=lambda one: spans[one][1] - spans[one][0])
        phase = vectors.phase(row)[slice(*spans[row])]
        statistics = self._plans.statistics(vectors.window, bins, self.settings.null_repeats)
        return LayerSums(pair_frequencies(phase).abs().cpu(), statistics)

    def _count_batch(self, sums: LayerSums, vectors: LayerVectors, batch: Batch, spans: list[tuple[int, int]]) -> None:
        plan = sums.statistics[0].plan
        _refuse_other_window(vectors, plan.window, max(batch.lengths))
        for row, (start, stop) in enumerate(spans):
            sequence = batch.first + row
            listed = None if plan.step is None else self._listed(plan, sequence)
            orders = [None, *self._shuffles(sequence, stop - start)]
            for order, statistics in zip(orders, sums.statistics, strict=True):
                divide = self.settings.divide_attention_factor
                for part, planes in vectors.parts(plan, row, (start, stop), order, divide=divide):
                    self._count_part(statistics, planes, part, listed, self._temperature(vectors), sequence)

    def _listed(self, plan: EntryPlan, sequence: int) -> list[Positions]:
        """The sample of a sequence, drawn once for all layers that share the plan."""
        key = (sequence, plan.window, plan.most_entries, plan.seed, len(plan.lengths))
        if key not in self._drawn:
            self._drawn[key] = plan.entry_positions(sequence)
        return self._drawn[key]

    def _count_part(
        self,
        statistics: CorrelationSums,
        planes: Planes,
        part: EntryPlan,
        listed: list[Positions] | None,
        temperature: float,
        sequence: int,
    ) -> None:
        bins, ranks = statistics.bins, statistics.ranks
        query, key = (plane.to(self.settings.dtype) for plane in planes)
        if listed is None:
            statistics.add(self.kernel.every_entry(query, key, part, temperature, bins, ranks), sequence)
            return
        query, key = query.contiguous(), key.contiguous()
        for replicate, places in enumerate(listed):
            inside = _within(places, part, ranks.device)
            statistics.add(
                self.kernel.listed_entries(query, key, inside, temperature, bins, ranks), sequence, replicate
            )

    def _capture(self, number: int, visit: Callable[[LayerVectors, Batch, list[tuple[int, int]]], None]) -> None:
        batch = self.data[number]
        self._drawn.clear()
        spans = real_spans(batch.tokens, batch.attention_mask)
        chunk = chunk_length(self.model, *batch.tokens.shape) if batch.attention_mask is None else None
        tokens, mask = batch.tokens.to(self.model.cfg.device), batch.attention_mask
        mask = None if mask is None else mask.to(tokens.device)
        capture(self.model, tokens, self.rotary, lambda vectors: visit(vectors, batch, spans), mask, chunk)

    def _temperature(self, vectors: LayerVectors) -> float:
        """Softmax temperature on the contributions of `LayerVectors.parts`."""
        return vectors.temperature(self.settings.temperature)

    def _shuffles(self, sequence: int, length: int) -> list[Int[Tensor, " pos"]]:
        """Which position's content each position gets, per repeat; keys that are skipped stay where they are."""
        fixed = min(self.settings.skip_keys, length)
        orders = []
        for repeat in range(self.settings.null_repeats):
            rng = np.random.default_rng([self.settings.seed, sequence, repeat])
            order = np.concatenate([np.arange(fixed), fixed + rng.permutation(length - fixed)])
            orders.append(torch.from_numpy(order))
        return orders

    def description(self, resolved: RotaryModel, windows: dict[int, int | None]) -> dict[str, Any]:
        """What makes this run this run.

        Args:
            resolved: All layers of the model.
            windows: Of the scored layers' masks.
        """
        rows = [
            (tokens, None if batch.attention_mask is None else batch.attention_mask[row])
            for batch in self.data
            for row, tokens in enumerate(batch.tokens)
        ]
        monotonous = sum(one_token_rules(row if mask is None else row[mask.bool()]) for row, mask in rows)
        if monotonous:
            _say_monotonous(monotonous, len(rows))
        extension = active_extension(self.model)
        provenance = {
            "versions": library_versions(),
            "model": model_provenance(self.model),
            "rotary": [asdict(rotary) | {"window": windows.get(rotary.layer)} for rotary in self.rotary],
            "data": {
                "sha256": data_hash(rows),
                "sequences": len(self.lengths),
                "tokens": sum(self.lengths),
                "longest": max(self.lengths),
                "groups": min(len(self.lengths), MOST_GROUPS),
                "monotonous": monotonous,
            },
            "settings": asdict(self.settings),
            "extension": None if extension is None else extension.provenance,
        }
        return {
            "shape": [int(self.model.cfg.n_layers), int(self.model.cfg.n_heads)],
            "batches": len(self.data),
            "unscored": {str(layer): reason for layer, reason in resolved.unscored.items()},
            "provenance": provenance,
        }


@functools.cache  # a run describes itself more than once
def _say_monotonous(sequences: int, of: int) -> None:
    logger.warning(
        "in %d of %d sequences one token fills half or more: content hardly varies there, so that rho says what "
        "position alone does to this model, and the shuffled null is nearly the same run again",
        sequences,
        of,
    )


def _refuse_other_window(vectors: LayerVectors, planned: int | None, length: int) -> None:
    expected = planned if planned is not None and planned < length else None
    if vectors.window != expected:
        layer = vectors.rotary.layer
        msg = f"layer {layer} has a window of {vectors.window} tokens now, {expected} when the run was planned"
        raise UnsupportedModelError(msg)


def _within(places: Positions, plan: EntryPlan, device: torch.device) -> Positions:
    """The listed pairs whose distance the plan counts, on the device where the positions are needed."""
    query_pos, key_pos = places
    distance = query_pos - key_pos
    inside = (distance >= plan.min_distance) & (distance <= plan.furthest)
    if not bool(inside.all()):
        query_pos, key_pos = query_pos[inside], key_pos[inside]
    return query_pos.to(device), key_pos.to(device)
