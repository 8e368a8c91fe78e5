"""Logits at the few positions that predict answers, by Hugging Face's own model where that computes the same.

A bridge computes attention with all its scores, and the logits of every token. Answers need neither. So they are run
plainly (see `plain_run`) if no hook is active but those of an ablation that replaces z by constants, and of an
extension that replaces cos and sin. They act where the bridge calls them: on the input of the output projection, and on
the tables that attention is called with. Whether a plain run computes what the bridge does is tried on a probe.
Anything else runs on the bridge.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.ablation import OUTPUT, ReplacedHeads
from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.attention_interface import attention_module
from positional_heads.bridge.kept_residuals import active_residuals
from positional_heads.bridge.model import TransformerLensModel, hook_name, layers_with_attention
from positional_heads.bridge.plain_run import HOOKS, plain_model, plain_run_refusal
from positional_heads.bridge.prefill import exact_in_chunks, prefilled_logits
from positional_heads.bridge.rotary_layer import TOLERANCE
from positional_heads.bridge.run_lengths import run_lengths

LONGEST_SEGMENT = 8192
"""Tokens of one pass of a plain run, which keeps no scores but all of a layer's activations."""
TABLES = ("hook_cos", "hook_sin")
PROBE = 24

_proven: "WeakKeyDictionary[Any, dict[str | None, bool]]" = WeakKeyDictionary()


@contextmanager
def answer_run(model: TransformerLensModel) -> Iterator["AnswerRun"]:
    """A block for runs that give logits at some positions; hooks must not be added or removed inside it."""
    if not runs_plainly(model):
        yield AnswerRun(model)
        return
    with _plain_ablated(model) as (plain, replaced):
        yield AnswerRun(model, plain, replaced)


@dataclass(frozen=True)
class AnswerRun:
    """Runs of one model, as it is ablated now.

    Attributes:
        model: A TransformerBridge.
        plain: Hugging Face's own model, if it is run instead.
        replaced: The hooks on `hook_z`, by layer.
    """

    model: TransformerLensModel
    plain: Any = None
    replaced: Mapping[int, Sequence[Any]] | None = None

    @property
    def shares(self) -> bool:
        """Whether a beginning that several rows share is run once."""
        return self.plain is not None and exact_in_chunks(self.model)

    @torch.no_grad()
    def __call__(
        self, tokens: Int[Tensor, "batch pos"], positions: Sequence[int], shared: int = 0
    ) -> Float[Tensor, "batch position vocab"]:
        """Logits at some positions of each row.

        Args:
            tokens: Token ids, without padding.
            positions: Columns, ascending.
            shared: Tokens at the beginning that are the same in all rows.
        """
        if self.plain is None:
            return prefilled_logits(self.model, tokens)[:, list(positions)]
        rows, length = tokens.shape
        ends = {*range(LONGEST_SEGMENT, length, LONGEST_SEGMENT), *([shared] if rows > 1 and shared else [])}
        bounds = [0, *(sorted(ends) if ends and exact_in_chunks(self.model) else []), length]
        cache = _empty_cache(self.plain) if len(bounds) > 2 else None  # noqa: PLR2004
        logits = []
        with run_lengths(self.model, [length]):
            for start, stop in pairwise(bounds):
                if cache is not None and start == shared and start:
                    cache.batch_repeat_interleave(rows)
                own = tokens[: 1 if stop <= shared and cache is not None else rows, :stop]
                columns = [position - start for position in positions if start <= position < stop]
                with self._sharing_layers(own, start):
                    found = _logits(self.plain, own[:, start:], columns, cache)
                logits += [found.expand(rows, -1, -1)] if columns else []
        return torch.cat(logits, dim=1)

    def _sharing_layers(self, tokens: Int[Tensor, "batch pos"], first: int) -> AbstractContextManager[None]:
        residuals = active_residuals(self.model)
        if residuals is None or self.replaced is None:
            return nullcontext()
        return residuals.kept(self.plain, self.replaced, tokens, first)


def runs_plainly(model: TransformerLensModel) -> bool:
    """Whether Hugging Face's own model, with these ablations, computes what the bridge would now."""
    if getattr(model, "original_model", None) is None:
        return False
    layers = layers_with_attention(model)
    if plain_run_refusal(model, [hook_name(layer, name) for layer in layers for name in (OUTPUT, *TABLES)]) is not None:
        return False
    if not _only(model, OUTPUT, lambda hook: isinstance(hook, ReplacedHeads)):
        return False
    if not all(_only(model, name, _is_extensions) for name in TABLES) or not _takes_tables(model):
        return False
    extension = active_extension(model)
    known = _proven.setdefault(model, {})
    kind = None if extension is None else extension.name
    if kind not in known:
        known[kind] = _probe_agrees(model)
    return known[kind]


def _hooked(model: TransformerLensModel, name: str) -> dict[int, Any]:
    """The hook points of this name that have hooks, by layer."""
    points = model.hook_dict
    found = {layer: points.get(hook_name(layer, name)) for layer in layers_with_attention(model)}
    return {layer: point for layer, point in found.items() if point is not None and _hooks_on(point)}


def _hooks_on(point: Any) -> int:
    return sum(len(getattr(point, kind)) for kind in HOOKS)


def _only(model: TransformerLensModel, name: str, known: Callable[[Any], bool]) -> bool:
    """Whether all hooks on the points of this name are of a kind."""
    return all(
        len(point.fwd_hooks) == _hooks_on(point) and all(known(handle.user_hook) for handle in point.fwd_hooks)
        for point in _hooked(model, name).values()
    )


def _takes_tables(model: TransformerLensModel) -> bool:
    """Whether the attention of every layer with other frequencies is called with cos and sin."""
    cos, sin = (_hooked(model, name).keys() for name in TABLES)
    modules = [attention_module(model, layer) for layer in cos]
    return cos == sin and all("position_embeddings" in signature(module.forward).parameters for module in modules)


def _is_extensions(hook: Any) -> bool:
    """Whether a length extension added it, to rotate by other frequencies."""
    return str(getattr(hook, "__module__", "")).startswith("positional_heads.bridge.rope_scaling.")


@torch.no_grad()
def _probe_agrees(model: TransformerLensModel) -> bool:
    """Whether a plain run gives the bridge's logits on a short run, with z of the heads exchanged in every layer."""
    points, names = model.hook_dict, [hook_name(layer, OUTPUT) for layer in layers_with_attention(model)]
    projections: list[Any] = [getattr(model.blocks[layer].attn, "o", None) for layer in layers_with_attention(model)]
    if None in projections or [one.hook_in for one in projections] != [points.get(name) for name in names]:
        return False
    tokens = torch.arange(PROBE, device=model.cfg.device)[None] % int(model.cfg.d_vocab)

    def exchange(z: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        return z.roll(1, dims=2)

    with model.hooks(fwd_hooks=[(name, exchange) for name in names]), run_lengths(model, [PROBE]):
        bridged = model(tokens)
        with _plain_ablated(model) as (plain, _):
            ours = AnswerRun(model, plain)(tokens, range(PROBE))
    error = float((ours.float() - bridged.float()).abs().max() / bridged.float().abs().max())
    return error <= TOLERANCE.get(bridged.dtype, 0)


@contextmanager
def _plain_ablated(model: TransformerLensModel) -> Iterator[tuple[Any, dict[int, list[Any]]]]:
    """A block with Hugging Face's model under the hooks on `hook_z`, and these hooks by layer."""
    hooked = _hooked(model, OUTPUT)
    cos, sin = (_hooked(model, name) for name in TABLES)
    with ExitStack() as undo:
        for layer in cos.keys() & sin.keys():
            module = attention_module(model, layer)
            handle = module.register_forward_pre_hook(_retabled(cos[layer], sin[layer]), with_kwargs=True)
            undo.callback(handle.remove)
        for layer, point in hooked.items():

            def edit(_: Any, args: tuple[Any, ...], point: Any = point) -> tuple[Any, ...]:
                return (point(args[0]), *args[1:])

            projection = model.blocks[layer].attn.o.original_component
            undo.callback(projection.register_forward_pre_hook(edit).remove)
        plain = undo.enter_context(plain_model(model))
        yield plain, {layer: [handle.user_hook for handle in point.fwd_hooks] for layer, point in hooked.items()}


def _retabled(cos: Any, sin: Any) -> Callable[..., Any]:
    """A hook on an attention module that lets hook points edit the cos and sin which it is called with."""

    def retable(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = signature(module.forward).bind(*args, **kwargs)
        old_cos, old_sin = bound.arguments["position_embeddings"]
        bound.arguments["position_embeddings"] = (cos(old_cos), sin(old_sin))
        return bound.args, bound.kwargs

    return retable


def _empty_cache(plain: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=plain.config)


def _logits(
    plain: Any, tokens: Int[Tensor, "batch pos"], columns: list[int], cache: Any
) -> Float[Tensor, "batch position vocab"]:
    """Logits at some columns; where the model can, no others are computed."""
    kept = columns or [tokens.shape[1] - 1]
    arguments = {"input_ids": tokens, "past_key_values": cache, "use_cache": cache is not None}
    if "logits_to_keep" not in signature(type(plain).forward).parameters:
        return plain(**arguments).logits[:, kept]
    return plain(**arguments, logits_to_keep=torch.tensor(kept, device=tokens.device)).logits
