"""Where texts come from: strings, and files of which only a part is read; and what a text may not be.

Convention: places in a text are counted in bytes of UTF-8, so that a file and its content in a string are one text.
"""

import codecs
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

WHOLE_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""
FIRST_BITS, CONTINUES = 0b1100_0000, 0b1000_0000
"""The first two bits of a byte, and what they are in all but the first byte of a character."""


@dataclass(frozen=True)
class HeldText:
    """A text that is in memory."""

    name: str
    content: bytes

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return len(self.content)

    def read(self, start: int, stop: int) -> bytes:
        """Its bytes from `start` up to `stop`."""
        return self.content[start:stop]

    def hash(self) -> str:
        """The sha256 of the text."""
        return sha256(self.content).hexdigest()


@dataclass(frozen=True)
class TextFile:
    """A text in a file, which is read where it is asked for."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.path.stat().st_size

    def read(self, start: int, stop: int) -> bytes:
        """Its bytes from `start` up to `stop`."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(stop - start)

    def hash(self) -> None:
        """None: the text is not read as a whole."""


TextSource = HeldText | TextFile


def whole_text(source: TextSource) -> str:
    """All of a text.

    Raises:
        ValueError: If it is empty or not text.
    """
    text = text_between(source, 0, source.size)
    refuse_blank(source, [text])
    return text


def text_between(source: TextSource, start: int, stop: int) -> str:
    """The whole characters of a text between two places.

    A character that either place divides is left out. The first one here begins at `first_character(source, start)`.

    Raises:
        ValueError: If this part is not UTF-8, or holds null bytes.
    """
    start = first_character(source, start)
    content = source.read(start, stop)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(content, final=stop >= source.size)
    except UnicodeDecodeError as error:
        at = start + error.start
        msg = f"{source.name}: not UTF-8 text (byte {at}): is it a binary file? Convert it to UTF-8 first"
        raise ValueError(msg) from error
    if "\0" in text:
        msg = f"{source.name}: a binary file, it holds null bytes; give plain text"
        raise ValueError(msg)
    return text


def first_character(source: TextSource, start: int) -> int:
    """The first place from `start` on at which a character begins."""
    if start == 0:
        return 0
    ahead = source.read(start, start + WHOLE_CHARACTER - 1)
    return start + next((skip for skip, byte in enumerate(ahead) if byte & FIRST_BITS != CONTINUES), len(ahead))


def refuse_blank(source: TextSource, parts: list[str]) -> None:
    """Refuse a text of which all these parts are blank.

    Raises:
        ValueError: If they are.
    """
    if not any(part.strip() for part in parts):
        msg = f"{source.name}: the text is empty, there is nothing to score"
        raise ValueError(msg)
