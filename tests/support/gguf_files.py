"""Tiny GGUF files, written from tiny models as llama.cpp's converter would: by its names, and rows in its order.

Needs the package `gguf`: import it after `pytest.importorskip("gguf")`.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from positional_heads.zoo.architecture import BOS_ID, PAD_ID, byte_tokenizer
from tests.support.tiny_models import COMMON, save_tiny_model

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WIDTH = 16
"""Channels of a head of tiny models."""


def gguf_name(name: str) -> str:
    """llama.cpp's name of a parameter: model.layers.1.mlp.up_proj.weight -> blk.1.ffn_up.weight."""
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("model.layers."):
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{NAMES[part]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def interleaved(rows: np.ndarray) -> np.ndarray:
    """Rows of queries or keys in llama.cpp's order for Llama: the two channels of a pair beside each other."""
    order = [head + channel for head in range(0, len(rows), WIDTH) for pair in range(8) for channel in (pair, pair + 8)]
    return rows[order]


def write_gguf(
    folder: Path,
    file: Path,
    family: str = "llama",
    *,
    stored: dict[str, gguf.GGMLQuantizationType] | None = None,
    settings: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
) -> Path:
    """Write a saved tiny model as a GGUF file.

    Args:
        folder: The model in `transformers` format.
        file: The file to write.
        family: "llama" or "qwen2", also llama.cpp's name of it.
        stored: Types of tensors by the end of their llama.cpp names; float32 otherwise.
        settings: More metadata of the model, e.g. {"rope.scaling.type": "yarn"}; None leaves one out.
        tensors: More tensors, or None to leave one out.
    """
    metadata = {
        "context_length": COMMON["max_position_embeddings"],
        "block_count": COMMON["num_hidden_layers"],
        "feed_forward_length": COMMON["intermediate_size"],
        "embedding_length": COMMON["hidden_size"],
        "attention.head_count": COMMON["num_attention_heads"],
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "vocab_size": COMMON["vocab_size"],
        "rope.freq_base": 10000.0,
        "rope.dimension_count": WIDTH,
    } | (settings or {})
    writer = gguf.GGUFWriter(file, family)
    for key, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        if value is not None:
            add[type(value)](f"{family}.{key}", value)
    _add_tokenizer(writer)
    own = {gguf_name(name): tensor.numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    for name, values in (own | (tensors or {})).items():
        if values is None:
            continue
        turned = family == "llama" and name in own and ("attn_q." in name or "attn_k." in name)
        rows = np.ascontiguousarray(interleaved(values) if turned else values)
        kind = next((kind for end, kind in (stored or {}).items() if name.endswith(end)), None)
        writer.add_tensor(name, rows if kind is None else gguf.quants.quantize(rows, kind), raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return file


def saved_llama(folder: Path, family: str = "llama", **overrides: Any) -> Path:
    """A tiny model whose norms have the epsilon that the files say, with its own unembedding."""
    return save_tiny_model(family, folder, rms_norm_eps=1e-6, tie_word_embeddings=False, **overrides)


def q8_0(values: torch.Tensor) -> torch.Tensor:
    """What is left of numbers stored as Q8_0: 32 to a block, as whole numbers of its largest over 127, in float16."""
    blocks = values.reshape(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    steps = torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks))
    whole = steps.sign() * (steps.abs() + 0.5).floor()
    return (whole * scale.half().float()).reshape(values.shape)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    vocabulary = byte_tokenizer().get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([1] * 256 + [3, 3])
    writer.add_token_scores([0.0] * 258)  # of which a byte-level vocabulary has merges of bytes: none
    writer.add_bos_token_id(BOS_ID)
    writer.add_pad_token_id(PAD_ID)
    writer.add_add_bos_token(True)
