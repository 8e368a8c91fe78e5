"""Count the entries (query-key pairs) of one scoring run: place bins on a pilot, then fold every batch into the sums.

A layer's rotated queries and keys are counted as soon as it has run, at their own positions and with positions
shuffled. The pilot is the batch with the longest sequence, which also shows each layer's sliding window, and up to
three more. All shards use the same pilot, and so get the same bins.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.rotary_layer import RotaryModel
from positional_heads.bridge.sequences import Batch
from positional_heads.core.correlation import CorrelationSums
from positional_heads.core.kernels.choosing import choose_kernel
from positional_heads.core.kernels.eager import EagerKernel
from positional_heads.core.kernels.sums import Kernel
from positional_heads.core.logs import warn_once
from positional_heads.core.null import NullSums
from positional_heads.core.pilot import PilotSample
from positional_heads.core.plan import REPLICATES, EntryPlan, Positions
from positional_heads.core.rotary import Planes, pair_frequencies
from positional_heads.core.shuffles import Runs, Shuffled, ShufflePlan
from positional_heads.core.statistics import one_token_rules
from positional_heads.scoring.batches import Row, capture_batch, run_provenance, token_rows
from positional_heads.scoring.settings import MOST_GROUPS, ScoringSettings
from positional_heads.scoring.sums import LayerSums, ScoreSums, differences

SAMPLED_COST = 4
"""Cost of a sampled entry in the eager kernel, relative to one in a matrix product."""
PILOT_BATCHES, BATCHES_PER_PILOT = 4, 16
"""Most batches of the pilot; it takes one more for every so many batches of the run."""
PILOT_ROWS = 4
PILOT_ENTRIES = 2**15
"""Entries that place the bins of a head: 16 for each of 2048 bins."""
CHECKED_ENTRIES = 2**13
"""Pilot entries whose D is also computed in float64, to measure how often rounding moves D to another bin."""


class EntryCounter:
    """Counts the entries of numbered batches of one run with one model."""

    def __init__(
        self,
        model: TransformerLensModel,
        data: list[Batch],
        resolved: RotaryModel,
        layers: Sequence[int] | None,
        settings: ScoringSettings,
        drawn: dict[str, Any] | None = None,
    ) -> None:
        """Choose the kernel; nothing is counted yet.

        Args:
            model: A TransformerBridge.
            data: Every batch of the run, in order.
            resolved: All layers of the model.
            layers: Layers to score; all that rotate when None.
            settings: Settings of the score.
            drawn: How the sequences were drawn from texts, for the provenance; None where they were not.

        Raises:
            ValueError: If a layer does not exist or does not rotate.
        """
        self.model = model
        self.drawn = drawn
        self.data = data
        self.unscored = resolved.unscored
        self.rotary = resolved.select(layers)
        self.settings = settings
        self._plans: dict[EntryPlan, EntryPlan] = {}
        self._shuffle_plans: dict[ShufflePlan, ShufflePlan] = {}
        self._pilots: dict[EntryPlan, Positions] = {}
        self._samples: dict[tuple[int, int | None], list[Positions]] = {}
        self._shuffles: dict[tuple[int, int | None], tuple[Tensor, Runs | None]] = {}
        self.kernel = self._kernel(self._terms())

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Real tokens of every sequence."""
        return tuple(length for batch in self.data for length in batch.lengths)

    @property
    def longest(self) -> int:
        """Number of the batch with the longest sequence."""
        return max(range(len(self.data)), key=lambda number: max(self.data[number].lengths))

    @cached_property
    def pilot_batches(self) -> list[int]:
        """Numbers of the batches that bins are placed on, the one with the longest sequence last."""
        entries = sum(length * (length + 1) // 2 for length in self.data[self.longest].lengths)
        extra = min(PILOT_BATCHES - 1, max(len(self.data) // BATCHES_PER_PILOT, -(-PILOT_ENTRIES // entries) - 1))
        extra = min(extra, len(self.data) - 1)
        spread = np.linspace(0, len(self.data) - 1, extra + 2)[1:-1].round().astype(int).tolist()
        chosen = [number for number in dict.fromkeys(spread) if number != self.longest]
        others = [number for number in range(len(self.data)) if number not in {*chosen, self.longest}]
        return [*chosen, *others[: extra - len(chosen)], self.longest]

    def use_kernel(self, name: str) -> None:
        """Count with this kernel, e.g. the one that an interrupted run began with."""
        self.kernel = self._kernel(0, name)

    def begin(self, *, count_longest: bool) -> ScoreSums:
        """Place the bins of every layer on the pilot, and start the sums.

        Args:
            count_longest: Count the batch with the longest sequence as well.

        Raises:
            ValueError: If no entry counts.
            UnsupportedModelError: If a layer does not reproduce the model's scores.
        """
        pilot: dict[int, list[PilotSample]] = defaultdict(list)
        sums = ScoreSums({}, {self.longest} if count_longest else set(), {}, {self.kernel.name})

        def sample(vectors: LayerVectors, rows: list[Row]) -> None:
            pilot[vectors.rotary.layer].append(self._pilot_sample(vectors, rows))

        def place_bins(vectors: LayerVectors, rows: list[Row]) -> None:
            sample(vectors, rows)
            layer = vectors.rotary.layer
            sums.layers[layer] = self._empty_sums(vectors, rows, PilotSample.joined(pilot.pop(layer)))
            # The longest batch costs the most to run, and the vectors of all its layers do not fit in memory together.
            # So it is not run a second time: each layer is counted here, while its vectors exist.
            if count_longest:
                self._count_rows(sums.layers[layer], vectors, rows)

        *others, longest = self.pilot_batches
        for number in others:
            self._capture(number, sample)
        self._capture(longest, place_bins)
        self._pilots.clear()
        sums.run = self.description(sums.windows)
        return sums

    def count(self, number: int, sums: ScoreSums) -> None:
        """Run one batch through the model and fold the entries of every layer into the sums.

        Args:
            number: Number of the batch.
            sums: Sums of this run; changed in place, and invalid if this raises.
        """

        def count_rows(vectors: LayerVectors, rows: list[Row]) -> None:
            layer = vectors.rotary.layer
            sums.layers[layer] = sums.layers[layer].on(vectors.rot_q.device)
            self._count_rows(sums.layers[layer], vectors, rows)

        self._capture(number, count_rows)
        sums.done.add(number)
        sums.kernels.add(self.kernel.name)

    def refuse_other_run(self, sums: ScoreSums, file: Path | None) -> None:
        """Refuse sums that are not of this run.

        Args:
            sums: Sums from a file.
            file: Where they come from.

        Raises:
            ValueError: If model, data or settings differ; the message says which.
        """
        if changed := differences(self.description(sums.windows), sums.run):
            msg = (
                f"{file}: holds sums of another run (different: {', '.join(changed)}); finish that run with its own "
                "settings, choose another folder, or delete the file"
            )
            raise ValueError(msg)

    def description(self, windows: dict[int, int | None]) -> dict[str, Any]:
        """What identifies this run: sums of runs with the same description can be added.

        Args:
            windows: Sliding window of each scored layer's mask, in tokens.
        """
        real = [tokens if mask is None else tokens[mask.bool()] for tokens, mask in token_rows(self.data)]
        monotonous = sum(map(one_token_rules, real))
        if monotonous:
            warning = (
                f"in {monotonous} of {len(real)} sequences one token fills half or more: content hardly varies there, "
                "so rho measures the effect of position alone, and the shuffled null is nearly the same run"
            )
            warn_once(__name__, warning)
        provenance = run_provenance(self.model, self.data, asdict(self.settings))
        provenance["rotary"] = [rotary.provenance | {"window": windows.get(rotary.layer)} for rotary in self.rotary]
        provenance["data"] |= {"groups": min(len(self.lengths), MOST_GROUPS), "monotonous": monotonous}
        if self.drawn is not None:
            provenance["data"]["drawn"] = self.drawn
        return {
            "shape": [int(self.model.cfg.n_layers), int(self.model.cfg.n_heads)],
            "batches": len(self.data),
            "unscored": {str(layer): reason for layer, reason in self.unscored.items()},
            "provenance": provenance,
        }

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
        """Cost of the whole run, in entries times rotary pairs."""
        width = sum(rotary.n_heads * rotary.rotary_dim // 2 for rotary in self.rotary)
        return width * entry_cost(self.settings, self._plan(None))

    def _plan(self, window: int | None) -> EntryPlan:
        plan = self.settings.plan(self.lengths, window)
        return self._plans.setdefault(plan, plan)

    def _shuffle_plan(self, plan: EntryPlan) -> ShufflePlan | None:
        if not self.settings.null_repeats:
            return None
        shuffles = self.settings.shuffle_plan(plan)
        return self._shuffle_plans.setdefault(shuffles, shuffles)

    def _pilot_sample(self, vectors: LayerVectors, rows: list[Row]) -> PilotSample:
        """D of a few entries of a few rows of one layer."""
        chosen = sorted(set(np.linspace(0, len(rows) - 1, PILOT_ROWS).round().astype(int).tolist()))
        shares = len(chosen) * len(self.pilot_batches)
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

    def _empty_sums(self, vectors: LayerVectors, rows: list[Row], pilot: PilotSample) -> LayerSums:
        if pilot.sample.shape[1] == 0:
            raise ValueError(nothing_counts(max(self.lengths)))
        plan = self._plan(vectors.window)
        bins = pilot.bins(self.settings.bins, self.settings.resolution, int(plan.entry_counts.sum()))
        row = max(rows, key=lambda row: row.length)
        phase = vectors.phase(row.number)[row.start : row.stop]
        return LayerSums.at_zero(pair_frequencies(phase).abs().cpu(), plan, self._shuffle_plan(plan), bins)

    def _count_rows(self, sums: LayerSums, vectors: LayerVectors, rows: list[Row]) -> None:
        plan, temperature = sums.own.plan, vectors.temperature(self.settings.temperature)
        _refuse_other_window(vectors, plan.window, max(row.length for row in rows))
        for row in rows:
            sample = None if plan.step is None else self._sample(plan, row.sequence)
            for part, planes in self._planes(vectors, plan, row):
                self._count_part(sums.own, planes, part, sample, temperature, row.sequence)
            if sums.null is not None:
                self._count_shuffles(sums.null, vectors, row, temperature)

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

    def _capture(self, number: int, visit: Callable[[LayerVectors, list[Row]], None]) -> None:
        self._samples.clear()
        self._shuffles.clear()
        capture_batch(self.model, self.data[number], self.rotary, visit)


def entry_cost(settings: ScoringSettings, plan: EntryPlan) -> int:
    """Entries that a run counts of each head, sampled ones at their higher cost: the kernel is chosen by it.

    Args:
        settings: Settings of the score.
        plan: Which entries count, without a window.
    """
    every, shuffled = int(plan.all_entry_counts.sum()), settings.shuffle_plan(plan)
    counted = every if plan.step is None else round(every / plan.step * REPLICATES) * SAMPLED_COST
    null = every if shuffled.step is None else round(every / shuffled.step) * SAMPLED_COST
    return counted + null * settings.null_repeats


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
