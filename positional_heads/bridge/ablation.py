"""What does the model lose without these heads? Six ways to take a head away, each with one meaning (method section 5).

All act on query heads, also where key heads are shared, on the prompt and on generated tokens alike.

- `zero`: the head's output z is 0.
- `mean`: z is its mean over a reference corpus.
- `resample`: z is that of another sequence at the same positions, of sequence i for example i.
- `uniform`: its scores are 0 wherever it may look, so that it attends evenly.
- `far`: it cannot look further back than `distance` tokens; what is left is renormalised.
- `near`: it cannot look less far back than that; where nothing is left its output is 0.

Distances and positions are the text's own, also behind padding and in caches of any kind. Compatibility mode moves a
value bias out of z into the output's bias: where a model has one, an output of 0 leaves it there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from positional_heads.bridge.model import SCORES, TransformerLensModel, UnsupportedModelError, hook_name
from positional_heads.bridge.positions import Places, row_numbers
from positional_heads.bridge.provenance import data_hash
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.bridge.run_lengths import run_lengths
from positional_heads.bridge.sequences import Text, batches
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import Heads, as_heads

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
) -> Iterator[TransformerLensModel]:
    """A block inside which these heads are ablated, in every run: plain, cached, patched or generating.

    Arguments and errors are those of `ablation_hooks`.
    """
    hooks = ablation_hooks(model, heads, mode, reference=reference, distance=distance)
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
) -> list[Hook]:
    """The same as forward hooks, to pass to `run_with_hooks`.

    Args:
        model: A TransformerBridge.
        heads: Heads to ablate, as Head(3, 7), (3, 7) or "L3H7", one or several; with none, nothing is done.
        mode: What becomes of them, see the module's docstring.
        reference: Text or token ids that `mean` averages over all positions of, or that `resample` takes z from:
            sequences of one length, at least as long as what will be run, sequence i for example i, and again from the
            first where there are fewer. A task numbers its examples; elsewhere row i is example i, so that beam
            search, whose rows are beams, takes a single sequence.
        distance: Distance in tokens, at least 1, that splits `far` from `near`; it belongs to what is kept by both.

    Raises:
        ValueError: If the mode is unknown, lacks what it needs or is given what it does not, or a head does not exist.
        TypeError: If the distance is not a whole number.
        UnsupportedModelError: If the model is not rotary, or ignores what the mode has to edit.
    """
    return Ablation(model, mode, reference=reference, distance=distance).hooks(heads)


class Ablation:
    """One way to take heads away from a model, ready for any heads: what it takes from the model is found once.

    Arguments and errors are those of `ablation_hooks`.
    """

    @checked
    def __init__(
        self,
        model: TransformerLensModel,
        mode: str = "zero",
        *,
        reference: Reference | None = None,
        distance: int | None = None,
    ) -> None:
        self.mode = known_mode(mode, distance)
        _refuse_missing_or_idle("reference", reference, mode, ("mean", "resample"))
        self.model = model
        self.reference = reference
        self.distance = distance
        self._outputs: dict[int, Tensor] = {}

    def hooks(self, heads: Heads) -> list[Hook]:
        """Forward hooks that ablate these heads."""
        chosen = _heads_by_layer(self.model, heads)
        if self.mode in {"uniform", "far", "near"}:
            self._refuse_late_scores(list(chosen))
        if self.mode in {"mean", "resample"}:
            self._find_outputs([layer for layer in chosen if layer not in self._outputs])
        return [hook for layer, which in chosen.items() for hook in self._layer_hooks(layer, which)]

    def _layer_hooks(self, layer: int, heads: list[int]) -> list[Hook]:
        if self.mode == "zero":
            return [(hook_name(layer, OUTPUT), _replacing(heads, None))]
        if self.mode == "mean":
            return [(hook_name(layer, OUTPUT), _replacing(heads, self._outputs[layer]))]
        if self.mode == "resample":
            return _resampling(self.model, layer, heads, self._outputs[layer])
        return _attending(self._rotary[layer], heads, self.mode, self.distance or 0, Places(self.model, layer))

    @property
    def reference_hash(self) -> str | None:
        """A sha256 over the reference's tokens, for provenance; None without one."""
        if self.reference is None:
            return None
        found = batches(self.model, self.reference, None, REFERENCE_BATCH, beyond_context=True)
        return data_hash([(row, None) for batch in found for row in batch.tokens])

    @cached_property
    def _rotary(self) -> dict[int, RotaryLayer]:
        return resolve_layers(self.model).layers

    def _refuse_late_scores(self, layers: list[int]) -> None:
        for layer in layers:
            if layer not in self._rotary or self._rotary[layer].holds == "pattern":
                msg = (
                    f"layer {layer}: its attention scores cannot be had in time, so mode {self.mode!r} cannot be; use "
                    "'zero'"
                )
                raise UnsupportedModelError(msg)

    @torch.no_grad()
    def _find_outputs(self, layers: list[int]) -> None:
        """Run the reference, and keep what the heads of these layers put out on it, or its mean."""
        if not layers:
            return
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        positions = 0
        for batch in batches(self.model, self.reference, None, REFERENCE_BATCH, beyond_context=True):
            names = [hook_name(layer, OUTPUT) for layer in layers]
            with run_lengths(self.model, [batch.tokens.shape[1]]):
                _, cache = self.model.run_with_cache(batch.tokens, names_filter=names, return_type=None)
            positions += batch.tokens.numel()
            for layer, name in zip(layers, names, strict=True):
                z = cache[name]
                found[layer].append(z.float().sum((0, 1)).cpu().double() if self.mode == "mean" else z)
        for layer, parts in found.items():
            mean = self.mode == "mean"
            self._outputs[layer] = (torch.stack(parts).sum(0) / positions).float() if mean else _one_length(parts)


def known_mode(mode: str, distance: int | None) -> AblationMode:
    """The mode meant, if the distance goes with it.

    Raises:
        ValueError: If the mode is unknown, or lacks a distance or has one in vain.
    """
    for known in MODES:
        if mode == known:
            _refuse_missing_or_idle("distance", distance, mode, ("far", "near"))
            in_range("distance", distance, 1)
            return known
    msg = f"mode {mode!r} is unknown: choose one of {', '.join(MODES)}"
    raise ValueError(msg)


def _heads_by_layer(model: TransformerLensModel, heads: Heads) -> dict[int, list[int]]:
    chosen: dict[int, list[int]] = {}
    for layer, head in sorted(set(as_heads(heads, int(model.cfg.n_layers), int(model.cfg.n_heads)))):
        chosen.setdefault(layer, []).append(head)
    return chosen


def _refuse_missing_or_idle(name: str, value: Any, mode: str, needed_by: tuple[str, ...]) -> None:
    if value is None and mode in needed_by:
        msg = f"mode {mode!r} needs {name}="
        raise ValueError(msg)
    if value is not None and mode not in needed_by:
        msg = f"{name}= goes with {' and '.join(needed_by)}, not with mode {mode!r}"
        raise ValueError(msg)


def _replacing(heads: list[int], value: Float[Tensor, "head d_head"] | None) -> Callable[..., Tensor]:
    def hook_fn(z: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        z = z.clone()
        z[:, :, heads] = 0 if value is None else value[heads].to(z)
        return z

    return hook_fn


def _resampling(
    model: TransformerLensModel, layer: int, heads: list[int], source: Float[Tensor, "batch pos head d_head"]
) -> list[Hook]:
    """Take z of the source at the positions being run, whatever the columns of a cache or of padding."""
    places = Places(model, layer)

    def replace(z: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        positions = places.positions().to(source.device)
        reached = int(positions.max()) + 1
        if reached > source.shape[1]:
            msg = f"the reference has {source.shape[1]} positions, the run has reached {reached}: give a longer one"
            raise ValueError(msg)
        z = z.clone()
        rows = row_numbers(model, len(z)).to(source.device) % len(source)
        z[:, :, heads] = source[rows[:, None], positions][:, :, heads].to(z)
        return z

    return [places.hook, (hook_name(layer, OUTPUT), replace)]


def _one_length(outputs: list[Tensor]) -> Float[Tensor, "batch pos head d_head"]:
    lengths = {z.shape[1] for z in outputs}
    if len(lengths) > 1:
        msg = (
            f"mode 'resample' needs reference sequences of one length, got {sorted(lengths)}: cut them to the shortest"
        )
        raise ValueError(msg)
    return torch.cat(outputs)


def _attending(rotary: RotaryLayer, heads: list[int], mode: AblationMode, distance: int, places: Places) -> list[Hook]:
    """Change where heads look. What the model hides stays hidden: entries are only ever added to what is masked."""
    blind: list[Bool[Tensor, "batch head query_pos"]] = []

    def edit(scores: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        scores = scores.clone()
        own = scores[:, heads]
        hidden = rotary.masked_entries(own)
        if mode == "uniform":
            scores[:, heads] = own.masked_fill(~hidden, 0)
            return scores
        back = places.distances(rotary, scores)
        hidden = hidden | ((back > distance) if mode == "far" else (back < distance))
        scores[:, heads] = own.masked_fill(hidden, torch.finfo(scores.dtype).min)
        blind[:] = [hidden.all(dim=-1)]
        return scores

    def silence(z: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        z = z.clone()
        z[:, :, heads] = z[:, :, heads].masked_fill(blind[0].transpose(1, 2).unsqueeze(-1), 0)
        return z

    hooks: list[Hook] = [places.hook, (hook_name(rotary.layer, SCORES), edit)]
    return [*hooks, (hook_name(rotary.layer, OUTPUT), silence)] if mode == "near" else hooks
