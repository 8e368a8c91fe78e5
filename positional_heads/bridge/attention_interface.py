"""Read rotated queries and keys of attention that TransformerLens delegates to Hugging Face's module, without hooks.

Such modules call the function that their configuration names (transformers' attention interface) with the rotated query
and key, the scale and the mask. While a run is read, the configuration names a function of ours, which computes
attention by the model's own eager function, so the output does not change, and passes on a record like that of the
hooks in other families. Nothing can be edited this way.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from positional_heads.bridge.model import SCORES, Record, TransformerLensModel, UnsupportedModelError
from positional_heads.core.rotary import LAYOUTS, Layout, rotate

NAME = "positional_heads_reading"
ROTATED = ("hook_rot_q", "hook_rot_k")
EAGER = "eager_attention_forward"
PATTERN_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest difference between the model's own pattern and ours, computed by the same operations; 1e-2 in half
precision."""

_readers: "WeakKeyDictionary[torch.nn.Module, Callable[..., None]]" = WeakKeyDictionary()


def attention_module(model: TransformerLensModel, layer: int) -> Any:
    """Hugging Face's attention module of a layer if it calls the attention interface, else None."""
    module = getattr(getattr(model.blocks[layer], "attn", None), "original_component", None)
    return module if module is not None and hasattr(sys.modules[type(module).__module__], EAGER) else None


@contextmanager
def attention_read(
    model: TransformerLensModel, layers: Sequence[int], visit: Callable[[int, Record], Any]
) -> Iterator[None]:
    """A block inside which every run passes on these layers' records: rot_q, rot_k, cos, sin and masked scores.

    Args:
        model: A TransformerBridge.
        layers: Layers that have an `attention_module`.
        visit: Called with each layer and its record when the layer has attended.

    Raises:
        UnsupportedModelError: Inside the block, if the model's own pattern is not the softmax of the scores.
    """
    modules = {layer: attention_module(model, layer) for layer in layers}
    with ExitStack() as undo:
        if modules:
            _register()
        for config in {id(module.config): module.config for module in modules.values()}.values():
            undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = NAME
        for layer, module in modules.items():
            _read(layer, module, visit, undo)
        yield


def rotation_errors(
    first: Record,
    moved: Record,
    phase: Complex[Tensor, "#batch pos pair"],
    moved_phase: Complex[Tensor, "#batch pos pair"],
) -> list[tuple[Layout, int, float]]:
    """The error of each pair layout and sense of rotation, from two runs of the same tokens at shifted positions.

    Scores depend on distances only, so adding the same number to all positions only rotates queries and keys, in every
    layer. The right layout and sense predict that rotation.

    Args:
        first: Record of a layer in the first run.
        moved: Its record in the run at moved positions.
        phase: cos + i sin of each position and pair in the first run.
        moved_phase: The same in the other run.

    Returns:
        Layout, sense and error of each candidate, see `relative_error`.
    """
    errors = []
    for layout in LAYOUTS:
        for sense in (1, -1):
            turn = moved_phase / phase if sense == 1 else (moved_phase / phase).conj().resolve_conj()
            error = max(relative_error(rotate(first[name], turn, layout), moved[name]) for name in ROTATED)
            errors.append((layout, sense, error))
    return errors


def relative_error(expected: Float[Tensor, "batch pos head d"], own: Float[Tensor, "batch pos head d"]) -> float:
    """Median over tokens of the largest difference, relative to the largest channel.

    The median, because in a mixture of experts rounding may route single tokens to other experts.
    """
    difference = (expected.float() - own.float()).abs().amax((-2, -1))
    return float(difference.median() / own.float().abs().max())


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor]:
    """The attention function that the configuration names while a run is read: the model's own eager one, observed."""
    eager = getattr(sys.modules[type(module).__module__], EAGER)
    output, pattern = eager(module, query, key, value, attention_mask, **settings)
    if module in _readers:
        _readers[module](query, key, attention_mask, pattern, settings)
    return output, pattern


def _read(layer: int, module: Any, visit: Callable[[int, Record], Any], undo: ExitStack) -> None:
    record: Record = {}

    def store_tables(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.clear()
        embeddings = inspect.signature(module.forward).bind(*args, **kwargs).arguments.get("position_embeddings")
        if isinstance(embeddings, Tensor):  # Llama-4 has one complex number per pair
            record.update(hook_cos=embeddings.real, hook_sin=embeddings.imag)
        elif embeddings is not None:
            record.update(hook_cos=embeddings[0], hook_sin=embeddings[1])

    def read(query: Tensor, key: Tensor, mask: Tensor | None, pattern: Tensor, settings: dict[str, Any]) -> None:
        scores = _scores(query, key, mask, settings)
        _refuse_other_pattern(layer, scores, pattern)
        rot_q = query.transpose(1, 2)
        rot_k = key[:, :, -query.shape[2] :].transpose(1, 2)  # keys of this pass; a cache puts earlier ones before them
        visit(layer, {**record, "hook_rot_q": rot_q, "hook_rot_k": rot_k, SCORES: scores})

    _readers[module] = read
    undo.callback(_readers.pop, module)
    undo.callback(module.register_forward_pre_hook(store_tables, with_kwargs=True).remove)


def _scores(
    query: Tensor, key: Tensor, mask: Tensor | None, settings: dict[str, Any]
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """Scores after scale, soft-cap and mask, in the model's precision."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scale, cap = settings.get("scaling"), settings.get("softcap")
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    return scores if mask is None else scores + mask[..., : key.shape[2]]


def _refuse_other_pattern(layer: int, scores: Tensor, pattern: Tensor) -> None:
    ours = scores.softmax(-1, dtype=torch.float32)
    if not float((ours - pattern.float()).abs().max()) <= PATTERN_TOLERANCE.get(pattern.dtype, 1e-2):
        msg = (
            f"layer {layer}: the model's attention pattern is not the softmax of q . k, scaled and masked; its "
            "attention has another term (a sink, a bias), so it cannot be scored"
        )
        raise UnsupportedModelError(msg)
