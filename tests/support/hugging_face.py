"""Rotated queries and keys from Hugging Face's own modules: rotated by our oracle, or by the model itself."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from tests.support import oracles

HEADS = 4
Split = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def _by_head(x: torch.Tensor, width: int) -> torch.Tensor:
    return x.unflatten(-1, (-1, width))


def _neox(fused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, _ = fused.unflatten(-1, (HEADS, -1)).chunk(3, dim=-1)
    return q, k


def _phi3(fused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, _ = fused.split([64, 32, 32], dim=-1)
    return _by_head(q, 16), _by_head(k, 16)


FUSED: dict[str, tuple[str, Split]] = {"neox": ("query_key_value", _neox), "phi3": ("qkv_proj", _phi3)}
SEPARATE = {"qwen3": ("q_norm", "k_norm", 24)}
ROTARY = {"neox": (4, "half"), "gptj": (8, "adjacent"), "qwen3": (24, "half")}


def rotated(family: str, folder: Path, tokens: np.ndarray) -> tuple[list[Any], list[Any], str, int]:
    """Rotated q and k of every layer, [layer][head] -> [pos d_head], with the layout and the number of pairs."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    seen: list[dict[str, torch.Tensor]] = []

    def keep(store: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
        return lambda module, inputs, output: store.update({name: output.detach()})

    for _, module in sorted(model.named_modules(), key=lambda item: item[0]):
        if any(hasattr(module, name) for name in ("q_proj", "query_key_value", "qkv_proj")):
            store: dict[str, torch.Tensor] = {}
            seen.append(store)
            for name in ("q_norm", "k_norm", "q_proj", "k_proj", "query_key_value", "qkv_proj"):
                if hasattr(module, name):
                    getattr(module, name).register_forward_hook(keep(store, name))
    with torch.no_grad():
        model(torch.from_numpy(tokens)[None])
    width, layout = ROTARY.get(family, (16, "half"))
    base = 10000.0 if family == "gptj" else model.config.rope_parameters["rope_theta"]
    frequencies = base ** (-np.arange(0, width, 2) / width)
    queries, keys = [], []
    for store in seen:
        q, k = _projected(family, store)
        queries.append(_turn(q[0], frequencies, layout))
        keys.append(_turn(k[0].repeat_interleave(HEADS // k.shape[2], dim=1), frequencies, layout))
    return queries, keys, layout, width // 2


def _projected(family: str, store: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    if family in FUSED:
        name, split = FUSED[family]
        return split(store[name])
    q, k, width = SEPARATE.get(family, ("q_proj", "k_proj", 16))
    return tuple(x if x.ndim == 4 else _by_head(x, width) for x in (store[q], store[k]))


def _turn(x: torch.Tensor, frequencies: np.ndarray, layout: str) -> list[np.ndarray]:
    """[pos head d_head] -> one [pos d_head] per head."""
    return [
        np.stack([oracles.rotated(row, position * frequencies, layout) for position, row in enumerate(head.numpy())])
        for head in x.transpose(0, 1)
    ]


READ: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = {}
"""Rotated query and key [head pos d_head] and the mask handed over with them, of each layer of the last run."""


def _handed_over(layer: int, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> None:
    READ[layer] = (query[0].double(), key[0].double(), mask)


def _interface(module, query, key, value, attention_mask, **settings):
    _handed_over(module.layer_idx, query, key, attention_mask)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    attend = sdpa_attention_forward if module.config._attn_implementation == "oracle of sdpa" else eager
    return attend(module, query, key, value, attention_mask, **settings)


def read(folder: Path, tokens: np.ndarray, dtype: torch.dtype = torch.float32) -> dict[int, Any]:
    """What each layer of the plain model attends with, [layer] -> (q, k, visible): no bridge, no rotation of ours.

    In half precision with the attention that Hugging Face chooses: another one rounds in other places.
    """
    return read_loaded(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager"), tokens)


def read_loaded(model: Any, tokens: np.ndarray) -> dict[int, Any]:
    """The same of a model that is loaded already, quantised or with an adapter in its layers."""
    model.eval()
    dtype = model.get_input_embeddings().weight.dtype
    chosen = type(model)._supports_sdpa and hasattr(sys.modules[type(model).__module__], "eager_attention_forward")
    kind = "sdpa" if dtype != torch.float32 and chosen else "eager"
    AttentionInterface.register(f"oracle of {kind}", _interface)
    ALL_MASK_ATTENTION_FUNCTIONS.register(f"oracle of {kind}", ALL_MASK_ATTENTION_FUNCTIONS[kind])
    model.config._attn_implementation = f"oracle of {kind}"
    READ.clear()
    with pytest.MonkeyPatch.context() as patch:
        _read_without_interface(model, patch)
        with torch.no_grad():
            model(torch.from_numpy(tokens)[None])
    found = {}
    for layer, (query, key, mask) in READ.items():
        causal = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).tril()
        visible = causal if mask is None else mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] > -1e4
        found[layer] = (query.numpy(), key.repeat_interleave(len(query) // len(key), dim=0).numpy(), visible.numpy())
    return found


def _read_without_interface(model: Any, patch: pytest.MonkeyPatch) -> None:
    """GPT-J and CodeGen attend in `_attn`, Falcon right after its rotation: they pass the interface by."""
    for layer, block in enumerate(getattr(getattr(model, "transformer", None), "h", [])):
        attention = getattr(block, "attn", None)
        if attention is not None and hasattr(attention, "_attn"):

            def attend(query, key, value, mask=None, *rest, layer=layer, own=attention._attn, **more):
                _handed_over(layer, query, key, mask)
                return own(query, key, value, mask, *rest, **more)

            patch.setattr(attention, "_attn", attend)
    if type(model).__name__.startswith("Falcon") and hasattr(model, "transformer"):
        home = sys.modules[type(model).__module__]
        rotate = home.apply_rotary_pos_emb

        def rotate_and_tell(*args, **kwargs):
            query, key = rotate(*args, **kwargs)
            _handed_over(len(READ), query, key, None)
            return query, key

        patch.setattr(home, "apply_rotary_pos_emb", rotate_and_tell)
