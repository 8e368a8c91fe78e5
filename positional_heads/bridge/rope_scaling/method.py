"""The interface of a length-extrapolation method: what it changes, how far it reaches, which layers it fits.

A method is a frozen value, independent of any model; `extended_rope` applies it. Override `table` in a method that only
changes frequencies. Set `rewrites_scores` and override `bands` in one that moves positions, or
rotates near and far keys differently.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from jaxtyping import Complex, Float, Int, Real
from torch import Tensor

from positional_heads.bridge.rope_scaling.plain_rope import PlainRope, RopeTable
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.core.bands import Band


@dataclass(frozen=True)
class Method:
    """A length-extrapolation method; what a subclass does not override is plain RoPE. Its fields are its settings.

    Attributes:
        name: Its name in results.
        rewrites_scores: Whether it moves positions or rotates near and far keys differently. Cos and sin of one
            position per token cannot express that, so attention scores are rewritten instead.
        edits_own: Whether it starts from the model's own rotation, an extension of its own included, by `edited`; the
            others start from the rotation that the model was trained with.
        extends: Whether the length that the model was trained on says anything about it.
    """

    name: str
    rewrites_scores: ClassVar[bool] = False
    edits_own: ClassVar[bool] = False
    extends: ClassVar[bool] = True

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings as JSON, for provenance."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "name"}

    def table(self, rope: PlainRope, length: int) -> RopeTable:  # noqa: ARG002
        """Frequencies in a run of `length` tokens, for a model that was trained with this rotation."""
        return rope.table()

    def bands(self, rope: PlainRope, rotary: RotaryLayer, position: Int[Tensor, " pos"], length: int) -> list[Band]:  # noqa: ARG002
        """Rotation of queries and keys at these positions, one band for each range of distances.

        Args:
            rope: The rotation that the layer was trained with.
            rotary: The layer's heads and pairs.
            position: Positions to rotate.
            length: Tokens of the run.
        """
        phase = self.table(rope, length).phases(position[:, None])[None]
        return [Band(0, None, phase, phase)]

    def edited(
        self,
        phase: Complex[Tensor, "pos pair"],
        rotary: RotaryLayer,  # noqa: ARG002
        frequency: Float[Tensor, " pair"],  # noqa: ARG002
    ) -> Complex[Tensor, "#head pos pair"]:
        """The model's own phases at positions 0, 1, 2, ..., as a method with `edits_own` changes them.

        Args:
            phase: cos + i sin of each position and pair.
            rotary: The layer's heads and pairs.
            frequency: Radians per token of each pair.
        """
        return phase[None]

    def applies(self, rotary: RotaryLayer) -> bool:  # noqa: ARG002
        """Whether it changes a layer at all; one that it does not change is left alone."""
        return True

    def reach(self, training_length: int) -> int | None:  # noqa: ARG002
        """Longest run that the method works for, in tokens; None for any length."""
        return None

    def refuse_unfit(self, rotary: RotaryLayer) -> None:
        """Refuse a layer that the settings do not fit.

        Raises:
            ValueError: If they do not.
        """


def two_bands(
    table: RopeTable,
    window: int,
    position: Int[Tensor, " pos"],
    query_pos: Real[Tensor, "#head pos #pair"],
    key_pos: Real[Tensor, "#head pos #pair"],
) -> list[Band]:
    """Keys nearer than `window` tokens at their own distance, the others at `query_pos - key_pos`."""
    near = table.phases(position[:, None])[None]
    return [Band(0, window - 1, near, near), Band(window, None, table.phases(query_pos), table.phases(key_pos))]
