"""Read rotated queries and keys of attention that TransformerLens delegates to Hugging Face's module, without hooks.

Such modules call the function that their configuration names (transformers' attention interface) with the rotated query
and key, the scale and the mask. While a run is read, the configuration names a function of ours, which computes
attention by the model's own eager function, so the output does not change, and passes on a record like that of the
hooks in other families. Nothing can be edited this way.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from positional_heads.bridge.model import SCORES, Record, TransformerLensModel, UnsupportedModelError
from positional_heads.core.rotary import LAYOUTS, Layout, rotate

NAME = "positional_heads"
IMPLEMENTATION = "_attn_implementation"
ROTATED = ("hook_rot_q", "hook_rot_k")
EAGER = "eager_attention_forward"
PATTERN_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest difference between the model's own pattern and ours, computed by the same operations; 1e-2 in half
precision."""

Attend = Callable[..., tuple[Tensor, Tensor | None]]

_attending: "WeakKeyDictionary[torch.nn.Module, Attend]" = WeakKeyDictionary()


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
    with ExitStack() as undo:
        for layer in layers:
            module = attention_module(model, layer)
            record: Record = {}
            undo.enter_context(tables_kept(module, record))
            undo.enter_context(served([module], _reading(layer, record, visit), masks="eager"))
        yield


@contextmanager
def served(modules: Sequence[Any], attend: Attend, masks: Literal["eager", "sdpa"] = "sdpa") -> Iterator[None]:
    """A block inside which attention modules call a function of ours, and hand it masks of that kind.

    Args:
        modules: Modules that call the attention function which their configuration names.
        attend: What they call: takes the module, rotated query [batch head pos d_head] and key [batch kv_head pos
            d_head], value, mask and settings, and returns the output [batch pos head d_head] and the pattern or None.
        masks: The kind of mask: what transformers makes for its function of that name.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    name = f"{NAME}_{masks}"
    AttentionInterface.register(name, _serving(masks))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[masks])
    with ExitStack() as undo:
        for config in {id(module.config): module.config for module in modules}.values():
            undo.callback(setattr, config, IMPLEMENTATION, getattr(config, IMPLEMENTATION))
            setattr(config, IMPLEMENTATION, name)
        for module in modules:
            _attending[module] = attend
            undo.callback(_attending.pop, module)
        yield


@contextmanager
def tables_kept(module: Any, record: Record) -> Iterator[None]:
    """A block inside which every call of an attention module puts the cos and sin that it is given into a record."""

    def store_tables(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.clear()
        embeddings = signature(module.forward).bind(*args, **kwargs).arguments.get("position_embeddings")
        if isinstance(embeddings, Tensor):  # Llama-4 has one complex number per pair
            record.update(hook_cos=embeddings.real, hook_sin=embeddings.imag)
        elif embeddings is not None:
            record.update(hook_cos=embeddings[0], hook_sin=embeddings[1])

    handle = module.register_forward_pre_hook(store_tables, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


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


def eager(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Attention by the model's own eager function, which returns its pattern."""
    return getattr(sys.modules[type(module).__module__], EAGER)(module, query, key, value, mask, **settings)


def scaled_dot_product(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention by PyTorch's own kernels, which keep no scores."""
    from transformers.integrations import sdpa_attention

    return sdpa_attention.sdpa_attention_forward(module, query, key, value, mask, **settings)


def _serving(masks: Literal["eager", "sdpa"]) -> Attend:
    """The function that a configuration names: what the module's block asked for, or the usual one in other modules."""
    usual = eager if masks == "eager" else scaled_dot_product

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **settings: Any
    ) -> tuple[Tensor, Tensor | None]:
        return _attending.get(module, usual)(module, query, key, value, attention_mask, **settings)

    return attend


def _reading(layer: int, record: Record, visit: Callable[[int, Record], Any]) -> Attend:
    """The model's own eager function, observed."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        output, pattern = eager(module, query, key, value, mask, **settings)
        scores = _scores(query, key, mask, settings)
        _refuse_other_pattern(layer, scores, pattern)
        rot_q = query.transpose(1, 2)
        rot_k = key[:, :, -query.shape[2] :].transpose(1, 2)  # keys of this pass; a cache puts earlier ones before them
        visit(layer, {**record, "hook_rot_q": rot_q, "hook_rot_k": rot_k, SCORES: scores})
        return output, pattern

    return attend


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
