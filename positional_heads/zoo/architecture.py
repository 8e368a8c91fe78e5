"""Configurations and tokenizer of the small models over bytes: the bundled Llama, and one model for each encoding.

Bytes take any text, and 16 rotary pairs per head are enough to see how D is distributed over them.
"""

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

Encoding = Literal["rotary", "learned", "sinusoidal", "alibi", "none"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)

BOS = "<|bos|>"
PAD = "<|pad|>"
BOS_ID = 256
PAD_ID = 257
TRAINING_LENGTH = 512


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer in which token i is byte i, with a beginning-of-sequence and a padding token.

    Returns:
        A `transformers` fast tokenizer with 258 tokens: byte-level BPE without merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    vocabulary = {letters[byte]: byte for byte in range(256)} | {BOS: BOS_ID, PAD: PAD_ID}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, pad_token=PAD, model_max_length=TRAINING_LENGTH
    )


def bundled_config() -> "LlamaConfig":
    """The bundled model's `transformers` config: 4 layers, 8 heads of width 32 (16 rotary pairs), 1.2 M parameters."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=258,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=32,
        max_position_embeddings=TRAINING_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=BOS_ID,
        eos_token_id=None,
        pad_token_id=PAD_ID,
        initializer_range=0.05,
        tie_word_embeddings=False,
    )


def model_of_encoding(encoding: Encoding, base: float = 10000.0) -> "PreTrainedModel":
    """A model with random weights that differs from those of the other encodings in how it knows positions.

    3 layers of 4 heads of width 32, 0.66 M parameters: GPT-2 with a table of positions that is learned, fixed to
    sinusoids, or 0; GPT-NeoX with its residuals one after the other, which is GPT-2 with rotary pairs (all 16 of a
    head); Bloom, which is GPT-2 with ALiBi and one more norm, after the embedding.

    Args:
        encoding: How the model knows positions.
        base: Base of the rotary frequencies.
    """
    from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, GPTNeoXConfig

    shared: dict[str, Any] = {
        "vocab_size": 258,
        "initializer_range": 0.05,
        "tie_word_embeddings": False,
        "bos_token_id": BOS_ID,
        "eos_token_id": None,
        "pad_token_id": PAD_ID,
    }
    if encoding == "rotary":
        config: Any = GPTNeoXConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            hidden_act="gelu_new",
            use_parallel_residual=False,
            max_position_embeddings=TRAINING_LENGTH,
            rope_parameters={"rope_type": "default", "rope_theta": base, "partial_rotary_factor": 1.0},
            **shared,
        )
    elif encoding == "alibi":
        config = BloomConfig(hidden_size=128, n_layer=3, n_head=4, **shared)
    else:
        off: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = GPT2Config(n_embd=128, n_layer=3, n_head=4, n_positions=TRAINING_LENGTH, **off, **shared)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    if encoding in {"sinusoidal", "none"}:
        positions: Any = model.get_submodule("transformer.wpe").weight
        positions.requires_grad = False
        positions.copy_(sinusoids(*positions.shape) if encoding == "sinusoidal" else torch.zeros_like(positions))
    return model


def sinusoids(length: int, width: int) -> Float[Tensor, "length width"]:
    """Positions as sines and cosines (Vaswani et al. 2017, section 3.5), as large as the fresh token embeddings."""
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    return 0.05 * 2**0.5 * torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
