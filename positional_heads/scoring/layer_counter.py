"""Count the entries (query-key pairs) of single layers under one setting: place bins on a pilot, then fold in rows.

A layer's rotated queries and keys are counted at their own positions and with positions shuffled. What is drawn
(pilot, samples and shuffles) is drawn once for all layers with the same window.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import UnsupportedModelError
from positional_heads.core.correlation import CorrelationSums
from positional_heads.core.kernels.sums import Kernel
from positional_heads.core.null import NullSums
from positional_heads.core.pilot import PilotSample
from positional_heads.core.plan import EntryPlan, Positions
from positional_heads.core.rotary import Planes, pair_frequencies
from positional_heads.core.shuffles import Runs, Shuffled, ShufflePlan
from positional_heads.scoring.batches import Row
from positional_heads.scoring.layer_sums import LayerSums
from positional_heads.scoring.settings import ScoringSettings

PILOT_ROWS = 4
PILOT_ENTRIES = 2**15
"""Entries that place the bins of a head: 16 for each of 2048 bins."""
CHECKED_ENTRIES = 2**13
"""Pilot entries whose D is also computed in float64, to measure how often rounding moves D to another bin."""


class LayerCounter:
    """Counts the entries of layers under one setting; `kernel` may be replaced before anything is counted."""

    def __init__(self, settings: ScoringSettings, lengths: tuple[int, ...], kernel: Kernel) -> None:
        """Nothing is drawn or counted yet.

        Args:
            settings: Settings of the score; those of its control are ignored.
            lengths: Real tokens of every sequence of the run.
            kernel: Computes D.
        """
        self.settings = settings
        self.lengths = lengths
        self.kernel = kernel
        self._pilot: dict[int, list[PilotSample]] = defaultdict(list)
        self._plans: dict[EntryPlan, EntryPlan] = {}
        self._shuffle_plans: dict[ShufflePlan, ShufflePlan] = {}
        self._pilots: dict[EntryPlan, Positions] = {}
        self._samples: dict[tuple[int, int | None], list[Positions]] = {}
        self._shuffles: dict[tuple[int, int | None], tuple[Tensor, Runs | None]] = {}

    def sample(self, vectors: LayerVectors, rows: list[Row], pilots: int) -> None:
        """Add one layer of one batch to the pilot.

        Args:
            vectors: Queries and keys of the layer.
            rows: Rows of the batch.
            pilots: Number of batches of the pilot.
        """
        self._pilot[vectors.rotary.layer].append(self._pilot_sample(vectors, rows, pilots))

    def begin(self, vectors: LayerVectors, rows: list[Row]) -> LayerSums:
        """Sums with bins placed on the pilot of a layer, nothing counted.

        Args:
            vectors: Queries and keys of the layer in the last batch of the pilot.
            rows: Rows of that batch, one of them the longest of the run.

        Raises:
            ValueError: If no entry counts.
        """
        pilot = PilotSample.joined(self._pilot.pop(vectors.rotary.layer))
        if pilot.sample.shape[1] == 0:
            raise ValueError(nothing_counts(max(self.lengths)))
        plan = self._plan(vectors.window)
        bins = pilot.bins(self.settings.bins, self.settings.resolution, int(plan.entry_counts.sum()))
        row = max(rows, key=lambda row: row.length)
        phase = vectors.phase(row.number)[row.start : row.stop]
        return LayerSums.at_zero(pair_frequencies(phase).abs().cpu(), plan, self._shuffle_plan(plan), bins)

    def count(self, sums: LayerSums, vectors: LayerVectors, rows: list[Row]) -> None:
        """Fold the entries of one layer of one batch into its sums.

        Args:
            sums: Sums of the layer, on its device; changed in place.
            vectors: Queries and keys of the layer.
            rows: Rows of the batch.

        Raises:
            UnsupportedModelError: If the layer's window is not the planned one.
        """
        plan, temperature = sums.own.plan, vectors.temperature(self.settings.temperature)
        _refuse_other_window(vectors, plan.window, max(row.length for row in rows))
        for row in rows:
            sample = None if plan.step is None else self._sample(plan, row.sequence)
            for part, planes in self._planes(vectors, plan, row):
                self._count_part(sums.own, planes, part, sample, temperature, row.sequence)
            if sums.null is not None:
                self._count_shuffles(sums.null, vectors, row, temperature)

    def forget(self) -> None:
        """Drop what was drawn for the sequences of a batch."""
        self._pilots.clear()
        self._samples.clear()
        self._shuffles.clear()

    def _plan(self, window: int | None) -> EntryPlan:
        plan = self.settings.plan(self.lengths, window)
        return self._plans.setdefault(plan, plan)

    def _shuffle_plan(self, plan: EntryPlan) -> ShufflePlan | None:
        if not self.settings.null_repeats:
            return None
        shuffles = self.settings.shuffle_plan(plan)
        return self._shuffle_plans.setdefault(shuffles, shuffles)

    def _pilot_sample(self, vectors: LayerVectors, rows: list[Row], pilots: int) -> PilotSample:
        """D of a few entries of a few rows of one layer."""
        chosen = sorted(set(np.linspace(0, len(rows) - 1, PILOT_ROWS).round().astype(int).tolist()))
        shares = len(chosen) * pilots
        parts, temperature = [], vectors.temperature(self.settings.temperature)
        for row in (rows[number] for number in chosen):
            plan = self.settings.plan((row.length,), vectors.window)
            plan = replace(plan, most_entries=PILOT_ENTRIES // shares, seed=row.sequence)
            listed = self._pilot_entries(plan)
            for part, planes in self._planes(vectors, plan, row):
                entries = _counted_entries(listed, part, planes[0].device)
                parts.append(PilotSample.measured(self.kernel, planes, entries, temperature, CHECKED_ENTRIES // shares))
        return PilotSample.joined(parts)

    def _pilot_entries(self, plan: EntryPlan) -> Positions:
        """The entries of a row that place the bins, drawn once for all layers with the same window."""
        if plan not in self._pilots:
            query_pos, key_pos = (torch.cat(positions) for positions in zip(*plan.entry_positions(0), strict=True))
            self._pilots[plan] = query_pos, key_pos
        return self._pilots[plan]

    def _count_shuffles(self, null: NullSums, vectors: LayerVectors, row: Row, temperature: float) -> None:
        """Count all entries of every shuffle of a sequence, or a sample of them."""
        plan, divide = null.plan.entries, self.settings.divide_attention_factor
        orders, runs = self._shuffled(null.plan, row.sequence)
        ranks = plan.rank_grid.to(null.bins.edges.device)
        for part, unrotated in vectors.unrotated_parts(plan, row.number, (row.start, row.stop), divide=divide):
            content = unrotated.to(self.settings.dtype)
            if runs is not None:
                shuffled = Shuffled(content, orders, runs.within(part))
                self.kernel.add_runs(shuffled, part, temperature, null.bins, ranks, null.sums)
                continue
            for shuffle, order in enumerate(orders):
                planes = content.rotated(order)
                null.sums.add(self.kernel.every_entry(*planes, part, temperature, null.bins, ranks), shuffle)

    def _planes(
        self, vectors: LayerVectors, plan: EntryPlan, row: Row
    ) -> Iterator[tuple[EntryPlan, tuple[Planes, Planes]]]:
        """Each range of distances: its part of the plan, and the row's planes there in the precision of D."""
        divide, dtype = self.settings.divide_attention_factor, self.settings.dtype
        for part, (query, key) in vectors.parts(plan, row.number, (row.start, row.stop), divide=divide):
            yield part, (query.to(dtype), key.to(dtype))

    def _shuffled(self, plan: ShufflePlan, sequence: int) -> tuple[Int[Tensor, "shuffle pos"], Runs | None]:
        """The shuffles of a sequence and their samples, drawn once for all layers with the same window."""
        key = sequence, plan.entries.window
        if key not in self._shuffles:
            self._shuffles[key] = plan.orders(sequence), plan.runs(sequence)
        return self._shuffles[key]

    def _sample(self, plan: EntryPlan, sequence: int) -> list[Positions]:
        """The sampled entries of a sequence, drawn once for all layers with the same window."""
        if (sequence, plan.window) not in self._samples:
            # by query: neighbours in the list then share its vector in cache
            self._samples[sequence, plan.window] = [
                tuple(positions[:, positions[0].argsort(stable=True)])
                for positions in map(torch.stack, plan.entry_positions(sequence))
            ]
        return self._samples[sequence, plan.window]

    def _count_part(
        self,
        statistics: CorrelationSums,
        planes: tuple[Planes, Planes],
        part: EntryPlan,
        sample: list[Positions] | None,
        temperature: float,
        sequence: int,
    ) -> None:
        bins, ranks = statistics.bins, statistics.ranks
        if sample is None:
            statistics.add(self.kernel.every_entry(*planes, part, temperature, bins, ranks), sequence)
            return
        query, key = (plane.contiguous() for plane in planes)
        replicates = [_counted_entries(positions, part, ranks.device) for positions in sample]
        for replicate, sums in enumerate(self.kernel.sampled_entries(query, key, replicates, temperature, bins, ranks)):
            statistics.add(sums, sequence, replicate)


def _refuse_other_window(vectors: LayerVectors, planned: int | None, length: int) -> None:
    expected = planned if planned is not None and planned < length else None
    if vectors.window != expected:
        layer = vectors.rotary.layer
        msg = f"layer {layer} has a window of {vectors.window} tokens now, {expected} when the run was planned"
        raise UnsupportedModelError(msg)


def _counted_entries(positions: Positions, plan: EntryPlan, device: torch.device) -> Positions:
    """The entries whose distance the plan counts, on a device."""
    query_pos, key_pos = positions
    distance = query_pos - key_pos
    inside = (distance >= plan.min_distance) & (distance <= plan.furthest)
    if not bool(inside.all()):
        query_pos, key_pos = query_pos[inside], key_pos[inside]
    return query_pos.to(device), key_pos.to(device)


def nothing_counts(longest: int) -> str:
    """Why settings are refused that leave no entry."""
    return (
        "no query-key pair counts: skip_keys, min_distance and max_distance leave none in sequences of at most "
        f"{longest} tokens"
    )
