"""Published files of other tools that ship with this library, to compare with; published/NOTICE.txt says whose."""

from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.results.formats.duo_attention import HeadPattern, read_duo_attention
from positional_heads.results.formats.mha2mla import read_mha2mla_ranks

FOLDER = Path(__file__).parent / "published"
PATTERNS = (
    "Llama-2-7B-32K-Instruct",
    "Llama-3-8B-Instruct-Gradient-1048k",
    "Llama-3-8B-Instruct-Gradient-4194k",
    "Meta-Llama-3.1-8B-Instruct",
    "Mistral-7B-Instruct-v0.2",
    "Mistral-7B-Instruct-v0.3",
)
RANKS = {
    "SmolLM-135M": "smollm1_135M-2_norm_rank",
    "SmolLM-135M, query heads": "smollm1_135M-2_norm_rank_q",
    "SmolLM-360M": "smollm1_360M-2_norm_rank",
    "SmolLM-1.7B": "smollm1_1B7-2_norm_rank",
    "Qwen2-0.5B": "qwen2_0.5B-2_norm_rank",
    "Llama-2-7B": "llama2_7B-2_norm_rank",
}
"""Their file of each model."""
PUBLISHED = tuple([f"duo-attention/{name}" for name in PATTERNS] + [f"mha2mla/{name}" for name in RANKS])
"""Names that `published` takes."""


@checked
def published(name: str) -> HeadPattern | Int64[Tensor, "layer head pair"]:
    """A published file: a pattern of DuoAttention, or ranks of MHA2MLA (0 for the pair that matters most).

    Args:
        name: One of `PUBLISHED`, e.g. "mha2mla/SmolLM-135M" or "duo-attention/Meta-Llama-3.1-8B-Instruct".

    Raises:
        ValueError: If there is no such file.
    """
    if name not in PUBLISHED:
        msg = f"{name!r:.80} is not published here: choose one of {'; '.join(PUBLISHED)}"
        raise ValueError(msg)
    tool, _, model = name.partition("/")
    if tool == "mha2mla":
        return read_mha2mla_ranks(FOLDER / tool / f"{RANKS[model]}.pth")
    return read_duo_attention(FOLDER / tool / model)
