"""The two choices of DPE: the key pairs of each head, and the group size of each range of pairs.

See docs/equations.md, section 6.

Key pairs have the largest products of query and key norms. The group size of a range is the one with which the model
does a task best at the target length, while all other ranges have the largest power of two that divides the window and
is at most twice the factor.
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
    """The pairs of each head with the largest mean over positions of |q| |k| at the same position.

    Norms are taken after rotation, which does not change them.

    Args:
        model: A TransformerBridge.
        tokens: Token ids of some text.
        keep: Share of each head's pairs to return.

    Returns:
        Which pairs of each head are key pairs, by layer.

    Raises:
        ValueError: If the share is not above 0 and at most 1.
    """
    if not 0 < keep <= 1:
        msg = f"keep {keep} must be above 0 and at most 1, e.g. 0.75"
        raise ValueError(msg)
    key_pairs: dict[int, Bool[Tensor, "head pair"]] = {}

    def visit(vectors: LayerVectors) -> None:
        weight = _norm_products(vectors)
        kept = max(1, round(keep * weight.shape[-1]))
        chosen = torch.zeros_like(weight, dtype=torch.bool)
        key_pairs[vectors.rotary.layer] = chosen.scatter(-1, weight.topk(kept, dim=-1).indices, value=True).cpu()

    capture(model, tokens.to(model.cfg.device), list(resolve_layers(model).layers.values()), visit)
    return key_pairs


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
    """Choose the group size of each range of pairs by how well the model does a task at the target length.

    Runs the task once for every range and group size.

    Args:
        model: A TransformerBridge.
        target_length: Length to extend the context to, in tokens.
        window: Distance in tokens beyond which keys are grouped; a quarter of the training length when None.
        ranges: Number of ranges that the pairs are split into, fastest first.
        groups: Group sizes to try; powers of two that divide the window, up to twice the factor, when None.
        key_pairs: Pairs of each head to change, see `dpe_key_pairs`; all when None.
        task: Name of the task.
        **task_settings: Settings of the task.

    Raises:
        ValueError: If the pairs cannot be split into that many ranges, or a group size does not divide the window.
    """
    rope = plain_rope(model, min(resolve_layers(model).layers))
    n_pairs = rope.rotary_dim // 2
    if not 1 <= ranges <= n_pairs or n_pairs % ranges:
        msg = f"{n_pairs} pairs cannot be split into {ranges} equal ranges"
        raise ValueError(msg)
    window = max(1, rope.training_length // 4) if window is None else window
    twice_the_factor = 2 * -(-target_length // rope.training_length)
    powers = [2**power for power in range(twice_the_factor.bit_length()) if window % 2**power == 0]
    sizes = powers if groups is None else list(groups)
    other_size = max(group for group in powers if group <= twice_the_factor)
    measured_task = make_task(model, task, length=target_length, beyond_context=True, **task_settings)
    best = []
    for index in range(ranges):
        results = []
        for size in sizes:
            by_range = [other_size] * ranges
            by_range[index] = size
            method = Dpe(_group_of_each_pair(by_range, n_pairs), window, key_pairs)
            with extended_rope(model, method):
                results.append(float(measured_task.measure(model)[measured_task.measures[0]].mean()))
        best.append(sizes[max(range(len(sizes)), key=results.__getitem__)])
    return Dpe(_group_of_each_pair(best, n_pairs), window, key_pairs)


def _group_of_each_pair(by_range: Sequence[int], n_pairs: int) -> tuple[int, ...]:
    return tuple(group for group in by_range for _ in range(n_pairs // len(by_range)))


def _norm_products(vectors: LayerVectors) -> Float[Tensor, "head pair"]:
    rotary = vectors.rotary
    query, key = (rotary.planes(x).norm(dim=-1) for x in (vectors.rot_q, vectors.rot_k))
    return (query * key).mean((0, 2))
