"""The record of a few heads on one text, which the token views draw.

It has two levels of detail. For every token, as a query, it holds one number per head: a mean over the keys that the
query sees. For the first tokens it also holds every query-key pair, so its size is linear in the length of the text.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from positional_heads.core.heads import Head, Heads, as_heads
from positional_heads.results.files import EXAMPLES
from positional_heads.results.record import Record
from positional_heads.results.text import printable

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False)
class HeadExamples(Record):
    """Attention of some heads on one text, and the rotary pairs that carry it.

    Attributes:
        tokens: The text's tokens, readable.
        heads: The heads, in the order of the tensors.
        pattern: Attention of every query to every key, 0 where masked; first tokens only.
        dominant: Dominant dimension of every query-key pair (pair index), NaN where masked; first tokens only.
        contributions: Contribution of each pair to the attention score, before soft-cap and mask; first tokens only.
        weighted_dominant: Mean dominant dimension of each query, weighted by attention.
        plain_dominant: The same with equal weights for all visible keys.
        mean_distance: Mean distance to the keys, weighted by attention, in tokens.
        mean_contributions: Mean contribution of each pair, weighted by attention.
        notes: What was cropped, in sentences.
        provenance: Versions, model, data and settings.
    """

    tokens: list[str]
    heads: list[Head]
    pattern: Float[Tensor, "head query_pos key_pos"]
    dominant: Float[Tensor, "head query_pos key_pos"]
    contributions: Float[Tensor, "head query_pos key_pos pair"]
    weighted_dominant: Float[Tensor, "head pos"]
    plain_dominant: Float[Tensor, "head pos"]
    mean_distance: Float[Tensor, "head pos"]
    mean_contributions: Float[Tensor, "head pos pair"]
    notes: list[str]
    provenance: dict[str, Any]

    saved_as = EXAMPLES

    def __post_init__(self) -> None:
        n_heads, length = self.weighted_dominant.shape
        if len(self.tokens) != length:
            msg = f"{len(self.tokens)} tokens do not fit numbers of {length}: give the tokens that the model ran on"
            raise ValueError(msg)
        if len(self.heads) != n_heads:
            msg = f"{len(self.heads)} heads do not fit numbers of {n_heads}: give one head for each"
            raise ValueError(msg)

    @property
    def n_pairs(self) -> int:
        """Number of rotary pairs; dominant dimensions go from 0 to one less."""
        return int(self.mean_contributions.shape[-1])

    @property
    def n_detailed(self) -> int:
        """Number of leading tokens of which every query-key pair is kept."""
        return int(self.pattern.shape[-1])

    def indices(self, heads: Heads | None) -> list[int]:
        """Indices of these heads in the tensors; of all when None.

        Raises:
            ValueError: If one is not in the record, or the list is empty.
        """
        if heads is None:
            return list(range(len(self.heads)))
        chosen = as_heads(heads)
        for head in chosen:
            if head not in self.heads:
                others = ", ".join(str(one) for one in self.heads[:20])
                msg = f"{head} is not in these examples, they hold {others}: gather them again with this head"
                raise ValueError(msg)
        if not chosen:
            msg = "no heads asked for: give at least one, or None for all"
            raise ValueError(msg)
        return [self.heads.index(head) for head in chosen]

    @property
    def description(self) -> str:
        """Model, heads and size, in one line."""
        names = ", ".join(str(head) for head in self.heads[:8]) + (", ..." if len(self.heads) > 8 else "")  # noqa: PLR2004
        model = printable(self.model_name, newlines=False)
        return f"{model}: {names} on {len(self.tokens)} tokens, every query-key pair of the first {self.n_detailed}"

    def to_frame(self) -> "pd.DataFrame":
        """One row per head and token, as a query: its means over the keys that it sees."""
        import pandas as pd

        frame = pd.DataFrame({"name": [str(head) for head in self.heads for _ in self.tokens]})
        frame["position"] = [*range(len(self.tokens))] * len(self.heads)
        frame["token"] = [printable(token) for token in self.tokens] * len(self.heads)
        for name in ("weighted_dominant", "plain_dominant", "mean_distance"):
            frame[name] = getattr(self, name).flatten().numpy()
        return frame

    def _content(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "heads": [str(head) for head in self.heads],
            "notes": self.notes,
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "HeadExamples":
        return cls(
            tokens=content["tokens"],
            heads=[Head.parse(name) for name in content["heads"]],
            notes=content["notes"],
            provenance=content["provenance"],
            **tensors,
        )
