"""Which example and which position does each query of a run belong to? Told by the run itself, never by its columns.

A column is no position: left padding, static and cropped caches shift them. Every layer of the host's models is given
`position_ids` and the mask, so that both are noted as the layer starts.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.rotary_layer import RotaryLayer, mask_limit

_NUMBERS: "weakref.WeakKeyDictionary[Any, Sequence[int]]" = weakref.WeakKeyDictionary()


@contextmanager
def numbered_rows(model: TransformerLensModel, numbers: Sequence[int]) -> Iterator[None]:
    """A block in which the rows of each run are the examples of these numbers, every row one, or several beams."""
    _NUMBERS[model] = list(numbers)
    try:
        yield
    finally:
        _NUMBERS.pop(model, None)


def row_numbers(model: TransformerLensModel, rows: int) -> Int[Tensor, " row"]:
    """Number of the example in each row: row i is example i where nobody says otherwise.

    Raises:
        ValueError: If the rows are no multiple of the numbers given.
    """
    numbers = torch.tensor(_NUMBERS.get(model, range(rows)))
    if rows % len(numbers):
        msg = f"{rows} rows are run for {len(numbers)} numbered examples: run every example, in as many beams as others"
        raise ValueError(msg)
    return numbers.repeat_interleave(rows // len(numbers))


class Places:
    """Positions and mask that a layer is given in the run at hand."""

    def __init__(self, model: TransformerLensModel, layer: int) -> None:
        self.layer = layer
        self._attention = model.blocks[layer].attn
        self._told: dict[str, Any] = {}
        self._handle: Any = None

    @property
    def hook(self) -> tuple[str, Callable[..., None]]:
        """The hook that notes them; to be added with those that ask for them."""
        return f"blocks.{self.layer}.hook_in", self._listen

    def positions(self) -> Int[Tensor, "#batch query_pos"]:
        """Position of each query in its own text.

        Raises:
            UnsupportedModelError: If the layer is not told any.
        """
        told = self._told.get("position_ids")
        if not isinstance(told, Tensor):
            msg = f"layer {self.layer} is not told positions by its model: what depends on them cannot be done there"
            raise UnsupportedModelError(msg)
        return told.reshape(-1, told.shape[-1])

    def distances(
        self, rotary: RotaryLayer, scores: Float[Tensor, "batch head query_pos key_pos"]
    ) -> Int[Tensor, "#batch 1 query_pos key_pos"]:
        """How far back each key lies, in tokens: from the last key that the model lets the query see, its own."""
        keys = scores.shape[-1]
        number = torch.arange(keys, device=scores.device)
        own = torch.where(self._visible(rotary, scores), number, -1).amax(-1, keepdim=True)
        return own - number

    def _visible(
        self, rotary: RotaryLayer, scores: Float[Tensor, "batch head query_pos key_pos"]
    ) -> Bool[Tensor, "#batch 1 query_pos key_pos"]:
        """What the model's mask shows; other hooks may have hidden more of the scores by now."""
        mask = self._told.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == scores.ndim and mask.shape[-1] >= scores.shape[-1]:
            mask = mask[:, :1, :, : scores.shape[-1]].to(scores.device)
            return mask if mask.dtype == torch.bool else mask > mask_limit(mask)
        return ~rotary.masked_entries(scores).all(dim=1, keepdim=True)

    def _listen(self, tensor: Tensor, hook: Any) -> None:  # noqa: ARG002
        if self._handle is None:
            self._handle = self._attention.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        self._handle.remove()
        self._handle = None
        self._told = {name: kwargs.get(name) for name in ("position_ids", "attention_mask")}
