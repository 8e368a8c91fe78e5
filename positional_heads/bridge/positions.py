"""The example and the position of each query in a run, as the model itself passes them to a layer.

A column is not a position: left padding, static caches and cropped caches shift columns. TransformerLens calls every
layer with `position_ids` and the mask; a hook stores both as the layer starts.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.rotary_layer import RotaryLayer, mask_limit

_ROW_NUMBERS: "weakref.WeakKeyDictionary[Any, Sequence[int]]" = weakref.WeakKeyDictionary()


@contextmanager
def numbered_rows(model: TransformerLensModel, numbers: Sequence[int]) -> Iterator[None]:
    """A block in which the rows of each run are the examples of these numbers: one row each, or several beams each."""
    _ROW_NUMBERS[model] = list(numbers)
    try:
        yield
    finally:
        _ROW_NUMBERS.pop(model, None)


def row_numbers(model: TransformerLensModel, rows: int) -> Int[Tensor, " row"]:
    """Number of the example in each row; row i is example i outside of `numbered_rows`.

    Raises:
        ValueError: If the rows are no multiple of the numbers given.
    """
    numbers = torch.tensor(_ROW_NUMBERS.get(model, range(rows)))
    if rows % len(numbers):
        msg = f"{rows} rows are run for {len(numbers)} numbered examples: run every example, each in as many beams"
        raise ValueError(msg)
    return numbers.repeat_interleave(rows // len(numbers))


class LayerInputs:
    """Positions and mask that a layer is called with in the current run.

    Attributes:
        edit: What its hook changes, see `active_edits`: nothing.
    """

    edit: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, model: TransformerLensModel, layer: int) -> None:
        self.layer = layer
        self._attention = model.blocks[layer].attn
        self._inputs: dict[str, Any] = {}
        self._handle: Any = None

    @property
    def hook(self) -> tuple[str, Callable[..., None]]:
        """The hook that stores them; add it along with the hooks that use them."""
        return f"blocks.{self.layer}.hook_in", self._await_call

    def positions(self) -> Int[Tensor, "#batch query_pos"]:
        """Position of each query in its own text.

        Raises:
            UnsupportedModelError: If the layer is called without any.
        """
        position_ids = self._inputs.get("position_ids")
        if not isinstance(position_ids, Tensor):
            msg = f"layer {self.layer} is called without position_ids: modes that need positions do not work there"
            raise UnsupportedModelError(msg)
        return position_ids.reshape(-1, position_ids.shape[-1])

    def distances(
        self, rotary: RotaryLayer, scores: Float[Tensor, "batch head query_pos key_pos"]
    ) -> Int[Tensor, "#batch 1 query_pos key_pos"]:
        """Distance of each key in tokens, counted back from the last key that the query may see, its own."""
        column = torch.arange(scores.shape[-1], device=scores.device)
        own = torch.where(self._visible(rotary, scores), column, -1).amax(-1, keepdim=True)
        return own - column

    def _visible(
        self, rotary: RotaryLayer, scores: Float[Tensor, "batch head query_pos key_pos"]
    ) -> Bool[Tensor, "#batch 1 query_pos key_pos"]:
        """Entries that the model's own mask shows; other hooks may have masked more of the scores before."""
        mask = self._inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == scores.ndim and mask.shape[-1] >= scores.shape[-1]:
            mask = mask[:, :1, :, : scores.shape[-1]].to(scores.device)
            return mask if mask.dtype == torch.bool else mask > mask_limit(mask)
        return ~rotary.masked_entries(scores).all(dim=1, keepdim=True)

    def _await_call(self, tensor: Tensor, hook: Any) -> None:  # noqa: ARG002
        # a TransformerLens hook sees one tensor; keyword arguments are seen by a hook on the module, for one call
        if self._handle is None:
            self._handle = self._attention.register_forward_pre_hook(self._store, with_kwargs=True)

    def _store(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        self._handle.remove()
        self._handle = None
        self._inputs = {name: kwargs.get(name) for name in ("position_ids", "attention_mask")}
