"""Sequences of a text: all of it cut into pieces, or some pieces drawn at random.

Sequences start with the beginning-of-sequence token where the model is used with one, so a sequence of `length` tokens
has one token less of the text.
"""

import logging
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.drawn_text import CutSequences, Drawing, DrawnSequences, TooShortError
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.text_sources import HeldText, TextFile, TextSource, whole_text
from positional_heads.bridge.tokenizing import as_list, refuse_no_text, start_token, text_tokens
from positional_heads.core.arguments import checked, in_range

STATED_TEXTS = 64
"""Texts, the first of those given, whose sizes and hashes the provenance of a draw states; a data set has thousands."""

logger = logging.getLogger(__name__)


@checked
def cut_text(
    model: TransformerLensModel,
    texts: Any,
    length: int | None = None,
    *,
    sequences: int | None = None,
    seed: int = 0,
    plain_text: bool = False,
    beyond_context: bool = False,
) -> list[Int[Tensor, " _"]]:
    """Cut texts into sequences of at most `length` tokens, or draw some sequences from them at random.

    Without `sequences`, all of each text is cut, its last sequence is shorter, and only a last piece of a single token
    is dropped, since it has no query-key pair.

    With it, as many sequences are drawn at places that are all equally likely, in the order in which they stand.
    They do not overlap, and texts get them in proportion to their sizes. A text is read and tokenised only around
    them, so a large file costs what its sample costs. A sequence begins with a word, so its tokens are those of the
    whole text, but for its first word, which has no space before it here. Each has `length` tokens, but that
    of a text which has fewer. Where the texts hold hardly more than is asked for, they are cut as a whole, and some of
    these sequences are drawn; where they hold fewer, all of them are returned, with a warning.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        texts: A text or the path of a text file, or several in a list or a column; a sequence never spans two of them.
        length: Tokens per sequence, the beginning-of-sequence token included; the model's context when None.
        sequences: How many sequences to draw; all of the texts when None.
        seed: Seed of the draw.
        plain_text: Read special tokens in a text as plain characters, and drop byte-order marks and carriage returns,
            see `text_tokens`.
        beyond_context: Allow sequences longer than the model's context, to run past it.

    Returns:
        Token ids of each sequence. Scores of a draw state in their provenance how to repeat it.

    Raises:
        ValueError: If a text is empty or the name of a file, or `length` does not fit the model.
        TypeError: If it is neither a text nor a list of texts.
        FileNotFoundError: If there is no such file.
    """
    limit = int(model.cfg.n_ctx)
    length = limit if length is None else length
    if length < 2 or (length > limit and not beyond_context):  # noqa: PLR2004
        msg = f"length {length} must be between 2 and the model's context of {limit} tokens"
        raise ValueError(msg)
    in_range("sequences", sequences, 1)
    in_range("seed", seed, 0)
    ways = "a text, a path, or a list or column of texts"
    many = [texts] if isinstance(texts, Path) else as_list(texts, ways)
    if sequences is None:
        return CutSequences(_all_pieces(model, many, length, plain_text), _texts(many))
    return _drawn(model, many, length, sequences, seed, plain_text)


def _all_pieces(model: TransformerLensModel, texts: list[Any], length: int, plain_text: bool) -> list[Tensor]:
    start, pieces = start_token(model), []
    for index, given in enumerate(texts):
        text = whole_text(_text_file(given)) if isinstance(given, Path) else given
        tokens = text_tokens(model, text, index, plain_text=plain_text)
        room = length - start.numel()
        pieces += [torch.cat([start, piece]) for piece in tokens.split(room) if start.numel() + piece.numel() > 1]
    return pieces


def _drawn(
    model: TransformerLensModel, texts: list[Any], length: int, count: int, seed: int, plain_text: bool
) -> DrawnSequences:
    start, random = start_token(model), Random(seed)
    sources = [_source(text, index) for index, text in enumerate(texts)]
    drawn: dict[str, Any] = {"sequences": count, "length": length, "seed": seed, "plain_text": plain_text}
    drawn["bytes"] = sum(source.size for source in sources)
    drawn["texts"] = [{"bytes": source.size, "sha256": source.hash()} for source in sources[:STATED_TEXTS]]
    drawing = Drawing(model, length - start.numel(), plain_text=plain_text, random=random)
    try:
        pieces = drawing.pieces(sources, count)
        places = [[index, piece.start, piece.stop] for index, piece in pieces]
        found = [torch.cat([start, piece.tokens]) for _, piece in pieces]
        if min(map(len, found)) > 1:
            return DrawnSequences(found, _texts(texts), drawn | {"places": places})
    except TooShortError:
        pass
    every = _all_pieces(model, texts, length, plain_text)
    if len(every) < count:
        logger.warning(
            "%d sequences were asked for, the text holds %d of up to %d tokens: these are all",
            count,
            len(every),
            length,
        )
    order = sorted(range(len(every)), key=lambda number: (-len(every[number]), random.random()))  # whole ones first
    numbers = sorted(order[:count])
    return DrawnSequences([every[number] for number in numbers], _texts(texts), drawn | {"numbers": numbers})


def _texts(texts: list[Any]) -> list[dict[str, str | None]]:
    """What names each text, of the first ones."""
    return [
        {"name": given.name, "sha256": None} if isinstance(given, Path) else {"name": None, "sha256": _hash(given)}
        for given in texts[:STATED_TEXTS]
    ]


def _hash(text: str) -> str:
    return HeldText("", text.encode("utf-8", "surrogatepass")).hash()


def _source(given: Any, index: int) -> TextSource:
    """A text or a file to draw from."""
    if isinstance(given, Path):
        return _text_file(given)
    refuse_no_text(given, index)
    try:
        return HeldText(f"text {index}", given.encode())
    except UnicodeEncodeError as error:
        msg = f"text {index} holds {given[error.start]!r}, half of a character, at {error.start}: decode it as UTF-8"
        raise ValueError(msg) from error


def _text_file(path: Path) -> TextFile:
    if not path.is_file():
        msg = f"{path}: no such text file"
        raise FileNotFoundError(msg)
    file = TextFile(path)
    if not file.size:
        msg = f"{path}: the text is empty, there is nothing to score"
        raise ValueError(msg)
    return file
