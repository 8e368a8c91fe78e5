"""Compare what a GGUF file says of rotation and mask with what `transformers` read of it, and write what it dropped.

`transformers` takes base and width of the rotation from a GGUF file, and drops every extension of the context without a
word: a Llama 3.1 would be read as if it rotated plainly. A model rotated wrongly runs and scores like any other.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from positional_heads.bridge.gguf_header import GgufHeader

PLAIN_BASE = 10000.0
FACTORS = "rope_freqs.weight"
"""The tensor that divides the frequency of each pair; a Llama 3 since 3.1 has no other sign of its extension."""
LONG_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
"""Settings that every Llama 3 since 3.1 shares; their factor differs."""
SCALING = ("type", "factor", "original_context_length", "finetuned")
"""What can be translated; the others would change the rotation, too."""
OTHER_SCALE = (("gemma2", 46), ("gemma3", 62))
"""Architecture and layers of the 27B models, which scale attention by another number, and no GGUF file has it."""


def translate_rotation(file: Path, header: GgufHeader, config: Any) -> None:
    """Write a file's extension of the context into a configuration, and compare the rest of its attention.

    Args:
        file: The GGUF file.
        header: Its beginning.
        config: What `transformers` read; its `rope_parameters` are replaced.

    Raises:
        ValueError: If something cannot be translated, or was read as another.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = [rope for rope in ropes.values() if isinstance(rope, dict)] or [ropes]
    base, width = float(header.of_model("rope.freq_base") or PLAIN_BASE), _width(config)
    bases = [rope.get("rope_theta") or math.nan for rope in kinds]
    if not any(math.isclose(base, one, rel_tol=1e-6) for one in bases):
        _refuse(f"its base is {base:g}, and transformers reads {bases}")
    turned = int(header.of_model("rope.dimension_count") or header.of_model("attention.key_length") or width)
    read = {round(width * (rope.get("partial_rotary_factor") or 1.0)) for rope in kinds}
    if turned not in read:
        _refuse(f"it rotates {turned} channels of a head, and transformers {sorted(read)}")
    scaling = _by_factors(file, header, _by_settings(header), base, turned)
    if len(kinds) == 1:
        more = ropes if ropes.get("rope_type") == scaling["rope_type"] else {}
        plain = {key: ropes[key] for key in ("rope_theta", "partial_rotary_factor") if key in ropes}
        config.rope_parameters = {**more, **scaling, **plain}
    elif scaling["rope_type"] != "default":
        _refuse(f"its layers rotate in {len(kinds)} ways, and its context is extended in one")
    _compare_other_attention(header, config)


def _by_settings(header: GgufHeader) -> dict[str, Any]:
    """A file's extension of the context by its settings, as `transformers` writes it."""
    if any(name in header.shapes for name in LONG_FACTORS):
        _refuse("it is extended by longrope, which is not translated")
    named = f"{header.architecture}.rope.scaling."
    if others := sorted(key for key in header.metadata if key.startswith(named) and key[len(named) :] not in SCALING):
        _refuse(f"its {', '.join(others)} cannot be translated")
    kind = str(header.of_model("rope.scaling.type") or "none")
    factor = float(header.of_model("rope.scaling.factor") or header.of_model("rope.scale_linear") or 1.0)
    if kind not in {"none", "linear", "yarn"}:
        _refuse(f"it is extended by {kind}, which is not translated")
    if kind == "yarn":
        trained = header.of_model("rope.scaling.original_context_length") or header.of_model("context_length")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": int(trained)}
    return {"rope_type": "default"} if factor == 1 else {"rope_type": "linear", "factor": factor}  # older: no type


def _by_factors(file: Path, header: GgufHeader, scaling: dict[str, Any], base: float, width: int) -> dict[str, Any]:
    """A file's extension of the context where it holds the factor of each pair, which is how Llama 3's is stored."""
    if FACTORS not in header.shapes:
        return scaling
    if header.types[FACTORS] != "F32":
        _refuse(f"its {FACTORS} is stored in {header.types[FACTORS]}")
    factors = np.fromfile(file, "<f4", header.elements(FACTORS), offset=header.starts[FACTORS]).astype(float)
    if (factors == 1).all():
        return scaling
    guess = LLAMA3 | {"factor": float(factors.max())}
    expected = llama3_factors(guess, base, width)
    if scaling["rope_type"] != "default" or factors.shape != expected.shape or not np.allclose(factors, expected, 1e-5):
        _refuse(f"its {FACTORS} are not those of a Llama 3")
    return guess


def llama3_factors(rope: Mapping[str, Any], base: float, width: int) -> np.ndarray:
    """What Llama 3.1 divides the frequency of each pair by: 1 for short waves, the factor for long ones."""
    turns = rope["original_max_position_embeddings"] * base ** (-np.arange(0, width, 2) / width) / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = ((turns - low) / (high - low)).clip(0, 1)  # of the short wave's factor, which is 1
    return 1 / ((1 - share) / rope["factor"] + share)


def _compare_other_attention(header: GgufHeader, config: Any) -> None:
    """Refuse a mask or scale that was read as another."""
    context, window = header.of_model("context_length"), header.of_model("attention.sliding_window")
    read = getattr(config, "sliding_window", None)
    if window != read and any(one and one < (context or math.inf) for one in (window, read)):
        _refuse(f"its sliding window is {window}, and transformers reads {read}")
    cap, read = header.of_model("attn_logit_softcapping"), getattr(config, "attn_logit_softcapping", None)
    if cap and (read is None or not math.isclose(cap, read, rel_tol=1e-6)):
        _refuse(f"its scores are capped at {cap:g}, and transformers reads {read}")
    layers = header.of_model("block_count")
    if header.of_model("attention.scale") or (header.architecture, layers) in OTHER_SCALE:
        _refuse("its attention has a scale of its own, which transformers does not read")


def _refuse(problem: str) -> NoReturn:
    raise ValueError(problem)


def _width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
