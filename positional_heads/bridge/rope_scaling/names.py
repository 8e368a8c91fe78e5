"""Which method is meant by a name and its settings? Unknown ones, and impossible settings, are refused here."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from positional_heads.bridge.rope_scaling.clex import load_clex
from positional_heads.bridge.rope_scaling.methods import (
    Dpe,
    HuggingFaceMethod,
    ProportionalRope,
    RopeMethod,
    SelfExtend,
    self_extend_advice,
)
from positional_heads.core.arguments import checked, in_range, is_number

Method = RopeMethod | SelfExtend | Dpe

_HUGGING_FACE = {"none", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope"}
METHODS = (*sorted(_HUGGING_FACE), "p_rope", "self_extend", "dpe", "clex")
OTHER_NAMES = {
    "default": "none",
    "su": "longrope",
    "pi": "linear",
    "position_interpolation": "linear",
    "ntk_aware": "ntk",
    "dynamic_ntk": "dynamic",
    "llama_3": "llama3",
    "prope": "p_rope",
    "selfextend": "self_extend",
}
"""What else the methods are called; case, blanks and hyphens do not matter."""
_YARN = {"beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"}
_KNOWN = {
    "yarn": _YARN,
    "llama3": {"low_freq_factor", "high_freq_factor"},
    "longrope": {"short_factor", "long_factor", "attention_factor"},
    "p_rope": {"keep"},
    "self_extend": {"group", "window"},
    "dpe": {"pair_groups", "window", "key_pairs"},
    "clex": {"checkpoint", "log_scale"},
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_ASCENDING = {
    "yarn": ("beta_slow", 1.0, "beta_fast", 32.0),
    "llama3": ("low_freq_factor", 1.0, "high_freq_factor", 4.0),
}
MOST_FACTOR = 1e6
_NEEDED = {
    "dpe": "see dpe_sweep",
    "clex": "its checkpoint's folder",
    "longrope": "one number per pair, as its checkpoints bring them",
}
_TAKE_NO_FACTOR = ("p_rope", "dpe", "clex")


@checked
def rope_method(
    name: str, factor: float | None = None, *, training_length: int | None = None, **settings: Any
) -> Method:
    """A method by its name.

    Args:
        name: none, linear (or PI), ntk, dynamic, yarn, llama3, longrope, p_rope, self_extend, dpe or clex; in any case,
            with hyphens or without.
        factor: How much longer the context gets; at least 1. For p_rope, dpe and clex, and for self_extend where group
            and window are given, it means nothing and is refused; none takes any, as the baseline of a sweep.
        training_length: Tokens that the model was trained on: what self_extend takes group and window from where only
            a factor is given.
        **settings: Settings of the method, by its own names.

    Raises:
        ValueError: If the method is unknown, a setting is unknown, missing or impossible, or the factor is below 1.
        TypeError: If a setting is of the wrong kind.
    """
    name = known_name(name)
    in_range("factor", factor, 1, MOST_FACTOR)
    in_range("training_length", training_length, 1, 2**40)
    _refuse_unknown(name, settings)
    if factor is not None and (name in _TAKE_NO_FACTOR or {"group", "window"} <= settings.keys()):
        msg = f"method {name!r} takes no factor beside its settings ({_listed(_KNOWN[name])}): leave factor= out"
        raise ValueError(msg)
    if name == "p_rope":
        return _proportional(**settings)
    if name == "self_extend":
        return _self_extend(factor, training_length, **settings)
    if name == "dpe":
        _refuse_missing(name, settings, "pair_groups", "window")
        return _dpe(**settings)
    if name == "clex":
        _refuse_missing(name, settings, "checkpoint")
        return load_clex(**settings)
    if factor is None and name != "none":
        msg = f"method {name!r} needs factor=, how much longer the context gets, e.g. 4"
        raise ValueError(msg)
    _refuse_impossible(name, settings)
    return HuggingFaceMethod(name, factor or 1.0, {**(_LLAMA3 if name == "llama3" else {}), **settings})


def known_name(name: str) -> str:
    """The method meant, by the name that this library has for it.

    Raises:
        ValueError: If there is none.
    """
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    plain = OTHER_NAMES.get(plain, plain)
    if plain not in METHODS:
        near = get_close_matches(plain, METHODS, n=3, cutoff=0.4)
        instead = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(METHODS)}"
        msg = f"method {name!r} is unknown: {instead}"
        raise ValueError(msg)
    return plain


@checked
def _proportional(*, keep: float = 0.75) -> ProportionalRope:
    if not 0 < keep <= 1:
        msg = f"keep {keep} must be above 0 and at most 1: the share of pairs that still turn"
        raise ValueError(msg)
    return ProportionalRope(keep)


@checked
def _self_extend(
    factor: float | None, training_length: int | None, *, group: int | None = None, window: int | None = None
) -> SelfExtend:
    if group is not None and window is not None:
        return SelfExtend(group, window)
    if factor is None or training_length is None or group is not None:
        msg = "method 'self_extend' needs group= and window=, or a factor to choose them by"
        raise ValueError(msg)
    advice = self_extend_advice(training_length, round(factor * training_length), window)
    return SelfExtend(advice.recommended or advice.smallest, advice.window)


@checked
def _dpe(*, pair_groups: Sequence[int], window: int, key_pairs: dict[int, Tensor] | None = None) -> Dpe:
    if len(pair_groups) == 0:
        msg = "pair_groups must hold one group size for each rotary pair of a head, got none"
        raise ValueError(msg)
    return Dpe(tuple(int(group) for group in pair_groups), window, key_pairs)


def _refuse_impossible(name: str, settings: Mapping[str, Any]) -> None:
    """What `transformers` would take without a word, or fail on with its own."""
    if name == "longrope":
        _refuse_missing(name, settings, "short_factor", "long_factor")
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
    if name in _ASCENDING:
        low, low_default, high, high_default = _ASCENDING[name]
        least, most = settings.get(low, low_default), settings.get(high, high_default)
        if not least < most:
            msg = f"{low} {least} must be below {high} {most}: between them the method goes from one rule to the other"
            raise ValueError(msg)


def _refuse_missing(name: str, settings: Mapping[str, Any], *needed: str) -> None:
    missing = [key for key in needed if key not in settings]
    if missing:
        msg = f"method {name!r} needs {' and '.join(f'{key}=' for key in missing)}, {_NEEDED[name]}"
        raise ValueError(msg)


def _refuse_unknown(name: str, settings: Mapping[str, Any]) -> None:
    known = _KNOWN.get(name, set())
    if unknown := settings.keys() - known:
        msg = f"method {name!r} has no setting {_listed(unknown)}; it has {_listed(known) or 'none'}"
        raise ValueError(msg)


def _listed(names: AbstractSet[str]) -> str:
    return ", ".join(sorted(names))
