"""Sums over the entries of one layer, own and of the null, and what a file holds of them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from positional_heads.core.binning import BinLookup
from positional_heads.core.correlation import CorrelationSums
from positional_heads.core.null import NullSums
from positional_heads.core.plan import EntryPlan
from positional_heads.core.shuffles import ShufflePlan


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


def named_tensors(layers: dict[int, LayerSums]) -> dict[str, Tensor]:
    """Sums, frequencies and bins of layers by name."""
    tensors: dict[str, Tensor] = {}
    for layer, one in layers.items():
        own = {"frequencies": one.frequencies, "edges": one.bins.edges, "displaced": one.bins.displaced}
        tensors |= {f"{layer}.{key}": tensor for key, tensor in {**own, **one.tensors}.items()}
    return tensors


def read_layers(content: dict[str, Any], tensors: dict[str, Tensor], **changed: int) -> dict[int, LayerSums]:
    """The sums of layers that `named_tensors` named.

    Args:
        content: What the file says of the run.
        tensors: The tensors of these sums.
        **changed: Fields in which their plans differ from those in the file.
    """
    resolution = float(content["run"]["provenance"]["settings"]["resolution"])
    layers: dict[int, LayerSums] = {}
    shared: dict[EntryPlan, EntryPlan] = {}
    shared_shuffles: dict[ShufflePlan, ShufflePlan] = {}
    for layer, settings in content["plans"].items():
        plan = EntryPlan(tuple(content["lengths"]), **settings | changed)
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
    return layers
