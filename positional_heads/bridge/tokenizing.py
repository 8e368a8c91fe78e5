"""Token ids of a text by the model's tokenizer, with warnings about special tokens and invisible characters.

Sequences of a text start with the beginning-of-sequence token where the model is used with one, so a sequence of
`length` tokens has one token less of the text.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.core.arguments import checked, with_article
from positional_heads.core.logs import warn_once

BYTE_ORDER_MARK = "\ufeff"
WAYS = "a text, a list or column of texts, or token ids as a list, an array or a tensor"


@checked
def cut_text(
    model: TransformerLensModel, texts: Any, length: int | None = None, *, plain_text: bool = False
) -> list[Int[Tensor, " _"]]:
    """Cut texts into sequences of at most `length` tokens; the last one of each text is shorter.

    Only a last piece of a single token is dropped, since it has no query-key pair.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        texts: One text or several, in a list or a column; a sequence never spans two of them.
        length: Tokens per sequence, the beginning-of-sequence token included; the model's context when None.
        plain_text: Read special tokens in a text as plain characters, and drop byte-order marks and carriage returns,
            see `text_tokens`.

    Raises:
        ValueError: If a text is empty or `length` does not fit the model.
        TypeError: If it is neither a text nor a list of texts.
    """
    limit = int(model.cfg.n_ctx)
    length = limit if length is None else length
    if not 2 <= length <= limit:  # noqa: PLR2004
        msg = f"length {length} must be between 2 and the model's context of {limit} tokens"
        raise ValueError(msg)
    pieces = []
    for index, text in enumerate(as_list(texts, "a text, or a list or column of texts")):
        tokens, start = text_tokens(model, text, index, plain_text=plain_text), start_token(model)
        room = length - start.numel()
        pieces += [torch.cat([start, piece]) for piece in tokens.split(room) if start.numel() + piece.numel() > 1]
    return pieces


def text_tokens(model: TransformerLensModel, text: str, index: int, *, plain_text: bool = False) -> Int[Tensor, " pos"]:
    """Token ids of a text, without special tokens around it.

    Tokenizers turn special tokens that are written in a text (`</s>`, `<|im_start|>`) into control tokens, and keep
    byte-order marks and carriage returns. So does this function, with a warning, once per process.

    Args:
        model: A TransformerBridge, for its tokenizer.
        text: The text.
        index: Number of the text, for the error message.
        plain_text: Read special tokens as plain characters, drop a byte-order mark, and turn every line ending into a
            line feed.

    Raises:
        ValueError: If the model has no tokenizer, or the text is empty.
        TypeError: If it is not a text.
    """
    if getattr(model, "tokenizer", None) is None:
        msg = "the model has no tokenizer: give token ids instead of text"
        raise ValueError(msg)
    if not isinstance(text, str):
        msg = f"text {index} is {text!r:.40}, {with_article(type(text).__name__)}: give a text"
        raise TypeError(msg)
    if not text.strip():
        msg = f"text {index} is empty: there is nothing to score"
        raise ValueError(msg)
    settings = {"add_special_tokens": False, "truncation": False, "verbose": False}
    if plain_text:
        text = text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")
        ids = model.tokenizer(text, split_special_tokens=True, **settings)["input_ids"]
    else:
        _warn_unless_plain(model, text)
        ids = model.tokenizer(text, split_special_tokens=False, **settings)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def _warn_unless_plain(model: TransformerLensModel, text: str) -> None:
    added = getattr(model.tokenizer, "added_tokens_decoder", {}).values()
    special = {*model.tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    written = sorted(token for token in special if token and token in text)
    bos = getattr(model.tokenizer, "bos_token", None)
    warnings = []
    if written:
        warnings.append(f"special tokens written in the text become control tokens: {', '.join(written)}")
    if bos and text.startswith(bos) and len(start_token(model)):
        warnings.append(f"the text begins with {bos}, which is added to every sequence anyway: it occurs twice")
    if BYTE_ORDER_MARK in text:
        warnings.append("the text holds a byte-order mark (U+FEFF), which becomes a token")
    if "\r" in text:
        warnings.append("the text has carriage returns (Windows line endings), which become tokens")
    for warning in warnings:
        warn_once(__name__, f"{warning}; plain_text=True (--plain-text) reads plain characters and line feeds instead")


def start_token(model: TransformerLensModel) -> Int[Tensor, " start"]:
    """The beginning-of-sequence token, or none where the model is used without one."""
    bos = getattr(model.tokenizer, "bos_token_id", None)
    prepends = bool(getattr(model.cfg, "default_prepend_bos", True))
    return torch.tensor([bos] if bos is not None and prepends else [], dtype=torch.long)


def as_list(many: Any, ways: str = WAYS) -> list[Any]:
    """One text, or several texts or rows of token ids in a list, a column or an array, as a list.

    Raises:
        ValueError: If there is none.
        TypeError: If it cannot be read as such.
    """
    if isinstance(many, str):
        return [many]
    kind = type(many).__name__
    if isinstance(many, (Mapping, bytes, set, PurePath, Iterator)) or hasattr(many, "columns") or not _has_items(many):
        msg = f"cannot read {'None' if many is None else with_article(kind)} as text or tokens: give {ways}"
        raise TypeError(msg)
    items = list(many)
    if not items:
        msg = "there is no text to score: the list is empty"
        raise ValueError(msg)
    return items


def _has_items(many: Any) -> bool:
    return hasattr(many, "__iter__") and hasattr(many, "__len__") and getattr(many, "ndim", 1) > 0
