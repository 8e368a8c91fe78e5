"""The forward pass that a model is in: positions, lengths of its rows' runs, and earlier keys from its cache.

Rewriting scores needs all keys before rotation, and a pass that continues a cache computes the new ones only. Earlier
keys are read from the cache of that very pass, as the model rotated them, and rotated back. No copy is held between
passes, so a cache may be reordered (beam search), cropped, or replaced by another one. The cache of a sliding window
drops keys as it takes new ones: those that it held are noted as the pass begins.
"""

from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.rotary_layer import TOLERANCE, RotaryLayer
from positional_heads.bridge.run_lengths import position_ids, rotary_modules, whole_table


class RunningPass:
    """The forward pass that a model is in.

    Attributes:
        positions: Positions of its tokens.
        lengths: Tokens of each row's run up to this pass, or one number if all rows have the same.
        run_lengths: Lengths of the whole runs that the pass is part of, in a `run_lengths` block; else None.
    """

    def __init__(self, model: TransformerLensModel) -> None:
        self.model = model
        self.positions: Int[Tensor, "#batch pos"] = torch.zeros(1, 0, dtype=torch.long)
        self.lengths: list[int] = []
        self.run_lengths: list[int] | None = None
        self._mask: Tensor | None = None
        self._cache: Any = None
        self._held: dict[int, Tensor] = {}
        self._rotary_calls: dict[Any, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def watch(self, undo: ExitStack) -> None:
        """Follow every pass until the stack is closed."""
        original = self.model.original_model
        undo.callback(original.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        undo.callback(original.register_forward_hook(self._end, always_call=True).remove)
        for module in rotary_modules(self.model):
            undo.callback(module.register_forward_pre_hook(self._note_positions, with_kwargs=True).remove)

    def own_phase(self, rotary: RotaryLayer, length: int, run_length: int) -> Complex[Tensor, "{length} pair"]:
        """The model's own phases at a layer's positions 0 to length - 1 in a run of `run_length` tokens.

        A model may count padding among its positions; then there are more of them than tokens.

        Raises:
            UnsupportedModelError: If its rotary module does not return cos and sin, or has not been called yet.
        """
        if rotary.table == "embed_positions":
            return rotary.phase(self.model, {}, torch.arange(length)[None])[0]
        layer_types = getattr(self.model.original_model.config.get_text_config(), "layer_types", None)
        call = self._rotary_calls.get(layer_types[rotary.layer]) if layer_types else None
        call = call or self._rotary_calls.get(None)
        table = () if call is None else whole_table(*call, run_length)
        if call is not None and length > run_length:  # only padding is there, or frequencies that follow no length
            longer = whole_table(*call, length)
            pairs = zip(table, longer, strict=True)
            table = tuple(torch.cat([part, rest[..., run_length:, :]], dim=-2) for part, rest in pairs)
        if len(table) != 2:  # noqa: PLR2004
            msg = (
                f"layer {rotary.layer}: the model's rotation of earlier positions is unknown: run the model once first"
            )
            raise UnsupportedModelError(msg)
        cos, sin = (part.reshape(-1, *part.shape[-2:])[:1, :length] for part in table)
        positions = torch.arange(length, device=cos.device)[None]
        return rotary.phase(self.model, {"hook_cos": cos, "hook_sin": sin}, positions)[0]

    def all_keys(
        self, rotary: RotaryLayer, rot_k: Float[Tensor, "batch pos kv_head d_head"], phase: Tensor, n_keys: int
    ) -> tuple[
        Float[Tensor, "batch key_pos kv_head d_head"],
        Complex[Tensor, "#batch key_pos pair"],
        Int[Tensor, "#batch key_pos"],
    ]:
        """All keys that the pass attends to, as the model rotated them, the phases of that, and their positions.

        Args:
            rotary: How the layer rotates.
            rot_k: Keys of this pass.
            phase: Their phases.
            n_keys: Keys that the layer's scores have, empty slots of a static cache among them.

        Raises:
            RuntimeError: If the cache does not hold the keys of this pass and of the positions before.
            UnsupportedModelError: If the model rotated cached keys by frequencies that follow the length of the run.
            ValueError: If rows are padded other than on the left.
        """
        key = self._cached_keys(rotary.layer, rot_k, n_keys)
        # positions count back from the last: the columns of padding on the left get those that nobody reads
        back = torch.arange(key.shape[1] - 1, -1, -1, device=self.positions.device)
        key_pos = (self.positions[:, -1:] - back).clamp(min=0)
        new = rot_k.shape[1]
        if not torch.equal(key_pos[:, -new:], self.positions) or self._padded_within():
            msg = (
                "rows padded other than on the left cannot continue a cache where scores are rewritten: pad on the left"
            )
            raise ValueError(msg)
        length = int(key_pos.max()) + 1
        own = self.own_phase(rotary, length, self.run_lengths[0] if self.run_lengths else length)
        # two positions are enough to compare frequencies: those of this run with those of a short one
        if not self.run_lengths and not torch.equal(own[:2], self.own_phase(rotary, 2, 2)):
            msg = (
                f"layer {rotary.layer}: this model's own frequencies follow the length of the run, so cached keys were "
                "rotated in several ways and scores cannot be rewritten: run without a cache"
            )
            raise UnsupportedModelError(msg)
        # The keys of this pass are in `rot_k` too: if those in the cache differ, a hook or another model filled it.
        phases, limit = own[key_pos.to(own.device)], TOLERANCE[rot_k.dtype]
        error = float((key[:, -new:] - rot_k).abs().max() / rot_k.abs().max())
        if not (error <= limit and torch.allclose(phases[:, -new:].expand_as(phase), phase, atol=limit)):
            msg = f"layer {rotary.layer}: the cache does not hold this run's keys as the model rotates them"
            raise RuntimeError(msg)
        return key, phases, key_pos

    def note(self, positions: Int[Tensor, "#batch pos"]) -> None:
        """Note the positions of a pass, and how long its rows are."""
        self.positions = positions
        if self.run_lengths is not None:
            lengths = self.run_lengths
        elif self._mask is not None:
            lengths = self._mask.long().sum(-1).tolist()
        else:
            lengths = (positions.amax(-1) + 1).tolist()
        self.lengths = lengths if len(set(lengths)) > 1 else lengths[:1]

    def _cached_keys(
        self, layer: int, rot_k: Float[Tensor, "batch pos kv_head d_head"], n_keys: int
    ) -> Float[Tensor, "batch key_pos kv_head d_head"]:
        """The keys that a pass attends to, from its cache; at most the last positions' in a sliding window."""
        layers = getattr(self._cache, "layers", [])
        held = self._held.get(layer)
        if held is not None:
            earlier = held[:, :, max(0, held.shape[2] + rot_k.shape[1] - n_keys) :].transpose(1, 2).to(rot_k.device)
            key = torch.cat([earlier, rot_k.to(earlier.dtype)], dim=1)
            n_cached = key.shape[1]
        else:
            cached = getattr(layers[layer], "keys", None) if layer < len(layers) else None
            n_cached = 0 if cached is None else cached.shape[2]
            filled = int(layers[layer].get_seq_length()) if cached is not None else 0
            if filled > n_cached or (cached is not None and int(self.positions.max()) >= filled):
                # the static cache of a sliding window counts all keys that it was given, and holds fewer
                msg = (
                    f"layer {layer}: its cache has {n_cached} keys at position {int(self.positions.max())}: scores "
                    "can be rewritten only where a cache keeps every key, or grows up to a sliding window"
                )
                raise RuntimeError(msg)
            key = rot_k if cached is None else cached[:, :, :filled].transpose(1, 2).to(rot_k.device)
        if n_cached != n_keys:
            msg = (
                f"layer {layer} attends to {n_keys} keys, {n_cached} are in its cache: scores can be rewritten only "
                "where a cache keeps every key, or grows up to a sliding window, and only in runs of the whole model"
            )
            raise RuntimeError(msg)
        return key

    def _padded_within(self) -> bool:
        """Whether a row has padding after a real token."""
        return self._mask is not None and bool((self._mask.long().diff(dim=-1) < 0).any())

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        from transformers.cache_utils import DynamicSlidingWindowLayer

        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None  # noqa: PLR2004
        self._cache = kwargs.get("past_key_values")
        self._held = {
            number: layer.keys
            for number, layer in enumerate(getattr(self._cache, "layers", []))
            if isinstance(layer, DynamicSlidingWindowLayer) and layer.keys is not None
        }

    def _end(self, *_: Any) -> None:
        self._mask = self._cache = None
        self._held = {}

    def _note_positions(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read positions and lengths from the call of a rotary module; every pass makes it before its first layer."""
        positions = position_ids(args, kwargs)
        if positions is None:
            msg = "this model's rotary module is not given positions, so its rotation cannot be extended"
            raise UnsupportedModelError(msg)
        layer_type = kwargs.get("layer_type", args[2] if len(args) > 2 else None)  # noqa: PLR2004
        self._rotary_calls[layer_type] = (module, *_without_content(args, kwargs))
        self.note(positions)


def _without_content(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A rotary module's arguments, cut to one activation: it reads only their type and device."""
    if args:
        return (args[0][:1, :1], *args[1:]), kwargs
    return args, {**kwargs, "x": kwargs["x"][:1, :1]}
