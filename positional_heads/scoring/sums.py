"""What has been counted so far, by whom, and of what? Sums that add up over batches, processes and machines.

Nothing here needs the model: shards are merged, and a result is made of them, where only their files are.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from positional_heads.core.binning import BinLookup
from positional_heads.core.correlation import Correlation, CorrelationSums
from positional_heads.core.heads import Head
from positional_heads.core.plan import EntryPlan
from positional_heads.core.statistics import bootstrap_weights
from positional_heads.results.files import (
    PARTIAL,
    ResultFileError,
    packed,
    read_result,
    result_file,
    unpacked,
    write_atomically,
)
from positional_heads.results.scores import HeadScores, NullScores

MAY_DIFFER = {"python", "name", "revision"}
"""Between machines that count for one run: the weights' fingerprint says which model it is."""


@dataclass(frozen=True)
class LayerSums:
    """The sums of one layer.

    Attributes:
        frequencies: How fast each pair turns, in radians per token.
        statistics: Sums over pairs at their own positions first, then with positions shuffled, one per repeat.
    """

    frequencies: Float[Tensor, " pair"]
    statistics: list[CorrelationSums]

    def empty(self) -> "LayerSums":
        """The same plans and bins, nothing counted."""
        return LayerSums(
            self.frequencies, [CorrelationSums(one.plan, self.statistics[0].bins) for one in self.statistics]
        )


@dataclass
class ScoreSums:
    """Sums over some batches of a scoring run, and what the run is.

    Attributes:
        layers: The sums of every scored layer.
        done: Numbers of the batches that are in them.
        run: What makes the run this run: shape, number of batches, reasons and provenance; must be JSON.
        kernels: Names of the kernels that placed the bins or counted.
    """

    layers: dict[int, LayerSums]
    done: set[int]
    run: dict[str, Any]
    kernels: set[str]

    @property
    def missing(self) -> set[int]:
        """Numbers of the batches that have not been counted."""
        return set(range(self.run["batches"])) - self.done

    @property
    def windows(self) -> dict[int, int | None]:
        """The window of each scored layer's mask, in tokens."""
        return {layer: one.statistics[0].plan.window for layer, one in self.layers.items()}

    def empty(self) -> "ScoreSums":
        """The same run, nothing counted."""
        return ScoreSums({layer: one.empty() for layer, one in self.layers.items()}, set(), self.run, set())

    def absorb(self, other: "ScoreSums") -> None:
        """Add the sums over other batches of the same run, in place.

        Raises:
            ValueError: If they are of another run, or of batches that are in these sums already.
        """
        if changed := differing(self.run, other.run):
            msg = f"sums of another run cannot be added (different: {', '.join(changed)})"
            raise ValueError(msg)
        if twice := self.done & other.done:
            msg = f"batch {min(twice)} is in both sums: it would count twice"
            raise ValueError(msg)
        for layer, ours in self.layers.items():
            for mine, theirs in zip(ours.statistics, other.layers[layer].statistics, strict=True):
                mine.absorb(theirs)
        self.done |= other.done
        self.kernels |= other.kernels

    def result(self) -> HeadScores:
        """The scores, once every batch has been counted.

        Raises:
            RuntimeError: If batches are missing.
        """
        if self.missing:
            msg = f"{len(self.missing)} of {self.run['batches']} batches have not been counted: there is no score yet"
            raise RuntimeError(msg)
        actual = {layer: one.statistics[0].correlation() for layer, one in self.layers.items()}
        shuffled = {layer: [null.correlation() for null in one.statistics[1:]] for layer, one in self.layers.items()}
        stacked = _Stacked(tuple(self.run["shape"]), actual)
        rho = stacked.over_layers(lambda one: one.rho)
        frequencies = {layer: one.frequencies for layer, one in self.layers.items()}
        sampled = any(one.plan.step is not None for one in actual.values())
        return HeadScores(
            rho=rho,
            rho_curve=stacked.over_layers(lambda one: one.rho_curve),
            curve=stacked.over_layers(lambda one: one.curve),
            pair_counts=stacked.pair_counts(),
            bound=stacked.over_layers(lambda one: one.bound),
            saturation=stacked.over_layers(lambda one: one.saturation),
            sampling_sd=stacked.over_layers(lambda one: one.sampling_sd) if sampled else None,
            frequencies=stack(stacked.shape[:1], frequencies),
            null=_null(stacked.shape, shuffled) if any(shuffled.values()) else None,
            bootstrap_rho=stacked.bootstrap(self.run["provenance"]["settings"]),
            reasons=self._reasons(rho),
            provenance={**self.run["provenance"], "kernels": sorted(self.kernels)},
        )

    def save(self, path: str | Path, name: str = PARTIAL.file_name) -> Path:
        """Write the sums to one file, all of it or nothing.

        Args:
            path: A file, or a folder.
            name: What the file is called in a folder.
        """
        file = result_file(path, name)
        write_atomically(file, self.to_bytes())
        return file

    @classmethod
    def load(cls, path: str | Path, name: str = PARTIAL.file_name) -> "ScoreSums":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ResultFileError: If the file is damaged, foreign, or from a newer version.
        """
        return cls.from_bytes(read_result(result_file(path, name), PARTIAL)[1])

    def to_bytes(self) -> bytes:
        """The sums as `save` writes them."""
        tensors = {f"{layer}.frequencies": one.frequencies for layer, one in self.layers.items()}
        for layer, one in self.layers.items():
            tensors[f"{layer}.edges"] = one.statistics[0].bins.edges
            tensors[f"{layer}.displaced"] = one.statistics[0].bins.displaced
            for repeat, statistics in enumerate(one.statistics):
                tensors |= {f"{layer}.{repeat}.{key}": tensor for key, tensor in statistics.tensors.items()}
        plans = {layer: one.statistics[0].plan for layer, one in self.layers.items()}
        content = {
            "run": self.run,
            "done": sorted(self.done),
            "kernels": sorted(self.kernels),
            "lengths": list(next(iter(plans.values())).lengths),
            "plans": {str(layer): _plan_settings(plan) for layer, plan in plans.items()},
            "repeats": len(next(iter(self.layers.values())).statistics),
        }
        return packed(save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}), content, PARTIAL)

    @classmethod
    def from_bytes(cls, raw: bytes, device: Any = "cpu") -> "ScoreSums":
        """Read what `to_bytes` made.

        Raises:
            ResultFileError: If it is damaged, or of an earlier version.
        """
        content = unpacked(raw, PARTIAL, "sums")
        tensors = {key: tensor.to(device) for key, tensor in load(raw).items()}
        if not any(key.endswith(".0.entries") for key in tensors):
            msg = "these sums are of an earlier version and cannot be continued: delete the file and count again"
            raise ResultFileError(msg)
        resolution = float(content["run"]["provenance"]["settings"]["resolution"])
        layers, plans = {}, SharedPlans(lambda settings: EntryPlan(tuple(content["lengths"]), **settings))
        for layer, settings in content["plans"].items():
            bins = BinLookup(tensors[f"{layer}.edges"], resolution, tensors[f"{layer}.displaced"])
            statistics = plans.statistics(settings, bins, content["repeats"] - 1)
            for repeat, one in enumerate(statistics):
                for name, tensor in one.tensors.items():
                    tensor.copy_(tensors[f"{layer}.{repeat}.{name}"])
            layers[int(layer)] = LayerSums(tensors[f"{layer}.frequencies"].cpu(), statistics)
        return cls(layers, set(content["done"]), content["run"], set(content["kernels"]))

    def _reasons(self, rho: Float[Tensor, "layer head"]) -> dict[Head, str]:
        unscored, reasons = self.run["unscored"], {}
        for layer, head in rho.isnan().nonzero().tolist():
            otherwise = (
                "its dominant dimension, to the resolution asked for, or the distance, is the same for every pair"
            )
            missing = unscored.get(str(layer), "its layer was not asked for")
            reasons[Head(layer, head)] = otherwise if layer in self.layers else missing
        return reasons


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of what differs between two runs so that their sums cannot be added."""
    ours, theirs = (json.loads(json.dumps(run)) for run in (ours, theirs))
    names = []
    for part in ("model", "rotary", "data", "settings", "extension", "versions"):
        mine, other = (run["provenance"].get(part) for run in (ours, theirs))
        if isinstance(mine, dict) and isinstance(other, dict):
            keys = sorted({*mine, *other} - MAY_DIFFER)
            names += [f"{part} {key}" for key in keys if mine.get(key) != other.get(key)]
        elif mine != other:
            names.append(part)
    return names or ([] if ours["batches"] == theirs["batches"] else ["batch size"])


def ungrouped(plan: EntryPlan) -> EntryPlan:
    """The plan of shuffled positions: the same pairs, in one group."""
    return EntryPlan(plan.lengths, **{**_plan_settings(plan), "n_groups": 1})


class SharedPlans:
    """Plans that layers share, with what is worked out about each once."""

    def __init__(self, make: Callable[[Any], EntryPlan]) -> None:
        """None yet.

        Args:
            make: A plan, from what is different between layers.
        """
        self._make = make
        self._made: dict[str, tuple[EntryPlan, EntryPlan]] = {}

    def own(self, settings: Any) -> EntryPlan:
        """The plan of pairs at their own positions.

        Args:
            settings: What is different between layers.
        """
        key = repr(settings)
        if key not in self._made:
            plan = self._make(settings)
            self._made[key] = plan, ungrouped(plan)
        return self._made[key][0]

    def statistics(self, settings: Any, bins: BinLookup, repeats: int) -> list[CorrelationSums]:
        """Statistics of one layer, nothing counted: at pairs' own positions, then one for each shuffle.

        Args:
            settings: What is different between layers.
            bins: The layer's.
            repeats: Shuffles.
        """
        plan = self.own(settings)
        shuffled = self._made[repr(settings)][1]
        return [CorrelationSums(one, bins) for one in (plan, *[shuffled] * repeats)]


def stack(shape: tuple[int, ...], by_layer: dict[int, Tensor]) -> Tensor:
    """One tensor over layers, NaN where a layer has no value, or fewer of them (Gemma-4: fewer pairs in some layers).

    Args:
        shape: Layers, or layers and heads.
        by_layer: One tensor of each layer that has one.
    """
    widest = max(by_layer.values(), key=lambda values: values.shape[-1])
    tail = widest.shape if len(shape) == 1 else widest.shape[1:]
    stacked = torch.full((*shape, *tail), torch.nan, dtype=torch.float64)
    for layer, values in by_layer.items():
        stacked[layer, ..., : values.shape[-1]] = values
    return stacked


@dataclass(frozen=True)
class _Stacked:
    """Correlations of all layers, read side by side."""

    shape: tuple[int, ...]
    layers: dict[int, Correlation]

    def over_layers(self, value: Callable[[Correlation], Tensor]) -> Tensor:
        return stack(self.shape, {layer: value(one) for layer, one in self.layers.items()})

    def pair_counts(self) -> Tensor:
        plans = {layer: one.plan for layer, one in self.layers.items()}
        counts = torch.zeros(self.shape[0], next(iter(plans.values())).distances, dtype=torch.long)
        for layer, plan in plans.items():
            counts[layer] = plan.entry_counts
        return counts

    def bootstrap(self, settings: dict[str, Any]) -> Tensor | None:
        n_groups = next(iter(self.layers.values())).plan.n_groups
        if n_groups < 2:  # noqa: PLR2004
            return None
        weights = bootstrap_weights(n_groups, settings["resamples"], settings["seed"])
        everything = torch.ones(1, n_groups, dtype=torch.float64)

        def drawn(one: Correlation) -> Tensor:
            return (one.resampled_rho(weights) + one.rho - one.resampled_rho(everything)[0]).T

        return self.over_layers(drawn).movedim(-1, 0).contiguous()


def _null(shape: tuple[int, ...], shuffled: dict[int, list[Correlation]]) -> NullScores:
    curves = {layer: torch.stack([one.curve for one in many]) for layer, many in shuffled.items()}
    rho = {layer: torch.stack([one.rho for one in many], dim=-1) for layer, many in shuffled.items()}
    return NullScores(
        rho=stack(shape, rho).movedim(-1, 0).contiguous(),
        curve_mean=stack(shape, {layer: curve.mean(0) for layer, curve in curves.items()}),
        curve_sd=stack(shape, {layer: curve.std(0) for layer, curve in curves.items()}),
    )


def _plan_settings(plan: EntryPlan) -> dict[str, Any]:
    """Everything about a plan but the lengths."""
    names = ("window", "skip_keys", "min_distance", "max_distance", "n_groups", "most_entries", "seed")
    return {name: getattr(plan, name) for name in names}
