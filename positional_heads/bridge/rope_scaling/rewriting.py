"""Scores rewritten by a method that rotates by distance, or single heads: on a bridge, and as attention of a plain run.

Rotated queries and keys of the pass are rotated back, and again by the phases of each band of distances. A bridge has
all scores of a layer: those that the method changes are replaced, and entries that the model masks stay masked. A plain
run never has them: there both go to PyTorch's kernel.
"""

from collections.abc import Callable, Container, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from positional_heads.bridge.attention_interface import attention_module, scaled_dot_product, tables_kept
from positional_heads.bridge.live_hooks import patch
from positional_heads.bridge.model import SCORES, Record, TransformerLensModel
from positional_heads.bridge.positions import LayerInputs
from positional_heads.bridge.rope_scaling.running_pass import RunningPass
from positional_heads.bridge.rotary_layer import RotaryLayer, shown_entries
from positional_heads.core.bands import Band, FreeChannels, banded_attention, banded_scores
from positional_heads.core.contributions import expand_key_heads

ATTEND = "_attn"
"""GPT-J's own attention, a method that takes rotated queries and keys."""


class _BeforeRotation(NamedTuple):
    """Queries and keys of a pass before rotation, for the extended heads, and how they are rotated by distance."""

    heads: Int[Tensor, " chosen"]
    bands: list[Band]
    query: FreeChannels
    key: FreeChannels
    query_pos: Int[Tensor, "#batch query_pos"]
    key_pos: Int[Tensor, "#batch key_pos"]


@dataclass(eq=False, repr=False)
class Rewriting:
    """The scores of an extension that rewrites them.

    Attributes:
        model: The model.
        layers: How the extended layers rotate without it.
        running: The pass that the model is in.
        bands: The rotation of a layer by distance, see `Extension.bands`.
        extended: Which query heads of a layer are extended.
        own_near: Layers whose near entries keep the model's own scores, to the last bit.
        equal_rows: Whether rows must have one length, as the frequencies follow it.
        pads: Whether rows may be padded: the rotation depends on distances only, so columns may stand for positions.
    """

    model: TransformerLensModel
    layers: Mapping[int, RotaryLayer]
    running: RunningPass
    bands: Callable[..., list[Band] | None]
    extended: Callable[[int, Any], Bool[Tensor, " head"]]
    own_near: Container[int]
    equal_rows: bool
    pads: bool

    def __post_init__(self) -> None:
        self._by_module = {attention_module(self.model, layer): layer for layer in self.layers}
        # a model with a table of positions has no rotary module that would be given them
        tables = [layer for layer, rotary in self.layers.items() if rotary.table == "embed_positions"]
        self._inputs = {layer: LayerInputs(self.model, layer) for layer in tables}
        self._tables: dict[int, Record] = {layer: {} for layer in self.layers}

    def watch(self, undo: ExitStack) -> None:
        """Note the cos and sin of plain runs until the stack is closed."""
        for module, layer in self._by_module.items():
            if module is not None:
                undo.enter_context(tables_kept(module, self._tables[layer]))

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
            ValueError: If rows are padded, and the method moves positions.
        """
        layer = self._by_module.get(module)
        if layer is None:
            return scaled_dot_product(module, query, key, value, mask, **settings)
        own = key[:, :, -query.shape[2] :]  # a cache puts earlier keys before those of this pass
        rotated = {"hook_rot_q": query.transpose(1, 2), "hook_rot_k": own.transpose(1, 2)}
        parts = self._before_rotation(layer, {**self._tables[layer], **rotated}, key.shape[2])
        rotary, n_keys = self.layers[layer], parts.key.rotary.shape[2]
        visible = None if mask is None else shown_entries(mask)[..., :n_keys]
        output = banded_attention(
            parts.bands,
            parts.query,
            parts.key,
            expand_key_heads(value[:, :, :n_keys].transpose(1, 2), rotary.n_heads)[:, :, parts.heads].transpose(1, 2),
            parts.query_pos,
            parts.key_pos,
            scale=rotary.scale,
            visible=visible if visible is None or visible.shape[1] == 1 else visible[:, parts.heads],
        ).transpose(1, 2)
        if len(parts.heads) == rotary.n_heads:
            return output, None
        every, _ = scaled_dot_product(module, query, key, value, mask, **settings)
        return every.index_copy(2, parts.heads, output), None

    @torch.no_grad()
    def scores(self, layer: int, record: Record) -> Float[Tensor, "batch head query_pos key_pos"]:
        """A layer's scores; visible ones of extended heads are computed from unrotated queries and keys."""
        rotary, scores = self.layers[layer], record[SCORES]
        if layer in self._inputs:
            self.running.note(self._inputs[layer].positions())
        parts = self._before_rotation(layer, record, scores.shape[-1])
        n_keys = parts.key.rotary.shape[2]
        own = scores[:, parts.heads, :, :n_keys]
        hidden, new = rotary.masked_entries(scores)[:, parts.heads, :, :n_keys], scores.clone()
        for row in range(scores.shape[0]):
            query_pos, key_pos = (part[min(row, len(part) - 1)] for part in (parts.query_pos, parts.key_pos))
            unchanged = hidden[row]
            if layer in self.own_near:
                unchanged = unchanged | (query_pos[:, None] - key_pos < parts.bands[-1].nearest)
            q_dot_k = banded_scores(parts.bands, parts.query.row(row), parts.key.row(row), query_pos, key_pos)
            rebuilt = rotary.soft_capped(q_dot_k * rotary.scale).to(scores.dtype)
            new[row, parts.heads, :, :n_keys] = torch.where(unchanged, own[row], rebuilt)
        return new

    def takes_moved(self, layer: int) -> bool:
        """Whether queries and keys of a layer are moved before its attention, which shows no scores to rewrite."""
        return (
            self.layers[layer].holds == "pattern" and layer in self._inputs and hasattr(self._component(layer), ATTEND)
        )

    def move_before(self, layer: int, acts: Callable[[], bool], undo: ExitStack) -> None:
        """Move queries and keys before Hugging Face's own attention takes them (GPT-J), until the stack is closed.

        Possible where every query head has its own key head, and one rotation serves all distances.

        Args:
            layer: Which layer.
            acts: Whether they are moved now.
            undo: The stack.
        """
        component = self._component(layer)
        attend = getattr(component, ATTEND)

        def move_then_attend(query: Tensor, key: Tensor, *rest: Any, **more: Any) -> Any:
            if not acts():
                return attend(query, key, *rest, **more)
            self.running.note(self._inputs[layer].positions())
            own = {"hook_rot_q": query.transpose(1, 2), "hook_rot_k": key[:, :, -query.shape[2] :].transpose(1, 2)}
            parts = self._before_rotation(layer, own, key.shape[2])
            (band,) = parts.bands
            # pairs side by side: another order of channels, the same in both
            moved_q = parts.query.turned(band.query_phase[:, parts.query_pos].transpose(0, 1)).to(query.dtype)
            moved_k = parts.key.turned(band.key_phase[:, parts.key_pos].transpose(0, 1)).to(key.dtype)
            return attend(
                query.index_copy(1, parts.heads, moved_q), key.index_copy(1, parts.heads, moved_k), *rest, **more
            )

        patch(component, ATTEND, move_then_attend, undo)

    def _component(self, layer: int) -> Any:
        return self.model.blocks[layer].attn.original_component

    @property
    def position_hooks(self) -> list[tuple[str, Callable[..., Any]]]:
        """Hooks that store the positions of layers that a model's rotary modules do not know."""
        return [inputs.hook for inputs in self._inputs.values()]

    def _before_rotation(self, layer: int, record: Record, n_keys: int) -> _BeforeRotation:
        """What the extended heads of a layer attend with in a pass.

        Args:
            layer: Which layer.
            record: Its rotated queries and keys, and their cos and sin.
            n_keys: Keys that it attends to, cached ones among them.
        """
        rotary, running = self.layers[layer], self.running
        rot_q, rot_k = rotary.rotated_vectors(self.model, record, running.positions)
        phase = key_phase = rotary.phase(self.model, record, running.positions)
        query_pos = key_pos = running.positions
        if n_keys > rot_k.shape[1]:
            rot_k, key_phase, key_pos = running.all_keys(rotary, rot_k, phase, n_keys)
        self._refuse_rows(key_pos)
        device = rot_k.device
        heads = self.extended(layer, device).nonzero().flatten()
        length = 1 + max(int(query_pos.max()), int(key_pos.max()))
        run_length = max(length, running.lengths[0])  # a model may count padding among its positions
        return _BeforeRotation(
            heads,
            [band.of(heads) for band in self.bands(layer, length, device, run_length=run_length) or []],
            rotary.free_channels(rot_q, phase.to(rot_q.device), heads),
            rotary.free_channels(rot_k, key_phase.to(device), heads),
            query_pos.to(device),
            key_pos.to(device),
        )

    def _refuse_rows(self, key_pos: Int[Tensor, "#batch key_pos"]) -> None:
        if not self.pads and bool((key_pos.diff(dim=-1) != 1).any() or (key_pos != key_pos[:1]).any()):
            msg = "padded batches cannot be extended by rewriting scores: give sequences of one length, without padding"
            raise ValueError(msg)
        if len(self.running.lengths) > 1 and self.equal_rows:
            msg = f"rows of {self.running.lengths} tokens cannot be extended by heads: give sequences of one length"
            raise ValueError(msg)
