"""The record of a few heads on one text, which the token views draw.

It has three levels of detail. For every token, as a query, it holds one number per head: a mean over the keys that the
query sees. It also holds the keys that get the most attention, which are all keys in a short text. For the first tokens
it holds every query-key pair with all contributions. So its size is linear in the length of the text.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
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
        kept_keys: Positions of the keys with the most attention of each query, most first; -1 where it sees fewer.
            This tensor and the next two are None in files of older versions.
        kept_pattern: Attention to each of these keys, 0 where there is none; to three digits.
        kept_dominant: Dominant dimension of each of these query-key pairs, NaN where there is none; to three digits.
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
    kept_keys: Int[Tensor, "head pos kept"] | None = None
    kept_pattern: Float[Tensor, "head pos kept"] | None = None
    kept_dominant: Float[Tensor, "head pos kept"] | None = None

    saved_as = EXAMPLES

    def __post_init__(self) -> None:
        n_heads, length = self.weighted_dominant.shape
        if len(self.tokens) != length:
            msg = f"{len(self.tokens)} tokens do not fit numbers of {length}: give the tokens that the model ran on"
            raise ValueError(msg)
        if len(self.heads) != n_heads:
            msg = f"{len(self.heads)} heads do not fit numbers of {n_heads}: give one head for each"
            raise ValueError(msg)
        kept = [
            None if one is None else tuple(one.shape) for one in (self.kept_keys, self.kept_pattern, self.kept_dominant)
        ]
        if len(set(kept)) > 1 or (kept[0] is not None and kept[0][:2] != (n_heads, length)):
            msg = f"kept keys, attention and dimensions of shapes {kept} do not fit {n_heads} heads on {length} tokens"
            raise ValueError(msg)
        if self.kept_keys is not None and self.kept_keys.numel():
            low, high = (int(one) for one in self.kept_keys.aminmax())
            if not (low >= -1 and high < length):
                msg = f"kept keys go from {low} to {high}: give positions of {length} tokens, or -1 for none"
                raise ValueError(msg)

    @property
    def n_pairs(self) -> int:
        """Number of rotary pairs; dominant dimensions go from 0 to one less."""
        return int(self.mean_contributions.shape[-1])

    @property
    def n_detailed(self) -> int:
        """Number of leading tokens of which every query-key pair is kept."""
        return int(self.pattern.shape[-1])

    @property
    def n_kept(self) -> int:
        """Number of keys that are kept of each query at most; 0 in records of older versions."""
        return 0 if self.kept_keys is None else int(self.kept_keys.shape[-1])

    @property
    def kept_share(self) -> Float[Tensor, "head pos"]:
        """Share of each query's attention that its kept keys get, from 0 to 1; NaN in records of older versions."""
        if self.kept_pattern is None:
            return torch.full_like(self.weighted_dominant, torch.nan)
        return self.kept_pattern.float().sum(-1).clamp(max=1)

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
        detail = f"every query-key pair of the first {self.n_detailed}"
        kept = f", {self.n_kept} keys of every query" if self.n_kept else ""
        return f"{model}: {names} on {len(self.tokens)} tokens, {detail}{kept}"

    def to_frame(self) -> "pd.DataFrame":
        """One row per head and token, as a query: its means over the keys that it sees."""
        import pandas as pd

        frame = pd.DataFrame({"name": [str(head) for head in self.heads for _ in self.tokens]})
        frame["position"] = [*range(len(self.tokens))] * len(self.heads)
        frame["token"] = [printable(token) for token in self.tokens] * len(self.heads)
        for name in ("weighted_dominant", "plain_dominant", "mean_distance"):
            frame[name] = getattr(self, name).flatten().numpy()
        if self.n_kept:
            frame["kept_share"] = self.kept_share.flatten().numpy()
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
