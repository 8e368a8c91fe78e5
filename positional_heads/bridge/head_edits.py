"""The hooks that ablate heads, see `ablation`, each of which says what it does."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.positions import LayerInputs, row_numbers
from positional_heads.bridge.rotary_layer import RotaryLayer


@dataclass(frozen=True, eq=False)
class ReplacedHeads:
    """A hook that gives z of these heads the same value at every position and in every row, 0 when None."""

    heads: tuple[int, ...]
    value: Float[Tensor, "head d_head"] | None

    def __call__(self, z: Tensor, hook: Any) -> Tensor:  # noqa: ARG002
        """A copy of z with the heads replaced; TransformerLens passes z [batch pos head d_head]."""
        heads = list(self.heads)
        z = z.clone()
        z[:, :, heads] = 0 if self.value is None else self.value[heads].to(z)
        return z

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for hooks that do the same, while both exist."""
        return self.heads, id(self.value)

    @property
    def edit(self) -> dict[str, Any]:
        """Mode, heads and all that the mode depends on, as JSON."""
        if self.value is None:
            return {"mode": "zero", "heads": self.heads}
        return {"mode": "mean", "heads": self.heads, "sha256": _sha256(self.value[list(self.heads)])}


@dataclass(frozen=True, eq=False)
class HiddenFar:
    """A hook that hides from these heads the keys more than `distance` tokens back, but for the first `sinks` keys."""

    heads: tuple[int, ...]
    distance: int
    rotary: RotaryLayer
    inputs: LayerInputs
    sinks: int = 0

    def __call__(self, scores: Tensor, hook: Any) -> Tensor:  # noqa: ARG002
        """A copy of scores [batch head query_pos key_pos], in which these entries are masked."""
        heads = list(self.heads)
        scores = scores.clone()
        distances = self.inputs.distances(self.rotary, scores)
        # positions are only asked for where they matter: a layer may be called without any
        positions = self.inputs.positions()[:, None, :, None].to(scores.device) if self.sinks else None
        far = self.hidden(distances, positions)
        scores[:, heads] = scores[:, heads].masked_fill(far, torch.finfo(scores.dtype).min)
        return scores

    def hidden(
        self,
        distances: Int[Tensor, "#batch #head query_pos key_pos"],
        positions: Int[Tensor, "#batch 1 query_pos 1"] | None,
    ) -> Bool[Tensor, "#batch #head query_pos key_pos"]:
        """Which keys are hidden.

        Args:
            distances: How far back each key is.
            positions: Position of each query in its text; needed with `sinks`.
        """
        far = distances > self.distance
        return far if positions is None else far & (positions - distances >= self.sinks)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for hooks that do the same in one layer."""
        return self.heads, self.distance, self.sinks

    @property
    def edit(self) -> dict[str, Any]:
        """Mode, heads and all that the mode depends on, as JSON."""
        return {"mode": "far", "heads": self.heads, "distance": self.distance, "sinks": self.sinks}


@dataclass(frozen=True, eq=False)
class ResampledHeads:
    """A hook that gives z of these heads a source's at the same positions; with padding or a cache, not the columns."""

    heads: tuple[int, ...]
    source: Float[Tensor, "batch pos head d_head"]
    model: TransformerLensModel
    inputs: LayerInputs

    def __call__(self, z: Tensor, hook: Any) -> Tensor:  # noqa: ARG002
        """A copy of z [batch pos head d_head] with the heads replaced."""
        source, heads = self.source, list(self.heads)
        positions = self.inputs.positions().to(source.device)
        n_positions = int(positions.max()) + 1
        if n_positions > source.shape[1]:
            msg = f"the reference has {source.shape[1]} positions, the run has reached {n_positions}: give a longer one"
            raise ValueError(msg)
        z = z.clone()
        rows = row_numbers(self.model, len(z)).to(source.device) % len(source)
        z[:, :, heads] = source[rows[:, None], positions][:, :, heads].to(z)
        return z

    @property
    def edit(self) -> dict[str, Any]:
        """Mode, heads and all that the mode depends on, as JSON."""
        return {"mode": "resample", "heads": self.heads, "sha256": _sha256(self.source[:, :, list(self.heads)])}


@dataclass(frozen=True, eq=False)
class EvenHeads:
    """A hook that makes the scores of these heads equal; entries that the model masks stay masked."""

    heads: tuple[int, ...]
    rotary: RotaryLayer

    def __call__(self, scores: Tensor, hook: Any) -> Tensor:  # noqa: ARG002
        """A copy of scores [batch head query_pos key_pos], in which those of the heads are 0 where they are visible."""
        heads = list(self.heads)
        scores = scores.clone()
        own = scores[:, heads]
        hidden = self.rotary.masked_entries(own)
        scores[:, heads] = own.masked_fill(~hidden, 0)
        return scores

    @property
    def edit(self) -> dict[str, Any]:
        """Mode, heads and all that the mode depends on, as JSON."""
        return {"mode": "uniform", "heads": self.heads}


@dataclass(frozen=True, eq=False)
class HiddenNear:
    """A hook that hides from these heads the keys less than `distance` tokens back; `silence` goes with it."""

    heads: tuple[int, ...]
    distance: int
    rotary: RotaryLayer
    inputs: LayerInputs
    _blind: list[Bool[Tensor, "batch head query_pos"]] = field(default_factory=list)

    def __call__(self, scores: Tensor, hook: Any) -> Tensor:  # noqa: ARG002
        """A copy of scores [batch head query_pos key_pos], in which these entries are masked."""
        heads = list(self.heads)
        scores = scores.clone()
        own = scores[:, heads]
        hidden = self.rotary.masked_entries(own) | (self.inputs.distances(self.rotary, scores) < self.distance)
        scores[:, heads] = own.masked_fill(hidden, torch.finfo(scores.dtype).min)
        # Softmax over a row whose keys are all masked is even attention, not none: `silence` sets z of that query to 0.
        self._blind[:] = [hidden.all(dim=-1)]
        return scores

    def silence(self, z: Tensor, hook: Any) -> Tensor:  # noqa: ARG002
        """A copy of z [batch pos head d_head], 0 where a query saw no key."""
        heads = list(self.heads)
        z = z.clone()
        z[:, :, heads] = z[:, :, heads].masked_fill(self._blind[0].transpose(1, 2).unsqueeze(-1), 0)
        return z

    @property
    def edit(self) -> dict[str, Any]:
        """Mode, heads and all that the mode depends on, as JSON."""
        return {"mode": "near", "heads": self.heads, "distance": self.distance}


def _sha256(values: Tensor) -> str:
    return hashlib.sha256(f"{tuple(values.shape)}".encode() + values.float().cpu().numpy().tobytes()).hexdigest()
