"""The rotation that a model was trained with, read from its configuration: base, width, training length, extension.

Hugging Face's configuration is read, in its present form (`rope_parameters`) and the old one (`rope_scaling`), never
`bridge.cfg`.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float, Real
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError
from positional_heads.core.arguments import checked, in_range

PLAIN_KEYS = ("rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class RopeTable:
    """Frequencies of one layer, and factors on its queries and keys.

    Attributes:
        inv_freq: Frequencies in radians per token.
        attention_factor: Factor on cos and sin; q . k of the rotary channels grows by its square.
        score_factor: Factor on attention scores (CLEX's log scale).
    """

    inv_freq: Float[Tensor, " pair"]
    attention_factor: float = 1.0
    score_factor: float = 1.0

    @property
    def amplitude(self) -> float:
        """Factor on cos and sin: the attention factor times the root of the score factor, which q and k share."""
        return float(self.attention_factor * self.score_factor**0.5)

    def phases(self, positions: Real[Tensor, "*lead #pair"]) -> Complex[Tensor, "*lead pair"]:
        """Cos + i sin at positions, which may differ by pair; computed in float32, as models do."""
        angles = positions.float() * self.inv_freq.to(positions.device).float()
        return torch.complex(angles.cos(), angles.sin()) * self.amplitude


@dataclass(frozen=True)
class PlainRope:
    """The rotation that one kind of layer was trained with, before any extension.

    Attributes:
        base: Base of the frequencies, `base ** (-2 i / rotary_dim)` radians per token.
        rotary_dim: Number of rotated channels.
        training_length: Tokens that the model was trained on before any extension.
        built_in: The checkpoint's own rope settings by Hugging Face's names, including any extension.
        config: Hugging Face's configuration, flat for this kind of layer.
    """

    base: float
    rotary_dim: int
    training_length: int
    built_in: Mapping[str, Any]
    config: Any

    def __repr__(self) -> str:
        width = f"rotary_dim={self.rotary_dim}, training_length={self.training_length}"
        return f"PlainRope(base={self.base:g}, {width}, extension={self.extension!r})"

    @property
    def extension(self) -> str:
        """Name of the checkpoint's own extension, "default" for none."""
        return str(self.built_in.get("rope_type") or self.built_in.get("type") or "default")

    @property
    def raised_to(self) -> int | None:
        """The context of a checkpoint that names no extension but a shorter original context; None otherwise.

        NTK leaves such a checkpoint: its base is another one, and the one that it was trained with is not stated.
        """
        stated = getattr(self.config, "max_position_embeddings", None)
        original = vars(self.config).get("original_max_position_embeddings")
        named = self.extension not in {"default", "mrope"}
        return None if named or not stated or not original or original >= stated else int(stated)

    def table(self, kind: str = "linear", length: int | None = None, **settings: Any) -> RopeTable:
        """Frequencies as `transformers` computes them for this model, any extension of its own left out.

        Args:
            kind: Hugging Face's `rope_type`; linear with its default factor of 1 is plain RoPE.
            length: Tokens of the run, for types that depend on it.
            **settings: The type's settings, by Hugging Face's names.
        """
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        plain = {key: self.built_in[key] for key in PLAIN_KEYS if key in self.built_in} | {"rope_theta": self.base}
        config = copy.deepcopy(self.config)
        config.max_position_embeddings = self.training_length
        if hasattr(config, "original_max_position_embeddings"):
            del config.original_max_position_embeddings
        if getattr(config, "head_dim", 0) is None:  # in Mixtral; transformers computes with it
            config.head_dim = config.hidden_size // config.num_attention_heads
        config.rope_parameters = plain | {"rope_type": kind, "factor": 1.0} | settings
        if kind == "longrope":
            # transformers derives the factor from these two, and takes the long list in runs beyond the original
            config.max_position_embeddings = round(settings["factor"] * self.training_length)
            config.original_max_position_embeddings = self.training_length
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), length)
        return RopeTable(inv_freq, float(attention_factor))


@checked
def plain_rope(model: TransformerLensModel, layer: int = 0, training_length: int | None = None) -> PlainRope:
    """Read one layer's rotation from the model's configuration.

    Args:
        model: A TransformerBridge.
        layer: Which layer; some models have two kinds.
        training_length: Tokens that the model was trained on; read from the configuration when None.

    Raises:
        UnsupportedModelError: If the configuration has no base.
        ValueError: If the training length is not positive, or neither given nor in the configuration.
    """
    in_range("training_length", training_length, 1, 2**40)
    in_range("layer", layer, 0, int(model.cfg.n_layers) - 1)
    config, given = _rope_settings(model, layer)
    base = given.get("rope_theta", getattr(config, "rope_theta", None))
    if base is None:
        msg = (
            f"the configuration of this {type(config).__name__} has no rope_theta: its frequencies are unknown, so it "
            "cannot be extended"
        )
        raise UnsupportedModelError(msg)
    share = float(given.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None) or 1.0))
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    trained = training_length or _training_length(config, given)
    if trained < 1:
        msg = f"training_length {trained} must be positive"
        raise ValueError(msg)
    return PlainRope(float(base), int(width * share), trained, dict(given), config)


def built_in_table(
    model: TransformerLensModel, layer: int, rotary_dim: int, d_head: int, length: int
) -> RopeTable | None:
    """One layer's frequencies by its configuration, any extension of its own included.

    Args:
        model: A TransformerBridge.
        layer: Which layer.
        rotary_dim: Number of channels that it rotates, as measured.
        d_head: Width of a query head.
        length: Tokens of the run.

    Returns:
        The table; None where the configuration gives no base, or names a type that `transformers` does not know.
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
    # The width as measured, because families name the setting in many ways. Only "proportional" needs a head's share.
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
    """Tokens of the shortest run that LongRoPE rotates by its long table; None where a layer has no such table."""
    config, given = _rope_settings(model, layer)
    if (given.get("rope_type") or given.get("type")) != "longrope":
        return None
    return _training_length(config, given) + 1


def _rope_settings(model: TransformerLensModel, layer: int) -> tuple[Any, Mapping[str, Any]]:
    """The configuration of the text model, and its rope settings for one layer."""
    config = model.original_model.config
    config = getattr(config, "text_config", None) or config
    given = getattr(config, "rope_parameters", None) or {}
    kinds = getattr(config, "layer_types", None)
    if kinds and any(isinstance(value, Mapping) for value in given.values()):
        given = given.get(kinds[layer]) or {}
    return config, given


def _training_length(config: Any, given: Mapping[str, Any]) -> int:
    """Tokens that the model was trained on before it was extended; extended checkpoints state them separately."""
    for source in (given, vars(config)):
        original = source.get("original_max_position_embeddings")
        if original:
            return int(original)
    stated = getattr(config, "max_position_embeddings", None)
    if stated is None:
        msg = "the configuration states no max_position_embeddings: give training_length=, the tokens of its training"
        raise ValueError(msg)
    length = int(stated)
    kind = given.get("rope_type") or given.get("type")
    # a linear factor without the original length: max_position_embeddings is the extended one in finetuned checkpoints
    return int(length / given["factor"]) if kind == "linear" and given.get("finetuned") else length
