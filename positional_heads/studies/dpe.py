"""DPE's two choices: which pairs matter to each head, and how large a group each range of pairs bears.

Key pairs carry the largest product of query and key norms; a range's group size is the one under which the model finds
needles best at the target length, all other ranges held at twice the factor (method section 6).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from positional_heads.bridge.capture import capture
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.bridge.rope_scaling.plain_rope import plain_rope
from positional_heads.bridge.rope_scaling.self_extend import Dpe
from positional_heads.studies.tasks.evaluate import make_task


def dpe_key_pairs(
    model: TransformerLensModel, tokens: Int[Tensor, "batch pos"], keep: float = 0.75
) -> dict[int, Bool[Tensor, "head pair"]]:
    """The pairs that carry most of each head's attention, by the mean over positions of |q| |k| at the same position.

    Rotation changes no norm, so that it does not matter that these are taken after it.

    Args:
        model: A TransformerBridge.
        tokens: Token ids of some text.
        keep: Share of each head's pairs that count.

    Returns:
        Which pairs of each head count, by layer.

    Raises:
        ValueError: If the share is not above 0 and at most 1.
    """
    if not 0 < keep <= 1:
        msg = f"keep {keep} must be above 0 and at most 1, e.g. 0.75"
        raise ValueError(msg)
    found: dict[int, Bool[Tensor, "head pair"]] = {}

    def visit(vectors: LayerVectors) -> None:
        weight = _norm_products(vectors)
        kept = max(1, round(keep * weight.shape[-1]))
        chosen = torch.zeros_like(weight, dtype=torch.bool)
        found[vectors.rotary.layer] = chosen.scatter(-1, weight.topk(kept, dim=-1).indices, value=True).cpu()

    capture(model, tokens.to(model.cfg.device), list(resolve_layers(model).layers.values()), visit)
    return found


def dpe_sweep(
    model: TransformerLensModel,
    target_length: int,
    *,
    window: int | None = None,
    ranges: int = 8,
    groups: Sequence[int] | None = None,
    key_pairs: dict[int, Bool[Tensor, "head pair"]] | None = None,
    task: str = "passkey",
    **task_settings: Any,
) -> Dpe:
    """Find the group size of each range of pairs by how well the model answers at the target length.

    As many runs of the task as there are ranges times group sizes.

    Args:
        model: A TransformerBridge.
        target_length: Tokens that the model shall take.
        window: Distance in tokens from which on keys are grouped; a quarter of the training length when None.
        ranges: Number of ranges that the pairs are split into, fastest first.
        groups: Group sizes to try; powers of two that divide the window, up to twice the factor, when None.
        key_pairs: Pairs of each head that are changed, see `dpe_key_pairs`; all when None.
        task: Name of the task.
        **task_settings: Its settings.

    Raises:
        ValueError: If pairs cannot be split so, or a group size does not divide the window.
    """
    rope = plain_rope(model, min(resolve_layers(model).layers))
    pairs = rope.rotary_dim // 2
    if not 1 <= ranges <= pairs or pairs % ranges:
        msg = f"{pairs} pairs cannot be split into {ranges} equal ranges"
        raise ValueError(msg)
    window = max(1, rope.training_length // 4) if window is None else window
    held = 2 * -(-target_length // rope.training_length)
    powers = [2**power for power in range(held.bit_length()) if window % 2**power == 0]
    tried = powers if groups is None else list(groups)
    others = max(group for group in powers if group <= held)
    asked = make_task(model, task, length=target_length, beyond_context=True, **task_settings)
    best = []
    for place in range(ranges):
        results = []
        for group in tried:
            by_range = [others] * ranges
            by_range[place] = group
            method = Dpe(_of_pairs(by_range, pairs), window, key_pairs)
            with extended_rope(model, method):
                results.append(float(asked.measure(model)[asked.measures[0]].mean()))
        best.append(tried[max(range(len(tried)), key=results.__getitem__)])
    return Dpe(_of_pairs(best, pairs), window, key_pairs)


def _of_pairs(by_range: Sequence[int], pairs: int) -> tuple[int, ...]:
    return tuple(group for group in by_range for _ in range(pairs // len(by_range)))


def _norm_products(vectors: LayerVectors) -> Float[Tensor, "head pair"]:
    rotary = vectors.rotary
    query, key = (rotary.planes(x).norm(dim=-1) for x in (vectors.rot_q, vectors.rot_k))
    return (query * key).mean((0, 2))
