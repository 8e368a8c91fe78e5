"""Put a length-extrapolation method on a model, for as long as a block lasts.

Where a method only changes frequencies, and for all heads of a layer, the layer's cos and sin are replaced, computed as
Hugging Face computes them. What treats distances or heads differently rewrites attention scores from unrotated queries
and keys; entries that the model masks stay masked. Positions are read off the model's own rotary module, so that
padding, key-value caches and generation work.
"""

import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from positional_heads.bands import Band, banded_scores, unrotated
from positional_heads.contributions import expand_key_heads, head_planes
from positional_heads.heads import Head
from positional_heads.host.admission import UnsupportedModelError
from positional_heads.host.extrapolation.active import active_extension, clear_active, set_active
from positional_heads.host.extrapolation.choosing import Method, rope_method
from positional_heads.host.extrapolation.clex import Clex
from positional_heads.host.extrapolation.methods import Dpe, HuggingFaceMethod, SelfExtend
from positional_heads.host.extrapolation.plain_rope import PlainRope, RopeTable, plain_rope
from positional_heads.host.layers import (
    RotaryLayer,
    RotaryModel,
    layer_phase,
    masked_entries,
    resolve_layers,
    rotated_vectors,
    soft_capped,
)
from positional_heads.host.model import TransformerLensModel
from positional_heads.host.records import SCORES, Record, hook_name, recording_hooks

PLAIN = HuggingFaceMethod("none")


@contextmanager
def extended_rope(
    model: TransformerLensModel,
    method: str | Method,
    factor: float | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[Head] | None = None,
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
        heads: Query heads to extend, instead of whole layers.
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
    resolved: RotaryModel, layers: Sequence[int] | None, heads: Sequence[Head] | None, model: Any
) -> dict[int, list[int] | None]:
    """Heads to extend by layer, None for all of them."""
    n_layers, n_heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    if heads is None:
        rotary = resolved.select(None if layers is None else list(layers), n_layers)
        return {one.layer: None for one in rotary}
    by_layer: dict[int, list[int] | None] = {}
    for layer, head in sorted(set(heads)):
        resolved.select([layer], n_layers)
        if not 0 <= head < n_heads:
            msg = f"{Head(layer, head)} does not exist: heads go from 0 to {n_heads - 1}"
            raise ValueError(msg)
        by_layer[layer] = [*(by_layer.get(layer) or []), head]
    return by_layer


class Extension:
    """A method at work on a model.

    Attributes:
        method: The method.
        ropes: What each extended layer was trained with.
        resolved: How the model rotates without it.
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
        self._positions: Int[Tensor, "#batch pos"] | None = None
        self._keys: dict[int, tuple[Tensor, Tensor]] = {}
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

    def bands(self, layer: int, length: int, device: Any = None) -> list[Band] | None:
        """How queries and keys at positions 0 to length - 1 are rotated, by distance; None where cos and sin say it.

        Args:
            layer: Which layer.
            length: Tokens of the sequence.
            device: Where to compute it.
        """
        if not self.rewrites_scores or layer not in self.chosen:
            return None
        position = torch.arange(length, device=device)
        plain = _phases(PLAIN.table(self.ropes[layer], length), position)
        if not isinstance(self.method, (SelfExtend, Dpe)):
            other = _phases(self.table(layer, length), position)
            both = torch.where(self._heads_of(layer, device)[:, None, None], other, plain)
            return [Band(0, None, both, both)]
        groups = self._groups(layer, plain.shape[-1], device)
        window = self.method.window
        table = PLAIN.table(self.ropes[layer], length)
        key_pos = position[:, None] // groups[:, None]
        query_pos = torch.where(groups[:, None] > 1, key_pos + window - window // groups[:, None], position[:, None])
        far_query, far_key = (_phases(table, places) for places in (query_pos, key_pos))
        return [Band(0, window - 1, plain[None], plain[None]), Band(window, None, far_query, far_key)]

    def enter(self, undo: ExitStack) -> None:
        """Install hooks; what takes them off again goes onto the stack."""
        for module in _rotary_modules(self.model):
            undo.callback(module.register_forward_pre_hook(self._note_positions, with_kwargs=True).remove)
        layers = list(self.chosen)
        if self.rewrites_scores:
            hooks = recording_hooks(self.model, layers, self._rewritten)
        else:
            hooks = [
                (hook_name(layer, name), self._replacing(layer, part))
                for layer in layers
                for name, part in (("hook_cos", torch.cos), ("hook_sin", torch.sin))
            ]
        undo.enter_context(self.model.hooks(fwd_hooks=hooks))  # type: ignore[attr-defined]

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
            table = self.table(layer, 2 * self.ropes[layer].training_length)
            if len(table.inv_freq) != rotary.n_pairs:
                msg = f"{self.method.name}: {len(table.inv_freq)} frequencies, layer {layer} has {rotary.n_pairs} pairs"
                raise ValueError(msg)
            if table.score_factor != 1 and rotary.rotary_dim != rotary.d_head:
                msg = f"layer {layer}: a log scale on scores needs all channels rotated, and here some are not"
                raise UnsupportedModelError(msg)

    def _note_positions(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        given = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
        if not isinstance(given, Tensor):
            msg = "this model's rotary module is not told positions, so its rotation cannot be extended"
            raise UnsupportedModelError(msg)
        self._positions = given.reshape(-1, given.shape[-1]) if given.ndim < 3 else given[0]  # noqa: PLR2004
        length = int(self._positions.max()) + 1
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
            assert self._positions is not None  # the rotary module runs before every layer
            table = self.table(layer, int(self._positions.max()) + 1)
            angles = self._positions[..., None].float() * table.inv_freq.to(self._positions.device).float()
            if rotary.table == "half":
                angles = torch.cat([angles, angles], dim=-1)
            elif rotary.table == "adjacent":
                angles = angles.repeat_interleave(2, dim=-1)
            new = part(angles) * (table.attention_factor * table.score_factor**0.5)
            return new.to(old.dtype).expand_as(old)

        return hook_fn

    @torch.no_grad()
    def _rewritten(self, layer: int, record: Record) -> Tensor:
        rotary, scores = self.resolved.layers[layer], record[SCORES]
        assert self._positions is not None  # the rotary module runs before every layer
        query, key, rest_q, rest_k = _taken_apart(self.model, rotary, record, self._positions)
        key, rest_k = self._with_earlier_keys(layer, key, rest_k)
        if key.shape[2] != scores.shape[-1]:
            msg = (
                f"layer {layer} attends to {scores.shape[-1]} keys, {key.shape[2]} are known: a key-value cache must "
                f"be filled inside the block, and a sliding window cannot be combined with {self.method.name}"
            )
            raise RuntimeError(msg)
        bands = self.bands(layer, key.shape[2], scores.device) or []
        changed = self._heads_of(layer, scores.device)
        hidden = masked_entries(rotary, scores)
        new = scores.clone()
        for row in range(scores.shape[0]):
            places = self._positions[min(row, len(self._positions) - 1)].to(scores.device)
            _refuse_padding(places, key.shape[2])
            # what is nearer than the last band is as the model has it, to the last bit
            near = places[:, None] - torch.arange(key.shape[2], device=scores.device) < bands[-1].nearest
            rotated = banded_scores(bands, query[row], key[row], places)
            rewritten = (rotated + rest_q[row] @ rest_k[row].transpose(1, 2)) * rotary.scale
            rewritten = rewritten if rotary.soft_cap is None else soft_capped(rewritten, rotary.soft_cap)
            kept = hidden[row] | near | ~changed[:, None, None]
            new[row] = torch.where(kept, scores[row], rewritten.to(scores.dtype))
        return new

    def _with_earlier_keys(self, layer: int, key: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of a run that is continued with a key-value cache, which hooks see only once."""
        assert self._positions is not None
        if int(self._positions.min()) > 0 and layer in self._keys:
            before = self._keys[layer]
            key, rest = torch.cat([before[0], key], dim=2), torch.cat([before[1], rest], dim=2)
        self._keys[layer] = (key, rest)
        return key, rest

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


def _phases(table: RopeTable, positions: Int[Tensor, "*lead"]) -> Complex[Tensor, "..."]:
    """Cos + i sin at positions, computed in float32 as the model does; the last axis of positions may be pairs."""
    inv_freq = table.inv_freq.to(positions.device).float()
    angles = (positions if positions.ndim > 1 else positions[:, None]).float() * inv_freq
    return torch.complex(angles.cos(), angles.sin()) * (table.attention_factor * table.score_factor**0.5)


def _taken_apart(
    model: TransformerLensModel, rotary: RotaryLayer, record: Record, positions: Int[Tensor, "#batch pos"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys of all query heads before rotation, as complex pairs, and their unrotated channels."""
    rot_q, rot_k = rotated_vectors(model, rotary, record, positions)
    phase = layer_phase(model, rotary, record, positions)
    parts = []
    for vectors in (rot_q, rot_k):
        planes = head_planes(vectors, rotary.layout, rotary.rotary_dim, rotary.n_heads)
        rows = [unrotated(plane, phase[min(row, len(phase) - 1)]) for row, plane in enumerate(planes)]
        parts.append(torch.stack(rows))
    rests: list[Float[Tensor, "batch head pos rest"]] = [
        expand_key_heads(vectors, rotary.n_heads)[..., rotary.rotary_dim :].transpose(1, 2).float()
        for vectors in (rot_q, rot_k)
    ]
    return parts[0], parts[1], rests[0], rests[1]


def _refuse_dead_hooks(model: Any, resolved: RotaryModel) -> None:
    for layer, rotary in resolved.layers.items():
        if rotary.source == "interface":
            msg = (
                f"layer {layer}: TransformerLens leaves its attention to Hugging Face's own module, whose rotation can "
                "be read but not edited, so it cannot be extended"
            )
            raise UnsupportedModelError(msg)
        if rotary.table == "embed_positions" or not _rotary_modules(model):
            msg = (
                f"layer {layer}: hook_cos and hook_sin do not fire in this architecture (its table of positions ends "
                "with its context), so its rotation cannot be extended"
            )
            raise UnsupportedModelError(msg)


def _rotary_modules(model: Any) -> list[Any]:
    """Hugging Face's rotary modules, which every run passes through before its first layer."""
    return [
        module
        for module in model.original_model.modules()
        if type(module).__name__.endswith("RotaryEmbedding") and hasattr(module, "config")
    ]


def _refuse_padding(places: Int[Tensor, " pos"], keys: int) -> None:
    if int(places[-1]) + 1 != keys or bool((places.diff() != 1).any()):
        msg = "padded batches cannot be extended by rewriting scores: give sequences of one length, without padding"
        raise ValueError(msg)
