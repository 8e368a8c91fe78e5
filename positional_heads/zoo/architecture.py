"""Configuration and tokenizer of the bundled model, a small Llama over bytes.

Bytes take any text, and 16 rotary pairs per head are enough to see how D is distributed over them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

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
