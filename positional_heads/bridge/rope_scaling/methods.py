"""All length-extrapolation methods by name. To add one, write its class in a file here and list it in `OURS`."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from positional_heads.bridge.rope_scaling.clex import load_clex
from positional_heads.bridge.rope_scaling.hugging_face import HUGGING_FACE, hugging_face_method
from positional_heads.bridge.rope_scaling.kept_pairs import KeptPairs
from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rope_scaling.p_rope import ProportionalRope
from positional_heads.bridge.rope_scaling.rerope import rerope
from positional_heads.bridge.rope_scaling.self_extend import Dpe, self_extend
from positional_heads.core.arguments import checked, in_range

OURS: dict[str, Callable[..., Method]] = {
    "p_rope": ProportionalRope,
    "self_extend": self_extend,
    "dpe": Dpe,
    "rerope": rerope,
    "clex": load_clex,
    "kept_pairs": KeptPairs,
}
"""Constructors. Their parameters are the methods' settings, besides `factor` and `training_length`."""
METHODS = (*HUGGING_FACE, *OURS)
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
    "leaky_rerope": "rerope",
}
"""Other names of the methods; case, blanks and hyphens do not matter."""
LARGEST_FACTOR = 1e6
HINTS = {
    "dpe": ", see dpe_sweep",
    "clex": ", its checkpoint's folder",
    "kept_pairs": ", see pair_plan",
    "longrope": ", one number per pair, as its checkpoints bring them",
}


@checked
def rope_method(
    name: str, factor: float | None = None, *, training_length: int | None = None, **settings: Any
) -> Method:
    """A length-extrapolation method by its name.

    Args:
        name: none, linear (or PI), ntk, dynamic, yarn, llama3, longrope, p_rope, self_extend, dpe, rerope, clex or
            kept_pairs; case and hyphens do not matter.
        factor: Context length over training length, at least 1. Refused by p_rope, dpe, rerope, clex and
            kept_pairs, and by self_extend with group and window. `none` accepts and ignores it, as the baseline
            of a sweep.
        training_length: Tokens that the model was trained on. self_extend chooses group and window by it where only a
            factor is given, rerope its window.
        **settings: Settings of the method, by its own names: beta_fast, beta_slow, attention_factor, mscale,
            mscale_all_dim and truncate of yarn; low_freq_factor and high_freq_factor of llama3; short_factor,
            long_factor and attention_factor of longrope; keep of p_rope; group and window of self_extend; pair_groups,
            window and key_pairs of dpe; window and leak of rerope; checkpoint and log_scale of clex; kept and how of
            kept_pairs.

    Raises:
        ValueError: If the method is unknown, a setting is unknown, missing or impossible, or the factor is below 1.
        TypeError: If a setting is of the wrong kind.
    """
    name = canonical_name(name)
    in_range("factor", factor, 1, LARGEST_FACTOR)
    in_range("training_length", training_length, 1, 2**40)
    needed, accepted = _settings(name)
    if unknown := settings.keys() - set(accepted):
        msg = f"method {name!r} has no setting {', '.join(sorted(unknown))}; it has {', '.join(accepted) or 'none'}"
        raise ValueError(msg)
    if missing := [key for key in needed if key not in settings]:
        msg = f"method {name!r} needs {' and '.join(f'{key}=' for key in missing)}{HINTS.get(name, '')}"
        raise ValueError(msg)
    if name in HUGGING_FACE:
        return hugging_face_method(name, factor, settings)
    if factor is not None and not takes_factor(name):
        msg = f"method {name!r} takes no factor, only {', '.join(accepted)}: leave factor= out"
        raise ValueError(msg)
    given = {"factor": factor, "training_length": training_length}
    parameters = inspect.signature(OURS[name]).parameters
    return checked(OURS[name])(**{key: value for key, value in given.items() if key in parameters}, **settings)


def takes_factor(name: str) -> bool:
    """Whether a method by this name has a factor, so that a sweep over factors can set it.

    Raises:
        ValueError: If the name is unknown.
    """
    name = canonical_name(name)
    return name in HUGGING_FACE or "factor" in inspect.signature(OURS[name]).parameters


def needed_settings(name: str) -> list[str]:
    """Settings that a method cannot do without.

    Raises:
        ValueError: If the name is unknown.
    """
    return _settings(canonical_name(name))[0]


def canonical_name(name: str) -> str:
    """This library's name of a method.

    Raises:
        ValueError: If the name is unknown.
    """
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    plain = OTHER_NAMES.get(plain, plain)
    if plain not in METHODS:
        near = get_close_matches(plain, METHODS, n=3, cutoff=0.4)
        instead = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(METHODS)}"
        msg = f"method {name!r} is unknown: {instead}"
        raise ValueError(msg)
    return plain


def _settings(name: str) -> tuple[list[str], list[str]]:
    """Settings that a method needs, and all that it accepts."""
    if name in HUGGING_FACE:
        return ["short_factor", "long_factor"] if name == "longrope" else [], sorted(HUGGING_FACE[name])
    parameters = inspect.signature(OURS[name]).parameters.items()
    own = {key: one for key, one in parameters if key not in {"factor", "training_length"}}
    return [key for key, one in own.items() if one.default is one.empty], sorted(own)
