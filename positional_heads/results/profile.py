"""The record of a contribution profile: mean contribution of each rotary pair by distance."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import AnyHead, Head, as_head
from positional_heads.results.files import PROFILE
from positional_heads.results.record import Record

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False)
class ContributionProfile(Record):
    """Mean contribution of each rotary pair to the attention score of some heads, by distance.

    Attributes:
        heads: The heads, in the order of the first axis.
        mean: Mean over all query-key pairs in a range of distances, in units of the attention score before soft-cap and
            mask; NaN where no query-key pair counts.
        unrotated: The same for the channels without rotation; zero where all are rotated.
        pair_counts: Number of query-key pairs behind each mean.
        edges: First distance of each range in tokens, then the first distance beyond the last range.
        frequencies: Frequency of each pair, in radians per token, before any extension that rewrites scores.
        provenance: Versions, model, data and settings.
    """

    heads: list[Head]
    mean: Float64[Tensor, "head pair range"]
    unrotated: Float64[Tensor, "head range"]
    pair_counts: Int[Tensor, "head range"]
    edges: Int[Tensor, " edge"]
    frequencies: Float64[Tensor, "head pair"]
    provenance: dict[str, Any]

    saved_as = PROFILE

    @property
    def description(self) -> str:
        """Heads, pairs and distances, in one line."""
        names = ", ".join(str(head) for head in self.heads[:8]) + (", ..." if len(self.heads) > 8 else "")  # noqa: PLR2004
        _, n_pairs, n_ranges = self.mean.shape
        reach = int(self.edges[-1]) - 1
        return f"{names}: {n_pairs} pairs, {n_ranges} ranges of distance, 0 to {reach} tokens"

    def to_frame(self) -> "pd.DataFrame":
        """One row per head, pair and range of distances; the pair "unrotated" is the channels without rotation."""
        import pandas as pd

        n_heads, n_pairs, n_ranges = self.mean.shape
        index = pd.MultiIndex.from_product(
            [[str(head) for head in self.heads], [*range(n_pairs), "unrotated"], range(n_ranges)],
            names=["name", "pair", "range"],
        )
        frame = index.to_frame(index=False)
        first = frame.pop("range").to_numpy()
        frame["first_distance"], frame["last_distance"] = self.edges.numpy()[first], self.edges.numpy()[first + 1] - 1
        frame["contribution"] = torch.cat([self.mean, self.unrotated[:, None]], dim=1).flatten().numpy()
        frame["pair_count"] = self.pair_counts[:, None].expand(n_heads, n_pairs + 1, n_ranges).flatten().numpy()
        return frame

    def _content(self) -> dict[str, Any]:
        return {"heads": [str(head) for head in self.heads], "provenance": self.provenance}

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "ContributionProfile":
        heads = [Head.parse(name) for name in content["heads"]]
        return cls(heads=heads, provenance=content["provenance"], **tensors)

    def index(self, head: AnyHead) -> int:
        """Index of a head on the first axis.

        Raises:
            ValueError: If it is not in the profile.
        """
        head = as_head(head)
        if head not in self.heads:
            msg = f"{head} is not in this profile: it has {', '.join(map(str, self.heads))}"
            raise ValueError(msg)
        return self.heads.index(head)

    @property
    def sizes(self) -> Float64[Tensor, "head pair"]:
        """Size of the mean contribution of each pair at a distance, averaged over query-key pairs."""
        counts = self.pair_counts[:, None].double()
        return (self.mean.abs().nan_to_num() * counts).sum(-1) / counts.sum(-1)

    @checked
    def binned(self, bins: int = 64) -> "ContributionProfile":
        """The same over fewer, wider ranges: single distances first, then each about as wide for its distance.

        Args:
            bins: Ranges at most; fewer where whole tokens do not give as many.

        Raises:
            ValueError: If there is not at least one bin.
        """
        in_range("bins", bins, 1, 2**20)
        wanted = torch.from_numpy(geometric_edges(int(self.edges[-1]), bins))
        edges = self.edges[torch.isin(self.edges, wanted)]
        column = torch.searchsorted(edges, self.edges[:-1], right=True) - 1
        counts = self.pair_counts.new_zeros(len(self.heads), len(edges) - 1).index_add_(1, column, self.pair_counts)
        means = []
        for values in (self.mean, self.unrotated[:, None]):
            sums = values.new_zeros(*values.shape[:2], len(edges) - 1)
            sums.index_add_(2, column, values.nan_to_num() * self.pair_counts[:, None])
            means.append(sums / counts[:, None])  # 0 / 0 is NaN: no entry counts
        return replace(self, mean=means[0], unrotated=means[1][:, 0], pair_counts=counts, edges=edges)


def geometric_edges(length: int, bins: int) -> np.ndarray:
    """Whole edges from 0 to `length` of at most so many ranges, in proportion to distance as far as whole tokens go."""
    return np.unique(np.concatenate([[0], np.geomspace(length, 1, bins).round().astype(np.int64)]))
