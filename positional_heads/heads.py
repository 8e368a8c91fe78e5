"""Which head? One value, printed the way the field writes it."""

import re
from typing import NamedTuple


class Head(NamedTuple):
    """One query head of a model, counted from zero; printed as `L3H7`."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Read a head written as `L3H7`.

        Raises:
            ValueError: If the text has another form.
        """
        match = re.fullmatch(r"[Ll](\d+)[Hh](\d+)", text.strip())
        if match is None:
            msg = f"{text!r} is not a head: write layer and head as in L3H7"
            raise ValueError(msg)
        return cls(int(match[1]), int(match[2]))
