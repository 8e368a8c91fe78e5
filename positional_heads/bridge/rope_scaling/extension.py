"""A method active on a model: the hooks that rotate by it, in every run until the block ends.

Where a method only changes frequencies, for all heads of a layer, the layer's cos and sin are replaced, computed as
Hugging Face computes them. Methods that rotate by distance, and single heads, need scores rewritten (see `rewriting`).
Positions are read from the model's own rotary module, so padding, key-value caches and generation work. Frequencies
that follow the length of a run follow each row's.
"""

import reprlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Complex
from torch import Tensor

from positional_heads.bridge.active_extension import ActiveExtension, active_extension, clear_active, set_active
from positional_heads.bridge.attention_interface import Attend
from positional_heads.bridge.model import SCORES, Record, TransformerLensModel, UnsupportedModelError, hook_name
from positional_heads.bridge.recording import recording_hooks
from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rope_scaling.plain_rope import RopeTable, built_in_table, plain_rope
from positional_heads.bridge.rope_scaling.rewriting import Rewriting
from positional_heads.bridge.rope_scaling.running_pass import RunningPass
from positional_heads.bridge.rotary_layer import RotaryModel
from positional_heads.bridge.run_lengths import follows_length, rotary_modules
from positional_heads.core.bands import Band
from positional_heads.core.rotary import pair_frequencies

ChosenHeads = dict[int, list[int] | None]
"""Query heads to extend by layer; None for all of a layer's."""
KEPT_TABLES = 1024
"""Layers times lengths of runs whose frequencies are kept."""


@dataclass(eq=False, repr=False)
class Extension:
    """A method active on a model.

    Attributes:
        model: The model.
        method: The method.
        resolved: How the model rotates without it.
        chosen: Extended heads of each extended layer.
        training_length: Tokens that the model was trained on; read from its configuration when None.
        outer: The extension of the block around this one, which stands for it: its own hooks do nothing meanwhile.
        undo: What takes its hooks away.
    """

    model: TransformerLensModel
    method: Method
    resolved: RotaryModel
    chosen: ChosenHeads
    training_length: int | None = None
    outer: ActiveExtension | None = None
    undo: ExitStack = field(default_factory=ExitStack, init=False)

    def __post_init__(self) -> None:
        layers = self.chosen if self.method.extends else ()
        self.ropes = {layer: plain_rope(self.model, layer, self.training_length) for layer in layers}
        self.running_pass = RunningPass(self.model)
        self._own_follows_length = follows_length(self.model)  # later asked of the model with this extension
        # a pass asks twice per layer, and each answer copies the model's configuration
        self._table = lru_cache(maxsize=KEPT_TABLES)(self._computed_table)
        self._rewriting = Rewriting(
            self.model,
            {layer: self.resolved.layers[layer] for layer in self.chosen},
            self.running_pass,
            self.bands,
            self.extended_heads,
            own_near=[layer for layer, rope in self.ropes.items() if rope.extension == "default"],
            # other heads of a layer are rotated back, and again by the model's own phases, which are one row's
            equal_rows=not self.method.rewrites_scores
            or ((self._by_heads or self.method.edits_own) and self._own_follows_length),
            pads=self.method.edits_own,
        )
        self._refuse_unfit()

    def __repr__(self) -> str:
        settings = reprlib.repr(dict(self.method.settings))  # shortens long lists
        trained = max((f" trained on {rope.training_length} tokens" for rope in self.ropes.values()), default="")
        return f"Extension({self.name}, {settings}; {len(self.chosen)} layers{trained})"

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.method.name

    @property
    def rewrites_scores(self) -> bool:
        """Whether attention scores are rewritten, rather than cos and sin, which a layer's heads share."""
        return self.method.rewrites_scores or self._by_heads

    @property
    def _by_heads(self) -> bool:
        return any(heads is not None for heads in self.chosen.values())

    @property
    def follows_length(self) -> bool:
        """Whether frequencies, or a factor on scores, depend on the length of the run."""
        if self.method.edits_own:
            return self._own_follows_length
        for layer, rope in self.ropes.items():
            short, long = (self.table(layer, length) for length in (1, 4 * rope.training_length))
            if short.score_factor != long.score_factor or not torch.equal(short.inv_freq, long.inv_freq):
                return True
        return False

    @property
    def provenance(self) -> dict[str, Any]:
        """Method, settings and extended heads, as JSON."""
        trained = [rope.training_length for rope in self.ropes.values()]
        return {
            "method": self.name,
            **self.method.settings,
            **({"training_length": max(trained)} if trained else {}),
            "heads": {str(layer): heads for layer, heads in self.chosen.items()},
        }

    def table(self, layer: int, length: int) -> RopeTable:
        """Frequencies of a layer in a run of so many tokens; plain ones for methods that rotate by distance.

        Those of the model where a method starts from its own rotation.
        """
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
        rotary, extended = self.resolved.layers[layer], self.extended_heads(layer, device)
        run_length = run_length or length
        if self.method.edits_own:
            own = self.running_pass.own_phase(rotary, length, run_length).to(extended.device)
            edited = self.method.edited(own, rotary, self.table(layer, run_length).inv_freq)
            edited = torch.where(extended[:, None, None], edited, own)
            return [Band(0, None, edited, edited)]
        rope, position = self.ropes[layer], torch.arange(length, device=device)
        other = rope.table().phases(position[:, None])
        if rope.extension != "default" and not bool(extended.all()):
            other = self.running_pass.own_phase(rotary, length, run_length).to(other.device)

        def by_head(phase: Complex[Tensor, "#head pos pair"]) -> Complex[Tensor, "head pos pair"]:
            return torch.where(extended[:, None, None], phase, other)

        return [
            Band(band.nearest, band.furthest, by_head(band.query_phase), by_head(band.key_phase))
            for band in self.method.bands(rope, rotary, position, run_length)
        ]

    def _computed_table(self, layer: int, length: int) -> RopeTable:
        if self.method.edits_own:
            rotary = self.resolved.layers[layer]
            own = built_in_table(self.model, layer, rotary.rotary_dim, rotary.d_head, length)
            if own is None:  # a table of positions, whose configuration names no base
                own = RopeTable(pair_frequencies(self.running_pass.own_phase(rotary, length, length)).float())
            return own
        return self.method.table(self.ropes[layer], length)

    @property
    def far(self) -> int:
        """Distance in tokens from which on the last of its bands rotates."""
        if self.method.edits_own:
            return 0
        layer, rope = next(iter(self.ropes.items()))
        return self.method.bands(rope, self.resolved.layers[layer], torch.zeros(1, dtype=torch.long), 1)[-1].nearest

    @property
    def reach(self) -> int | None:
        """Tokens of the longest run that it can rotate; None for any."""
        return None if self.method.edits_own else self.method.reach(self._trained)

    @property
    def _trained(self) -> int:
        return min(rope.training_length for rope in self.ropes.values())

    @property
    def attend(self) -> Attend:
        """Attention of a plain run, where scores are rewritten; see `Rewriting.attend`."""
        return self._rewriting.attend

    def extended_heads(self, layer: int, device: Any) -> Bool[Tensor, " head"]:
        """Which query heads of a layer are extended."""
        heads, n_heads = self.chosen[layer], self.resolved.layers[layer].n_heads
        if heads is None:
            return torch.ones(n_heads, dtype=torch.bool, device=device)
        return torch.isin(torch.arange(n_heads, device=device), torch.tensor(heads, device=device))

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
            self._rewriting.watch(undo)
            moved = [layer for layer in layers if self._rewriting.takes_moved(layer)]
            for layer in moved:
                self._rewriting.move_before(layer, self._acts, undo)
            shown = [layer for layer in layers if layer not in moved]
            hooks = [*self._rewriting.position_hooks, *recording_hooks(self.model, shown, self._scores)]
        else:
            hooks = [
                (hook_name(layer, name), self._replacing(layer, part))
                for layer in layers
                for name, part in (("hook_cos", torch.cos), ("hook_sin", torch.sin))
            ]
        self._hooks = {id(hook): hook for _, hook in hooks}
        undo.enter_context(self.model.hooks(fwd_hooks=hooks))
        points = self.model.hook_dict  # once: TransformerLens builds it at each access
        self._placed = [
            (points[name], handle.hook.id)
            for name, hook in hooks
            for handle in points[name].fwd_hooks
            if handle.user_hook is hook
        ]
        undo.callback(self.model.original_model.register_forward_pre_hook(self._reorder).remove)

    def owns(self, hook: Any) -> bool:
        """Whether a hook is one of its own, or of the extension around it."""
        # others' hooks need not be hashable
        return id(hook) in self._hooks or (self.outer is not None and self.outer.owns(hook))

    def _reorder(self, *_: Any) -> None:
        """Before a pass: scores are rewritten before others' hooks edit them, from what others made of q and k.

        Raises:
            RuntimeError: If somebody has removed its hooks: the pass would be the plain model's, and scores another's.
        """
        for point, number in self._placed:
            if number not in point._forward_hooks:
                msg = (
                    f"the hooks of this block ({self.name}) were removed from {point.name}, as model.reset_hooks() "
                    "does: leave the block, and enter it again"
                )
                raise RuntimeError(msg)
            if self.rewrites_scores:
                point._forward_hooks.move_to_end(number, last=not str(point.name).endswith(SCORES))

    def _scores(self, layer: int, record: Record) -> Tensor | None:
        return self._rewriting.scores(layer, record) if self._acts() else None

    def _acts(self) -> bool:
        return active_extension(self.model) is self

    def _refuse_unfit(self) -> None:
        for layer in self.chosen:
            rotary = self.resolved.layers[layer]
            moved = self.method.edits_own and self._rewriting.takes_moved(layer)
            if self.rewrites_scores and rotary.holds == "pattern" and not moved:
                msg = f"layer {layer}: its attention scores cannot be edited, so {self.name} cannot be applied"
                raise UnsupportedModelError(msg)
            self.method.refuse_unfit(rotary)
            if self.method.edits_own:
                continue
            rope = self.ropes[layer]
            if rotary.rotary_dim != rope.rotary_dim:
                msg = (
                    f"layer {layer} rotates {rotary.rotary_dim} channels, its configuration has {rope.rotary_dim}: it "
                    "cannot be extended"
                )
                raise UnsupportedModelError(msg)
            table = self.table(layer, 2 * rope.training_length)
            if len(table.inv_freq) != rotary.n_pairs:
                msg = f"{self.name}: {len(table.inv_freq)} frequencies, layer {layer} has {rotary.n_pairs} pairs"
                raise ValueError(msg)
            if table.score_factor != 1 and rotary.rotary_dim != rotary.d_head:
                msg = f"layer {layer}: {self.name} scales scores, which needs all channels rotated; here some are not"
                raise UnsupportedModelError(msg)

    def _refuse_too_long(self, *_: Any) -> None:
        length, reach = max(self.running_pass.lengths), self.reach
        if reach is not None and length > reach:
            trained = self._trained
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


@contextmanager
def activated(model: TransformerLensModel, extension: Extension) -> Iterator[Extension]:
    """A block inside which an extension is the active one, in place of the one of the block around it."""
    with extension.undo:
        extension.enter(extension.undo)
        set_active(model, extension)
        try:
            yield extension
        finally:
            _leave(model, extension)


def _leave(model: TransformerLensModel, extension: Extension) -> None:
    """Make the extension of the block around this one active again.

    Raises:
        RuntimeError: If a block within this one is still open; it is undone, too.
    """
    within, one = [], active_extension(model)
    while one is not None and one is not extension:
        within.append(one)
        one = getattr(one, "outer", None)
    if one is None:  # undone already, when a block around this one was left first
        return
    for inner in within:
        inner.undo.close()  # type: ignore[attr-defined]
    if extension.outer is None:
        clear_active(model)
    else:
        set_active(model, extension.outer)
    if within:
        msg = (
            f"a block of {extension.name} was left before {len(within)} block{'s' * (len(within) > 1)} within it, "
            "whose changes are now undone as well: leave the inner block first (generators that hold such blocks leave "
            "them in the order in which they are exhausted)"
        )
        raise RuntimeError(msg)
