"""Translate the rotary settings of a checkpoint's config.json to what `transformers` reads, or refuse them.

Checkpoints have settings with old names, settings that only their authors' code reads, and settings about kernels and
storage that do not apply here. Each is translated and reported before the model is built; none is dropped silently.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

NUMBERS = (
    *("factor", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"),
    *("attention_factor", "attn_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    *("low_freq_factor", "high_freq_factor"),
)
NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
ASCENDING = {
    "yarn": ("beta_slow", 1.0, "beta_fast", 32.0),
    "llama3": ("low_freq_factor", 1.0, "high_freq_factor", 4.0),
}
"""Two settings of a type, with their defaults, of which the first must be below the second."""
READ = {"rope_type", "type", *NUMBERS, "short_factor", "long_factor", "short_mscale", "long_mscale", "truncate"} | {
    *("finetuned", "mrope_section", "mrope_interleaved")
}
KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def translated_configuration(raw: Mapping[str, Any], *, quantized: bool) -> tuple[dict[str, Any], list[str]]:
    """The translated configuration, and a sentence for each change that users must know.

    Args:
        raw: The contents of config.json.
        quantized: Whether the checkpoint holds quantised weights.

    Raises:
        ValueError: If a type or number of its rotation is unknown, missing or impossible.
    """
    config: dict[str, Any] = copy.deepcopy(dict(raw))
    changes: list[str] = []
    for section in (config, config.get("text_config")):
        if isinstance(section, dict):
            for name in KERNELS:
                section.pop(name, None)  # a bridge uses eager attention, whatever the model was saved with
            if "head_dim" in section and section["head_dim"] is None and _width(section):
                section["head_dim"] = _width(section)
            _translate_rope(section, changes)
    stored = config.get("quantization_config")
    if stored is not None and not quantized:
        del config["quantization_config"]
        method = stored.get("quant_method") if isinstance(stored, dict) else stored
        changes.append(f"its quantization_config ({method}) is ignored, since its weights are plain")
    return config, changes


def _translate_rope(section: dict[str, Any], changes: list[str]) -> None:
    """Translate every layer type's rotation in one section of a configuration."""
    for key in ("num_attention_heads", "hidden_size", "head_dim"):
        if isinstance(section.get(key), int | float | str) and not _number(section[key]) > 0:
            msg = f"its {key} is {section[key]!r}, and must be a positive number: correct its config.json"
            raise ValueError(msg)
    for rope in (section, section.get("rope_scaling"), section.get("rope_parameters")):
        null_means_nope = section.get("model_type") == "olmo_hybrid"
        if isinstance(rope, dict) and rope.get("rope_theta", 1) is None and not null_means_nope:
            msg = "its rope_theta is None, and must be a positive number: correct its config.json"
            raise ValueError(msg)
    section |= _numbers(
        {key: section[key] for key in ("rope_theta", "partial_rotary_factor") if key in section}, changes
    )
    name = next((key for key in ("rope_scaling", "rope_parameters") if section.get(key)), None)
    if name is None:
        return
    given = section[name]
    if not isinstance(given, dict):
        msg = (
            f"its {name} is {given!r}, and must be a table of settings such as {{'rope_type': 'linear', 'factor': 4.0}}"
        )
        raise ValueError(msg)
    if any(isinstance(value, dict) for value in given.values()):
        kinds = {kind: _translated_rope(rope, section, changes) if rope else rope for kind, rope in given.items()}
        section[name] = kinds
    else:
        section[name] = _translated_rope(given, section, changes)


def _translated_rope(given: dict[str, Any], section: Mapping[str, Any], changes: list[str]) -> dict[str, Any]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = given | _numbers(given, changes)
    named = rope.get("rope_type") or rope.get("type")
    if named is None and "factor" in rope:
        msg = f"its rotation has a factor of {rope['factor']} and no rope_type: add one to its config.json"
        raise ValueError(msg)
    kind = named or "default"
    if kind == "clex":
        changes.append("a CLEX checkpoint, loaded with plain RoPE; apply extended_rope(model, 'clex', checkpoint=...)")
        return {"rope_type": "default", "rope_theta": rope.get("rope_theta", section.get("rope_theta", 10000.0))}
    if kind == "su" or (kind == "yarn" and "short_factor" in rope):
        kind = "longrope"  # older names, in the first Phi-3 checkpoints
        original = section.get("original_max_position_embeddings")
        rope |= {"original_max_position_embeddings": original} if original else {}
    if kind == "mrope":
        kind = "default"  # three axes for images, all equal for text
    if kind not in {"default", "axial", *ROPE_INIT_FUNCTIONS}:
        msg = f"its rope type {kind!r} is not known to transformers ({', '.join(ROPE_INIT_FUNCTIONS)})"
        raise ValueError(msg)
    if kind == "yarn":
        _translate_yarn(rope, section, changes)
    missing = [key for key in NEEDED.get(kind, ()) if rope.get(key) is None]
    if missing:
        msg = f"its rotation is of type {kind!r} and lacks {' and '.join(missing)}: correct its config.json"
        raise ValueError(msg)
    if kind == "longrope":
        _translate_longrope(rope, section, changes)
    _refuse_impossible(kind, rope)
    ignored = sorted(set(rope) - READ)
    if ignored:
        changes.append(f"unknown rope settings have no effect: {', '.join(ignored)}")
    rope.pop("type", None)
    return {**rope, "rope_type": kind}


def _numbers(given: Mapping[str, Any], changes: list[str]) -> dict[str, Any]:
    """Every number among the settings, also if written as text."""
    numbers = {}
    for name in (key for key in NUMBERS if given.get(key) is not None):
        value = _number(given[name])
        if isinstance(given[name], str):
            changes.append(f"{name} is written as text, {given[name]!r}, and read as {value}")
        may_be_zero = name in {"mscale", "mscale_all_dim", "partial_rotary_factor"}
        if not (0 < value < math.inf or (value == 0 and may_be_zero)):
            msg = f"its rope setting {name} is {given[name]!r}, and must be a positive number: correct its config.json"
            raise ValueError(msg)
        numbers[name] = value
    return numbers


def _number(value: Any) -> float:
    """A number, or one written as text; NaN for anything else."""
    if isinstance(value, str):
        try:
            return int(value) if value.strip().isdecimal() else float(value)
        except ValueError:
            return math.nan
    return math.nan if isinstance(value, bool) or not isinstance(value, int | float) else value


def _translate_yarn(rope: dict[str, Any], section: Mapping[str, Any], changes: list[str]) -> None:
    """Add the factor and betas that only YaRN's own code has, and translate `attn_factor`, which only it reads."""
    longest, trained = section.get("max_position_embeddings"), rope.get("original_max_position_embeddings")
    trained = trained or section.get("original_max_position_embeddings")
    if rope.get("factor") is None and longest and trained and longest > trained:
        rope["factor"] = longest / trained
        changes.append(f"its YaRN has no factor: {rope['factor']:g}, from {trained} to {longest} tokens")
    if section.get("model_type") == "mistral" and rope.get("finetuned") and "beta_fast" not in rope:
        # the values of its training; Hugging Face's defaults are 32 and 1
        rope |= {"beta_fast": 128, "beta_slow": 2}
        changes.append("a YaRN-Mistral checkpoint, rotated with beta_fast 128 and beta_slow 2")
    share = rope.pop("attn_factor", None)
    if share is not None and rope.get("factor") and rope.get("attention_factor") is None:
        grown = max(math.log(rope["factor"]), 0.0) / 10
        numerator, denominator = rope.get("mscale"), rope.get("mscale_all_dim")
        own = (grown * numerator + 1) / (grown * denominator + 1) if numerator and denominator else grown + 1
        rope["attention_factor"] = float(share * own)
        changes.append(f"YaRN's attn_factor {share:g} gives an attention factor of {share * own:.6g}")


def _translate_longrope(rope: dict[str, Any], section: Mapping[str, Any], changes: list[str]) -> None:
    share = rope.get("partial_rotary_factor") or section.get("partial_rotary_factor") or 1.0
    n_pairs = int(_width(section) * share) // 2
    for name in ("short_factor", "long_factor"):
        value = rope[name]
        if not isinstance(value, list) or (n_pairs and len(value) != n_pairs):
            given = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
            msg = f"its longrope {name} is {given}, and must be one number for each of the {n_pairs} pairs of a head"
            raise ValueError(msg)
        rope[name] = [_number(one) for one in value]
        wrong = [one for one, read in zip(value, rope[name], strict=True) if not 0 < read < math.inf]
        if wrong:
            msg = f"its longrope {name} holds {wrong[0]!r}, and must hold positive numbers: correct its config.json"
            raise ValueError(msg)
        if any(isinstance(one, str) for one in value):
            changes.append(f"longrope's {name} is written as text, and read as numbers")


def _refuse_impossible(kind: str, rope: Mapping[str, Any]) -> None:
    """Refuse values that `transformers` accepts although they describe no rotation."""
    if kind in ASCENDING:
        low, low_default, high, high_default = ASCENDING[kind]
        least, most = rope.get(low) or low_default, rope.get(high) or high_default
        if not least < most:
            msg = f"its rope setting {low} is {least}, and must be below {high}, {most}: correct its config.json"
            raise ValueError(msg)
    factor = rope.get("factor")
    if kind in NEEDED and factor is not None and factor < 1:
        msg = f"its rope setting factor is {factor}, and must be at least 1: correct its config.json"
        raise ValueError(msg)


def _width(section: Mapping[str, Any]) -> int:
    """Channels of a head; 0 where the configuration does not say."""
    heads = section.get("num_attention_heads")
    return int(section.get("head_dim") or (section.get("hidden_size", 0) // heads if heads else 0))
