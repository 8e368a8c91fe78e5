"""Which tokens does a text become? With the model's own tokenizer, and what is not plain text said aloud.

Convention that bites: the tokenizer adds nothing here; the token that sequences begin with is put in front by who asks.
"""

import functools
import logging
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

BYTE_ORDER_MARK = "\ufeff"
logger = logging.getLogger(__name__)


def text_tokens(model: Any, text: str, index: int, *, plain_text: bool = False) -> Int[Tensor, " pos"]:
    """Token ids of a text, with no special token around it.

    A tokenizer turns special tokens that are written in a text (`</s>`, `<|im_start|>`) into control tokens, and keeps
    byte-order marks and carriage returns. So it is done here, and said once.

    Args:
        model: A TransformerBridge, for its tokenizer.
        text: The text.
        index: Number of the text, for the error message.
        plain_text: Read special tokens as the characters that they are written with, leave out a byte-order mark, and
            read every end of line as a line feed.

    Raises:
        ValueError: If the model has no tokenizer, or the text is empty.
        TypeError: If it is no text.
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
        _say_what_is_not_plain(model, text)
        ids = model.tokenizer(text, split_special_tokens=False, **settings)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def _say_what_is_not_plain(model: Any, text: str) -> None:
    added = getattr(model.tokenizer, "added_tokens_decoder", {}).values()
    special = {*model.tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    written = sorted(token for token in special if token and token in text)
    if written:
        _say_once(f"special tokens written in the text become control tokens: {', '.join(written)}")
    bos = getattr(model.tokenizer, "bos_token", None)
    if bos and text.startswith(bos) and len(start_token(model)):
        _say_once(f"the text begins with {bos}, which every sequence gets in front anyway: it stands there twice")
    if BYTE_ORDER_MARK in text:
        _say_once("the text holds a byte-order mark (U+FEFF), which becomes a token")
    if "\r" in text:
        _say_once("the text has carriage returns (Windows' ends of line), which become tokens")


@functools.cache  # once each, however many texts say it
def _say_once(finding: str) -> None:
    logger.warning("%s; plain_text=True (--plain-text) reads plain characters and line feeds instead", finding)


def start_token(model: Any) -> Int[Tensor, " start"]:
    """The token that sequences begin with, or none where the model is used without one."""
    bos = getattr(model.tokenizer, "bos_token_id", None)
    prepends = bool(getattr(model.cfg, "default_prepend_bos", True))
    return torch.tensor([bos] if bos is not None and prepends else [], dtype=torch.long)
