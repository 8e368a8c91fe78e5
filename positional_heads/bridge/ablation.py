"""Ablate heads, in six modes (docs/equations.md, section 5).

Every mode acts on query heads, also where they share key heads, and on the prompt as on generated tokens.

- `zero`: the head's output z is 0.
- `mean`: z is its mean over a reference corpus.
- `resample`: z is that of a reference sequence at the same positions, of sequence i for example i.
- `uniform`: its scores are 0 at all visible keys, so it attends to them evenly.
- `far`: keys more than `distance` tokens back are masked, but for the first `sinks` of the text; the softmax
  renormalises the others. A window of w keys, the query's own among them, is a distance of w - 1.
- `near`: keys less than `distance` tokens back are masked; where no key is left, z is 0.

Distances and positions are the text's own, also with padding and with caches of any kind. Compatibility mode moves a
value bias out of z into the output's bias: where a model has one, z = 0 does not remove it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from positional_heads.bridge.head_edits import EvenHeads, HiddenFar, HiddenNear, ReplacedHeads, ResampledHeads
from positional_heads.bridge.model import SCORES, TransformerLensModel, UnsupportedModelError, heads_of_model, hook_name
from positional_heads.bridge.positions import LayerInputs
from positional_heads.bridge.provenance import data_hash
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.bridge.run_lengths import run_lengths
from positional_heads.bridge.sequences import Batch, Text, batches
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import Heads

AblationMode = Literal["zero", "mean", "resample", "uniform", "far", "near"]
MODES: tuple[AblationMode, ...] = get_args(AblationMode)
OUTPUT = "hook_z"
REFERENCE_BATCH = 8

Hook = tuple[str, Callable[..., Any]]
Reference = Text


@checked
@contextmanager
def ablated_heads(
    model: TransformerLensModel,
    heads: Heads,
    mode: AblationMode = "zero",
    *,
    reference: Reference | None = None,
    distance: int | None = None,
    sinks: int = 0,
) -> Iterator[TransformerLensModel]:
    """A block inside which these heads are ablated, in every run: plain, cached, patched or generating.

    Arguments and errors are those of `ablation_hooks`.
    """
    hooks = ablation_hooks(model, heads, mode, reference=reference, distance=distance, sinks=sinks)
    with model.hooks(fwd_hooks=hooks):
        yield model


@checked
def ablation_hooks(
    model: TransformerLensModel,
    heads: Heads,
    mode: AblationMode = "zero",
    *,
    reference: Reference | None = None,
    distance: int | None = None,
    sinks: int = 0,
) -> list[Hook]:
    """Forward hooks that ablate these heads, to pass to `run_with_hooks`.

    Args:
        model: A TransformerBridge.
        heads: Heads to ablate, as Head(3, 7), (3, 7) or "L3H7", one or several; an empty list ablates none.
        mode: What replaces them, see above.
        reference: Text or token ids. `mean` averages z over all of its positions. `resample` takes z from it: sequences
            of equal length, no shorter than the run; sequence i for example i, cycling if there are fewer. A task
            numbers its examples; elsewhere row i is example i, so beam search takes one sequence.
        distance: Cut-off in tokens, at least 1. Keys exactly this far back are kept by both `far` and `near`.
        sinks: First keys of the text, those at positions 0 to sinks - 1, that `far` keeps at any distance.

    Raises:
        ValueError: If the mode is unknown, lacks an argument that it needs or has one that it does not use, or a head
            does not exist.
        TypeError: If distance or sinks are not whole numbers.
        UnsupportedModelError: If the model is not rotary, or does not read the activations that the mode edits.
    """
    return Ablation(model, mode, reference=reference, distance=distance, sinks=sinks).hooks(heads)


class Ablation:
    """One mode on one model, for any heads. The reference is run once per layer, however many sets of heads follow.

    Arguments and errors are those of `ablation_hooks`.
    """

    @checked
    def __init__(
        self,
        model: TransformerLensModel,
        mode: AblationMode = "zero",
        *,
        reference: Reference | None = None,
        distance: int | None = None,
        sinks: int = 0,
    ) -> None:
        self.mode = ablation_mode(mode, distance)
        _refuse_missing_or_unused("reference", reference, mode, ("mean", "resample"))
        in_range("sinks", sinks, 0)
        if sinks and mode != "far":
            msg = f"sinks= goes with far, not with mode {mode!r}"
            raise ValueError(msg)
        self.model = model
        self.reference = reference
        self.distance = distance
        self.sinks = sinks
        self._reference_z: dict[int, Tensor] = {}

    def hooks(self, heads: Heads) -> list[Hook]:
        """Forward hooks that ablate these heads."""
        chosen = _heads_by_layer(self.model, heads)
        if self.mode in {"uniform", "far", "near"}:
            self._refuse_late_scores(list(chosen))
        if self.mode in {"mean", "resample"}:
            self._run_reference([layer for layer in chosen if layer not in self._reference_z])
        return [hook for layer, layer_heads in chosen.items() for hook in self._layer_hooks(layer, layer_heads)]

    def _layer_hooks(self, layer: int, heads: list[int]) -> list[Hook]:
        if self.mode == "zero":
            return [(hook_name(layer, OUTPUT), ReplacedHeads(tuple(heads), None))]
        if self.mode == "mean":
            return [(hook_name(layer, OUTPUT), ReplacedHeads(tuple(heads), self._reference_z[layer]))]
        if self.mode == "resample":
            inputs = LayerInputs(self.model, layer)
            resampled = ResampledHeads(tuple(heads), self._reference_z[layer], self.model, inputs)
            return [inputs.hook, (hook_name(layer, OUTPUT), resampled)]
        if self.mode == "uniform":
            return [(hook_name(layer, SCORES), EvenHeads(tuple(heads), self._rotary[layer]))]
        rotary, inputs, distance = self._rotary[layer], LayerInputs(self.model, layer), self.distance or 0
        if self.mode == "far":
            hidden = HiddenFar(tuple(heads), distance, rotary, inputs, self.sinks)
            return [inputs.hook, (hook_name(layer, SCORES), hidden)]
        near = HiddenNear(tuple(heads), distance, rotary, inputs)
        return [inputs.hook, (hook_name(layer, SCORES), near), (hook_name(layer, OUTPUT), near.silence)]

    @property
    def reference_hash(self) -> str | None:
        """A sha256 over the reference's tokens, for provenance; None without one."""
        if self.reference is None:
            return None
        return data_hash([(row, None) for batch in self._reference_batches() for row in batch.tokens])

    def _reference_batches(self) -> list[Batch]:
        return batches(self.model, self.reference, None, REFERENCE_BATCH, beyond_context=True)

    @cached_property
    def _rotary(self) -> dict[int, RotaryLayer]:
        return resolve_layers(self.model).layers

    @property
    def editable_layers(self) -> list[int]:
        """Layers whose scores can be edited, as `uniform`, `far` and `near` need."""
        return [layer for layer, rotary in self._rotary.items() if rotary.holds != "pattern"]

    def _refuse_late_scores(self, layers: list[int]) -> None:
        for layer in layers:
            if layer not in self.editable_layers:
                msg = (
                    f"layer {layer}: its attention scores cannot be edited, which mode {self.mode!r} needs; use 'zero'"
                )
                raise UnsupportedModelError(msg)

    @torch.no_grad()
    def _run_reference(self, layers: list[int]) -> None:
        """Store z of these layers on the reference, or its mean over all positions."""
        if not layers:
            return
        names = [hook_name(layer, OUTPUT) for layer in layers]
        parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        n_positions = 0
        for batch in self._reference_batches():
            with run_lengths(self.model, [batch.tokens.shape[1]]):
                _, cache = self.model.run_with_cache(batch.tokens, names_filter=names, return_type=None)
            n_positions += batch.tokens.numel()
            for layer, name in zip(layers, names, strict=True):
                z = cache[name]
                parts[layer].append(z.float().sum((0, 1)).cpu().double() if self.mode == "mean" else z)
        for layer, z_parts in parts.items():
            if self.mode == "mean":
                self._reference_z[layer] = (torch.stack(z_parts).sum(0) / n_positions).float()
            else:
                self._reference_z[layer] = _joined_reference(z_parts)


def ablation_mode(name: str, distance: int | None) -> AblationMode:
    """The mode by its name, if the distance goes with it.

    Raises:
        ValueError: If the mode is unknown, lacks a distance, or has one that it does not use.
    """
    for mode in MODES:
        if name == mode:
            _refuse_missing_or_unused("distance", distance, mode, ("far", "near"))
            in_range("distance", distance, 1)
            return mode
    msg = f"mode {name!r} is unknown: choose one of {', '.join(MODES)}"
    raise ValueError(msg)


def _heads_by_layer(model: TransformerLensModel, heads: Heads) -> dict[int, list[int]]:
    chosen: dict[int, list[int]] = {}
    for layer, head in sorted(set(heads_of_model(model, heads))):
        chosen.setdefault(layer, []).append(head)
    return chosen


def _refuse_missing_or_unused(name: str, value: Any, mode: str, needed_by: tuple[str, ...]) -> None:
    if value is None and mode in needed_by:
        msg = f"mode {mode!r} needs {name}="
        raise ValueError(msg)
    if value is not None and mode not in needed_by:
        msg = f"{name}= goes with {' and '.join(needed_by)}, not with mode {mode!r}"
        raise ValueError(msg)


def _joined_reference(outputs: list[Tensor]) -> Float[Tensor, "batch pos head d_head"]:
    lengths = {z.shape[1] for z in outputs}
    if len(lengths) > 1:
        msg = (
            f"mode 'resample' needs reference sequences of one length, got {sorted(lengths)}: cut them to the shortest"
        )
        raise ValueError(msg)
    return torch.cat(outputs)
