"""Read texts and token ids in any form, check them against the model, and batch them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.tokenizing import as_list, start_token, text_tokens
from positional_heads.core.arguments import in_range, with_article

Text = Any
"""One text, several, or token ids, in any of the forms that `as_sequences` reads."""
Mask = Any
"""1 for real tokens and 0 for padding on either side: a tensor, an array or a list, of the shape of the tokens."""
TokenRow = tuple[Int[Tensor, " _"], Int[Tensor, " _"] | None]
"""Token ids, and 1 for real ones among them; None where all are real."""


@dataclass(frozen=True)
class Batch:
    """Sequences that go through the model together.

    Attributes:
        tokens: Token ids.
        attention_mask: 1 for real tokens, 0 for padding; None where all are real.
        first: Index of the first of them among all sequences.
    """

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"] | None
    first: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Real tokens of each sequence."""
        return tuple(stop - start for start, stop in real_spans(self.tokens, self.attention_mask))


def real_spans(
    tokens: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"] | None
) -> list[tuple[int, int]]:
    """First and one past the last real token of each sequence.

    Raises:
        ValueError: If a sequence has no real token, or padding between real ones.
    """
    if attention_mask is None:
        return [(0, tokens.shape[1])] * tokens.shape[0]
    spans = []
    for row, mask in enumerate(attention_mask.bool()):
        real = mask.nonzero().flatten()
        if real.numel() == 0 or int(real[-1] - real[0]) + 1 != real.numel():
            msg = f"attention_mask of sequence {row} must be one unbroken run of ones, found {int(mask.sum())} ones"
            raise ValueError(msg)
        spans.append((int(real[0]), int(real[-1]) + 1))
    return spans


def real_tokens(tokens: Int[Tensor, " pos"], mask: Int[Tensor, " pos"] | None) -> Int[Tensor, " real"]:
    """The tokens of one sequence without its padding.

    Raises:
        ValueError: If it has no real token, or padding between real ones.
    """
    ((start, stop),) = real_spans(tokens[None], None if mask is None else mask[None])
    return tokens[start:stop]


def batches(
    model: TransformerLensModel,
    tokens: Text,
    attention_mask: Any,
    batch_size: int,
    *,
    beyond_context: bool = False,
    plain_text: bool = False,
) -> list[Batch]:
    """Check the input, and batch neighbouring sequences of equal length, in order.

    Args:
        model: A TransformerBridge.
        tokens: One text, a list of texts, or token ids, see `as_sequences`.
        attention_mask: 1 for real tokens, 0 for padding; only with token ids.
        batch_size: Largest number of sequences in a batch.
        beyond_context: Allow sequences longer than the model's context.
        plain_text: Read special tokens in a text as plain characters, see `text_tokens`.

    Raises:
        ValueError: If there is no sequence, or the model cannot run one; the message says what to do.
        TypeError: If the input is neither text nor token ids.
    """
    in_range("batch_size", batch_size, 1)
    sequences = as_sequences(model, tokens, attention_mask, plain_text=plain_text)
    limit = int(model.cfg.n_ctx)
    for index, (row, mask) in enumerate(sequences):
        _check_sequence(model, index, row, mask)
        if len(row) > limit and not beyond_context:
            msg = (
                f"sequence {index} has {len(row)} tokens, the model's context is {limit}: cut the text with "
                "ph.cut_text(model, text), or pass beyond_context=True to run past the context"
            )
            raise ValueError(msg)
    return list(_grouped(sequences, batch_size, model.cfg.device))


def as_sequences(
    model: TransformerLensModel, tokens: Text, attention_mask: Any = None, *, plain_text: bool = False
) -> list[TokenRow]:
    """Every sequence with its mask, from texts or token ids in any of these forms.

    Args:
        model: A TransformerBridge, for its tokenizer.
        tokens: A text, or token ids as a list, a NumPy array or a tensor of one or two dimensions; several of either in
            a list, or in a column of pandas or datasets; what a tokenizer returns (`input_ids`, with its
            `attention_mask`).
        attention_mask: 1 for real tokens, 0 for padding; only with token ids of one length.
        plain_text: See `text_tokens`.

    Raises:
        ValueError: If there is no sequence, or tokens and mask do not fit each other.
        TypeError: If the input is neither text nor token ids.
    """
    if isinstance(tokens, Mapping) and "input_ids" in tokens:
        if attention_mask is None:
            attention_mask = tokens.get("attention_mask")
        tokens = tokens["input_ids"]
        if attention_mask is not None and _is_ragged(tokens):
            _refuse_masked(attention_mask)
            attention_mask = None
    if not isinstance(tokens, (str, Tensor)):
        tokens = as_list(tokens)
        if any(isinstance(item, Integral) for item in tokens) or _is_table(tokens):
            tokens = _ids(tokens, 0)
    if isinstance(tokens, Tensor):
        return list(_tensor_rows(model, tokens, attention_mask))
    if attention_mask is not None:
        msg = "attention_mask goes with a tensor of token ids; texts and lists of sequences need no padding"
        raise ValueError(msg)
    sequences: list[TokenRow] = []
    for index, item in enumerate(as_list(tokens)):
        if isinstance(item, str):
            row = torch.cat([start_token(model), text_tokens(model, item, index, plain_text=plain_text)])
        else:
            row = _ids(item, index)
            if row.ndim != 1:
                msg = f"sequence {index} has shape {tuple(row.shape)}: in a list, each must be one row of token ids"
                raise ValueError(msg)
        sequences.append((row, None))
    return sequences


def _is_table(items: list[Any]) -> bool:
    """Whether these are rows of one array, which may be padded; each tensor in a list is a sequence of its own."""
    rows = all(isinstance(item, (list, tuple, np.ndarray)) for item in items)
    return rows and len({len(item) if getattr(item, "ndim", 1) else 0 for item in items}) == 1


def _is_ragged(ids: Any) -> bool:
    return isinstance(ids, (list, tuple)) and len({len(row) for row in ids if hasattr(row, "__len__")}) > 1


def _refuse_masked(attention_mask: Any) -> None:
    """Refuse masks of unpadded sequences, which have several lengths, unless they are all ones."""
    if not all(all(row) for row in attention_mask):
        msg = "attention_mask hides tokens of sequences that differ in length: leave those tokens out, or pad them all"
        raise ValueError(msg)


def _ids(item: Any, index: int) -> Tensor:
    """Token ids as a tensor of whole numbers."""
    if not isinstance(item, (Tensor, list, tuple, np.ndarray)):
        kind = with_article(type(item).__name__)
        msg = f"sequence {index} is {item!r:.40}, {kind}: give a text, or a list of token ids"
        raise TypeError(msg)
    try:
        tensor = item if isinstance(item, Tensor) else torch.from_numpy(np.asarray(item))
    except (TypeError, ValueError) as error:  # a ragged list, or one of objects
        msg = f"sequence {index} is not a list of token ids, which are whole numbers"
        raise TypeError(msg) from error
    if tensor.dtype == torch.bool:
        msg = "these are booleans, not token ids: an attention mask goes in as attention_mask="
        raise ValueError(msg)
    if tensor.is_floating_point() or tensor.is_complex():
        msg = f"tokens must be integers of shape [batch pos], got {tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ValueError(msg)
    return tensor


def _tensor_rows(model: TransformerLensModel, tokens: Tensor, attention_mask: Any) -> Iterator[TokenRow]:
    tokens = _ids(tokens, 0)
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.ndim != 2 or 0 in tokens.shape:  # noqa: PLR2004
        msg = f"tokens must be integers of shape [batch pos], got {tokens.dtype} of shape {tuple(tokens.shape)}"
        raise ValueError(msg)
    if attention_mask is None:
        _refuse_unmarked_padding(model, tokens)
        yield from ((row, None) for row in tokens)
        return
    attention_mask = _mask(attention_mask)
    if attention_mask.shape != tokens.shape:
        msg = f"attention_mask has shape {tuple(attention_mask.shape)}, tokens have {tuple(tokens.shape)}"
        raise ValueError(msg)
    if not ((attention_mask == 0) | (attention_mask == 1)).all():
        msg = "attention_mask must hold ones for real tokens and zeros for padding, and nothing else"
        raise ValueError(msg)
    yield from zip(tokens, attention_mask.long(), strict=True)


def _mask(attention_mask: Any) -> Tensor:
    try:
        mask = torch.as_tensor(attention_mask)
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"attention_mask must be a tensor of ones and zeros, got {attention_mask!r:.40}"
        raise TypeError(msg) from error
    return mask[None] if mask.ndim == 1 else mask


def _refuse_unmarked_padding(model: TransformerLensModel, tokens: Int[Tensor, "batch pos"]) -> None:
    """Refuse padding without a mask: it would count as text, since the bridge masks none in a tensor of ids."""
    tokenizer = getattr(model, "tokenizer", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        return
    special = {getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)}
    least = 2 if pad in special else 1  # a single one may be the sequence's own first or last token
    is_pad = tokens == pad
    runs = torch.maximum(is_pad.long().cumprod(-1).sum(-1), is_pad.flip(-1).long().cumprod(-1).sum(-1))
    if bool((runs >= least).any()):
        row = int((runs >= least).nonzero()[0])
        msg = (
            f"sequence {row} begins or ends with {int(runs[row])} padding tokens (id {pad}) but no attention_mask was "
            "given: pass attention_mask= with 0 for padding, or all ones if they are meant as text"
        )
        raise ValueError(msg)


def _check_sequence(model: TransformerLensModel, index: int, tokens: Tensor, mask: Tensor | None) -> None:
    real = len(tokens) if mask is None else int(mask.sum())
    if real < 2:  # noqa: PLR2004
        tokens_name = "token" if real == 1 else "tokens"
        msg = (
            f"sequence {index} has {real} real {tokens_name}: a query and a key at different positions need at least 2"
        )
        raise ValueError(msg)
    vocabulary = int(model.cfg.d_vocab)
    lowest, highest = int(tokens.min()), int(tokens.max())
    if lowest < 0 or highest >= vocabulary:
        wrong = lowest if lowest < 0 else highest
        msg = f"sequence {index} holds token id {wrong}, the vocabulary is 0 to {vocabulary - 1}"
        token = getattr(getattr(model, "tokenizer", None), "added_tokens_decoder", {}).get(wrong)
        if token is not None:
            msg += f": it is the tokenizer's {str(token)!r}; plain_text=True reads it as characters"
        raise ValueError(msg)


def _grouped(sequences: list[TokenRow], batch_size: int, device: Any) -> Iterator[Batch]:
    first = 0
    while first < len(sequences):
        tokens, mask = sequences[first]
        stop = first + 1
        while stop < min(len(sequences), first + batch_size) and len(sequences[stop][0]) == len(tokens):
            stop += 1
        chosen = sequences[first:stop]
        masks = None if mask is None else torch.stack([mask for _, mask in chosen if mask is not None]).to(device)
        yield Batch(torch.stack([tokens for tokens, _ in chosen]).long().to(device), masks, first)
        first = stop
