"""Sequences of one length from the texts of a command, for studies in which each must be whole."""

from typing import TYPE_CHECKING, Any

from positional_heads.cli.common import say_drawn

if TYPE_CHECKING:
    from positional_heads.bridge.model import TransformerLensModel


def drawn_whole(
    bridge: "TransformerLensModel", texts: list[Any], length: int, sequences: int, seed: int, what: str
) -> list[Any]:
    """Sequences of this length at random places of the texts; fewer where the texts hold fewer.

    Args:
        bridge: The model.
        texts: Texts, or paths of text files.
        length: Tokens of each sequence.
        sequences: How many.
        seed: Seed of the draw.
        what: What this length is, and how to need less, for the error.

    Raises:
        ValueError: If they hold none.
    """
    from functools import partial

    from positional_heads.bridge.cutting import cut_text

    draw = partial(cut_text, bridge, texts, length, seed=seed, beyond_context=True)
    pieces = draw(sequences=sequences)
    whole = sum(len(piece) == length for piece in pieces)
    if not whole:
        msg = f"no text holds a sequence of {length} tokens, {what}, or --in-order to join several"
        raise ValueError(msg)
    if whole < len(pieces):
        pieces = draw(sequences=whole)
    say_drawn(pieces, seed, len(texts))
    return pieces
