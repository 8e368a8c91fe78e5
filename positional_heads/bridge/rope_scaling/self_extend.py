"""SelfExtend and DPE: beyond a window, groups of tokens share a position."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.rope_scaling.method import Method, two_bands
from positional_heads.bridge.rope_scaling.plain_rope import PlainRope
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.core.arguments import check_fields, checked, in_range
from positional_heads.core.bands import Band

LONGEST = 2**24
"""Longest run that groups are chosen for, in tokens: sixteen million, beyond any model."""


@dataclass(frozen=True)
class SelfExtend(Method):
    """SelfExtend (Jin et al., arXiv 2401.01325); no parameters.

    A key at n is `m - n` tokens from a query at m where that is below the window w, else
    `m // G + w - w // G - n // G`, with groups of G tokens.

    Attributes:
        group: Tokens that share a position beyond the window; divides the window.
        window: Distance in tokens from which on positions are grouped.
    """

    group: int
    window: int
    name: str = field(default="self_extend", init=False)
    rewrites_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        _refuse_indivisible(self.group, self.window)

    def reach(self, training_length: int) -> int:
        """Longest run in which no distance exceeds the training length, in tokens."""
        if self.window >= training_length:
            return training_length
        return (training_length - self.window) * self.group + self.window

    def bands(self, rope: PlainRope, rotary: RotaryLayer, position: Int[Tensor, " pos"], length: int) -> list[Band]:  # noqa: ARG002
        """Far queries at `m // G + w - w // G`, far keys at `n // G`."""
        return _grouped(rope, self.window, position, torch.tensor([[self.group]], device=position.device))


@dataclass(frozen=True)
class Dpe(Method):
    """DPE (Lu et al., COLM 2025): SelfExtend with a group size for every pair, on each head's key pairs only.

    Attributes:
        pair_groups: Group size of each pair; each divides the window.
        window: Distance in tokens from which on positions are grouped.
        key_pairs: Pairs of each head that are grouped, by layer; all when None.
    """

    pair_groups: Sequence[int]
    window: int
    key_pairs: dict[int, Tensor] | None = None
    name: str = field(default="dpe", init=False)
    rewrites_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "pair_groups", tuple(int(group) for group in self.pair_groups))
        if not self.pair_groups:
            msg = "pair_groups must hold one group size for each rotary pair of a head, got none"
            raise ValueError(msg)
        for group in self.pair_groups:
            _refuse_indivisible(group, self.window)

    @property
    def settings(self) -> dict[str, Any]:
        """Groups and window."""
        return {"pair_groups": list(self.pair_groups), "window": self.window, "all_pairs": self.key_pairs is None}

    def bands(self, rope: PlainRope, rotary: RotaryLayer, position: Int[Tensor, " pos"], length: int) -> list[Band]:  # noqa: ARG002
        """SelfExtend's, each pair with its own group; a group of 1 leaves a pair unchanged."""
        groups = torch.tensor([self.pair_groups])
        if self.key_pairs is not None:
            groups = torch.where(self.key_pairs[rotary.layer].cpu(), groups, 1)
        return _grouped(rope, self.window, position, groups.to(position.device))

    def refuse_unfit(self, rotary: RotaryLayer) -> None:
        """Refuse a layer with other numbers of heads and pairs.

        Raises:
            ValueError: If there is not one group for each pair, or one key pair for each head and pair.
        """
        layer, shape = rotary.layer, (rotary.n_heads, rotary.n_pairs)
        if len(self.pair_groups) != rotary.n_pairs:
            msg = f"dpe: {len(self.pair_groups)} pair_groups given, layer {layer} has {rotary.n_pairs} pairs"
            raise ValueError(msg)
        given = None if self.key_pairs is None else self.key_pairs.get(layer)
        if self.key_pairs is None or (isinstance(given, Tensor) and (given.dtype, given.shape) == (torch.bool, shape)):
            return
        kind = f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
        msg = (
            f"dpe: key_pairs must hold, for layer {layer}, a bool tensor of {shape[0]} heads x {shape[1]} pairs, got "
            f"{kind:.60}: see dpe_key_pairs, or leave it out for all pairs"
        )
        raise ValueError(msg)


def _refuse_indivisible(group: int, window: int) -> None:
    if group < 1 or window < 1 or window % group:
        divisors = [size for size in range(1, min(window, 4096) + 1) if window % size == 0]
        msg = (
            f"group {group} must divide window {window}, or positions would overlap or leave gaps: choose a group "
            f"among {divisors[:12]}"
        )
        raise ValueError(msg)


def _grouped(
    rope: PlainRope, window: int, position: Int[Tensor, " pos"], groups: Int[Tensor, "#head #pair"]
) -> list[Band]:
    groups = groups[:, None]
    key_pos = position[:, None] // groups
    # the window divides by every group: far distances start at the window itself, without overlap or gap
    return two_bands(rope.table(), window, position, key_pos + window - window // groups, key_pos)


@dataclass(frozen=True)
class SelfExtendAdvice:
    """Group sizes for a target length.

    Attributes:
        window: The window they are for.
        smallest: Smallest group that reaches the length and divides the window.
        recommended: Smallest that also keeps the authors' empirical rule: the largest distance stays below two thirds
            of the training length. None if no group does.
    """

    window: int
    smallest: int
    recommended: int | None


@checked
def self_extend_advice(training_length: int, target_length: int, window: int | None = None) -> SelfExtendAdvice:
    """Group sizes with which SelfExtend reaches a target length: the smallest, and the one by the authors' rule.

    Args:
        training_length: Tokens that the model was trained on.
        target_length: Tokens of the runs to come.
        window: Distance from which on keys are grouped; a quarter of the training length when None.

    Raises:
        ValueError: If no group reaches the target with this window.
    """
    in_range("training_length", training_length, 2, LONGEST)
    in_range("target_length", target_length, 1, LONGEST)
    window = max(1, training_length // 4) if window is None else window
    if not 1 <= window < training_length:
        msg = f"window {window} must be at least 1 and less than the training length of {training_length}"
        raise ValueError(msg)
    divisors = [group for group in range(1, window + 1) if window % group == 0]
    reaching = [group for group in divisors if SelfExtend(group, window).reach(training_length) >= target_length]
    if not reaching:
        furthest = SelfExtend(divisors[-1], window).reach(training_length)
        msg = (
            f"target length {target_length} is beyond the reach of SelfExtend with a window of {window}: at most "
            f"{furthest} tokens from a training length of {training_length}"
        )
        raise ValueError(msg)
    by_rule = [group for group in reaching if window + (target_length - window) / group < 2 / 3 * training_length]
    return SelfExtendAdvice(window, reaching[0], by_rule[0] if by_rule else None)


def self_extend(
    factor: float | None = None, training_length: int | None = None, group: int | None = None, window: int | None = None
) -> SelfExtend:
    """SelfExtend by its settings, or with the advised group for a factor.

    Raises:
        ValueError: If neither group and window are given, nor a factor; or both.
    """
    if group is not None and window is not None:
        if factor is not None:
            msg = "method 'self_extend' takes no factor with group and window: leave factor= out"
            raise ValueError(msg)
        return SelfExtend(group, window)
    if factor is None or training_length is None or group is not None:
        msg = "method 'self_extend' needs group= and window=, or a factor to choose them by"
        raise ValueError(msg)
    advice = self_extend_advice(training_length, round(factor * training_length), window)
    return SelfExtend(advice.recommended or advice.smallest, advice.window)
