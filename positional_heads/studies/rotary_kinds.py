"""Which layers of a model rotate alike, and which of them see beyond the training length: read without running a text.

A layer with a sliding window of W tokens only ever sees distances below W, however long the text. Where W is within the
training length, no pair meets a new angle, and an extension could only spoil the layer; it is left as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.bridge.frequency_check import frequency_hash
from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.model_size import windows_by_layer
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rope_scaling.plain_rope import PlainRope, RopeTable, plain_rope
from positional_heads.results.recommendation import RotaryKind


@dataclass(frozen=True)
class Rotations:
    """How every layer of a model rotates, as trained.

    Attributes:
        ropes: Each layer's rotation by its configuration, proven on the model.
        windows: Each layer's sliding window; None without one.
    """

    ropes: Mapping[int, PlainRope]
    windows: Mapping[int, int | None]

    @property
    def training_length(self) -> int:
        """Tokens that the model was trained on."""
        return min(rope.training_length for rope in self.ropes.values())

    @property
    def extended(self) -> list[int]:
        """Layers that see distances beyond the training length."""
        return [layer for layer, window in self.windows.items() if window is None or window > self.training_length]

    @property
    def tables(self) -> dict[int, RopeTable]:
        """What each layer rotates by."""
        return {layer: rope.table() for layer, rope in self.ropes.items()}

    def nothing_to_do(self, target_length: int) -> str | None:
        """Why no layer needs an extension to this length, as a sentence; None if one may."""
        trained = self.training_length
        if target_length <= trained:
            return f"{target_length} tokens are within the {trained} that the model was trained on."
        if not self.extended:
            window = max(window for window in self.windows.values() if window is not None)
            return f"every layer sees at most {window} tokens back, within the {trained} that the model was trained on."
        return None

    def kinds(self) -> tuple[list[RotaryKind], Float64[Tensor, "kind pair"]]:
        """Layers that rotate alike, and the frequencies of their pairs; NaN where a kind has fewer pairs."""
        found: dict[tuple[int | None, str], list[int]] = {}
        frequencies = {layer: table.inv_freq.double() for layer, table in self.tables.items()}
        for layer, own in frequencies.items():
            found.setdefault((self.windows[layer], frequency_hash(own)), []).append(layer)
        extended = {*self.extended}
        kinds = [RotaryKind(layers, window, layers[0] in extended) for (window, _), layers in found.items()]
        rows = [frequencies[kind.layers[0]] for kind in kinds]
        return kinds, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan)


def rotations(model: TransformerLensModel, training_length: int | None = None) -> Rotations:
    """How every layer of a model rotates.

    Args:
        model: A TransformerBridge.
        training_length: Tokens that the model was trained on; read from its configuration when None.

    Raises:
        UnsupportedModelError: If it does not rotate, or not as its configuration says, or is extended already.
    """
    layers = resolve_layers(model).layers
    ropes = {layer: plain_rope(model, layer, training_length) for layer in layers}
    for layer, rope in ropes.items():
        if rope.extension != "default":
            length = rope.built_in.get("factor")
            reach = f", by a factor of {length:g}" if isinstance(length, int | float) else ""
            msg = (
                f"the model is extended already: layer {layer} has a rope_scaling of type {rope.extension}{reach} from "
                f"{rope.training_length} tokens. Its weights may have been trained with that, and no method is defined "
                "on top of it. If they were not, load the model without rope_scaling in its config.json; to compare "
                "methods that replace it, use extrapolation_study"
            )
            raise UnsupportedModelError(msg)
        if rope.raised_to is not None:
            msg = (
                f"the model is extended already: its configuration states a context of {rope.raised_to} tokens, "
                f"originally {rope.config.original_max_position_embeddings}, and no type of rope_scaling, as NTK "
                f"leaves it. So its base of {rope.base:g} is probably not the one it was trained with, and no method "
                "is defined on top of it. Load the checkpoint with its first config.json; if the base is the trained "
                "one, remove original_max_position_embeddings"
            )
            raise UnsupportedModelError(msg)
        if frequency_hash(rope.table().inv_freq.double()) != layers[layer].frequencies:
            msg = f"layer {layer}: some of its pairs do not rotate, though they do by its configuration: not extended"
            raise UnsupportedModelError(msg)
    windows = windows_by_layer(next(iter(ropes.values())).config)
    return Rotations(ropes, {layer: windows.get(layer) for layer in ropes})


def needs_extension(model: TransformerLensModel, target_length: int, training_length: int | None = None) -> bool:
    """Whether a context of this length has distances that a layer was not trained on; arguments as in `rotations`."""
    return rotations(model, training_length).nothing_to_do(target_length) is None
