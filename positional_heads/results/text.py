r"""Tokens and names as text that is safe to show: every character is visible, and none has an effect.

A tokenizer's pieces are not text: byte-level ones write a space as `Ġ` and a newline as `Ċ`, others write `▁` and
`<0x0A>`, and one character may be spread over several tokens. Here each becomes readable: `·` for a
space at an end, `↵` for a newline, `\xe2` for a byte that is no character on its own.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import SupportsFloat

SPACE, NEWLINE, TAB = "·", "↵", "⇥"
LEAST_P = 0.001
"""A smaller p-value is printed as below it: three places would show 0, which no p-value is."""
LONGEST, LABEL = 60, 14
"""Most characters of a token in a text, and along an axis."""
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
"""Unicode categories that are invisible, reorder their neighbours, or cannot be encoded."""


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """The byte behind each character of byte-level tokenizers (GPT-2's rule)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}


def readable_tokens(pieces: Sequence[str], *, byte_level: bool | None = None) -> list[str]:
    """Pieces of a tokenizer as readable text; readable ones are unchanged.

    Args:
        pieces: As `tokenizer.convert_ids_to_tokens` gives them, or decoded.
        byte_level: Whether they are written in bytes; when None, they are if every character is in the byte alphabet
            and `Ġ` or `Ċ`, its space and newline, are among them.
    """
    alphabet = byte_alphabet()
    if byte_level is None:
        together = set("".join(pieces))
        byte_level = together <= alphabet.keys() and bool(together & {"Ġ", "Ċ"})
    return [_readable(piece, byte_level and set(piece) <= alphabet.keys()) for piece in pieces]


def printable(text: object, *, newlines: bool = True) -> str:
    """A text that is safe to show: control characters, lone surrogates and reordering marks become visible escapes.

    Args:
        text: A name, a path, a sentence.
        newlines: Whether newlines and tabs are kept.
    """
    kept = "\n\t" if newlines else ""
    return "".join(character if character in kept else _visible(character) for character in str(text))


def p_text(p_value: float) -> str:
    """A p-value in a sentence: "p = 0.012" or "p < 0.001"."""
    return f"p < {LEAST_P:g}" if p_value < LEAST_P else f"p = {p_value:.3f}"


def rounded(value: SupportsFloat, places: int = 3, sign: str = "") -> str:
    """A number in a sentence or a table; one that rounds to 0 has no sign.

    Args:
        value: The number.
        places: Places after the point.
        sign: "+" to give positive numbers a sign, too.
    """
    text = f"{float(value):{sign}.{places}f}"
    return text if float(text) else f"{0:.{places}f}"


def signed(value: SupportsFloat, places: int = 3) -> str:
    """A change in a sentence, with its sign unless it rounds to 0: "+0.120", "-0.120", "0.000"."""
    return rounded(value, places, "+")


def axis_labels(tokens: Sequence[str]) -> list[str]:
    """Readable tokens short enough for an axis, every space visible."""
    shown = (token.replace(" ", SPACE) for token in readable_tokens(tokens))
    return [token if len(token) <= LABEL else token[: LABEL - 1] + "…" for token in shown]


def _readable(piece: str, byte_level: bool) -> str:
    match = _BYTE_PIECE.fullmatch(piece)
    if match:
        text = bytes([int(match[1], 16)]).decode("utf-8", "backslashreplace")
    elif byte_level:
        text = bytes(byte_alphabet()[character] for character in piece).decode("utf-8", "backslashreplace")
    else:
        text = piece.replace("▁", " ")
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    inner = cut.strip(" ")
    ends = (len(cut) - len(cut.lstrip(" ")), len(cut) - len(cut.rstrip(" "))) if inner else (len(cut), 0)
    shown = printable(inner.replace("\n", NEWLINE).replace("\t", TAB), newlines=False)
    return SPACE * ends[0] + shown + SPACE * ends[1] or "∅"


def _visible(character: str) -> str:
    code = ord(character)
    if character == " " or unicodedata.category(character) not in _UNSEEN:
        return character
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"  # noqa: PLR2004
