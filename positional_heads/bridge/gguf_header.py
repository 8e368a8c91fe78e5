"""What a GGUF file says before its weights: metadata, and the type and size of each tensor.

Read here and not by the package `gguf`, which takes seconds for the vocabulary alone. The format is llama.cpp's:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""`struct` formats of the types of metadata that are numbers."""
TEXT, LIST = 8, 9
TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
"""Names of the types of tensors."""
WHOLE = ("F32", "F16", "BF16", "F64")
"""Types that hold each number by itself, and lose nothing in float32 (F64 aside, which no model is stored in)."""
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True)
class GgufHeader:
    """The beginning of a GGUF file.

    Attributes:
        metadata: Settings by llama.cpp's names; a list of texts is left as its length.
        shapes: Shape of each tensor by its name, in PyTorch's order.
        types: Type of each tensor by its name, e.g. Q4_1.
        starts: Byte of the file at which each tensor begins.
    """

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]
    starts: Mapping[str, int]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.metadata["general.architecture"])

    def of_model(self, key: str) -> Any:
        """A setting of the model, e.g. "rope.freq_base"; None if the file does not have it."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def elements(self, name: str) -> int:
        """How many numbers a tensor holds."""
        return math.prod(self.shapes[name])

    @property
    def storage(self) -> str:
        """How its numbers became plain ones: "dequantised from Q4_1 and Q8_0", the type of most numbers first."""
        counts: Counter[str] = Counter()
        for name, kind in self.types.items():
            counts[kind] += self.elements(name)
        coarse = [kind for kind, _ in counts.most_common() if kind not in WHOLE]
        kinds = coarse or [kind for kind, _ in counts.most_common(1)]
        listed = " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)
        return f"{'dequantised' if coarse else 'converted'} from {listed}"


def read_header(file: Path) -> GgufHeader:
    """Read the beginning of a GGUF file.

    Raises:
        ValueError: If it is no GGUF file of a known version, one part of several, or shorter than it says.
    """
    if SPLIT.search(file.name):
        msg = f"{file}: one part of a split model: join the parts first, `llama-gguf-split --merge`"
        raise ValueError(msg)
    with file.open("rb") as stream:
        start = stream.read(8)
        if start[:4] != MAGIC:
            msg = f"{file}: not a GGUF file, it does not begin with 'GGUF'"
            raise ValueError(msg)
        (version,) = struct.unpack("<I", start[4:]) if len(start) == 8 else (0,)  # noqa: PLR2004
        if version not in VERSIONS:
            msg = f"{file}: GGUF of version {version}; versions {' and '.join(map(str, VERSIONS))} can be read"
            raise ValueError(msg)
        try:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(content).header()
        except (struct.error, UnicodeDecodeError, EOFError, OverflowError) as error:
            msg = f"{file}: a GGUF file that is cut off or damaged; copy or download it again"
            raise ValueError(msg) from error


class _Reader:
    """Reads values one after the other, little-endian."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = 8

    def header(self) -> GgufHeader:
        n_tensors, n_settings = self._number("Q"), self._number("Q")
        metadata = {}
        for _ in range(n_settings):
            key = self._text()
            metadata[key] = self._value(self._number("I"))
        if "general.architecture" not in metadata:
            raise EOFError
        shapes, types, starts = {}, {}, {}
        for _ in range(n_tensors):
            name = self._text()
            sizes = [self._number("Q") for _ in range(self._number("I"))]
            kind = self._number("I")
            shapes[name], types[name] = tuple(reversed(sizes)), TYPES.get(kind, f"type {kind}")
            starts[name] = self._number("Q")
        step = int(metadata.get("general.alignment", 32))
        data = -(-self._at // step) * step
        starts = {name: data + start for name, start in starts.items()}
        if max(starts.values(), default=0) >= len(self._content):  # where the last one ends, the package gguf checks
            raise EOFError
        return GgufHeader(metadata, shapes, types, starts)

    def _value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self._number(NUMBERS[kind])
        if kind == TEXT:
            return self._text()
        if kind != LIST:
            raise EOFError
        inner, length = self._number("I"), self._number("Q")
        if inner in NUMBERS:
            return [self._number(NUMBERS[inner]) for _ in range(length)]
        for _ in range(length):  # a vocabulary: only its length matters here
            self._value(inner)
        return length

    def _text(self) -> str:
        return self._bytes(self._number("Q")).decode()

    def _number(self, kind: str) -> Any:
        (value,) = struct.unpack(f"<{kind}", self._bytes(struct.calcsize(f"<{kind}")))
        return value

    def _bytes(self, length: int) -> bytes:
        if length > len(self._content) - self._at:
            raise EOFError
        self._at += length
        return self._content[self._at - length : self._at]
