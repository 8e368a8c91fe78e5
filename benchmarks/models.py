"""Llama-shaped models with random weights: for timings only their size matters."""

import os
import tempfile
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def llama_shaped(layers: int, heads: int, d_head: int, context: int = 2**15) -> Any:
    """A TransformerBridge of a random Llama.

    Args:
        layers: Its layers.
        heads: Heads of each.
        d_head: Channels of a head.
        context: Longest sequence, in tokens.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM

    width = heads * d_head
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
    )
    torch.manual_seed(0)
    from positional_heads.zoo.architecture import byte_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, device="cpu").eval()


def random_tokens(sequences: int, length: int) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(0, 256, (sequences, length), generator=torch.Generator().manual_seed(0))
