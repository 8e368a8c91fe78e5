"""Which models are turned away at the door, before anything is run?"""

from typing import Any

import torch

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.recording import layers_with_attention

NAMED = {
    "HrmText": "HRM runs its layers several times in one pass, so that a head has no one set of queries and keys",
    "DeepSeekV4": "DeepSeek-V4 attends to keys that stand for several tokens each, at no one distance from a query",
    "RecurrentGemma": (
        "RecurrentGemma's attention has no hooks in TransformerLens, and padding goes into the state of its recurrent "
        "layers: not supported"
    ),
    "Zamba2": "Zamba2 uses one attention module in several layers, without hooks in TransformerLens: not supported",
}
"""Adapters of architectures that are refused, and why."""


class UnsupportedModelError(ValueError):
    """The model's attention cannot be taken apart into rotary pairs, or we cannot prove that we do it right."""


def refuse_unsupported(model: TransformerLensModel) -> None:
    """Refuse models whose attention we know not to be scorable, with a reason.

    Raises:
        UnsupportedModelError: If this is not a TransformerBridge of a rotary model in evaluation mode.
    """
    kind = type(model).__name__
    if kind != "TransformerBridge":
        msg = (
            f"a {kind} cannot be scored: its activations cannot be checked here. Boot the model with "
            "transformer_lens.model_bridge.TransformerBridge.boot_transformers(...)"
        )
        raise UnsupportedModelError(msg)
    adapter = type(model.adapter).__name__  # type: ignore[attr-defined]
    if adapter == "NativeArchitectureAdapter":
        msg = "a boot_native model cannot be scored: its rotary hooks exist and never fire; use boot_transformers"
        raise UnsupportedModelError(msg)
    for name, reason in NAMED.items():
        if adapter.startswith(name):
            raise UnsupportedModelError(reason)
    if adapter.startswith("CodeGen") and model.cfg.dtype in {torch.float16, torch.bfloat16}:
        msg = "TransformerLens cannot run CodeGen in half precision (its attention mixes dtypes): load it in float32"
        raise UnsupportedModelError(msg)
    if adapter.startswith("GPTOSS") and getattr(model, "_weights_processed", False):
        msg = (
            "TransformerLens' weight processing changes what GPT-OSS computes (attention sinks, experts): boot it "
            "anew, without enable_compatibility_mode() or with no_processing=True"
        )
        raise UnsupportedModelError(msg)
    embedding = str(getattr(model.cfg, "positional_embedding_type", "rotary"))
    if embedding in {"standard", "alibi", "relative_positional_bias", "shortformer"}:
        msg = f"this model's positional embedding is {embedding!r}, not rotary: it has no rotary pairs to score"
        raise UnsupportedModelError(msg)
    for layer in layers_with_attention(model):
        attention = model.blocks[layer].attn  # type: ignore[attr-defined]
        if type(attention).__name__.startswith(("MLA", "GlmMoeDsa")):
            msg = "multi-head latent attention (DeepSeek) keeps rotated and other channels apart, not supported"
            raise UnsupportedModelError(msg)
        if type(attention.original_component).__name__.startswith("HunYuan"):
            msg = "HunYuan normalises queries and keys after rotating them: its pairs are not plain rotations"
            raise UnsupportedModelError(msg)
    _refuse_rounded_frequencies(model)
    _refuse_missing_weights(model)
    if model.training:  # type: ignore[attr-defined]
        msg = "the model is in training mode, where dropout changes activations: call model.eval() first"
        raise UnsupportedModelError(msg)


def _refuse_rounded_frequencies(model: Any) -> None:
    """Cos and sin in half precision cannot show that frequencies were rounded before them; their buffers do."""
    for name, buffer in model.original_model.named_buffers():
        if name.endswith("inv_freq") and buffer.dtype in {torch.float16, torch.bfloat16}:
            precision = str(buffer.dtype).removeprefix("torch.")
            msg = (
                f"the frequencies of this model ({name}) are rounded to {precision}, which it was not trained with: "
                "load it in that precision (dtype=) instead of casting the loaded model"
            )
            raise UnsupportedModelError(msg)


def _refuse_missing_weights(model: Any) -> None:
    """Weights kept on disk are on the meta device, and come with a hook that reads them; without one there are none."""
    for name, parameter in model.original_model.named_parameters():
        holder = name.rpartition(".")[0]
        if parameter.is_meta and not hasattr(model.original_model.get_submodule(holder), "_hf_hook"):
            msg = f"the weights of this model are not loaded ({name} is on the meta device): boot it with its weights"
            raise UnsupportedModelError(msg)
    if str(model.cfg.device) == "meta":
        msg = (
            "the embeddings of this model are kept on disk, so nothing says where its tokens belong: keep them on a "
            "device, device_map={'model.embed_tokens': 'cpu', ...}"
        )
        raise UnsupportedModelError(msg)
