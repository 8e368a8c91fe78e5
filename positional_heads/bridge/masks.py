"""Prove that causality, padding and one sliding window explain a layer's mask; other masks are refused.

The mask is read off the scores of a bridge, or is what a plain run hands to attention.

A window of w lets through the distances 0 to w - 1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from positional_heads.bridge.model import UnsupportedModelError
from positional_heads.bridge.rotary_layer import RotaryLayer, mask_limit

UNEXPLAINED = (
    "causality, padding and one sliding window do not explain (a document mask, chunks, a mask of one head, an ignored "
    "attention_mask): it cannot be scored"
)
BLOCK = 1024
"""Queries whose entries are compared at a time: a mask of bytes can be the largest tensor of a long plain run."""


class MaskProof:
    """Proves the masks of a plain run; most layers share one, which is proven once."""

    def __init__(self, spans: Sequence[tuple[int, int]]) -> None:
        """Nothing is proven yet.

        Args:
            spans: First, and one past the last, real token of each row.
        """
        self._spans = spans
        self._proven: list[tuple[Tensor, int | None]] = []

    def window(self, layer: int, mask: Tensor | None, length: int) -> int | None:
        """Window of a mask, proven to explain every entry of real queries; None without one.

        Args:
            layer: The layer, for the message.
            mask: [batch head query_pos key_pos], batch or head 1 where all have the same: True at visible entries, or 0
                there and lower than `mask_limit` elsewhere. None for causality alone.
            length: Tokens of the run.

        Raises:
            UnsupportedModelError: If causality, padding and one window do not explain it.
        """
        if mask is None:
            if any(start > 0 for start, _ in self._spans):
                raise UnsupportedModelError(f"layer {layer} masks query-key pairs in a way that {UNEXPLAINED}")
            return None
        for proven, window in self._proven:
            if proven is mask:
                return window
        window = _window(layer, mask[..., :length], self._spans)
        self._proven.append((mask, window))
        return window


def _window(layer: int, mask: Tensor, spans: Sequence[tuple[int, int]]) -> int | None:
    rows = mask.expand(len(spans), *mask.shape[1:])
    longest = max(stop - start for start, stop in spans)
    last = [_visible(row[:, stop - 1 : stop, start:stop])[0] for row, (start, stop) in zip(rows, spans, strict=True)]
    window = max(int(visible.all(0).sum()) for visible in last)
    shared = mask.shape[0] == 1 or mask.stride(0) == 0
    for number, (start, stop) in enumerate(spans):
        if shared and (start, stop) in spans[:number]:
            continue
        for first in range(start, stop, BLOCK):
            block = rows[number, :, first : min(first + BLOCK, stop)]
            visible, plain = _visible(block)
            expected = torch.ones_like(visible[0]).tril_(first).triu_(first - window + 1)
            expected[:, :start] = False
            if not plain or bool((visible != expected).any()):
                raise UnsupportedModelError(f"layer {layer} masks query-key pairs in a way that {UNEXPLAINED}")
    return window if window < longest else None


def _visible(mask: Tensor) -> tuple[Bool[Tensor, "head query_pos key_pos"], bool]:
    """Entries that a mask lets through, and whether it adds nothing to their scores."""
    if mask.dtype == torch.bool:
        return mask, True
    visible = mask > mask_limit(mask)
    return visible, not bool(mask[visible].any())


def visible_entries(length: int, window: int | None, device: torch.device) -> Bool[Tensor, "{length} {length}"]:
    """Which keys a query sees: none after itself, and none beyond the window."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < (length if window is None else window))


def proven_window(
    rotary: RotaryLayer, own: Float[Tensor, "batch head query_pos key_pos"], spans: Sequence[tuple[int, int]]
) -> int | None:
    """Window of a layer's mask in whole runs, proven to explain every masked entry; None without one.

    Args:
        rotary: How the layer rotates.
        own: Its scores after the mask, or its pattern.
        spans: First, and one past the last, real token of each row.

    Raises:
        UnsupportedModelError: If causality, padding and one window do not explain the mask.
    """
    # The last query of a row sees as many keys as the window lets through. That number is only a candidate: every entry
    # is then compared with it. A pattern has zeros by rounding too, so it is compared with no window.
    window = longest = max(stop - start for start, stop in spans)
    if rotary.records == "scores":
        window = max(
            _visible_keys(rotary, row[0, stop - 1, start:stop]) for row, (start, stop) in zip(own, spans, strict=True)
        )
    for row, (start, stop) in zip(own, spans, strict=True):
        _refuse_unexplained(rotary, row[:, start:stop, start:stop], 0, window, UNEXPLAINED)
        _refuse_unexplained(rotary, row[:, start:stop, :start], start, 0, UNEXPLAINED)  # left padding: all masked
    return window if window < longest else None


def proven_chunk_window(
    rotary: RotaryLayer, own: Float[Tensor, "batch head query_pos key_pos"], start: int, stop: int
) -> int | None:
    """Window of a layer's mask in one chunk of longer runs, proven likewise; None without one.

    Args:
        rotary: How the layer rotates.
        own: Scores of the chunk's queries after the mask, or the pattern; for the last keys only where the key-value
            cache of a sliding window has dropped others.
        start: Position of the chunk's first token.
        stop: One past the position of its last token.

    Raises:
        UnsupportedModelError: If causality and one window do not explain the mask.
    """
    window = _visible_keys(rotary, own[0, 0, -1]) if rotary.records == "scores" else stop
    first_key = stop - own.shape[-1]
    for row in own:
        _refuse_unexplained(rotary, row, start - first_key, window, "causality and one sliding window do not explain")
    return window if window < stop else None


def _visible_keys(rotary: RotaryLayer, own: Float[Tensor, " key_pos"]) -> int:
    """Number of keys that a query sees."""
    return int((~rotary.masked_entries(own)).sum())


def _refuse_unexplained(
    rotary: RotaryLayer, own: Float[Tensor, "head query_pos key_pos"], offset: int, window: int, unexplained: str
) -> None:
    """Refuse masks that differ from the window's, for any head and query.

    Args:
        rotary: How the layer rotates.
        own: Scores after the mask, or the pattern.
        offset: Position of the first query less that of the first key.
        window: Distances that the mask lets through.
        unexplained: End of the message.
    """
    queries, keys = own.shape[1:]
    # an entry's distance is its row less its column, plus the offset
    visible = torch.ones(queries, keys, dtype=torch.bool, device=own.device).tril_(offset).triu_(offset - window + 1)
    smallest, largest = own.amin(0), own.amax(0)  # over heads first: a third of the time of testing each head
    if rotary.records == "scores":
        limit = mask_limit(smallest)
        wrong = torch.where(visible, smallest <= limit, ~(largest <= limit))
    else:  # a visible entry of a pattern may be 0 by rounding, so only masked ones are tested
        wrong = ~visible & ~((smallest == 0) & (largest == 0))
    if bool(wrong.any()):
        msg = f"layer {rotary.layer} masks query-key pairs in a way that {unexplained}"
        raise UnsupportedModelError(msg)
