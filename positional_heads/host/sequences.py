"""Which tokens are scored? Input checked at the door, and text cut into sequences that fit the model.

Convention that bites: every sequence cut from a text starts with the tokenizer's beginning-of-sequence token where the
model is used with one, so that a sequence of `length` tokens holds one less of the text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


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


def batches(
    model: Any, text_or_tokens: Any, attention_mask: Tensor | None, batch_size: int, *, beyond_context: bool = False
) -> list[Batch]:
    """Check the input, and group sequences of one length, in order, into batches.

    Args:
        model: A TransformerBridge.
        text_or_tokens: One text, a list of texts, or token ids.
        attention_mask: 1 for real tokens, 0 for padding; only with token ids.
        batch_size: Most sequences in a batch.
        beyond_context: Allow sequences longer than the model's context.

    Raises:
        ValueError: If there is nothing to score, or the model cannot take it; the message says what to do.
        TypeError: If the input is neither text nor token ids.
    """
    sequences = list(_sequences(model, text_or_tokens, attention_mask))
    limit = int(model.cfg.n_ctx)
    for index, (tokens, mask) in enumerate(sequences):
        _check_sequence(index, tokens, mask, int(model.cfg.d_vocab))
        if len(tokens) > limit and not beyond_context:
            msg = (
                f"sequence {index} has {len(tokens)} tokens, the model's context is {limit}: cut the text with "
                "ph.cut_text(model, text), or pass beyond_context=True to run past the context on purpose"
            )
            raise ValueError(msg)
    return list(_grouped(sequences, batch_size, model.cfg.device))


def cut_text(model: Any, texts: str | Sequence[str], length: int | None = None) -> list[Int[Tensor, " _"]]:
    """Cut texts into sequences of at most `length` tokens; what is left of each text makes a shorter last one.

    Nothing is dropped, but for a last piece of a single token, which has no pair.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        texts: One text or several; a sequence never spans two of them.
        length: Tokens per sequence, the beginning-of-sequence token included; the model's context when None.

    Raises:
        ValueError: If a text is empty or `length` does not fit the model.
    """
    limit = int(model.cfg.n_ctx)
    length = limit if length is None else length
    if not 2 <= length <= limit:  # noqa: PLR2004
        msg = f"length {length} must be between 2 and the model's context of {limit} tokens"
        raise ValueError(msg)
    pieces = []
    for index, text in enumerate([texts] if isinstance(texts, str) else texts):
        tokens, start = text_tokens(model, text, index), start_token(model)
        room = length - start.numel()
        pieces += [torch.cat([start, piece]) for piece in tokens.split(room) if start.numel() + piece.numel() > 1]
    return pieces


def _sequences(
    model: Any, text_or_tokens: Any, attention_mask: Tensor | None
) -> Iterator[tuple[Int[Tensor, " pos"], Int[Tensor, " pos"] | None]]:
    if isinstance(text_or_tokens, Tensor):
        yield from _tensor_rows(model, text_or_tokens, attention_mask)
        return
    if attention_mask is not None:
        msg = "attention_mask goes with a tensor of token ids; texts and lists of sequences need no padding"
        raise ValueError(msg)
    if isinstance(text_or_tokens, str):
        text_or_tokens = [text_or_tokens]
    if not isinstance(text_or_tokens, (list, tuple)) or not all(
        isinstance(item, (str, Tensor)) for item in text_or_tokens
    ):
        msg = f"cannot score a {type(text_or_tokens).__name__}: give a text, a list of texts, or a tensor of token ids"
        raise TypeError(msg)
    if not text_or_tokens:
        msg = "there is no text to score: the list is empty"
        raise ValueError(msg)
    for index, item in enumerate(text_or_tokens):
        if isinstance(item, str):
            yield torch.cat([start_token(model), text_tokens(model, item, index)]), None
        else:
            if item.ndim != 1:
                msg = f"sequence {index} has shape {tuple(item.shape)}: in a list, each must be one row of token ids"
                raise ValueError(msg)
            yield item, None


def _tensor_rows(
    model: Any, tokens: Tensor, attention_mask: Tensor | None
) -> Iterator[tuple[Int[Tensor, " pos"], Int[Tensor, " pos"] | None]]:
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.ndim != 2 or tokens.is_floating_point() or 0 in tokens.shape:  # noqa: PLR2004
        msg = f"tokens must be integers of shape [batch pos], got {tokens.dtype} of shape {tuple(tokens.shape)}"
        raise ValueError(msg)
    if attention_mask is None:
        _refuse_unmarked_padding(model, tokens)
        yield from ((row, None) for row in tokens)
        return
    attention_mask = attention_mask[None] if attention_mask.ndim == 1 else attention_mask
    if attention_mask.shape != tokens.shape:
        msg = f"attention_mask has shape {tuple(attention_mask.shape)}, tokens have {tuple(tokens.shape)}"
        raise ValueError(msg)
    if not ((attention_mask == 0) | (attention_mask == 1)).all():
        msg = "attention_mask must hold ones for real tokens and zeros for padding, and nothing else"
        raise ValueError(msg)
    yield from zip(tokens, attention_mask.long(), strict=True)


def _refuse_unmarked_padding(model: Any, tokens: Int[Tensor, "batch pos"]) -> None:
    """Padding that is not said to be padding would count as text: the bridge masks none in a tensor of ids."""
    tokenizer = getattr(model, "tokenizer", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        return
    special = {getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)}
    least = 2 if pad in special else 1
    is_pad = tokens == pad
    runs = torch.maximum(is_pad.long().cumprod(-1).sum(-1), is_pad.flip(-1).long().cumprod(-1).sum(-1))
    if bool((runs >= least).any()):
        row = int((runs >= least).nonzero()[0])
        msg = (
            f"sequence {row} begins or ends with {int(runs[row])} padding tokens (id {pad}) but no attention_mask was "
            "given: pass attention_mask= with 0 for padding, or all ones if they are meant as text"
        )
        raise ValueError(msg)


def _check_sequence(index: int, tokens: Tensor, mask: Tensor | None, vocabulary: int) -> None:
    real = len(tokens) if mask is None else int(mask.sum())
    if real < 2:  # noqa: PLR2004
        msg = f"sequence {index} has {real} real token(s): a query and a key at different positions need at least 2"
        raise ValueError(msg)
    lowest, highest = int(tokens.min()), int(tokens.max())
    if lowest < 0 or highest >= vocabulary:
        wrong = lowest if lowest < 0 else highest
        msg = f"sequence {index} holds token id {wrong}, the vocabulary is 0 to {vocabulary - 1}"
        raise ValueError(msg)


def _grouped(sequences: list[tuple[Tensor, Tensor | None]], batch_size: int, device: Any) -> Iterator[Batch]:
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


def text_tokens(model: Any, text: str, index: int) -> Int[Tensor, " pos"]:
    """Token ids of a text, with no special token around it.

    Args:
        model: A TransformerBridge, for its tokenizer.
        text: The text.
        index: Number of the text, for the error message.

    Raises:
        ValueError: If the model has no tokenizer, or the text is empty.
    """
    if model.tokenizer is None:
        msg = "the model has no tokenizer: give token ids instead of text"
        raise ValueError(msg)
    if not text.strip():
        msg = f"text {index} is empty: there is nothing to score"
        raise ValueError(msg)
    ids = model.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def start_token(model: Any) -> Int[Tensor, " start"]:
    """The token that sequences begin with, or none where the model is used without one."""
    bos = getattr(model.tokenizer, "bos_token_id", None)
    prepends = bool(getattr(model.cfg, "default_prepend_bos", True))
    return torch.tensor([bos] if bos is not None and prepends else [], dtype=torch.long)
