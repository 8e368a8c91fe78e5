"""Which method is meant by a name and its settings? Unknown ones, and impossible settings, are refused here."""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from positional_heads.host.extrapolation.clex import load_clex
from positional_heads.host.extrapolation.methods import (
    Dpe,
    HuggingFaceMethod,
    ProportionalRope,
    RopeMethod,
    SelfExtend,
    self_extend_advice,
)

Method = RopeMethod | SelfExtend | Dpe

_HUGGING_FACE = {"none", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope"}
METHODS = (*sorted(_HUGGING_FACE), "p_rope", "self_extend", "dpe", "clex")
_YARN = {"beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"}
_KNOWN = {
    "yarn": _YARN,
    "llama3": {"low_freq_factor", "high_freq_factor"},
    "longrope": {"short_factor", "long_factor", "attention_factor"},
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def rope_method(
    name: str, factor: float | None = None, *, training_length: int | None = None, **settings: Any
) -> Method:
    """A method by its name.

    Args:
        name: none, linear, ntk, dynamic, yarn, llama3, longrope, p_rope, self_extend, dpe or clex.
        factor: How much longer the context gets; at least 1.
        training_length: Tokens that the model was trained on: what self_extend takes group and window from where only
            a factor is given.
        **settings: Settings of the method, by its own names.

    Raises:
        ValueError: If the method is unknown, a setting is unknown or missing, or the factor is below 1.
    """
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=3, cutoff=0.4)
        instead = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(METHODS)}"
        msg = f"method {name!r} is unknown: {instead}"
        raise ValueError(msg)
    if factor is not None and not (math.isfinite(factor) and factor >= 1):
        msg = f"factor {factor} must be at least 1: it says how much longer the context gets"
        raise ValueError(msg)
    if name == "p_rope":
        return _proportional(settings)
    if name == "self_extend":
        return _self_extend(factor, training_length, settings)
    if name == "dpe":
        _refuse_unknown(name, settings, {"pair_groups", "window", "key_pairs"})
        return Dpe(tuple(int(group) for group in settings.pop("pair_groups")), **settings)
    if name == "clex":
        _refuse_unknown(name, settings, {"checkpoint", "log_scale"})
        return load_clex(**settings)
    _refuse_unknown(name, settings, _KNOWN.get(name, set()))
    if factor is None and name != "none":
        msg = f"method {name!r} needs factor=, how much longer the context gets, e.g. 4"
        raise ValueError(msg)
    if name == "longrope" and not {"short_factor", "long_factor"} <= settings.keys():
        msg = (
            "method 'longrope' needs short_factor= and long_factor=, one number per pair, as its checkpoints bring them"
        )
        raise ValueError(msg)
    return HuggingFaceMethod(name, factor or 1.0, {**(_LLAMA3 if name == "llama3" else {}), **settings})


def _proportional(settings: dict[str, Any]) -> ProportionalRope:
    _refuse_unknown("p_rope", settings, {"keep"})
    keep = float(settings.get("keep", 0.75))
    if not 0 < keep <= 1:
        msg = f"keep {keep} must be above 0 and at most 1: the share of pairs that still turn"
        raise ValueError(msg)
    return ProportionalRope(keep)


def _self_extend(factor: float | None, training_length: int | None, settings: dict[str, Any]) -> SelfExtend:
    _refuse_unknown("self_extend", settings, {"group", "window"})
    if {"group", "window"} <= settings.keys():
        return SelfExtend(**settings)
    if factor is None or training_length is None or "group" in settings:
        msg = "method 'self_extend' needs group= and window=, or a factor to choose them by"
        raise ValueError(msg)
    advice = self_extend_advice(training_length, round(factor * training_length), settings.get("window"))
    return SelfExtend(advice.recommended or advice.smallest, advice.window)


def _refuse_unknown(name: str, settings: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(settings.keys() - known)
    if unknown:
        msg = f"method {name!r} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}"
        raise ValueError(msg)
