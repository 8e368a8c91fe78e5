"""p-RoPE: the slowest pairs carry no position."""

from dataclasses import dataclass, field

from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rope_scaling.plain_rope import PlainRope, RopeTable
from positional_heads.core.arguments import check_fields


@dataclass(frozen=True)
class ProportionalRope(Method):
    """p-RoPE (Barbero et al., arXiv 2410.06205): the fastest share of pairs turns as before, the others not at all.

    Attributes:
        keep: Share of pairs that turn, above 0 and at most 1.
    """

    keep: float = 0.75
    name: str = field(default="p_rope", init=False)

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.keep <= 1:
            msg = f"keep {self.keep} must be above 0 and at most 1: the share of pairs that turn"
            raise ValueError(msg)

    def table(self, rope: PlainRope, length: int) -> RopeTable:  # noqa: ARG002
        """Plain frequencies, 0 for the slowest pairs."""
        inv_freq = rope.table().inv_freq.clone()
        inv_freq[round(self.keep * len(inv_freq)) :] = 0
        return RopeTable(inv_freq)
