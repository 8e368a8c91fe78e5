"""Put a length-extrapolation method on a model, for as long as a block lasts.

Where a method only changes frequencies, and for all heads of a layer, the layer's cos and sin are replaced, computed as
Hugging Face computes them. What treats distances or heads differently rewrites attention scores from unrotated queries
and keys; entries that the model masks stay masked. Positions are read off the model's own rotary module, so that
padding, key-value caches and generation work. Frequencies that follow the length of a run follow each row's own.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from positional_heads.bridge.active import active_extension, clear_active, set_active
from positional_heads.bridge.model import SCORES, TransformerLensModel, UnsupportedModelError, hook_name
from positional_heads.bridge.recording import Record, recording_hooks
from positional_heads.bridge.resolve import RotaryModel, resolve_layers
from positional_heads.bridge.rope_scaling.clex import Clex
from positional_heads.bridge.rope_scaling.methods import Dpe, HuggingFaceMethod, SelfExtend
from positional_heads.bridge.rope_scaling.names import Method, rope_method
from positional_heads.bridge.rope_scaling.passing import Passing
from positional_heads.bridge.rope_scaling.plain_rope import PlainRope, RopeTable, plain_rope
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.bridge.run_lengths import rotary_modules
from positional_heads.core.arguments import checked
from positional_heads.core.bands import Band, banded_scores, unrotated
from positional_heads.core.contributions import expand_key_heads
from positional_heads.core.heads import Heads, as_heads

PLAIN = HuggingFaceMethod("none")


@checked
@contextmanager
def extended_rope(
    model: TransformerLensModel,
    method: str | Method,
    factor: float | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Heads | None = None,
    training_length: int | None = None,
    **settings: Any,
) -> Iterator["Extension"]:
    """A block inside which the model's rotation is extended, in every run: plain, cached, ablated, scored, generating.

    Args:
        model: A TransformerBridge.
        method: none, linear, ntk, dynamic, yarn, llama3, longrope, p_rope, self_extend, dpe or clex, or a method from
            `rope_method`.
        factor: How much longer the context gets; at least 1.
        layers: Layers to extend; all that rotate when None.
        heads: Query heads to extend, instead of whole layers: one or several, as Head(3, 7), (3, 7) or "L3H7".
        training_length: Tokens that the model was trained on; found in its configuration when None.
        **settings: Settings of a method given by name, see `rope_method`.

    Returns:
        The extension at work: its method, frequencies and phases.

    Raises:
        ValueError: If the method or its settings make no sense, or both layers and heads are given.
        UnsupportedModelError: If the model is not rotary, or the hooks that this needs do not fire.
        RuntimeError: If another extension is at work already.
    """
    if active_extension(model) is not None:
        msg = "the model's rotation is extended already: leave the other extended_rope block first"
        raise RuntimeError(msg)
    if layers is not None and heads is not None:
        msg = "give layers or heads, not both: heads name their layers"
        raise ValueError(msg)
    resolved = resolve_layers(model)
    _refuse_dead_hooks(model, resolved)
    rope = plain_rope(model, min(resolved.layers), training_length)
    if isinstance(method, str):
        method = rope_method(method, factor, training_length=rope.training_length, **settings)
    elif factor is not None or settings:
        msg = "factor and settings go with the name of a method; this one is made already"
        raise ValueError(msg)
    extension = Extension(model, method, resolved, _chosen(resolved, layers, heads, model), training_length)
    with ExitStack() as undo:
        extension.enter(undo)
        set_active(model, extension)
        undo.callback(clear_active, model)
        yield extension


def _chosen(
    resolved: RotaryModel, layers: Sequence[int] | None, heads: Heads | None, model: Any
) -> dict[int, list[int] | None]:
    """Heads to extend by layer, None for all of them."""
    n_layers, n_heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    if heads is None:
        rotary = resolved.select(layers)
        return {one.layer: None for one in rotary}
    by_layer: dict[int, list[int] | None] = {}
    for layer, head in sorted(set(as_heads(heads, n_layers, n_heads))):
        resolved.select([layer])
        by_layer[layer] = [*(by_layer.get(layer) or []), head]
    if not by_layer:
        msg = "no head given: name at least one, or leave heads= out to extend every layer that rotates"
        raise ValueError(msg)
    return by_layer


class Extension:
    """A method at work on a model.

    Attributes:
        method: The method.
        ropes: What each extended layer was trained with.
        resolved: How the model rotates without it.
        passing: What the pass now at work is told.
    """

    def __init__(
        self,
        model: TransformerLensModel,
        method: Method,
        resolved: RotaryModel,
        chosen: dict[int, list[int] | None],
        training_length: int | None,
    ) -> None:
        self.model = model
        self.method = method
        self.resolved = resolved
        self.chosen = chosen
        self.ropes: dict[int, PlainRope] = {layer: plain_rope(model, layer, training_length) for layer in chosen}
        self.passing = Passing(model)
        self._refuse_unfit()

    def __repr__(self) -> str:
        settings = reprlib.repr(dict(self.method.settings))  # cuts what is long
        trained = max(rope.training_length for rope in self.ropes.values())
        return f"Extension({self.method.name}, {settings}; {len(self.ropes)} layers trained on {trained} tokens)"

    @property
    def rewrites_scores(self) -> bool:
        """Whether scores are rewritten, rather than cos and sin."""
        return isinstance(self.method, (SelfExtend, Dpe)) or any(heads is not None for heads in self.chosen.values())

    @property
    def follows_length(self) -> bool:
        """Whether frequencies, or a factor on scores, are others in a longer run."""

        def differ(layer: int) -> bool:
            short, long = (self.table(layer, length) for length in (1, 4 * self.ropes[layer].training_length))
            return short.score_factor != long.score_factor or not torch.equal(short.inv_freq, long.inv_freq)

        return any(differ(layer) for layer in self.chosen)

    @property
    def provenance(self) -> dict[str, Any]:
        """What was applied, to be kept with results; JSON."""
        return {
            "method": self.method.name,
            **self.method.settings,
            "training_length": max(rope.training_length for rope in self.ropes.values()),
            "heads": {str(layer): heads for layer, heads in self.chosen.items()},
        }

    def table(self, layer: int, length: int) -> RopeTable:
        """Frequencies of a layer in a run of so many tokens; plain ones for methods that group distances."""
        method = PLAIN if isinstance(self.method, (SelfExtend, Dpe)) else self.method
        return method.table(self.ropes[layer], length)

    def bands(self, layer: int, length: int, device: Any = None, *, run_length: int | None = None) -> list[Band] | None:
        """How queries and keys at positions 0 to length - 1 are rotated, by distance; None where cos and sin say it.

        Args:
            layer: Which layer.
            length: Tokens of the sequence.
            device: Where to compute it.
            run_length: Tokens of the whole run, where these are a part of it; `length` when None.
        """
        if not self.rewrites_scores or layer not in self.chosen:
            return None
        position = torch.arange(length, device=device)
        run_length = run_length or length
        plain = _phases(PLAIN.table(self.ropes[layer], length), position)
        others, changed = plain, self._heads_of(layer, device)[:, None, None]
        if self.ropes[layer].extension != "default" and not bool(changed.all()):
            others = self.passing.own_phase(self.resolved.layers[layer], length, run_length).to(plain.device)
        if not isinstance(self.method, (SelfExtend, Dpe)):
            both = torch.where(changed, _phases(self.table(layer, run_length), position), others)
            return [Band(0, None, both, both)]
        groups = self._groups(layer, plain.shape[-1], device)
        window = self.method.window
        table = PLAIN.table(self.ropes[layer], length)
        key_pos = position[:, None] // groups[:, None]
        query_pos = torch.where(groups[:, None] > 1, key_pos + window - window // groups[:, None], position[:, None])
        near, far_query, far_key = (
            torch.where(changed, phase, others)
            for phase in (plain[None], _phases(table, query_pos), _phases(table, key_pos))
        )
        return [Band(0, window - 1, near, near), Band(window, None, far_query, far_key)]

    def enter(self, undo: ExitStack) -> None:
        """Install hooks; what takes them off again goes onto the stack."""
        self.passing.watch(undo)
        for module in rotary_modules(self.model):
            undo.callback(module.register_forward_pre_hook(self._refuse_too_long).remove)
        layers = list(self.chosen)
        if self.rewrites_scores:
            hooks = recording_hooks(self.model, layers, self._rewritten)
        else:
            hooks = [
                (hook_name(layer, name), self._replacing(layer, part))
                for layer in layers
                for name, part in (("hook_cos", torch.cos), ("hook_sin", torch.sin))
            ]
        undo.enter_context(self.model.hooks(fwd_hooks=hooks))

    def _refuse_unfit(self) -> None:
        for layer in self.chosen:
            rotary = self.resolved.layers[layer]
            if self.rewrites_scores and rotary.holds == "pattern":
                msg = f"layer {layer}: its attention scores cannot be edited, so {self.method.name} cannot be applied"
                raise UnsupportedModelError(msg)
            if rotary.rotary_dim != self.ropes[layer].rotary_dim:
                msg = (
                    f"layer {layer} rotates {rotary.rotary_dim} channels, its configuration says "
                    f"{self.ropes[layer].rotary_dim}: not understood, so it cannot be extended"
                )
                raise UnsupportedModelError(msg)
            if isinstance(self.method, Dpe) and len(self.method.pair_groups) != rotary.n_pairs:
                msg = f"dpe: {len(self.method.pair_groups)} pair_groups given, layer {layer} has {rotary.n_pairs} pairs"
                raise ValueError(msg)
            if isinstance(self.method, Dpe) and self.method.key_pairs is not None:
                _refuse_key_pairs(self.method.key_pairs, layer, (rotary.n_heads, rotary.n_pairs))
            table = self.table(layer, 2 * self.ropes[layer].training_length)
            if len(table.inv_freq) != rotary.n_pairs:
                msg = f"{self.method.name}: {len(table.inv_freq)} frequencies, layer {layer} has {rotary.n_pairs} pairs"
                raise ValueError(msg)
            if table.score_factor != 1 and rotary.rotary_dim != rotary.d_head:
                msg = f"layer {layer}: a log scale on scores needs all channels rotated, and here some are not"
                raise UnsupportedModelError(msg)

    def _refuse_too_long(self, *_: Any) -> None:
        length = max(self.passing.lengths)
        if isinstance(self.method, Clex):
            reach = self.method.max_factor * min(rope.training_length for rope in self.ropes.values())
            if length > reach:
                msg = f"{length} tokens are beyond what this CLEX checkpoint was trained for: at most {reach}"
                raise ValueError(msg)
        if isinstance(self.method, SelfExtend):
            reach = min(self.method.reach(rope.training_length) for rope in self.ropes.values())
            if length > reach:
                msg = (
                    f"{length} tokens are beyond the reach of SelfExtend with group {self.method.group} and window "
                    f"{self.method.window}: at most {reach}. Take a larger group, see self_extend_advice"
                )
                raise ValueError(msg)

    def _replacing(self, layer: int, part: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        rotary = self.resolved.layers[layer]

        def hook_fn(old: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
            positions = self.passing.positions
            tables = [self.table(layer, length) for length in self.passing.lengths]
            inv_freq = torch.stack([table.inv_freq for table in tables])[:, None].to(positions.device).float()
            angles = positions[..., None].float() * inv_freq
            if rotary.table == "half":
                angles = torch.cat([angles, angles], dim=-1)
            elif rotary.table == "adjacent":
                angles = angles.repeat_interleave(2, dim=-1)
            factors = torch.tensor([table.attention_factor * table.score_factor**0.5 for table in tables])
            new = (part(angles) * factors[:, None, None].to(angles)).to(old.dtype)
            return new if len(tables) > 1 else new.expand_as(old)

        return hook_fn

    @torch.no_grad()
    def _rewritten(self, layer: int, record: Record) -> Tensor:
        rotary, scores, passing = self.resolved.layers[layer], record[SCORES], self.passing
        rot_q, rot_k = rotary.rotated_vectors(self.model, record, passing.positions)
        phase = rotary.phase(self.model, record, passing.positions)
        key_phase = phase
        if scores.shape[-1] > rot_k.shape[1]:
            rot_k, key_phase = passing.with_cached(rotary, rot_k, phase, scores.shape[-1])
        keys = rot_k.shape[1]
        passing.refuse_padding(keys)
        if len(passing.lengths) > 1 and not isinstance(self.method, (SelfExtend, Dpe)):
            msg = f"rows of {passing.lengths} tokens cannot be extended by heads: give sequences of one length"
            raise ValueError(msg)
        query, rest_q = _taken_apart(rotary, rot_q, phase)
        key, rest_k = _taken_apart(rotary, rot_k, key_phase)
        bands = self.bands(layer, keys, scores.device, run_length=passing.lengths[0]) or []
        places = passing.positions[0].to(scores.device)
        kept = rotary.masked_entries(scores)[..., :keys] | ~self._heads_of(layer, scores.device)[:, None, None]
        if self.ropes[layer].extension == "default":  # what is near is as the model has it, to the last bit
            kept = kept | (places[:, None] - torch.arange(keys, device=scores.device) < bands[-1].nearest)
        new = scores.clone()
        for row in range(scores.shape[0]):
            q_dot_k = banded_scores(bands, query[row], key[row], places) + rest_q[row] @ rest_k[row].mT
            rewritten = rotary.soft_capped(q_dot_k * rotary.scale)
            new[row, ..., :keys] = torch.where(kept[row], scores[row, ..., :keys], rewritten.to(scores.dtype))
        return new

    def _heads_of(self, layer: int, device: Any) -> Tensor:
        """Which heads of a layer are extended."""
        heads, n_heads = self.chosen[layer], self.resolved.layers[layer].n_heads
        if heads is None:
            return torch.ones(n_heads, dtype=torch.bool, device=device)
        return torch.isin(torch.arange(n_heads, device=device), torch.tensor(heads, device=device))

    def _groups(self, layer: int, pairs: int, device: Any) -> Int[Tensor, "head pair"]:
        n_heads = self.resolved.layers[layer].n_heads
        if isinstance(self.method, SelfExtend):
            groups = self.method.groups(n_heads, pairs)
        else:
            assert isinstance(self.method, Dpe)
            groups = torch.tensor(self.method.pair_groups).expand(n_heads, pairs)
            if self.method.key_pairs is not None:
                groups = torch.where(self.method.key_pairs[layer].cpu(), groups, 1)
        groups = groups.to(device)
        return torch.where(self._heads_of(layer, device)[:, None], groups, 1)


def _refuse_key_pairs(given: Any, layer: int, shape: tuple[int, int]) -> None:
    own = given.get(layer) if isinstance(given, Mapping) else given
    if isinstance(given, Mapping) and isinstance(own, Tensor) and own.dtype == torch.bool and own.shape == shape:
        return
    found = f"{own.dtype} of shape {tuple(own.shape)}" if isinstance(own, Tensor) else repr(own)
    msg = (
        f"dpe: key_pairs must hold, for layer {layer}, a bool tensor of {shape[0]} heads x {shape[1]} pairs, got "
        f"{found:.60}: see dpe_key_pairs, or leave it out for all pairs"
    )
    raise ValueError(msg)


def _phases(table: RopeTable, positions: Int[Tensor, "*lead"]) -> Complex[Tensor, "..."]:
    """Cos + i sin at positions, computed in float32 as the model does; the last axis of positions may be pairs."""
    inv_freq = table.inv_freq.to(positions.device).float()
    angles = (positions if positions.ndim > 1 else positions[:, None]).float() * inv_freq
    return torch.complex(angles.cos(), angles.sin()) * (table.attention_factor * table.score_factor**0.5)


def _taken_apart(
    rotary: RotaryLayer,
    vectors: Float[Tensor, "batch pos any_head d_head"],
    phase: Complex[Tensor, "#batch pos pair"],
) -> tuple[Complex[Tensor, "batch head pos pair"], Float[Tensor, "batch head pos rest"]]:
    """Queries or keys of all query heads before rotation, as complex pairs, and their unrotated channels."""
    planes = rotary.planes(vectors)
    rows = [unrotated(plane, phase[min(row, len(phase) - 1)]) for row, plane in enumerate(planes)]
    rest = expand_key_heads(vectors, rotary.n_heads)[..., rotary.rotary_dim :].transpose(1, 2).float()
    return torch.stack(rows), rest


def _refuse_dead_hooks(model: Any, resolved: RotaryModel) -> None:
    for layer, rotary in resolved.layers.items():
        if rotary.source == "interface":
            msg = (
                f"layer {layer}: TransformerLens leaves its attention to Hugging Face's own module, whose rotation can "
                "be read but not edited, so it cannot be extended"
            )
            raise UnsupportedModelError(msg)
        if rotary.table == "embed_positions" or not rotary_modules(model):
            msg = (
                f"layer {layer}: hook_cos and hook_sin do not fire in this architecture (its table of positions ends "
                "with its context), so its rotation cannot be extended"
            )
            raise UnsupportedModelError(msg)
