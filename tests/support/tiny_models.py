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
LINEAR = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
SPARSE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
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
    "gemma3": ("Gemma3", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
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
    "olmo": ("Olmo", {**GROUPED, "clip_qkv": 0.5}),
    "falcon_h1": (
        "FalconH1",
        {
            **GROUPED,
            "head_dim": 16,
            "key_multiplier": 0.4,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
        },
    ),
    "qwen3_next": ("Qwen3Next", {**GROUPED, **SPARSE, **LINEAR, "shared_expert_intermediate_size": 32}),
    "qwen3_5": ("Qwen3_5", {**GROUPED, **LINEAR}),
    "olmo_hybrid": ("OlmoHybrid", {**GROUPED, **LINEAR, "linear_num_value_heads": 2}),
    "gemma4": (
        "Gemma4",
        {
            **GROUPED,
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 258,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "llama4": (
        "Llama4",
        {
            **GROUPED,
            **EXPERTS,
            "head_dim": 16,
            "no_rope_layers": [1, 0],
            "intermediate_size_mlp": 96,
            "attention_chunk_size": 128,
            "moe_layers": [1],
        },
    ),
    "afmoe": (
        "Afmoe",
        {
            **GROUPED,
            **SPARSE,
            "head_dim": 16,
            "num_dense_layers": 1,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "laguna": (
        "Laguna",
        {
            **GROUPED,
            **SPARSE,
            "head_dim": 16,
            "num_attention_heads_per_layer": [4, 4],
            "shared_expert_intermediate_size": 32,
        },
    ),
    "nanochat": ("NanoChat", GROUPED),
    "modernbert_decoder": (
        "ModernBertDecoder",
        {"local_attention": 24, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        {
            **GROUPED,
            "head_dim": 16,
            "lru_width": 64,
            "attention_window_size": 12,
            "block_types": ["recurrent", "attention"],
        },
    ),
    "hrm": ("HrmText", {**GROUPED, "num_layers_per_stack": 1, "H_cycles": 1, "L_cycles": 1}),
    "deepseek_v4": ("DeepseekV4", {"head_dim": 16, "num_key_value_heads": 1, "q_lora_rank": 16, "o_lora_rank": 16}),
    "zamba2": (
        "Zamba2",
        {
            **GROUPED,
            "use_mem_rope": True,
            "mamba_d_state": 8,
            "mamba_expand": 2,
            "mamba_ngroups": 1,
            "n_mamba_heads": 4,
            "layers_block_type": ["linear_attention", "hybrid"],
            "attention_head_dim": 32,
            "attention_hidden_size": 128,
            "adapter_rank": 8,
            "num_mem_blocks": 1,
            "chunk_size": 16,
        },
    ),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}),
}
OTHER_ENCODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mpt": ("Mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256, "expansion_ratio": 2}),
    "xglm": ("XGLM", {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96}),
    "gpt_neo": (
        "GPTNeo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 12},
    ),
    "mamba": ("Mamba", {}),
}
"""ALiBi, sinusoids, learned positions with local attention, and a state in place of attention."""
DEAD_HOOKS = ("neox", "phi3", "falcon", "gptj", "codegen")
NOT_ROTARY = ("gpt2", "opt", "bloom")
NAMED_REFUSALS = ("deepseek_v2", "deepseek_v3", "deepseek_v4", "hunyuan", "hrm", "recurrent_gemma", "zamba2")
HYBRID = ("falcon_h1", "qwen3_next", "qwen3_5", "olmo_hybrid")
"""Attention beside layers of another kind, or beside a state-space model in the same layer."""
DELEGATED = ("gemma4", "llama4", "afmoe", "laguna", "nanochat", "olmo_hybrid", "modernbert_decoder")
"""Attention is left to Hugging Face's own module: read through transformers' attention interface, not edited."""
ADJACENT = ("cohere", "glm", "gptj", "codegen", "llama4")
ROTARY_DIM = {"qwen3": 24, "phi": 8, "stablelm": 4, "glm": 8, "neox": 4, "gptj": 8, "codegen": 8}
ROTARY_DIM |= {"qwen3_next": 4, "qwen3_5": 4, "laguna": 8}
WRONG_BRIDGES = ("cohere",) if int(version("transformer-lens").split(".")[0]) < 4 else ()
"""TransformerLens 3.9 turns Cohere's half-split channels by angles of adjacent ones; its logits are wrong, too."""
SCORED = tuple(
    family for family in FAMILIES if family not in NOT_ROTARY + NAMED_REFUSALS + WRONG_BRIDGES + HYBRID + DELEGATED
)
"""Attention of every layer is computed by the bridge, whose hooks fire and take edits."""
BOOTED = tuple((family, way) for family in SCORED for way in (False, True) if (family, way) != ("gpt_oss", True))
"""Family and whether in compatibility mode, whose weight processing changes what GPT-OSS computes: refused."""
TEXT_CONFIGS = {"gemma3": "Gemma3TextConfig", "gemma4": "Gemma4TextConfig", "llama4": "Llama4TextConfig"}
TEXT_CONFIGS |= {"qwen3_5": "Qwen3_5TextConfig"}


def rotary_dim(family: str, layer: int) -> int:
    """How many channels a head rotates; Gemma-4's layers with full attention have wider heads."""
    return 32 if family == "gemma4" and layer % 2 else ROTARY_DIM.get(family, 16)


def save_tiny_model(family: str, folder: Path, *, seed: int = 0, noise: float = 0.3, **overrides: Any) -> Path:
    """Write a random model of the family, with a byte tokenizer, in `transformers` format."""
    prefix, settings = {**FAMILIES, **OTHER_ENCODINGS}[family]
    config_class = getattr(transformers, TEXT_CONFIGS.get(family, f"{prefix}Config"))
    config = config_class(**{**COMMON, **settings, **overrides})
    name = f"{prefix}ForCausalLM"
    if family == "gpt2":
        name = "GPT2LMHeadModel"
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = noise if parameter.ndim == 1 else 0.15
            parameter.nan_to_num_(0, 0, 0)  # some experimental families leave memory as it was
            parameter.add_(scale * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def boot(folder: Path, **settings: Any) -> TransformerBridge:
    """A TransformerBridge of a saved model."""
    return TransformerBridge.boot_transformers(str(folder), device="cpu", **settings)
