"""Sums of a run that add up over batches, processes and machines, and the scores that they give.

Nothing here needs the model: shards are merged and scored from their files alone.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from positional_heads.core.binning import BinLookup
from positional_heads.core.correlation import Correlation, CorrelationSums
from positional_heads.core.heads import Head
from positional_heads.core.null import NullSums
from positional_heads.core.plan import EntryPlan
from positional_heads.core.shuffles import ShufflePlan
from positional_heads.core.statistics import bootstrap_weights
from positional_heads.results.files import (
    PARTIAL,
    ResultFileError,
    earlier_sums,
    packed,
    read_result,
    result_file,
    unpacked,
    write_atomically,
)
from positional_heads.results.scores import HeadScores, NullScores

MAY_DIFFER = {"python", "name", "revision"}
"""May differ between machines that count for one run: the fingerprint of the weights identifies the model."""
PER_HEAD = ("rho", "rho_curve", "curve", "bound", "saturation")
"""Properties of `Correlation` that become fields of `HeadScores`."""


@dataclass(frozen=True)
class LayerSums:
    """The sums of one layer.

    Attributes:
        frequencies: Rotation frequency of each pair, in radians per token.
        own: Sums over entries at their own positions.
        null: Sums over entries with positions shuffled, or None without a null.
    """

    frequencies: Float[Tensor, " pair"]
    own: CorrelationSums
    null: NullSums | None

    @classmethod
    def at_zero(
        cls, frequencies: Float[Tensor, " pair"], plan: EntryPlan, shuffles: ShufflePlan | None, bins: BinLookup
    ) -> "LayerSums":
        """Nothing counted."""
        null = None if shuffles is None else NullSums.empty(shuffles, bins)
        return cls(frequencies, CorrelationSums(plan, bins), null)

    @property
    def bins(self) -> BinLookup:
        """Bins of D, the same for all."""
        return self.own.bins

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The sums by name."""
        null = {} if self.null is None else {f"null.{name}": tensor for name, tensor in self.null.tensors.items()}
        return {f"own.{name}": tensor for name, tensor in self.own.tensors.items()} | null

    def on(self, device: torch.device) -> "LayerSums":
        """These sums on the device of the layer: sums from a file are on the CPU, and layers may be apart."""
        if self.bins.edges.device == device:
            return self
        moved = self.empty(BinLookup(self.bins.edges.to(device), self.bins.resolution, self.bins.displaced))
        for name, tensor in self.tensors.items():
            moved.tensors[name].copy_(tensor)
        return moved

    def empty(self, bins: BinLookup | None = None) -> "LayerSums":
        """The same plans and bins, or equal ones on another device, and nothing counted."""
        shuffles = None if self.null is None else self.null.plan
        return LayerSums.at_zero(self.frequencies, self.own.plan, shuffles, bins or self.bins)

    def absorb(self, other: "LayerSums") -> None:
        """Add the sums over other batches, in place."""
        self.own.absorb(other.own)
        if self.null is not None and other.null is not None:
            self.null.sums.absorb(other.null.sums)


@dataclass
class ScoreSums:
    """Sums over some batches of a scoring run, and what identifies the run.

    Attributes:
        layers: The sums of every scored layer.
        done: Numbers of the batches that are counted.
        run: Shape, number of batches, reasons and provenance of the run; must be JSON.
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
        """Sliding window of each scored layer's mask, in tokens."""
        return {layer: one.own.plan.window for layer, one in self.layers.items()}

    def empty(self) -> "ScoreSums":
        """The same run, nothing counted."""
        return ScoreSums({layer: one.empty() for layer, one in self.layers.items()}, set(), self.run, set())

    def absorb(self, other: "ScoreSums") -> None:
        """Add the sums over other batches of the same run, in place.

        Raises:
            ValueError: If they are of another run, or of batches that are counted already.
        """
        if changed := differences(self.run, other.run):
            msg = f"sums of another run cannot be added (different: {', '.join(changed)})"
            raise ValueError(msg)
        if twice := self.done & other.done:
            msg = f"batch {min(twice)} is in both sums: it would count twice"
            raise ValueError(msg)
        for layer, ours in self.layers.items():
            ours.absorb(other.layers[layer])
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
        shape = tuple(self.run["shape"])
        own = {layer: one.own.correlation() for layer, one in self.layers.items()}
        nulls = {layer: one.null for layer, one in self.layers.items() if one.null is not None}
        by_head = {name: stack(shape, {layer: getattr(one, name) for layer, one in own.items()}) for name in PER_HEAD}
        plans = {layer: one.plan for layer, one in own.items()}
        sampled = any(plan.step is not None for plan in plans.values())
        return HeadScores(
            **by_head,
            pair_counts=_pair_counts(shape[0], plans),
            sampling_sd=stack(shape, {layer: one.sampling_sd for layer, one in own.items()}) if sampled else None,
            frequencies=stack(shape[:1], {layer: one.frequencies for layer, one in self.layers.items()}),
            null=_null(shape, nulls) if nulls else None,
            bootstrap_rho=_bootstrap(shape, own, self.run["provenance"]["settings"]),
            reasons=self._reasons(by_head["rho"]),
            provenance={**self.run["provenance"], "kernels": sorted(self.kernels)},
        )

    def save(self, path: str | Path) -> Path:
        """Write the sums to one file, whole or not at all.

        Args:
            path: A file, or a folder.
        """
        file = result_file(path, PARTIAL.file_name)
        write_atomically(file, self.to_bytes())
        return file

    @classmethod
    def load(cls, path: str | Path) -> "ScoreSums":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ResultFileError: If the file is damaged, of another kind, or of another version.
        """
        content, raw = read_result(path, PARTIAL)
        if earlier := earlier_sums(result_file(path, PARTIAL.file_name), content):
            raise ResultFileError(earlier)
        return cls.from_bytes(raw)

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        tensors: dict[str, Tensor] = {}
        for layer, one in self.layers.items():
            own = {"frequencies": one.frequencies, "edges": one.bins.edges, "displaced": one.bins.displaced}
            tensors |= {f"{layer}.{key}": tensor for key, tensor in own.items()}
            tensors |= {f"{layer}.{key}": tensor for key, tensor in one.tensors.items()}
        plans = {str(layer): asdict(one.own.plan) for layer, one in self.layers.items()}
        null = next(iter(self.layers.values())).null
        (lengths, *_) = [plan.pop("lengths") for plan in plans.values()]
        content = {
            "run": self.run,
            "done": sorted(self.done),
            "kernels": sorted(self.kernels),
            "lengths": lengths,
            "plans": plans,
            "null": None if null is None else {"repeats": null.plan.repeats, "most_entries": null.plan.most_entries},
        }
        return packed(save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}), content, PARTIAL)

    @classmethod
    def from_bytes(cls, raw: bytes) -> "ScoreSums":
        """Read what `to_bytes` made, to the CPU; counting moves each layer's sums to the layer.

        Raises:
            ResultFileError: If it is damaged.
        """
        content = unpacked(raw, PARTIAL, "sums")
        tensors = load(raw)
        resolution = float(content["run"]["provenance"]["settings"]["resolution"])
        layers: dict[int, LayerSums] = {}
        shared: dict[EntryPlan, EntryPlan] = {}
        shared_shuffles: dict[ShufflePlan, ShufflePlan] = {}
        for layer, settings in content["plans"].items():
            plan = EntryPlan(tuple(content["lengths"]), **settings)
            plan = shared.setdefault(plan, plan)  # a plan works out counts at every distance only once
            bins = BinLookup(tensors[f"{layer}.edges"], resolution, tensors[f"{layer}.displaced"])
            shuffles = None
            if content["null"] is not None:
                shuffles = ShufflePlan(replace(plan, n_groups=1, most_entries=None), **content["null"])
                shuffles = shared_shuffles.setdefault(shuffles, shuffles)
            one = LayerSums.at_zero(tensors[f"{layer}.frequencies"], plan, shuffles, bins)
            for name, tensor in one.tensors.items():
                tensor.copy_(tensors[f"{layer}.{name}"])
            layers[int(layer)] = one
        return cls(layers, set(content["done"]), content["run"], set(content["kernels"]))

    def _reasons(self, rho: Float[Tensor, "layer head"]) -> dict[Head, str]:
        constant = "its dominant dimension, at this resolution, or the distance, is the same for every query-key pair"
        reasons = {}
        for layer, head in rho.isnan().nonzero().tolist():
            unscored = self.run["unscored"].get(str(layer), "its layer was not asked for")
            reasons[Head(layer, head)] = constant if layer in self.layers else unscored
        return reasons


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
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


def _pair_counts(n_layers: int, plans: dict[int, EntryPlan]) -> Tensor:
    counts = torch.zeros(n_layers, next(iter(plans.values())).distances, dtype=torch.long)
    for layer, plan in plans.items():
        counts[layer] = plan.entry_counts
    return counts


def _bootstrap(shape: tuple[int, ...], own: dict[int, Correlation], settings: dict[str, Any]) -> Tensor | None:
    n_groups = next(iter(own.values())).plan.n_groups
    if n_groups < 2:  # noqa: PLR2004
        return None
    weights = bootstrap_weights(n_groups, settings["resamples"], settings["seed"])
    all_once = torch.ones(1, n_groups, dtype=torch.float64)
    distinct, drawn = weights.unique(dim=0, return_inverse=True)  # a few sequences can be drawn in few ways
    # Coarse bins bias a resample's rho: subtract the bias that the sample itself has on them.
    resampled = {
        layer: (one.resampled_rho(distinct)[drawn] + one.rho - one.resampled_rho(all_once)[0]).T
        for layer, one in own.items()
    }
    return stack(shape, resampled).movedim(-1, 0).contiguous()


def _null(shape: tuple[int, ...], nulls: dict[int, NullSums]) -> NullScores:
    for null in nulls.values():
        null.refuse_incomplete()
    curves = {layer: (null.pooled_curve, _spread(null.curve)) for layer, null in nulls.items()}
    errors = {layer: null.sampling_sd for layer, null in nulls.items()}
    sampled = {layer: error for layer, error in errors.items() if error is not None}
    exact = {layer: torch.zeros(nulls[layer].rho.shape[1]).double() for layer in errors if layer not in sampled}
    return NullScores(
        rho=stack(shape, {layer: null.rho.T for layer, null in nulls.items()}).movedim(-1, 0).contiguous(),
        curve_mean=stack(shape, {layer: mean for layer, (mean, _) in curves.items()}),
        curve_sd=stack(shape, {layer: sd for layer, (_, sd) in curves.items()}),
        sampling_sd=stack(shape, sampled | exact) if sampled else None,
    )


def _spread(curve: Float[Tensor, "shuffle head distance"]) -> Float[Tensor, "head distance"]:
    """Standard deviation over the shuffles that have entries at a distance; NaN with fewer than two."""
    defined = ~curve.isnan()
    number = defined.sum(0)
    away = torch.where(defined, curve - curve.nan_to_num().sum(0) / number, 0)
    return (away.square().sum(0) / (number - 1).clamp(min=0)).sqrt()
