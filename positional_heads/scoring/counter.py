"""Count the entries (query-key pairs) of one scoring run: place bins on a pilot, then fold every batch into the sums.

A layer's rotated queries and keys are counted as soon as it has run (`layer_counter`): once, or a second time without
the first keys where a control is asked for. The pilot is the batch with the longest sequence, which also shows each
layer's sliding window, and up to three more. All shards use the same pilot, and so get the same bins.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.rotary_layer import RotaryModel
from positional_heads.bridge.sequences import Batch
from positional_heads.core.kernels.choosing import choose_kernel
from positional_heads.core.kernels.eager import EagerKernel
from positional_heads.core.kernels.sums import Kernel
from positional_heads.core.logs import warn_once
from positional_heads.core.plan import REPLICATES, EntryPlan
from positional_heads.core.statistics import one_token_rules
from positional_heads.scoring.batches import Row, capture_batch, run_provenance, token_rows
from positional_heads.scoring.layer_counter import PILOT_ENTRIES, LayerCounter
from positional_heads.scoring.layer_sums import LayerSums
from positional_heads.scoring.profile_counter import ProfileCounter
from positional_heads.scoring.profile_settings import ProfileSettings
from positional_heads.scoring.settings import MOST_GROUPS, ScoringSettings
from positional_heads.scoring.sums import ScoreSums, differences

SAMPLED_COST = 4
"""Cost of a sampled entry in the eager kernel, relative to one in a matrix product."""
PILOT_BATCHES, BATCHES_PER_PILOT = 4, 16
"""Most batches of the pilot; it takes one more for every so many batches of the run."""


class EntryCounter:
    """Counts the entries of numbered batches of one run with one model."""

    def __init__(  # noqa: PLR0917  what a run consists of
        self,
        model: TransformerLensModel,
        data: list[Batch],
        resolved: RotaryModel,
        layers: Sequence[int] | None,
        settings: ScoringSettings,
        origin: dict[str, Any] | None = None,
        profile: ProfileSettings | None = None,
    ) -> None:
        """Choose the kernel; nothing is counted yet.

        Args:
            model: A TransformerBridge.
            data: Every batch of the run, in order.
            resolved: All layers of the model.
            layers: Layers to score; all that rotate when None.
            settings: Settings of the score.
            origin: What is known of the texts, for the provenance: their names, how sequences were drawn from them.
            profile: Settings of a head profile to count in the same passes; None for none.

        Raises:
            ValueError: If a layer does not exist or does not rotate.
        """
        self.model = model
        self.origin = origin or {}
        self.data = data
        self.unscored = resolved.unscored
        self.rotary = resolved.select(layers)
        self.settings = settings
        kernel = self._kernel(self._terms())
        self._layers = [LayerCounter(one, self.lengths, kernel) for one in settings.scored]
        groups = min(len(self.lengths), MOST_GROUPS)
        self.profile = None if profile is None else ProfileCounter(profile, self.lengths, groups)

    @property
    def kernel(self) -> Kernel:
        """Computes D, the same for the score and its control."""
        return self._layers[0].kernel

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
        kernel = self._kernel(0, name)
        for layers in self._layers:
            layers.kernel = kernel

    def begin(self, *, count_longest: bool) -> ScoreSums:
        """Place the bins of every layer on the pilot, and start the sums.

        Args:
            count_longest: Count the batch with the longest sequence as well.

        Raises:
            ValueError: If no entry counts.
            UnsupportedModelError: If a layer does not reproduce the model's scores.
        """
        sums = ScoreSums({}, {self.longest} if count_longest else set(), {}, {self.kernel.name})
        pilots = len(self.pilot_batches)

        def sample(vectors: LayerVectors, rows: list[Row]) -> None:
            for counter in self._layers:
                counter.sample(vectors, rows, pilots)

        def place_bins(vectors: LayerVectors, rows: list[Row]) -> None:
            sample(vectors, rows)
            layer = vectors.rotary.layer
            for counter, layers in self._counted(sums):
                layers[layer] = counter.begin(vectors, rows)
                # The longest batch costs the most to run, and the vectors of all its layers do not fit in memory
                # together. So it is not run a second time: each layer is counted here, while its vectors exist.
                if count_longest:
                    counter.count(layers[layer], vectors, rows)
            if self.profile is not None:
                sums.profile[layer] = self.profile.begin(vectors)
                if count_longest:
                    self.profile.count(sums.profile[layer], vectors, rows, self.data[self.longest].tokens)

        *others, longest = self.pilot_batches
        for number in others:
            self._capture(number, sample)
        self._capture(longest, place_bins)
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
            for counter, layers in self._counted(sums):
                layers[layer] = layers[layer].on(vectors.rot_q.device)
                counter.count(layers[layer], vectors, rows)
            if self.profile is not None:
                self.profile.count(sums.profile[layer], vectors, rows, self.data[number].tokens)

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
        provenance["data"] |= {"groups": min(len(self.lengths), MOST_GROUPS), "monotonous": monotonous, **self.origin}
        if self.profile is not None:
            provenance["profile"] = asdict(self.profile.settings)
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
        return width * entry_cost(self.settings, self.settings.plan(self.lengths, None))

    def _counted(self, sums: ScoreSums) -> list[tuple[LayerCounter, dict[int, LayerSums]]]:
        """What counts the score, and its control where there is one, with the sums of each."""
        return list(zip(self._layers, (sums.layers, sums.control), strict=False))

    def _capture(self, number: int, visit: Callable[[LayerVectors, list[Row]], None]) -> None:
        for counter in self._layers:
            counter.forget()
        if self.profile is not None:
            self.profile.forget()
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
