"""ReRoPE and Leaky ReRoPE: distances grow slower from a window on, or not at all."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.rope_scaling.method import Method, two_bands
from positional_heads.bridge.rope_scaling.plain_rope import PlainRope
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.core.arguments import check_fields, in_range
from positional_heads.core.bands import Band


@dataclass(frozen=True)
class ReRope(Method):
    """ReRoPE (Su, https://kexue.fm/archives/9708): a key d tokens back is rotated as if `min(d, window)` tokens back.

    With a leak it is Leaky ReRoPE: `window + leak (d - window)` from the window on. A leak of 1 is plain RoPE. The
    author's code also multiplies scores by the logarithm of the position; that is left out here.

    Attributes:
        window: Distance in tokens up to which distances are kept.
        leak: Growth of distances beyond the window, 0 to 1; the author writes 1 / k.
    """

    window: int
    leak: float = 0.0
    name: str = field(default="rerope", init=False)
    rewrites_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        in_range("window", self.window, 1)
        in_range("leak", self.leak, 0, 1)

    def reach(self, training_length: int) -> int | None:
        """Longest run whose distances all stay below the training length; None for ReRoPE, which has no limit."""
        if self.window >= training_length:
            return training_length
        return math.ceil(self.window + (training_length - self.window) / self.leak) if self.leak else None

    def bands(self, rope: PlainRope, rotary: RotaryLayer, position: Int[Tensor, " pos"], length: int) -> list[Band]:  # noqa: ARG002
        """Far queries at `window + leak (m - window)`, far keys at `leak n`."""
        key_pos = self.leak * position[None, :, None]
        query_pos = key_pos + (1 - self.leak) * self.window
        return two_bands(rope.table(), self.window, position, query_pos, key_pos)


def rerope(training_length: int | None = None, window: int | None = None, leak: float = 0.0) -> ReRope:
    """ReRoPE, with a window of a quarter of the training length unless one is given.

    Raises:
        ValueError: If neither window nor training length is given, or a setting is out of range.
    """
    if window is None and training_length is None:
        msg = "method 'rerope' needs window=, or training_length= to take a quarter of"
        raise ValueError(msg)
    return ReRope(max(1, (training_length or 0) // 4) if window is None else window, leak)
