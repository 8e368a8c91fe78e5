"""Rotary pairs chosen by key head: those kept turn as the model turns them, the others stand still or are left out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.core.arguments import check_fields

HOW = ("freeze", "drop")


@dataclass(frozen=True)
class KeptPairs(Method):
    """Partial RoPE by key head (MHA2MLA, arXiv 2502.14837): some pairs keep their rotation, the others do not.

    A frozen pair is turned at every position as at position 0, so its contribution no longer knows distance (NoPE). A
    dropped pair contributes nothing. Unlike other methods, this one starts from the model's own rotation, an extension
    of its own included: kept and frozen pairs keep the attention factor of YaRN and LongRoPE.

    Attributes:
        kept: For each layer and key head, a 1 for every pair that keeps its rotation and a 0 for every other, as
            [["1100", "0110"], ...]; an empty list for a layer that stays as it is.
        how: Whether the others are frozen or dropped.
    """

    kept: Sequence[Sequence[str]]
    how: Literal["freeze", "drop"] = "freeze"
    name: str = field(default="kept_pairs", init=False)
    rewrites_scores: ClassVar[bool] = True
    edits_own: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.how not in HOW:
            msg = f"how {self.how!r} is unknown: choose one of {', '.join(HOW)}"
            raise ValueError(msg)
        if any(set(row) - {"0", "1"} for layer in self.kept for row in layer):
            msg = 'kept has other characters than 0 and 1: for each key head of a layer, give a text like "1100"'
            raise ValueError(msg)
        object.__setattr__(self, "kept", tuple(tuple(layer) for layer in self.kept))

    def applies(self, rotary: RotaryLayer) -> bool:
        """Whether a pair of this layer loses its rotation; layers that it does not know are refused later."""
        return rotary.layer >= len(self.kept) or any("0" in row for row in self.kept[rotary.layer])

    def edited(
        self,
        phase: Complex[Tensor, "pos pair"],
        rotary: RotaryLayer,
        frequency: Float[Tensor, " pair"],  # noqa: ARG002
    ) -> Complex[Tensor, "#head pos pair"]:
        """The model's own phases, with pairs that lose theirs frozen as at position 0, or 0."""
        rows = self.kept[rotary.layer]
        if not rows:
            return phase[None]
        kept = _mask(rows).to(phase.device).repeat_interleave(rotary.n_heads // len(rows), dim=0)
        other = phase[:1] if self.how == "freeze" else torch.zeros_like(phase[:1])
        return torch.where(kept[:, None], phase, other)

    def refuse_unfit(self, rotary: RotaryLayer) -> None:
        """Refuse a layer with other key heads or pairs.

        Raises:
            ValueError: If it has.
        """
        if rotary.layer >= len(self.kept):
            msg = (
                f"kept_pairs: kept has {len(self.kept)} layers, and the model's layer {rotary.layer} is not one of them"
            )
            raise ValueError(msg)
        rows = self.kept[rotary.layer]
        if rows and (rotary.n_heads % len(rows) or {len(row) for row in rows} != {rotary.n_pairs}):
            pairs = " and ".join(map(str, sorted({len(row) for row in rows})))
            msg = (
                f"kept_pairs: layer {rotary.layer} has {rotary.n_heads} query heads and {rotary.n_pairs} pairs, and "
                f"kept has {len(rows)} key heads of {pairs} pairs there: it is of another model"
            )
            raise ValueError(msg)


def _mask(rows: Sequence[str]) -> Bool[Tensor, "kv_head pair"]:
    return torch.tensor([[one == "1" for one in row] for row in rows])
