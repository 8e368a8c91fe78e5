"""Attention scores as a model computes them, whatever its encoding of position: read, masked and proven.

Layers that rotate have their scores rebuilt from queries and keys (`bridge.capture`). These are for the others: the
scores of the bridge's hooks, or what Hugging Face's own module hands to transformers' attention interface. Either way
their softmax must be the pattern of the run. And the pattern must be the one that Hugging Face's model returns when it
runs without a bridge, because a bridge that computes attention itself may compute another: `refuse_other_patterns`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.attention_interface import IMPLEMENTATION, attention_module, attention_read
from positional_heads.bridge.found_hooks import original
from positional_heads.bridge.model import (
    PATTERN,
    SCORES,
    Record,
    TransformerLensModel,
    UnsupportedModelError,
    hook_name,
    layers_with_attention,
)
from positional_heads.bridge.plain_run import unwrapped_model
from positional_heads.bridge.rotary_layer import TOLERANCE, mask_limit
from positional_heads.bridge.run_lengths import run_lengths

Source = Literal["hook", "interface", "scaled", "unscaled"]
"""Where the scores of a layer are read: `hook_attn_scores`, transformers' attention interface, or q . k of `hook_q` and
`hook_k`, divided by the root of the width of a head or not."""
Visit = Callable[[int, Float[Tensor, "batch head query_pos key_pos"]], None]
PROBE_TOKENS = 16
USUAL = 0.9
"""Share of the queries whose attention must be the original's: rounding sends some tokens to other experts."""
PATTERN_ERROR = 10.0
"""Largest difference of attention that rounding explains in a deep model, in units of the tolerance of one layer."""


@torch.no_grad()
def score_sources(model: TransformerLensModel, layers: Sequence[int]) -> dict[int, Source]:
    """Where the scores of some layers can be read, found out on a short run.

    Raises:
        UnsupportedModelError: If those of a layer cannot be read.
    """
    sources: dict[int, Source] = {}
    attended: set[int] = set()

    def find(layer: int, record: Record) -> None:
        attended.add(layer)
        ways: list[Source] = ["hook", "interface", "scaled", "unscaled"]
        for way in ways:
            if way == "interface":
                readable = attention_module(model, layer) is not None
            else:
                readable = _softmax_error(_scores(record, way), record[PATTERN]) <= _tolerance(record)
            if readable:
                sources[layer] = way
                return

    tokens = torch.arange(PROBE_TOKENS, device=model.cfg.device)[None] % int(model.cfg.d_vocab)
    with model.hooks(fwd_hooks=_hooks(model, layers, find)):
        model(tokens, return_type=None)
    for layer in layers:
        if layer not in attended and attention_module(model, layer) is not None:
            sources[layer] = "interface"
        if layer not in sources:
            msg = (
                f"layer {layer}: neither hook_attn_scores nor q . k of hook_q and hook_k has hook_pattern as its "
                "softmax, and its attention does not use transformers' attention interface: its scores cannot be read"
            )
            raise UnsupportedModelError(msg)
    return sources


@contextmanager
def scores_read(model: TransformerLensModel, sources: Mapping[int, Source], visit: Visit) -> Iterator[None]:
    """A block inside which every run passes on the scores of these layers, -inf where the mask hides a key.

    The last key is that of the last query, so a pass that continues a cache shows the keys before it, too.

    Args:
        model: A TransformerBridge.
        sources: Where the scores of each layer are read, from `score_sources`.
        visit: Called with each layer and its scores in float32 when the layer has attended.

    Raises:
        UnsupportedModelError: Inside the block, if the pattern of a layer is not the softmax of its scores.
    """

    def prove_and_visit(layer: int, record: Record) -> None:
        scores = _scores(record, sources[layer])
        if not (error := _softmax_error(scores, record[PATTERN])) <= _tolerance(record):
            msg = f"layer {layer}: its attention pattern is not the softmax of its scores (it differs by {error:.2g})"
            raise UnsupportedModelError(msg)
        visit(layer, scores)

    hooked = [layer for layer, source in sources.items() if source != "interface"]
    with (
        model.hooks(fwd_hooks=_hooks(model, hooked, prove_and_visit)),
        attention_read(
            model,
            sorted(sources.keys() - set(hooked)),
            lambda layer, record: visit(layer, _hidden_as_inf(record[SCORES])),
        ),
    ):
        yield


def refuse_other_mask(layer: int, scores: Float[Tensor, "batch head query_pos key_pos"]) -> None:
    """Refuse a mask under which a query sees other keys than the nearest ones, or heads see different ones.

    Args:
        layer: The layer, for the message.
        scores: -inf where the mask hides a key; the last key is that of the last query.

    Raises:
        UnsupportedModelError: If there is one.
    """
    hidden = scores == -torch.inf
    queries, keys = hidden.shape[-2:]
    column = torch.arange(keys, device=hidden.device)
    own = column[keys - queries :, None]
    shown = (~hidden[:, :1]).sum(-1, keepdim=True)
    if bool((hidden != ((column > own) | (column <= own - shown))).any()):
        msg = (
            f"layer {layer} masks query-key pairs in a way that causality, a sliding window and chunks do not explain: "
            "a query must see the nearest keys, and all heads the same"
        )
        raise UnsupportedModelError(msg)


@torch.no_grad()
def refuse_other_patterns(
    model: TransformerLensModel,
    tokens: Int[Tensor, "1 pos"],
    patterns: Mapping[int, Float[Tensor, "head query_pos key_pos"]],
) -> None:
    """Refuse layers that attend otherwise than Hugging Face's own model does, run without the bridge.

    Compared is the attention among keys, that is, without a learned sink.

    Args:
        model: A TransformerBridge.
        tokens: The tokens.
        patterns: The patterns of a run on these tokens, by layer.

    Raises:
        UnsupportedModelError: If a layer does.
    """
    own = _original_patterns(model, tokens)
    for layer, pattern in patterns.items():
        if layer not in own:
            msg = f"layer {layer}: Hugging Face's model returns no attention pattern to prove it by"
            raise UnsupportedModelError(msg)
        expected = own[layer].float()
        expected = expected / expected.sum(-1, keepdim=True)
        errors = (pattern.float() - expected).abs().amax((0, 2))
        limit = PATTERN_ERROR * TOLERANCE[own[layer].dtype]
        if not float(errors.quantile(USUAL)) <= limit:
            msg = (
                f"layer {layer}: its attention under TransformerLens differs from that of Hugging Face's own model, by "
                f"up to {float(errors.max()):.2g}, more than the {limit:.0e} that rounding explains: the bridge "
                "computes another model here, so nothing was measured"
            )
            raise UnsupportedModelError(msg)


def _original_patterns(model: TransformerLensModel, tokens: Int[Tensor, "1 pos"]) -> dict[int, Tensor]:
    """The pattern of each layer as Hugging Face's own eager attention returns it, [head query_pos key_pos]."""
    patterns: dict[int, Tensor] = {}
    square = 1, int(model.cfg.n_heads), tokens.shape[1], tokens.shape[1]

    def keep(layer: int, output: Any) -> None:
        for part in output if isinstance(output, tuple) else ():
            if isinstance(part, Tensor) and part.shape == square and bool((part >= 0).all()):
                patterns[layer] = part[0]

    with ExitStack() as undo, run_lengths(model, [tokens.shape[1]]):
        modules = {layer: original(model.blocks[layer].attn) for layer in layers_with_attention(model)}
        own = undo.enter_context(unwrapped_model(model))
        for config in {
            id(module.config): module.config for module in own.modules() if hasattr(module, "config")
        }.values():
            if hasattr(config, IMPLEMENTATION):
                undo.callback(setattr, config, IMPLEMENTATION, getattr(config, IMPLEMENTATION))
                setattr(config, IMPLEMENTATION, "eager")
        for layer, module in modules.items():
            hook = module.register_forward_hook(lambda _, __, output, layer=layer: keep(layer, output))
            undo.callback(hook.remove)
        own(tokens, output_attentions=True, use_cache=False)
    return patterns


def _hooks(
    model: TransformerLensModel, layers: Sequence[int], visit: Callable[[int, Record], None]
) -> list[tuple[str, Callable[..., None]]]:
    """Hooks that visit the record of each layer when its scores and its pattern have fired."""
    records: dict[int, Record] = {layer: {} for layer in layers}

    def store(layer: int, name: str) -> Callable[..., None]:
        def hook_fn(tensor: Tensor, hook: Any) -> None:  # noqa: ARG001
            records[layer][name] = tensor
            if {SCORES, PATTERN} <= records[layer].keys():  # which of them fires first depends on the architecture
                record, records[layer] = records[layer], {}
                visit(layer, record)

        return hook_fn

    existing = set(model.hook_dict)
    names = [(layer, name) for layer in layers for name in ("hook_q", "hook_k", SCORES, PATTERN)]
    return [(hook_name(*one), store(*one)) for one in names if hook_name(*one) in existing]


def _scores(record: Record, source: Source) -> Float[Tensor, "batch head query_pos key_pos"]:
    """Scores of a record in float32, -inf where the mask hides a key; a new tensor."""
    if source == "hook":
        return _hidden_as_inf(record[SCORES])
    pattern = record[PATTERN]
    if not {"hook_q", "hook_k"} <= record.keys() or record["hook_q"].shape != record["hook_k"].shape:
        return torch.full_like(pattern, torch.nan, dtype=torch.float32)
    heads = (record[name].float() for name in ("hook_q", "hook_k"))
    query, key = (one if one.ndim == 4 else one.unflatten(-1, (pattern.shape[1], -1)) for one in heads)  # noqa: PLR2004
    scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1)
    scores *= query.shape[-1] ** -0.5 if source == "scaled" else 1.0
    return scores.masked_fill((pattern == 0).all(1, keepdim=True), -torch.inf)  # a single 0 may be by rounding


def _hidden_as_inf(scores: Tensor) -> Float[Tensor, "batch head query_pos key_pos"]:
    return scores.float().masked_fill(scores <= mask_limit(scores), -torch.inf)


def _softmax_error(scores: Tensor, pattern: Tensor) -> float:
    """Largest difference of the pattern from the softmax of the scores; a learned sink takes the same from all keys."""
    pattern = pattern.float()
    return float((scores.softmax(-1) * pattern.sum(-1, keepdim=True) - pattern).abs().amax().nan_to_num(torch.inf))


def _tolerance(record: Record) -> float:
    return TOLERANCE[record[PATTERN].dtype]
