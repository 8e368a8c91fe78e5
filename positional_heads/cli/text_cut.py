"""How a command takes its sequences: of which texts, drawn at random or the first ones, and what it says of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positional_heads.cli.common import say_drawn, text_sources, whole_sources
from positional_heads.cli.wording import say


@dataclass(frozen=True)
class TextCut:
    """What a command cuts into sequences, and how.

    Attributes:
        texts: Texts, or paths of their files.
        length: Tokens of a sequence at most; the model's context when None.
        sequences: How many; all of the texts when None.
        draws: Whether they are drawn at random, instead of the first ones.
        plain_text: Read special tokens as plain characters.
        seed: Seed of the draw.
    """

    texts: list[str | Path]
    length: int | None
    sequences: int | None
    draws: bool
    plain_text: bool
    seed: int

    @classmethod
    def of_options(
        cls,
        text: list[str] | None,
        length: int | None,
        sequences: int | None,
        in_order: bool,
        plain_text: bool,
        seed: int,
    ) -> "TextCut":
        """What the options of a command mean; texts that will be cut as a whole are read and checked.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If no text is given, or one is empty or not text.
        """
        draws = sequences is not None and not in_order
        texts = text_sources(text) if draws else whole_sources(text)
        return cls(texts, length, sequences, draws, plain_text, seed)

    def _cut(self, reader: Any) -> list[Any]:
        from positional_heads.bridge.cutting import cut_text

        drawn = {"sequences": self.sequences} if self.draws else {}
        return cut_text(reader, self.texts, self.length, plain_text=self.plain_text, seed=self.seed, **drawn)

    def sequences_for(self, reader: Any) -> list[Any]:
        """The sequences, given a model or what has its tokenizer and context."""
        return self._cut(reader)[: self.sequences]

    def said(self, doing: str, model: Any) -> list[Any]:
        """The sequences for a model; reports how they were taken.

        Args:
            doing: What the command does with them, e.g. "scoring".
            model: The model.
        """
        pieces = self._cut(model)
        if self.draws:
            say_drawn(pieces, self.seed, len(self.texts))
            return pieces
        chosen = pieces[: self.sequences]
        texts = "text" if len(self.texts) == 1 else "texts"
        taken = "all of them" if len(chosen) == len(pieces) else f"the first {len(chosen)}"
        say(
            f"{len(self.texts)} {texts} cut into {len(pieces)} sequences of at most {max(map(len, pieces))} tokens; "
            f"{doing} {taken}, {sum(map(len, chosen))} tokens"
        )
        return chosen


def refuse_sequences(sequences: int | None) -> None:
    """Refuse a number of sequences below 1.

    Raises:
        ValueError: If it is.
    """
    if sequences is not None and sequences < 1:
        msg = f"--sequences {sequences} must be at least 1"
        raise ValueError(msg)
