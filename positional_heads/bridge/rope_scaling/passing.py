"""What is the pass now at work told: positions, lengths of its rows' runs, a key-value cache?

Earlier keys are read out of the cache of that very pass, rotated as the model left them, and rotated back. So they
follow what is done to a cache between passes: reordering in beam search, cropping, another cache in between.
"""

from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from positional_heads.bridge.model import UnsupportedModelError
from positional_heads.bridge.rotary_layer import TOLERANCE, RotaryLayer
from positional_heads.bridge.run_lengths import rotary_modules, told_positions, whole_table


class Passing:
    """The pass that a model is in.

    Attributes:
        positions: Of its tokens.
        lengths: Tokens of each row's run up to this pass, or one number if all rows have the same.
        pinned: Lengths of whole runs that the pass is part of, inside a block of `run_lengths`; else None.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.positions: Int[Tensor, "#batch pos"] = torch.zeros(1, 0, dtype=torch.long)
        self.lengths: list[int] = []
        self.pinned: list[int] | None = None
        self._mask: Tensor | None = None
        self._cache: Any = None
        self._calls: dict[Any, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def watch(self, undo: ExitStack) -> None:
        """Note what every pass is told; what takes the hooks off again goes onto the stack."""
        original = self.model.original_model
        undo.callback(original.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        undo.callback(original.register_forward_hook(self._end, always_call=True).remove)
        for module in rotary_modules(self.model):
            undo.callback(module.register_forward_pre_hook(self._note, with_kwargs=True).remove)

    def own_phase(self, rotary: RotaryLayer, length: int, run_length: int) -> Complex[Tensor, "{length} pair"]:
        """How the model itself rotates a layer's positions 0 to length - 1 in a run of so many tokens.

        Raises:
            UnsupportedModelError: If its rotary module does not return cos and sin, or has not been called yet.
        """
        kinds = getattr(self.model.original_model.config.get_text_config(), "layer_types", None) or {}
        call = self._calls.get(kinds[rotary.layer]) if kinds else None
        call = call or self._calls.get(None)
        table = () if call is None else whole_table(*call, run_length)
        if len(table) != 2:  # noqa: PLR2004
            msg = f"layer {rotary.layer}: how this model rotates earlier positions cannot be had, run it once before"
            raise UnsupportedModelError(msg)
        cos, sin = (part.reshape(-1, *part.shape[-2:])[:1, :length] for part in table)
        positions = torch.arange(length, device=cos.device)[None]
        return rotary.phase(self.model, {"hook_cos": cos, "hook_sin": sin}, positions)[0]

    def with_cached(
        self, rotary: RotaryLayer, rot_k: Float[Tensor, "batch pos kv_head d_head"], phase: Tensor, attended: int
    ) -> tuple[Float[Tensor, "batch key_pos kv_head d_head"], Complex[Tensor, "1 key_pos pair"]]:
        """All keys that the pass attends to, as rotated by the model, and the phases that they were rotated by.

        Args:
            rotary: How the layer rotates.
            rot_k: Keys of this pass.
            phase: Their phases.
            attended: Keys that the layer's scores have, empty places of a static cache among them.

        Raises:
            RuntimeError: If the cache does not hold the keys of every position up to this pass.
            UnsupportedModelError: If the model rotated cached keys by frequencies that were the length's at that time.
        """
        layers = getattr(self._cache, "layers", [])
        held = getattr(layers[rotary.layer], "keys", None) if rotary.layer < len(layers) else None
        known = int(layers[rotary.layer].get_seq_length()) if held is not None else 0
        if held is None or held.shape[2] != attended:
            msg = (
                f"layer {rotary.layer} attends to {attended} keys, {0 if held is None else held.shape[2]} are in the "
                "cache that the model was given: scores can be rewritten only where a cache keeps every key, so "
                "without a sliding window, and only in runs of the whole model"
            )
            raise RuntimeError(msg)
        self.refuse_padding(known)
        if known > held.shape[2] or int(self.positions.max()) >= known:
            msg = (
                f"layer {rotary.layer}: the cache keeps {held.shape[2]} keys and the run has reached position "
                f"{int(self.positions.max())}: scores can be rewritten only where a cache keeps every key"
            )
            raise RuntimeError(msg)
        key = held[:, :, :known].transpose(1, 2).to(rot_k.device)
        run_length = self.pinned[0] if self.pinned else known
        own = self.own_phase(rotary, known, run_length)
        if not self.pinned and not torch.equal(own[:2], self.own_phase(rotary, 2, 2)):
            msg = (
                f"layer {rotary.layer}: this model's own frequencies follow the length of the run, so that keys in a "
                "cache were rotated in several ways and scores cannot be rewritten: run without a cache"
            )
            raise UnsupportedModelError(msg)
        places, near = self.positions[0].to(own.device), TOLERANCE[rot_k.dtype]
        apart = float((key[:, places] - rot_k).abs().max() / rot_k.abs().max())
        if not (apart <= near and torch.allclose(own[places].expand_as(phase), phase, atol=near)):
            msg = f"layer {rotary.layer}: the cache does not hold this run's keys as the model rotates them"
            raise RuntimeError(msg)
        return key, own[None]

    def refuse_padding(self, keys: int) -> None:
        """Refuse rows whose tokens do not sit at the places that their positions say.

        Raises:
            ValueError: If there are any.
        """
        if bool((self.positions[:, -1] + 1 != keys).any()) or bool((self.positions.diff(dim=-1) != 1).any()):
            msg = "padded batches cannot be extended by rewriting scores: give sequences of one length, without padding"
            raise ValueError(msg)

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None  # noqa: PLR2004
        self._cache = kwargs.get("past_key_values")

    def _end(self, *_: Any) -> None:
        self._mask = self._cache = None

    def _note(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions = told_positions(args, kwargs)
        if positions is None:
            msg = "this model's rotary module is not told positions, so its rotation cannot be extended"
            raise UnsupportedModelError(msg)
        kind = kwargs.get("layer_type", args[2] if len(args) > 2 else None)  # noqa: PLR2004
        self._calls[kind] = (module, *_without_content(args, kwargs))
        self.positions = positions
        if self.pinned is not None:
            lengths = self.pinned
        elif self._mask is not None:
            lengths = self._mask.long().sum(-1).tolist()
        else:
            lengths = (positions.amax(-1) + 1).tolist()
        self.lengths = lengths if len(set(lengths)) > 1 else lengths[:1]


def _without_content(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a rotary module, of the activations only one: it looks at their type and device."""
    if args:
        return (args[0][:1, :1], *args[1:]), kwargs
    return args, {**kwargs, "x": kwargs["x"][:1, :1]}
