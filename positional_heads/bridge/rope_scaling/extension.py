"""A method active on a model: the hooks that rotate by it, in every run until the block ends.

Where a method only changes frequencies, for all heads of a layer, the layer's cos and sin are replaced, computed as
Hugging Face computes them. Methods that rotate by distance, and single heads, need attention scores rewritten, from
unrotated queries and keys; entries that the model masks stay masked. Plain runs have no scores to rewrite: there they
give attention of their own. Positions are read from the model's own rotary
module, so padding, key-value caches and generation work. Frequencies that follow the length of a run follow each row's.
"""

import reprlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from positional_heads.bridge.attention_interface import attention_module, scaled_dot_product, tables_kept
from positional_heads.bridge.model import SCORES, TransformerLensModel, UnsupportedModelError, hook_name
from positional_heads.bridge.recording import Record, recording_hooks
from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rope_scaling.plain_rope import RopeTable, plain_rope
from positional_heads.bridge.rope_scaling.running_pass import RunningPass
from positional_heads.bridge.rotary_layer import RotaryModel, shown_entries
from positional_heads.bridge.run_lengths import rotary_modules
from positional_heads.core.bands import Band, FreeChannels, banded_attention, banded_scores
from positional_heads.core.contributions import expand_key_heads

ChosenHeads = dict[int, list[int] | None]
"""Query heads to extend by layer; None for all of a layer's."""
KEPT_TABLES = 1024
"""Layers times lengths of runs whose frequencies are kept."""


class _BeforeRotation(NamedTuple):
    """Queries and keys of a pass before rotation, and how they are rotated by distance."""

    bands: list[Band]
    query: FreeChannels
    key: FreeChannels
    query_pos: Int[Tensor, " query_pos"]


@dataclass(eq=False, repr=False)
class Extension:
    """A method active on a model.

    Attributes:
        model: The model.
        method: The method.
        resolved: How the model rotates without it.
        chosen: Extended heads of each extended layer.
        training_length: Tokens that the model was trained on; read from its configuration when None.
    """

    model: TransformerLensModel
    method: Method
    resolved: RotaryModel
    chosen: ChosenHeads
    training_length: int | None

    def __post_init__(self) -> None:
        self.ropes = {layer: plain_rope(self.model, layer, self.training_length) for layer in self.chosen}
        self.running_pass = RunningPass(self.model)
        # a pass asks twice per layer, and each answer copies the model's configuration
        self._table = lru_cache(maxsize=KEPT_TABLES)(lambda layer, length: self.method.table(self.ropes[layer], length))
        self._refuse_unfit()

    def __repr__(self) -> str:
        settings = reprlib.repr(dict(self.method.settings))  # shortens long lists
        trained = max(rope.training_length for rope in self.ropes.values())
        return f"Extension({self.name}, {settings}; {len(self.ropes)} layers trained on {trained} tokens)"

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.method.name

    @property
    def rewrites_scores(self) -> bool:
        """Whether attention scores are rewritten, rather than cos and sin, which a layer's heads share."""
        return self.method.rewrites_scores or any(heads is not None for heads in self.chosen.values())

    @property
    def follows_length(self) -> bool:
        """Whether frequencies, or a factor on scores, depend on the length of the run."""
        for layer, rope in self.ropes.items():
            short, long = (self.table(layer, length) for length in (1, 4 * rope.training_length))
            if short.score_factor != long.score_factor or not torch.equal(short.inv_freq, long.inv_freq):
                return True
        return False

    @property
    def provenance(self) -> dict[str, Any]:
        """Method, settings and extended heads, as JSON."""
        return {
            "method": self.name,
            **self.method.settings,
            "training_length": max(rope.training_length for rope in self.ropes.values()),
            "heads": {str(layer): heads for layer, heads in self.chosen.items()},
        }

    def table(self, layer: int, length: int) -> RopeTable:
        """Frequencies of a layer in a run of so many tokens; plain ones for methods that rotate by distance."""
        return self._table(layer, length)

    def bands(self, layer: int, length: int, device: Any = None, *, run_length: int | None = None) -> list[Band] | None:
        """Rotation of positions 0 to length - 1 by distance; None where cos and sin express it.

        Args:
            layer: Which layer.
            length: Tokens of the sequence.
            device: Where to compute it.
            run_length: Tokens of the whole run, where the sequence is part of one; `length` when None.
        """
        if not self.rewrites_scores or layer not in self.chosen:
            return None
        rope, rotary, extended = self.ropes[layer], self.resolved.layers[layer], self._extended_heads(layer, device)
        position = torch.arange(length, device=device)
        run_length = run_length or length
        other = rope.table().phases(position[:, None])
        if rope.extension != "default" and not bool(extended.all()):
            other = self.running_pass.own_phase(rotary, length, run_length).to(other.device)

        def by_head(phase: Complex[Tensor, "#head pos pair"]) -> Complex[Tensor, "head pos pair"]:
            return torch.where(extended[:, None, None], phase, other)

        return [
            Band(band.nearest, band.furthest, by_head(band.query_phase), by_head(band.key_phase))
            for band in self.method.bands(rope, rotary, position, run_length)
        ]

    @property
    def far(self) -> int:
        """Distance in tokens from which on the last of its bands rotates."""
        layer, rope = next(iter(self.ropes.items()))
        return self.method.bands(rope, self.resolved.layers[layer], torch.zeros(1, dtype=torch.long), 1)[-1].nearest

    @property
    def reach(self) -> int | None:
        """Tokens of the longest run that it can rotate; None for any."""
        return self.method.reach(self._trained)

    @property
    def _trained(self) -> int:
        return min(rope.training_length for rope in self.ropes.values())

    @torch.no_grad()
    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, None]:
        """Attention of a plain run, where scores are rewritten; that of other layers is the model's own.

        Args:
            module: Hugging Face's attention module.
            query: Rotated queries [batch head pos d_head].
            key: Rotated keys [batch kv_head key_pos d_head], cached ones among them.
            value: Values [batch kv_head key_pos d_value].
            mask: As transformers makes it for PyTorch's kernels: True, or 0, at visible entries; causality when None.
            **settings: What else the module gives; the scale of the layer is used.

        Raises:
            ValueError: If rows are padded on the left.
        """
        layer = self._layers.get(module)
        if layer is None:
            return scaled_dot_product(module, query, key, value, mask, **settings)
        own = key[:, :, -query.shape[2] :]  # a cache puts earlier keys before those of this pass
        rotated = {"hook_rot_q": query.transpose(1, 2), "hook_rot_k": own.transpose(1, 2)}
        parts = self._before_rotation(layer, {**self._tables[layer], **rotated}, key.shape[2])
        rotary, n_keys = self.resolved.layers[layer], parts.key.rotary.shape[2]
        output = banded_attention(
            parts.bands,
            parts.query,
            parts.key,
            expand_key_heads(value[:, :, :n_keys].transpose(1, 2), rotary.n_heads).transpose(1, 2),
            parts.query_pos,
            rotary.scale,
            visible=None if mask is None else shown_entries(mask)[..., :n_keys],
        )
        return output.transpose(1, 2), None

    def set_run_lengths(self, lengths: list[int] | None) -> None:
        """Rotate each row as part of a run of so many tokens; None: as the passes imply."""
        self.running_pass.run_lengths = lengths

    def enter(self, undo: ExitStack) -> None:
        """Install hooks until the stack is closed."""
        self.running_pass.watch(undo)
        for module in rotary_modules(self.model):
            undo.callback(module.register_forward_pre_hook(self._refuse_too_long).remove)
        layers = list(self.chosen)
        if self.rewrites_scores:
            hooks = recording_hooks(self.model, layers, self._rewritten_scores)
            self._tables: dict[int, Record] = {layer: {} for layer in layers}
            self._layers = {attention_module(self.model, layer): layer for layer in layers}
            for module, layer in self._layers.items():
                if module is not None:
                    undo.enter_context(tables_kept(module, self._tables[layer]))
        else:
            hooks = [
                (hook_name(layer, name), self._replacing(layer, part))
                for layer in layers
                for name, part in (("hook_cos", torch.cos), ("hook_sin", torch.sin))
            ]
        self._hooks = {hook for _, hook in hooks}
        undo.enter_context(self.model.hooks(fwd_hooks=hooks))

    def owns(self, hook: Any) -> bool:
        """Whether a hook is one of its own."""
        return hook in self._hooks

    def _refuse_unfit(self) -> None:
        for layer, rope in self.ropes.items():
            rotary = self.resolved.layers[layer]
            if self.rewrites_scores and rotary.holds == "pattern":
                msg = f"layer {layer}: its attention scores cannot be edited, so {self.name} cannot be applied"
                raise UnsupportedModelError(msg)
            if rotary.rotary_dim != rope.rotary_dim:
                msg = (
                    f"layer {layer} rotates {rotary.rotary_dim} channels, its configuration has {rope.rotary_dim}: it "
                    "cannot be extended"
                )
                raise UnsupportedModelError(msg)
            self.method.refuse_unfit(rotary)
            table = self.table(layer, 2 * rope.training_length)
            if len(table.inv_freq) != rotary.n_pairs:
                msg = f"{self.name}: {len(table.inv_freq)} frequencies, layer {layer} has {rotary.n_pairs} pairs"
                raise ValueError(msg)
            if table.score_factor != 1 and rotary.rotary_dim != rotary.d_head:
                msg = f"layer {layer}: {self.name} scales scores, which needs all channels rotated; here some are not"
                raise UnsupportedModelError(msg)

    def _refuse_too_long(self, *_: Any) -> None:
        length = max(self.running_pass.lengths)
        reach, trained = self.reach, self._trained
        if reach is not None and length > reach:
            settings = ", ".join(f"{key} {value}" for key, value in self.method.settings.items())
            msg = (
                f"{length} tokens are beyond the reach of {self.name} ({settings}) on {trained} training tokens: at "
                f"most {reach}; shorten the sequence or change these settings"
            )
            raise ValueError(msg)

    def _replacing(self, layer: int, part: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        """A hook that replaces a layer's cos or sin."""
        rotary = self.resolved.layers[layer]

        def hook_fn(old: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
            positions = self.running_pass.positions.to(old.device)
            tables = [self.table(layer, length) for length in self.running_pass.lengths]
            inv_freq = torch.stack([table.inv_freq for table in tables])[:, None].to(positions.device).float()
            angles = positions[..., None].float() * inv_freq
            if rotary.table == "half":
                angles = torch.cat([angles, angles], dim=-1)
            elif rotary.table == "adjacent":
                angles = angles.repeat_interleave(2, dim=-1)
            amplitudes = torch.tensor([table.amplitude for table in tables])
            new = (part(angles) * amplitudes[:, None, None].to(angles)).to(old.dtype)
            return new if len(tables) > 1 else new.expand_as(old)

        return hook_fn

    @torch.no_grad()
    def _rewritten_scores(self, layer: int, record: Record) -> Float[Tensor, "batch head query_pos key_pos"]:
        """A layer's scores; visible ones of extended heads are computed from unrotated queries and keys."""
        rotary, scores = self.resolved.layers[layer], record[SCORES]
        bands, query, key, query_pos = self._before_rotation(layer, record, scores.shape[-1])
        n_keys = key.rotary.shape[2]
        unchanged = rotary.masked_entries(scores)[..., :n_keys]
        unchanged = unchanged | ~self._extended_heads(layer, scores.device)[:, None, None]
        if self.ropes[layer].extension == "default":  # near entries keep the model's own scores, to the last bit
            distance = query_pos[:, None] - torch.arange(n_keys, device=scores.device)
            unchanged = unchanged | (distance < bands[-1].nearest)
        new = scores.clone()
        for row in range(scores.shape[0]):
            q_dot_k = banded_scores(bands, query.row(row), key.row(row), query_pos)
            rebuilt = rotary.soft_capped(q_dot_k * rotary.scale).to(scores.dtype)
            new[row, ..., :n_keys] = torch.where(unchanged[row], scores[row, ..., :n_keys], rebuilt)
        return new

    def _before_rotation(self, layer: int, record: Record, n_keys: int) -> "_BeforeRotation":
        """What a pass attends with in a layer.

        Args:
            layer: Which layer.
            record: Its rotated queries and keys, and their cos and sin.
            n_keys: Keys that it attends to, cached ones among them.
        """
        rotary, running = self.resolved.layers[layer], self.running_pass
        rot_q, rot_k = rotary.rotated_vectors(self.model, record, running.positions)
        phase = key_phase = rotary.phase(self.model, record, running.positions)
        if n_keys > rot_k.shape[1]:
            rot_k, key_phase = running.all_keys(rotary, rot_k, phase, n_keys)
        self._refuse_rows(rot_k.shape[1])
        return _BeforeRotation(
            self.bands(layer, rot_k.shape[1], rot_k.device, run_length=running.lengths[0]) or [],
            rotary.free_channels(rot_q, phase),
            rotary.free_channels(rot_k, key_phase),
            running.positions[0].to(rot_k.device),
        )

    def _refuse_rows(self, n_keys: int) -> None:
        lengths = self.running_pass.lengths
        self.running_pass.refuse_padding(n_keys)
        if len(lengths) > 1 and not self.method.rewrites_scores:
            msg = f"rows of {lengths} tokens cannot be extended by heads: give sequences of one length"
            raise ValueError(msg)

    def _extended_heads(self, layer: int, device: Any) -> Bool[Tensor, " head"]:
        heads, n_heads = self.chosen[layer], self.resolved.layers[layer].n_heads
        if heads is None:
            return torch.ones(n_heads, dtype=torch.bool, device=device)
        return torch.isin(torch.arange(n_heads, device=device), torch.tensor(heads, device=device))
