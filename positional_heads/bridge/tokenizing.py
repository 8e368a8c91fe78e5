"""Token ids of a text by the model's tokenizer, with warnings about special tokens and invisible characters.

No special token is added here: callers prepend `start_token`.
"""

import functools
import logging

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel

BYTE_ORDER_MARK = "\ufeff"
logger = logging.getLogger(__name__)


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
        msg = f"text {index} is {text!r:.40}, a {type(text).__name__}: give a text"
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
    if written:
        _warn_once(f"special tokens written in the text become control tokens: {', '.join(written)}")
    bos = getattr(model.tokenizer, "bos_token", None)
    if bos and text.startswith(bos) and len(start_token(model)):
        _warn_once(f"the text begins with {bos}, which is added to every sequence anyway: it occurs twice")
    if BYTE_ORDER_MARK in text:
        _warn_once("the text holds a byte-order mark (U+FEFF), which becomes a token")
    if "\r" in text:
        _warn_once("the text has carriage returns (Windows line endings), which become tokens")


@functools.cache  # once each, however many texts have it
def _warn_once(finding: str) -> None:
    logger.warning("%s; plain_text=True (--plain-text) reads plain characters and line feeds instead", finding)


def start_token(model: TransformerLensModel) -> Int[Tensor, " start"]:
    """The beginning-of-sequence token, or none where the model is used without one."""
    bos = getattr(model.tokenizer, "bos_token_id", None)
    prepends = bool(getattr(model.cfg, "default_prepend_bos", True))
    return torch.tensor([bos] if bos is not None and prepends else [], dtype=torch.long)
