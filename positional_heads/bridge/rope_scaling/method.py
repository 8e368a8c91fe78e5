"""The interface of a length-extrapolation method: what it changes, how far it reaches, which layers it fits.

A method is a frozen value that does not know the model; `extended_rope` applies it. One that only changes frequencies
says so by `table`. One that rotates near and far keys differently sets `by_distance` and says how by `bands`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.rope_scaling.plain_rope import PlainRope, RopeTable
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.core.bands import Band


class Method(ABC):
    """A length-extrapolation method. Everything but `settings` has a default, which is plain RoPE.

    Attributes:
        name: Its name in results.
        by_distance: Whether it rotates near and far keys differently. Cos and sin cannot express that, so attention
            scores are rewritten instead.
    """

    name: str
    by_distance: ClassVar[bool] = False

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Its settings as JSON, for provenance."""

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

    def reach(self, training_length: int) -> int | None:  # noqa: ARG002
        """Longest run in tokens that the method is made for; None for any."""
        return None

    def refuse_unfit(self, rotary: RotaryLayer) -> None:  # noqa: B027  most settings fit any layer
        """Refuse a layer that the settings do not fit.

        Raises:
            ValueError: If they do not.
        """


def two_bands(
    table: RopeTable,
    window: int,
    position: Int[Tensor, " pos"],
    query_pos: Float[Tensor, "#head pos #pair"] | Int[Tensor, "#head pos #pair"],
    key_pos: Float[Tensor, "#head pos #pair"] | Int[Tensor, "#head pos #pair"],
) -> list[Band]:
    """Keys nearer than `window` tokens at their own distance, the others at `query_pos - key_pos`."""
    near = table.phases(position[:, None])[None]
    return [Band(0, window - 1, near, near), Band(window, None, table.phases(query_pos), table.phases(key_pos))]
