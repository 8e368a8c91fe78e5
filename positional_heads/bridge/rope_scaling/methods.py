"""What does each method do to frequencies? Values to be applied by `extended_rope` (method section 6).

Frequencies of linear, dynamic, YaRN, Llama-3 and LongRoPE come from Hugging Face's own functions; ours are p-RoPE and
what names the static NTK in terms of the dynamic one. CLEX and the methods that treat distances differently have files
of their own.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from positional_heads.bridge.rope_scaling.plain_rope import PLAIN_KEYS, PlainRope, RopeTable
from positional_heads.core.arguments import check_fields, checked, in_range

LONGEST = 2**24
"""Tokens up to which groups are looked for: sixteen million, beyond any model."""


@runtime_checkable
class RopeMethod(Protocol):
    """A way to extend a model's context that needs only other frequencies."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything needed to make it again; JSON."""
        ...

    def table(self, rope: PlainRope, length: int) -> RopeTable:
        """Frequencies for a run of so many tokens, on a model that was trained with this rotation."""
        ...


@dataclass(frozen=True)
class HuggingFaceMethod:
    """A method whose frequencies `transformers` computes.

    Attributes:
        name: none, base (another base of the frequencies), linear, ntk, dynamic, yarn, llama3 or longrope.
        factor: How much longer the context gets.
        parameters: Further settings, by Hugging Face's names.
    """

    name: str
    factor: float = 1.0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Factor and parameters."""
        return {"factor": self.factor, **self.parameters}

    def table(self, rope: PlainRope, length: int) -> RopeTable:
        """Frequencies for a run of so many tokens."""
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        plain = {key: rope.built_in[key] for key in PLAIN_KEYS if key in rope.built_in} | {"rope_theta": rope.base}
        config = copy.deepcopy(rope.config)
        config.max_position_embeddings = rope.training_length
        if hasattr(config, "original_max_position_embeddings"):
            del config.original_max_position_embeddings
        if getattr(config, "head_dim", 0) is None:  # Mixtral's; theirs would multiply it
            config.head_dim = config.hidden_size // config.num_attention_heads
        kind, added, at = self._in_their_words(rope, length)
        config.rope_parameters = {**plain, "rope_type": kind, **added}
        if kind == "longrope":
            # theirs takes the factor from these two, and the long factors where the run is longer than the original
            config.max_position_embeddings = round(self.factor * rope.training_length)
            config.original_max_position_embeddings = rope.training_length
            self._refuse_misshapen(rope.rotary_dim // 2)
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), at)
        return RopeTable(inv_freq, float(attention_factor))

    def _refuse_misshapen(self, pairs: int) -> None:
        for name in ("short_factor", "long_factor"):
            if len(self.parameters[name]) != pairs:
                given = len(self.parameters[name])
                msg = f"{name} has {given} numbers, the model has {pairs} rotary pairs: give one for each"
                raise ValueError(msg)

    def _in_their_words(self, rope: PlainRope, length: int) -> tuple[str, dict[str, Any], int | None]:
        if self.name == "none":
            return "linear", {"factor": 1.0}, None
        if self.name == "base":
            return "linear", {"factor": 1.0, "rope_theta": self.parameters["base"]}, None
        if self.name == "linear":
            return "linear", {"factor": self.factor}, None
        if self.name == "ntk":  # the dynamic one at a factor of 1 has base * (n / Lt) ** (r / (r - 2))
            return "dynamic", {"factor": 1.0}, round(self.factor * rope.training_length)
        if self.name == "dynamic":
            return "dynamic", {"factor": self.factor}, length
        added = {
            "factor": self.factor,
            "original_max_position_embeddings": rope.training_length,
            **self.parameters,
        }
        return self.name, added, length if self.name == "longrope" else None


@dataclass(frozen=True)
class ProportionalRope:
    """p-RoPE: the slowest pairs do not turn at all, the fastest share of them does as before (arXiv 2410.06205).

    Attributes:
        keep: Share of pairs that still turn.
    """

    keep: float
    name: str = "p_rope"

    @property
    def settings(self) -> dict[str, Any]:
        """The share."""
        return {"keep": self.keep}

    def table(self, rope: PlainRope, length: int) -> RopeTable:
        """Plain frequencies, those of the slowest pairs 0."""
        inv_freq = HuggingFaceMethod("none").table(rope, length).inv_freq.clone()
        inv_freq[round(self.keep * len(inv_freq)) :] = 0
        return RopeTable(inv_freq)


@dataclass(frozen=True)
class SelfExtend:
    """Near keys at their own distance, far ones at a distance counted in groups (arXiv 2401.01325); no parameters.

    Attributes:
        group: Tokens that share a position far away; divides the window.
        window: Distance in tokens from which on keys are grouped.
    """

    group: int
    window: int
    name: str = "self_extend"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.group < 1 or self.window < 1 or self.window % self.group:
            fitting = [size for size in range(1, min(self.window, 4096) + 1) if self.window % size == 0]
            msg = (
                f"group {self.group} must divide window {self.window}, or positions would overlap or gape: "
                f"choose a group among {fitting[:12]}"
            )
            raise ValueError(msg)

    @property
    def settings(self) -> dict[str, Any]:
        """Group and window."""
        return {"group": self.group, "window": self.window}

    def reach(self, training_length: int) -> int:
        """Longest sequence in which no distance exceeds the training length, in tokens."""
        return (training_length - self.window) * self.group + self.window

    def groups(self, heads: int, pairs: int) -> Tensor:
        """Group size of each head and pair."""
        return torch.full((heads, pairs), self.group)


@dataclass(frozen=True)
class SelfExtendAdvice:
    """Group sizes for a target length.

    Attributes:
        window: The window they are for.
        smallest: Smallest group that reaches the length and divides the window.
        recommended: Smallest that also keeps to the authors' empirical rule, that the largest distance met stays below
            two thirds of the training length; None if no group does.
    """

    window: int
    smallest: int
    recommended: int | None


@checked
def self_extend_advice(training_length: int, target_length: int, window: int | None = None) -> SelfExtendAdvice:
    """Which group to take for a target length: the smallest that reaches it, and the empirical rule's.

    Args:
        training_length: Tokens that the model was trained on.
        target_length: Tokens that it shall take.
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
    dividing = [group for group in range(1, window + 1) if window % group == 0]
    reaching = [group for group in dividing if SelfExtend(group, window).reach(training_length) >= target_length]
    if not reaching:
        furthest = SelfExtend(dividing[-1], window).reach(training_length)
        msg = (
            f"target length {target_length} is beyond the reach of SelfExtend with a window of {window}: at most "
            f"{furthest} tokens from a training length of {training_length}"
        )
        raise ValueError(msg)
    ruled = [group for group in reaching if window + (target_length - window) / group < 2 / 3 * training_length]
    return SelfExtendAdvice(window, reaching[0], ruled[0] if ruled else None)


@dataclass(frozen=True)
class Dpe:
    """DPE (COLM 2025): SelfExtend's map with a group size for every pair, for each head's key pairs only.

    Attributes:
        pair_groups: Group size of each pair; all divide the window.
        window: Distance in tokens from which on keys are grouped.
        key_pairs: Which pairs of which head are changed, by layer; all when None.
    """

    pair_groups: tuple[int, ...]
    window: int
    key_pairs: Mapping[int, Tensor] | None = None
    name: str = "dpe"

    def __post_init__(self) -> None:
        for group in self.pair_groups:
            SelfExtend(group, self.window)

    @property
    def settings(self) -> dict[str, Any]:
        """Groups and window."""
        return {"pair_groups": list(self.pair_groups), "window": self.window, "all_pairs": self.key_pairs is None}
