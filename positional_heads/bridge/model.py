"""The models this package accepts: their type, the names of their hooks, and the architectures that are refused."""
# ruff: noqa: D102  members of the Protocol are documented by TransformerLens

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from positional_heads.core.heads import Head, Heads, as_heads

if TYPE_CHECKING:

    class TransformerLensModel(Protocol):
        """The members of a TransformerBridge that this package uses."""

        cfg: Any
        adapter: Any
        training: bool

        @property
        def blocks(self) -> Any: ...
        @property
        def hook_dict(self) -> dict[str, Any]: ...
        @property
        def original_model(self) -> Any: ...
        @property
        def tokenizer(self) -> Any: ...
        def _initialize_hook_registry(self) -> None: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
        def clear_hook_registry(self) -> None: ...
        def generate(self, *args: Any, **kwargs: Any) -> Any: ...
        def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]: ...
        def hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]: ...
        def parameters(self, *args: Any, **kwargs: Any) -> Any: ...
        def run_with_cache(self, *args: Any, **kwargs: Any) -> Any: ...
        def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any: ...

else:
    # For type checkers only: `blocks` is a submodule, which isinstance of a Protocol cannot see from Python 3.12 on.
    # At run time `refuse_unsupported` checks the class, with a message that says what to do.
    TransformerLensModel = Any

SCORES, PATTERN = "hook_attn_scores", "hook_pattern"
Record = dict[str, Tensor]
"""Activations of one layer's attention by hook name; hooks that did not fire are missing."""
REFUSED = {
    "HrmText": "HRM runs its layers several times in one pass, so a head has several sets of queries and keys",
    "DeepSeekV4": "DeepSeek-V4 attends to keys that each represent several tokens, so they have no single distance",
    "RecurrentGemma": (
        "RecurrentGemma's attention has no hooks in TransformerLens, and padding changes the state of its recurrent "
        "layers: not supported"
    ),
    "Zamba2": "Zamba2 uses one attention module in several layers, without hooks in TransformerLens: not supported",
}
"""Architecture adapters that are refused, and the reason."""


class UnsupportedModelError(ValueError):
    """The model's attention does not split into rotary pairs, or the split cannot be proven correct."""


def hook_name(layer: int, name: str) -> str:
    """Full name of an attention hook."""
    return f"blocks.{layer}.attn.{name}"


def heads_of_model(model: TransformerLensModel, heads: Heads) -> list[Head]:
    """One or several heads, in the order given.

    Raises:
        TypeError: If this is neither a head nor a list of heads.
        ValueError: If a head has another notation, or does not exist in the model.
    """
    return as_heads(heads, int(model.cfg.n_layers), int(model.cfg.n_heads))


def layers_with_attention(model: TransformerLensModel) -> list[int]:
    """Layers that have a `hook_attn_scores`; hybrid models have layers without one."""
    hooks = model.hook_dict  # once: TransformerLens builds it at each access
    return [layer for layer in range(int(model.cfg.n_layers)) if hook_name(layer, SCORES) in hooks]


def refuse_unsupported(model: TransformerLensModel) -> None:
    """Refuse a model that cannot be scored, by what its class and configuration say.

    Raises:
        UnsupportedModelError: If this is not a TransformerBridge of a rotary model in evaluation mode.
    """
    refuse_unreadable(model)
    _refuse_other_encodings(model)


def refuse_unreadable(model: TransformerLensModel) -> None:
    """Refuse a model whose attention cannot be read, whatever its encoding of position.

    Raises:
        UnsupportedModelError: If this is not a TransformerBridge in evaluation mode, or its attention is not one score
            for each query and key.
    """
    kind = type(model).__name__
    if kind != "TransformerBridge":
        msg = (
            f"a {kind} cannot be scored: its activations cannot be checked here. Boot the model with "
            "transformer_lens.model_bridge.TransformerBridge.boot_transformers(...)"
        )
        raise UnsupportedModelError(msg)
    _refuse_architecture(model)
    _refuse_rounded_frequencies(model)
    _refuse_missing_weights(model)
    if model.training:
        msg = "the model is in training mode, where dropout changes activations: call model.eval() first"
        raise UnsupportedModelError(msg)


def _refuse_architecture(model: TransformerLensModel) -> None:
    adapter = type(model.adapter).__name__
    if adapter == "NativeArchitectureAdapter":
        msg = "a boot_native model cannot be scored: its rotary hooks exist and never fire; use boot_transformers"
        raise UnsupportedModelError(msg)
    for name, reason in REFUSED.items():
        if adapter.startswith(name):
            raise UnsupportedModelError(reason)
    if adapter.startswith("CodeGen") and model.cfg.dtype in {torch.float16, torch.bfloat16}:
        msg = "TransformerLens cannot run CodeGen in half precision (its attention mixes dtypes): load it in float32"
        raise UnsupportedModelError(msg)
    if adapter.startswith("GPTOSS") and getattr(model, "_weights_processed", False):
        msg = (
            "TransformerLens' weight processing changes what GPT-OSS computes (attention sinks, experts): boot it "
            "again, without enable_compatibility_mode() or with no_processing=True"
        )
        raise UnsupportedModelError(msg)


def _refuse_other_encodings(model: TransformerLensModel) -> None:
    """Refuse attention that does not rotate all of its queries and keys, and nothing else."""
    embedding = str(getattr(model.cfg, "positional_embedding_type", "rotary"))
    if embedding in {"standard", "alibi", "relative_positional_bias", "shortformer"}:
        msg = f"this model's positional embedding is {embedding!r}, not rotary: it has no rotary pairs to score"
        raise UnsupportedModelError(msg)
    for layer in layers_with_attention(model):
        attention = model.blocks[layer].attn
        if type(attention).__name__.startswith(("MLA", "GlmMoeDsa")):
            msg = "multi-head latent attention (DeepSeek) keeps rotated and other channels apart: not supported"
            raise UnsupportedModelError(msg)
        if type(attention.original_component).__name__.startswith("HunYuan"):
            msg = "HunYuan normalises queries and keys after rotating them, so its pairs are not plain rotations"
            raise UnsupportedModelError(msg)


def _refuse_rounded_frequencies(model: TransformerLensModel) -> None:
    """Check the buffers: cos and sin in half precision cannot show whether frequencies were rounded before them."""
    for name, buffer in model.original_model.named_buffers():
        if name.endswith("inv_freq") and buffer.dtype in {torch.float16, torch.bfloat16}:
            precision = str(buffer.dtype).removeprefix("torch.")
            msg = (
                f"the frequencies of this model ({name}) are rounded to {precision}, which it was not trained with: "
                "load it in that precision (dtype=) instead of casting the loaded model"
            )
            raise UnsupportedModelError(msg)


def _refuse_missing_weights(model: TransformerLensModel) -> None:
    """Accept weights that accelerate offloads to disk: they are on the meta device too, with a hook to read them."""
    for name, parameter in model.original_model.named_parameters():
        holder = name.rpartition(".")[0]
        if parameter.is_meta and not hasattr(model.original_model.get_submodule(holder), "_hf_hook"):
            msg = f"the weights of this model are not loaded ({name} is on the meta device): boot it with its weights"
            raise UnsupportedModelError(msg)
    if str(model.cfg.device) == "meta":
        msg = (
            "the embeddings of this model are offloaded to disk, so the device of its tokens is unknown: keep them on "
            "a device, device_map={'model.embed_tokens': 'cpu', ...}"
        )
        raise UnsupportedModelError(msg)
