"""Token ids of a text by the model's tokenizer, with warnings about special tokens and invisible characters."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.core.arguments import with_article
from positional_heads.core.logs import warn_once

BYTE_ORDER_MARK = "\ufeff"
LONGEST_PATH = 1024
FILE_NAME = re.compile(
    r"\S{1,255}\.(txt|text|md|rst|tex|log|json|jsonl|csv|tsv|html?|xml|py|pdf|docx?|epub|gz|zip|parquet)", re.IGNORECASE
)
"""One word that ends as names of files do."""
WAYS = "a text, a list or column of texts, or token ids as a list, an array or a tensor"


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
        ValueError: If the model has no tokenizer, or the text is empty or the name of a file.
        TypeError: If it is not a text.
    """
    refuse_no_text(text, index)
    return torch.tensor(encoded(model, text, plain_text=plain_text)[0], dtype=torch.long)


def refuse_no_text(text: Any, index: int) -> None:
    """Refuse what is not a text, or blank, or the name of a file, whose letters would be scored.

    Args:
        text: The text.
        index: Its number, for the error message.

    Raises:
        ValueError: If the text is empty, or the name of a file.
        TypeError: If it is not a text.
    """
    if not isinstance(text, str):
        msg = f"text {index} is {text!r:.40}, {with_article(type(text).__name__)}: give a text"
        raise TypeError(msg)
    if not text or text.isspace():
        msg = f"text {index} is empty: there is nothing to score"
        raise ValueError(msg)
    if _is_file(text) or FILE_NAME.fullmatch(text):
        msg = (
            f"text {index} is {text!r:.200}, the name of a file, not what is in it: give "
            f"cut_text(model, pathlib.Path({text!r:.200})), or read the file first"
        )
        raise ValueError(msg)


def _is_file(text: str) -> bool:
    """Whether a text is the path of a file on this machine."""
    if len(text) > LONGEST_PATH or "\n" in text:
        return False
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def encoded(model: TransformerLensModel, text: str, *, plain_text: bool = False) -> tuple[list[int], list[int] | None]:
    """Token ids of a text, and the character behind each; None where the tokenizer does not tell.

    Args:
        model: A TransformerBridge, for its tokenizer.
        text: Any text, which may be blank.
        plain_text: As in `text_tokens`.

    Raises:
        ValueError: If the model has no tokenizer.
    """
    if getattr(model, "tokenizer", None) is None:
        msg = "the model has no tokenizer: give token ids instead of text"
        raise ValueError(msg)
    read = text
    if plain_text:
        read = text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")
    else:
        _warn_unless_plain(model, text)
    ends_told = bool(getattr(model.tokenizer, "is_fast", False)) and read == text
    settings = {"add_special_tokens": False, "truncation": False, "verbose": False}
    settings |= {"split_special_tokens": plain_text, "return_offsets_mapping": ends_told}
    found = model.tokenizer(read, **settings)
    return found["input_ids"], [stop for _, stop in found["offset_mapping"]] if ends_told else None


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
        warn_once(__name__, f"{warning}; plain_text=True reads plain characters and line feeds instead")


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
