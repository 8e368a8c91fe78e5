"""Methods whose frequencies `transformers` computes: linear, NTK, YaRN, Llama 3 and LongRoPE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from positional_heads.bridge.configuration import ASCENDING
from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rope_scaling.plain_rope import PlainRope, RopeTable
from positional_heads.core.arguments import is_number

HUGGING_FACE: dict[str, tuple[str, ...]] = {
    "dynamic": (),
    "linear": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor", "attention_factor"),
    "none": (),
    "ntk": (),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
}
"""These methods, and the settings of each apart from the factor."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


@dataclass(frozen=True)
class HuggingFaceMethod(Method):
    """A method whose frequencies `transformers` computes.

    - `none`: `f_i = base ** (-2 i / r)`, r the number of rotary channels.
    - `linear` (position interpolation, Chen et al., arXiv 2306.15595): `f_i / factor`.
    - `ntk` (bloc97): base * factor ** (r / (r - 2)). `dynamic`: the same, with a factor that grows with the run.
    - `yarn` (Peng et al., arXiv 2309.00071): slow pairs divided by the factor, fast ones kept, a ramp between them;
      cos and sin times `0.1 ln(factor) + 1`.
    - `llama3`: YaRN's idea as Llama 3.1 has it. `longrope` (Ding et al., arXiv 2402.13753): a divisor for every pair.
    - `base`: another base.

    Attributes:
        name: One of these names.
        factor: Context length over training length.
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
        match self.name:
            case "none":
                return rope.table()
            case "base":
                return rope.table(rope_theta=self.parameters["base"])
            case "linear":
                return rope.table(factor=self.factor)
            case "ntk":  # HF's dynamic NTK at a factor of 1 has base * (n / Lt) ** (r / (r - 2)) in a run of n tokens
                return rope.table("dynamic", round(self.factor * rope.training_length))
            case "dynamic":
                return rope.table("dynamic", length, factor=self.factor)
            case "longrope":
                self._refuse_misshapen(rope.rotary_dim // 2)
        original = {"original_max_position_embeddings": rope.training_length}
        return rope.table(
            self.name,
            length if self.name == "longrope" else None,
            **{"factor": self.factor, **original, **self.parameters},
        )

    def _refuse_misshapen(self, n_pairs: int) -> None:
        for name in ("short_factor", "long_factor"):
            if len(self.parameters[name]) != n_pairs:
                given = len(self.parameters[name])
                msg = f"{name} has {given} numbers, the model has {n_pairs} rotary pairs: give one for each"
                raise ValueError(msg)


def hugging_face_method(name: str, factor: float | None, settings: Mapping[str, Any]) -> HuggingFaceMethod:
    """One of these methods, with settings that `transformers` would accept silently or fail on refused.

    Raises:
        ValueError: If the factor is missing, or two settings are in the wrong order.
        TypeError: If a setting is not of its kind.
    """
    if factor is None and name != "none":
        msg = f"method {name!r} needs factor=, how much longer the context gets, e.g. 4"
        raise ValueError(msg)
    for key, value in settings.items():
        if key == "truncate":
            if not isinstance(value, bool):
                msg = f"truncate must be True or False, got {value!r}"
                raise TypeError(msg)
        elif key in {"short_factor", "long_factor"}:
            if not (isinstance(value, Sequence) and len(value) and all(is_number(one) and one > 0 for one in value)):
                msg = f"{key} must be a list of positive numbers, one for each rotary pair, got {value!r:.60}"
                raise TypeError(msg)
        elif not (is_number(value) and value > 0):
            msg = f"{key} must be a positive number, got {value!r}"
            raise TypeError(msg)
    if name in ASCENDING:
        low, low_default, high, high_default = ASCENDING[name]
        least, most = settings.get(low, low_default), settings.get(high, high_default)
        if not least < most:
            msg = f"{low} {least} must be below {high} {most}: between them the method goes from one rule to the other"
            raise ValueError(msg)
    return HuggingFaceMethod(name, factor or 1.0, {**(LLAMA3 if name == "llama3" else {}), **settings})
