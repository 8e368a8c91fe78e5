"""Tiny random models of every family, as folders on disk: what the host tests run on.

One-dimensional parameters get noise, because fresh norms are all ones and hide bugs.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from positional_heads.zoo.architecture import byte_tokenizer

COMMON = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 257,
}
GROUPED = {"num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 12}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 12}),
    "mixtral": ("Mixtral", {**GROUPED, **EXPERTS, "sliding_window": None}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 24}),
    "phi": ("Phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", GROUPED),
    "gemma": ("Gemma", {**GROUPED, "head_dim": 16}),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3Text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
    "olmo2": ("Olmo2", GROUPED),
    "stablelm": ("StableLm", {**GROUPED, "partial_rotary_factor": 0.25}),
    "cohere": ("Cohere", GROUPED),
    "glm": ("Glm", {**GROUPED, "head_dim": 16, "partial_rotary_factor": 0.5}),
    "smollm3": ("SmolLM3", {**GROUPED, "no_rope_layers": [1, 0], "no_rope_layer_interval": 2}),
    "neox": ("GPTNeoX", {"rotary_pct": 0.25}),
    "gptj": ("GPTJ", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8}),
    "codegen": ("CodeGen", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8}),
    "falcon": ("Falcon", {"new_decoder_architecture": False, "multi_query": True, "alibi": False}),
    "gpt_oss": ("GptOss", {**GROUPED, **EXPERTS, "head_dim": 16, "sliding_window": 12}),
    "granite": ("Granite", {**GROUPED, "attention_multiplier": 0.2}),
    "deepseek_v3": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 2,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 2,
        },
    ),
    "hunyuan": ("HunYuanDenseV1", {**GROUPED, "head_dim": 16}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}),
}
DEAD_HOOKS = ("neox", "phi3", "falcon", "gptj", "codegen")
NOT_ROTARY = ("gpt2", "opt", "bloom")
NAMED_REFUSALS = ("deepseek_v2", "deepseek_v3", "hunyuan")
WRONG_BRIDGES = ("cohere",) if int(version("transformer-lens").split(".")[0]) < 4 else ()
"""TransformerLens 3.9 turns Cohere's half-split channels by angles of adjacent ones; its logits are wrong, too."""
SCORED = tuple(family for family in FAMILIES if family not in NOT_ROTARY + NAMED_REFUSALS + WRONG_BRIDGES)


def save_tiny_model(family: str, folder: Path, *, seed: int = 0, noise: float = 0.3, **overrides: Any) -> Path:
    """Write a random model of the family, with a byte tokenizer, in `transformers` format."""
    prefix, settings = FAMILIES[family]
    config_class = getattr(transformers, f"{prefix.removesuffix('Text')}{'Text' if 'Text' in prefix else ''}Config")
    config = config_class(**{**COMMON, **settings, **overrides})
    name = f"{prefix.removesuffix('Text')}ForCausalLM" if family == "gemma3" else f"{prefix}ForCausalLM"
    if family == "gpt2":
        name = "GPT2LMHeadModel"
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = noise if parameter.ndim == 1 else 0.15
            parameter.add_(scale * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def boot(folder: Path, **settings: Any) -> TransformerBridge:
    """A TransformerBridge of a saved model."""
    return TransformerBridge.boot_transformers(str(folder), device="cpu", **settings)
