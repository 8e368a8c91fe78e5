"""A Llama with three heads set by hand, that know what they do.

Token p says "I am p" in its embedding. Head 0 turns that into allocation that follows distance; head 1 moves with
distance by geometry alone; head 2 sees noise.
"""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from positional_heads.zoo.architecture import byte_tokenizer

D_HEAD, PAIRS, VOCABULARY = 16, 8, 258


def save_planted_model(folder: Path) -> Path:
    """Write the model, in `transformers` format."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        place = torch.arange(VOCABULARY) / VOCABULARY
        embedding = torch.zeros(VOCABULARY, 64)
        embedding[:, 0], embedding[:, 1], embedding[:, 2] = 1, place, (2 - place**2).sqrt()
        embedding[:, 3:] = torch.randn(VOCABULARY, 61) / 61**0.5  # squares sum to about 1, as those of 0 to 2 do to 3
        embedding /= embedding.pow(2).mean(-1, keepdim=True).sqrt()
        model.model.embed_tokens.weight.copy_(embedding)
        query, key = (projection.weight.view(4, D_HEAD, 64) for projection in (attention.q_proj, attention.k_proj))
        query.zero_(), key.zero_()
        slow = (PAIRS - 1, 2 * PAIRS - 1)  # channels of the slowest pair: as good as not rotated here
        query[0, slow[0], 1], key[0, slow[0], 0] = 2, 2  # g = 4 (q's place - k's place)
        query[0, slow[1], 0], key[0, slow[1], 1] = -2, 2
        query[1, :PAIRS, 0] = key[1, :PAIRS, 0] = 0.5  # g_i = cos(distance * frequency_i) / 4, times what 0 holds
        query[2, :, 3:], key[2, :, 3:] = torch.randn(2, D_HEAD, 61) / 4
        query[3, :, 3:], key[3, :, 3:] = torch.randn(2, D_HEAD, 61) / 4
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
