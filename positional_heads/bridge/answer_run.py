"""Logits at the few positions that predict answers, by Hugging Face's own model where that computes the same.

A bridge computes attention with all its scores, and the logits of every token. Answers need neither. So they are run
plainly (see `plain_run`) if no hook is active but those of an extension that replaces cos and sin, and of an ablation
that replaces z by constants. These act where the bridge calls them, on the input of the output projection. Whether a
plain run computes what the bridge does is tried on a probe. Anything else runs on the bridge.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from positional_heads.bridge.kept_residuals import active_residuals
from positional_heads.bridge.model import TransformerLensModel, hook_name, layers_with_attention
from positional_heads.bridge.plain_run import plain_model, plain_run_refusal
from positional_heads.bridge.prefill import exact_in_chunks, prefilled_logits
from positional_heads.bridge.replayed_hooks import hooked_points
from positional_heads.bridge.rotary_layer import TOLERANCE
from positional_heads.bridge.run_lengths import run_lengths

LONGEST_SEGMENT = 8192
"""Tokens of one pass of a plain run, which keeps no scores but all of a layer's activations."""
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
    if plain_run_refusal(model, {OUTPUT: lambda hook: isinstance(hook, ReplacedHeads)}) is not None:
        return False
    extension = active_extension(model)
    known = _proven.setdefault(model, {})
    kind = None if extension is None else extension.name
    if kind not in known:
        known[kind] = _probe_agrees(model)
    return known[kind]


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
    hooked = {layer: point for layer, (point,) in hooked_points(model, OUTPUT).items()}
    with ExitStack() as undo:
        for layer, point in hooked.items():

            def edit(_: Any, args: tuple[Any, ...], point: Any = point) -> tuple[Any, ...]:
                return (point(args[0]), *args[1:])

            projection = model.blocks[layer].attn.o.original_component
            undo.callback(projection.register_forward_pre_hook(edit).remove)
        plain = undo.enter_context(plain_model(model))
        yield plain, {layer: [handle.user_hook for handle in point.fwd_hooks] for layer, point in hooked.items()}


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
