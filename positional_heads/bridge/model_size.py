"""How large a model is, from its configuration alone: no weights are loaded, and nothing is downloaded.

Hugging Face's model is built on PyTorch's meta device, where tensors have shapes and no numbers. So parameters, rotary
pairs and experts are counted in the model's own code, for every family alike.
"""

import textwrap
from dataclasses import dataclass
from typing import Any

import torch

from positional_heads.bridge.model import REFUSED, UnsupportedModelError

ATTENTION = ("full_attention", "sliding_attention", "chunked_attention", "attention", "hybrid")
"""Kinds of layers with attention; linear attention and state-space layers have no queries and keys to score."""
WINDOWED = ("sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class ModelSize:
    """What time and memory of a run depend on.

    Attributes:
        name: Name of the model.
        windows: Sliding window of each layer that rotates, in tokens; None where only causality masks.
        heads: Query heads of a layer.
        kv_heads: Key heads of a layer.
        d_head: Channels of a head.
        pairs: Rotary pairs of a head.
        d_model: Channels of the residual stream.
        d_mlp: Widest activation of a layer.
        parameters: All parameters.
        used: Parameters that each token is multiplied by: without embeddings, and of the experts those that it uses.
        context: Longest sequence that the model was made for, in tokens.
    """

    name: str
    windows: tuple[int | None, ...]
    heads: int
    kv_heads: int
    d_head: int
    pairs: int
    d_model: int
    d_mlp: int
    parameters: int
    used: int
    context: int

    @property
    def layers(self) -> int:
        """Layers that are scored."""
        return len(self.windows)

    @property
    def head_count(self) -> int:
        """Heads that are scored, of all layers."""
        return self.layers * self.heads


def model_size(config: Any, name: str | None = None) -> ModelSize:
    """The size of a model.

    Args:
        config: Its configuration, as `transformers` reads it.
        name: Its name; that in the configuration when None.

    Raises:
        UnsupportedModelError: If it has no rotary embedding.
        ValueError: If `transformers` cannot build a language model from it.
    """
    from transformers import AutoModelForCausalLM

    text = config.get_text_config()
    if not getattr(text, "num_hidden_layers", 1):
        msg = "num_hidden_layers is 0 in config.json: there is no layer to score"
        raise ValueError(msg)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(text)
    except Exception as error:
        unknown = [
            key for key, value in text.to_dict().items() if isinstance(error, KeyError) and [value] == [*error.args]
        ]
        reason = f"{unknown[0]} is " if unknown else ""
        reason += textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
        reason += ", which is unknown" if unknown else ""
        msg = f"the size of this model cannot be read from its configuration, config.json: {reason}"
        raise ValueError(msg) from error
    for name_of_family, reason in REFUSED.items():
        if type(model).__name__.lower().startswith(name_of_family.lower()):
            raise UnsupportedModelError(reason)
    heads = int(text.num_attention_heads)
    windows = tuple(windows_by_layer(text).values())
    pairs = _rotary_pairs(model)
    if not pairs or not windows:
        msg = f"a {type(model).__name__} has no rotary embedding: it has no rotary pairs to score"
        raise UnsupportedModelError(msg)
    embeddings = {
        id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None
    }
    share = _experts_used(text)
    inside = [(key, weight) for key, weight in model.named_parameters() if id(weight) not in embeddings]
    return ModelSize(
        name=name or str(getattr(config, "_name_or_path", "") or type(model).__name__),
        windows=windows,
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        d_head=max(int(getattr(one, "head_dim", None) or text.hidden_size // heads) for one in _layer_configs(text)),
        pairs=pairs,
        d_model=int(text.hidden_size),
        d_mlp=max(max(weight.shape[-2:]) for _, weight in inside if weight.ndim > 1),
        parameters=sum(weight.numel() for weight in {id(one): one for one in model.parameters()}.values()),
        used=round(sum(weight.numel() * (share if ".experts." in key else 1) for key, weight in inside)),
        context=int(text.max_position_embeddings),
    )


def _layer_configs(text: Any) -> list[Any]:
    """The configuration of every layer where they differ (Gemma-4), else that of all."""
    return list(getattr(text, "per_layer_config", None) or [text])


def _rotary_pairs(model: Any) -> int:
    """Rotary pairs of a head: of the kind of layer with the most, where there are several."""
    tables = [buffer for key, buffer in model.named_buffers() if key.endswith("inv_freq")]
    positions = [buffer for key, buffer in model.named_buffers() if key.endswith("embed_positions")]
    fixed = [getattr(module, "embed_positions", None) for module in model.modules()]
    positions += [table for table in fixed if isinstance(table, torch.Tensor)]
    return max([table.shape[-1] for table in tables] + [table.shape[-1] // 2 for table in positions], default=0)


def windows_by_layer(text: Any) -> dict[int, int | None]:
    """Sliding window of each layer that rotates; None where there is none.

    Args:
        text: Hugging Face's configuration of a text model.
    """
    kinds, window = layer_kinds(text)
    # SmolLM3, Llama-4: 0 where a layer does not rotate
    rotates = getattr(text, "no_rope_layers", None) or [1] * int(text.num_hidden_layers)
    return {
        layer: int(window) if kind in WINDOWED and window else None
        for layer, (kind, rotated) in enumerate(zip(kinds, rotates, strict=False))
        if kind in ATTENTION and rotated
    }


def layer_kinds(text: Any) -> tuple[list[str], int | None]:
    """What kind of layer each is, in Hugging Face's words, and the sliding window, or chunk, of those that have one.

    Args:
        text: Hugging Face's configuration of a text model.
    """
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        windowed = window and getattr(text, "use_sliding_window", True)
        kinds = ["sliding_attention" if windowed else "attention"] * int(text.num_hidden_layers)
    return list(kinds), window


def _experts_used(text: Any) -> float:
    """Share of the experts that each token uses; 1 without experts."""
    experts = next(
        (n for name in ("num_local_experts", "num_experts", "n_routed_experts") if (n := getattr(text, name, None))),
        None,
    )
    return 1.0 if not experts else float(getattr(text, "num_experts_per_tok", None) or 1) / float(experts)
