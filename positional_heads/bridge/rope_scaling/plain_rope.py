"""What does a model's configuration say about its rotation: base, width, training length, and any extension built in?

Read from Hugging Face's configuration, in its present form (`rope_parameters`) and the old one (`rope_scaling`), never
from `bridge.cfg`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError
from positional_heads.core.arguments import checked, in_range

PLAIN_KEYS = ("rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class RopeTable:
    """How fast each pair turns, and what queries and keys are multiplied by.

    Attributes:
        inv_freq: Frequencies in radians per token.
        attention_factor: Multiplies cos and sin, so that q . k of the rotary channels grows by its square.
        score_factor: Multiplies attention scores (CLEX's log scale).
    """

    inv_freq: Float[Tensor, " pair"]
    attention_factor: float = 1.0
    score_factor: float = 1.0


@dataclass(frozen=True)
class PlainRope:
    """The rotation that one kind of layer was trained with, before any extension.

    Attributes:
        base: Base of the frequencies, `base ** (-2 i / rotary_dim)` radians per token.
        rotary_dim: Number of rotated channels.
        training_length: Tokens that the model was trained on before any extension.
        built_in: The extension that the checkpoint comes with ("default" for none), and its settings.
        config: Hugging Face's configuration, flat for this kind of layer.
    """

    base: float
    rotary_dim: int
    training_length: int
    built_in: Mapping[str, Any]
    config: Any

    @property
    def extension(self) -> str:
        """Name of the extension that is built in, "default" for none."""
        return str(self.built_in.get("rope_type") or self.built_in.get("type") or "default")


@checked
def plain_rope(model: TransformerLensModel, layer: int = 0, training_length: int | None = None) -> PlainRope:
    """Read one layer's rotation from the model's configuration.

    Args:
        model: A TransformerBridge.
        layer: Which layer; some models have two kinds.
        training_length: Tokens that the model was trained on; found in the configuration when None.

    Raises:
        UnsupportedModelError: If the configuration does not say what the rotation is.
        ValueError: If the training length is not positive.
    """
    in_range("training_length", training_length, 1, 2**40)
    in_range("layer", layer, 0, int(model.cfg.n_layers) - 1)
    config, given = _rope_settings(model, layer)
    base = given.get("rope_theta", getattr(config, "rope_theta", None))
    if base is None:
        msg = (
            f"the configuration of this {type(config).__name__} does not say how fast its pairs turn (no rope_theta), "
            "so no extrapolation method can be applied to it"
        )
        raise UnsupportedModelError(msg)
    share = float(given.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None) or 1.0))
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = training_length or _training_length(config, given)
    if found < 1:
        msg = f"training_length {found} must be positive"
        raise ValueError(msg)
    return PlainRope(float(base), int(width * share), found, dict(given), config)


def built_in_table(
    model: TransformerLensModel, layer: int, rotary_dim: int, d_head: int, length: int
) -> RopeTable | None:
    """How fast one layer's pairs turn by its configuration, any built-in extension included.

    Args:
        model: A TransformerBridge.
        layer: Which layer.
        rotary_dim: Number of channels that it was seen to rotate.
        d_head: Width of a query head.
        length: Tokens of the run.

    Returns:
        None where the configuration gives no base, or names a rotation that `transformers` does not know.
    """
    from transformers import PretrainedConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config, given = _rope_settings(model, layer)
    base = given.get("rope_theta", getattr(config, "rope_theta", None))
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind in {"default", "mrope"}:  # mrope: three axes for images, which are one for text
        kind, given = "linear", {**given, "factor": 1.0}
    if base is None or kind not in ROPE_INIT_FUNCTIONS:
        return None
    # the width is the one seen, as families name theirs in many ways; "proportional" alone counts shares of a head
    share = given.get("partial_rotary_factor", 1.0) if kind == "proportional" else 1.0
    bare = PretrainedConfig()
    bare.head_dim = d_head if kind == "proportional" else rotary_dim
    for name in ("hidden_size", "num_attention_heads", "max_position_embeddings", "original_max_position_embeddings"):
        if getattr(config, name, None) is not None:
            setattr(bare, name, getattr(config, name))
    bare.rope_parameters = {**given, "rope_type": kind, "rope_theta": float(base), "partial_rotary_factor": share}
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[kind](bare, torch.device("cpu"), length)
    return RopeTable(inv_freq, float(attention_factor))


def long_table_from(model: TransformerLensModel, layer: int) -> int | None:
    """Tokens of the shortest run that LongRoPE turns by its long table; None where a layer has no such table."""
    config, given = _rope_settings(model, layer)
    if (given.get("rope_type") or given.get("type")) != "longrope":
        return None
    return _training_length(config, given) + 1


def _rope_settings(model: Any, layer: int) -> tuple[Any, Mapping[str, Any]]:
    """The configuration of the text model, and what it says of one layer's rotation."""
    config = model.original_model.config
    config = getattr(config, "text_config", None) or config
    given = getattr(config, "rope_parameters", None) or {}
    kinds = getattr(config, "layer_types", None)
    if kinds and any(isinstance(value, Mapping) for value in given.values()):
        given = given.get(kinds[layer]) or {}
    return config, given


def _training_length(config: Any, given: Mapping[str, Any]) -> int:
    """What the model was trained on before it was extended, which extended checkpoints keep beside."""
    for source in (given, vars(config)):
        original = source.get("original_max_position_embeddings")
        if original:
            return int(original)
    length = int(config.max_position_embeddings)
    kind = given.get("rope_type") or given.get("type")
    # a linear factor without the original length: max_position_embeddings is the extended one in finetuned checkpoints
    return int(length / given["factor"]) if kind == "linear" and given.get("finetuned") else length
