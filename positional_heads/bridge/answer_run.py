"""Logits at the few positions that predict answers, by Hugging Face's own model where that computes the same.

A bridge computes attention with all its scores, and the logits of every token. Answers need neither. So they are run
plainly (see `plain_run`) if no hook is active but those of an extension, and of an ablation that replaces z by
constants or hides far keys. The former of these act where the bridge calls them, on the input of the output projection;
the latter by the mask that attention is given. Whether a plain run computes what the bridge does is tried on a probe.
Anything else runs on the bridge.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from positional_heads.bridge.ablation import OUTPUT, Ablation, Hook
from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.attention_interface import Attend, attention_module
from positional_heads.bridge.head_edits import HiddenFar, ReplacedHeads
from positional_heads.bridge.kept_residuals import active_residuals
from positional_heads.bridge.model import SCORES, TransformerLensModel, hook_name, layers_with_attention
from positional_heads.bridge.plain_run import plain_attention, plain_model, plain_run_refusal
from positional_heads.bridge.prefill import chunk_length, exact_in_chunks, prefilled_logits
from positional_heads.bridge.replayed_hooks import HookKind, hooked_points
from positional_heads.bridge.rotary_layer import TOLERANCE, shown_entries
from positional_heads.bridge.run_lengths import run_lengths

LONGEST_SEGMENT = 8192
"""Tokens of one pass of a plain run, which keeps no scores but all of a layer's activations."""
PROBE = 24
FARTHEST = 2048
"""Most tokens that a probe is longer where far keys are rotated otherwise, so that it has some. If they begin farther
away, it has none: a bridge would need all scores of that length."""

_proven: "WeakKeyDictionary[Any, dict[tuple[str | None, bool, bool], bool]]" = WeakKeyDictionary()


@contextmanager
def answer_run(model: TransformerLensModel) -> Iterator["AnswerRun"]:
    """A block for runs that give logits at some positions; hooks must not be added or removed inside it."""
    if not runs_plainly(model):
        yield AnswerRun(model)
        return
    with _plain_ablated(model) as run:
        yield run


@dataclass(frozen=True)
class AnswerRun:
    """Runs of one model, as it is ablated now.

    Attributes:
        model: A TransformerBridge.
        plain: Hugging Face's own model, if it is run instead.
        ablated: The hooks that ablate heads, by layer.
        attend: Its attention.
    """

    model: TransformerLensModel
    plain: Any = None
    ablated: Mapping[int, Sequence[Any]] | None = None
    attend: "HidingFar | None" = None

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
        segment = self._segment(rows, length)
        ends = {*range(segment, length, segment), *([shared] if rows > 1 and shared else [])}
        bounds = [0, *(sorted(ends) if ends and exact_in_chunks(self.model) else []), length]
        cache = _empty_cache(self.plain) if len(bounds) > 2 else None  # noqa: PLR2004
        logits = []
        with run_lengths(self.model, [length]):
            for start, stop in pairwise(bounds):
                if cache is not None and start == shared and start:
                    cache.batch_repeat_interleave(rows)
                own = tokens[: 1 if stop <= shared and cache is not None else rows, :stop]
                columns = [position - start for position in positions if start <= position < stop]
                if self.attend is not None:
                    self.attend.end = stop
                with self._sharing_layers(own, start):
                    found = _logits(self.plain, own[:, start:], columns, cache)
                logits += [found.expand(rows, -1, -1)] if columns else []
        return torch.cat(logits, dim=1)

    def _segment(self, rows: int, length: int) -> int:
        """Tokens of one pass; with masks of their own, heads have as many entries as scores on a bridge."""
        hooks = [hook for hooks in (self.ablated or {}).values() for hook in hooks]
        masked = any(isinstance(hook, HiddenFar) for hook in hooks)
        return min(LONGEST_SEGMENT, chunk_length(self.model, rows, length)) if masked else LONGEST_SEGMENT

    def _sharing_layers(self, tokens: Int[Tensor, "batch pos"], first: int) -> AbstractContextManager[None]:
        residuals = active_residuals(self.model)
        if residuals is None or self.ablated is None:
            return nullcontext()
        return residuals.kept(self.plain, self.ablated, tokens, first)


def runs_plainly(model: TransformerLensModel) -> bool:
    """Whether Hugging Face's own model, with these ablations, computes what the bridge would now."""
    if getattr(model, "original_model", None) is None:
        return False
    kinds: dict[str, HookKind] = {
        OUTPUT: lambda hook: isinstance(hook, ReplacedHeads),
        SCORES: lambda hook: isinstance(hook, HiddenFar),
    }
    if plain_run_refusal(model, kinds) is not None:
        return False
    extension = active_extension(model)
    known = _proven.setdefault(model, {})
    hidden = [hook for hooks in _ablations(model, SCORES).values() for (*on_scores,) in hooks for hook in on_scores]
    name = None if extension is None else json.dumps(extension.provenance)
    kind = name, bool(hidden), any(hook.sinks for hook in hidden)
    if kind not in known:
        known[kind] = _probe_agrees(model, masked=kind[1], sinks=PROBE // 8 if kind[2] else 0)
    return known[kind]


def _ablations(model: TransformerLensModel, *names: str) -> dict[int, list[list[Any]]]:
    """The hooks on the attention's hook points of these names, by layer, without those of the active extension."""
    extension = active_extension(model)
    hooks = {
        layer: [
            [
                handle.user_hook
                for handle in point.fwd_hooks
                if extension is None or not extension.owns(handle.user_hook)
            ]
            for point in points
        ]
        for layer, points in hooked_points(model, *names).items()
    }
    return {layer: found for layer, found in hooks.items() if any(found)}


@torch.no_grad()
def _probe_agrees(model: TransformerLensModel, *, masked: bool, sinks: int = 0) -> bool:
    """Whether a plain run gives the bridge's logits on a short run, with z of the heads exchanged in every layer.

    Args:
        model: A TransformerBridge.
        masked: Also hide far keys from the first head of each layer whose scores can be edited.
        sinks: First keys that are kept then.
    """
    points, names = model.hook_dict, [hook_name(layer, OUTPUT) for layer in layers_with_attention(model)]
    projections: list[Any] = [getattr(model.blocks[layer].attn, "o", None) for layer in layers_with_attention(model)]
    if None in projections or [one.hook_in for one in projections] != [points.get(name) for name in names]:
        return False
    extension = active_extension(model)
    length = PROBE
    if extension is not None and extension.rewrites_scores:
        length = min(PROBE + min(extension.far, FARTHEST), extension.reach or FARTHEST + PROBE)
    compared = sorted({*range(length)[:PROBE], *range(length)[-PROBE:]})
    tokens = torch.arange(length, device=model.cfg.device)[None] % int(model.cfg.d_vocab)

    def exchange(z: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        return z.roll(1, dims=2)

    hooks: list[Hook] = [(name, exchange) for name in names]
    if masked:
        far = Ablation(model, "far", distance=PROBE // 4, sinks=sinks)
        hooks += far.hooks([(layer, 0) for layer in far.editable_layers])
    with model.hooks(fwd_hooks=hooks), run_lengths(model, [length]):
        bridged = model(tokens)[0, torch.tensor(compared, device=tokens.device)]
        with _plain_ablated(model) as run:
            ours = replace(run, ablated=None)(tokens, compared)[0]  # residuals of other runs are no part of the probe
    errors = ((ours.float() - bridged.float()).abs().amax(-1) / bridged.float().abs().max()).cpu()
    # with heads exchanged, a deep model amplifies rounding a hundredfold at a token in a thousand
    return all(float(part.quantile(0.9)) <= TOLERANCE.get(bridged.dtype, 0) for part in errors.split(PROBE))


@contextmanager
def _plain_ablated(model: TransformerLensModel) -> Iterator[AnswerRun]:
    """A block with runs of Hugging Face's model under the hooks on scores and on `hook_z`."""
    points, hooks = hooked_points(model, OUTPUT), _ablations(model, SCORES, OUTPUT)
    masked = {attention_module(model, layer): on_scores for layer, (on_scores, _) in hooks.items() if on_scores}
    with ExitStack() as undo:
        for layer, (point,) in points.items():

            def edit(_: Any, args: tuple[Any, ...], point: Any = point) -> tuple[Any, ...]:
                return (point(args[0]), *args[1:])

            projection = model.blocks[layer].attn.o.original_component
            undo.callback(projection.register_forward_pre_hook(edit).remove)
        attend = HidingFar(masked, plain_attention(model))
        plain = undo.enter_context(plain_model(model, attend))
        ablated = {layer: [*on_scores, *on_z] for layer, (on_scores, on_z) in hooks.items()}
        yield AnswerRun(model, plain, ablated, attend)


@dataclass(eq=False)
class HidingFar:
    """Attention in which some heads of some modules do not see far keys.

    Attributes:
        masked: What is hidden, by module.
        attention: Attention itself.
        end: Tokens up to the end of the current pass: a cache may have dropped the first ones.
    """

    masked: Mapping[Any, Sequence[HiddenFar]]
    attention: Attend
    end: int = 0

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of one module, see `plain_model`."""
        for hidden in self.masked.get(module, ()):
            mask = _mask_without_far(hidden, mask, query, key.shape[2], self.end)
        return self.attention(module, query, key, value, mask, **settings)


def _mask_without_far(
    hidden: HiddenFar, mask: Tensor | None, query: Float[Tensor, "batch head query_pos d_head"], n_keys: int, end: int
) -> Tensor:
    """The mask of each head; distances count back from the last key that a query may see, its own, as on a bridge.

    Args:
        hidden: The heads, and how far they see.
        mask: The model's own: which keys a query sees, or what is added to scores, or None for all keys before it.
        query: Queries, rotated.
        n_keys: Number of keys; the last is that of the last query.
        end: Tokens up to that one.
    """
    column, n_queries = torch.arange(n_keys, device=query.device), query.shape[2]
    if mask is None:
        mask = (column <= column[n_keys - n_queries :, None])[None, None]
    mask = mask[..., :n_keys]
    own = torch.where(shown_entries(mask), column, -1).amax(-1, keepdim=True)
    chosen = torch.zeros(query.shape[1], 1, 1, dtype=torch.bool, device=query.device)
    chosen[list(hidden.heads)] = True
    positions = torch.arange(end - n_queries, end, device=query.device)[None, None, :, None]
    far = chosen & hidden.hidden(own - column, positions if hidden.sinks else None)
    return mask & ~far if mask.dtype == torch.bool else mask.masked_fill(far, torch.finfo(mask.dtype).min)


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
