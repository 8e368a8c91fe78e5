"""Prove that causality, padding and one sliding window explain a layer's mask; other masks are refused.

A window of w lets through the distances 0 to w - 1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from positional_heads.bridge.model import UnsupportedModelError
from positional_heads.bridge.rotary_layer import RotaryLayer, mask_limit


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
    unexplained = (
        "causality, padding and one sliding window do not explain (a document mask, chunks, a mask of one head, an "
        "ignored attention_mask): it cannot be scored"
    )
    for row, (start, stop) in zip(own, spans, strict=True):
        _refuse_unexplained(rotary, row[:, start:stop, start:stop], 0, window, unexplained)
        _refuse_unexplained(rotary, row[:, start:stop, :start], start, 0, unexplained)  # left padding: all masked
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
