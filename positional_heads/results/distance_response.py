"""The record of a distance response: how far attention moves when the dominant pairs of a head turn otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int
from scipy import stats
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head
from positional_heads.core.rank_agreement import rank_agreement
from positional_heads.core.statistics import FEWEST_UNITS, RESAMPLES, bootstrap_weights
from positional_heads.results.edits import measured_under
from positional_heads.results.files import DISTANCE_RESPONSE
from positional_heads.results.plan_checks import check_notes, check_shape
from positional_heads.results.record import Record, computed_once, json_rows, nested
from positional_heads.results.response_tables import MEANINGS
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import printable, rounded, signed
from positional_heads.results.verdicts import rough_note

if TYPE_CHECKING:
    import pandas as pd

FEWEST_HEADS = 3
"""Heads below which no rank correlation is given."""


@dataclass(frozen=True, repr=False, eq=False)
class DistanceResponse(Record):
    """How far attention moves when pairs of a head turn faster or slower, for its dominant pairs and for others.

    Attributes:
        sums: Sum of attention times distance, for each set of pairs (the dominant ones first, then random others), each
            factor, and each group of sequences; NaN for heads that were not tried.
        weights: Sum of the attention.
        factors: Factors on the frequencies, ascending; 1, the model's own, is among them.
        pairs: The pairs of each set, -1 where a head has fewer.
        scores: Scores of the same heads and sequences.
        provenance: Versions, model, data and settings.
    """

    sums: Float64[Tensor, "set factor _group layer head"]
    weights: Float64[Tensor, "set factor _group layer head"]
    factors: Float64[Tensor, " factor"]
    pairs: Int[Tensor, "set layer head chosen"]
    scores: HeadScores
    provenance: dict[str, Any]

    saved_as = DISTANCE_RESPONSE

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together, e.g. in a file that somebody edited.

        Raises:
            ValueError: If some do not.
        """
        check_notes([], self.provenance)
        sets, factors, groups, layers, heads = self.sums.shape if self.sums.ndim == 5 else (0,) * 5  # noqa: PLR2004
        check_shape("sums", self.sums, (sets, factors, groups, layers, heads), torch.float64)
        check_shape("weights", self.weights, self.sums.shape, torch.float64)
        check_shape("factors", self.factors, (factors,), torch.float64)
        check_shape("rho", self.scores.rho.double(), (layers, heads), torch.float64)

    @property
    def heads(self) -> list[Head]:
        """The heads that were tried, in order."""
        layers, heads = self.sums.shape[-2:]
        every = [Head(layer, head) for layer in range(layers) for head in range(heads)]
        return [head for head in every if not bool(self.sums[0, 0, 0][head].isnan())]

    @cached_property
    def responses(self) -> Float64[Tensor, "set layer head"]:
        """Response to each set of pairs, the dominant ones first."""
        return self._slopes(self.sums.sum(2) / self.weights.sum(2))

    @property
    def response(self) -> Float64[Tensor, "layer head"]:
        """Response to the dominant pairs: 1 if the head attends by their angle alone, 0 if it does not use them."""
        return self.responses[0]

    @property
    def others(self) -> Float64[Tensor, "layer head"]:
        """Mean response to random other pairs of the same head."""
        return self.responses[1:].mean(0)

    @checked
    def interval(self, level: float = 0.95) -> Float64[Tensor, "layer head 2"]:
        """Interval of the response over sequences: Student's t on the bootstrap's variance; NaN below 4 groups.

        Args:
            level: Coverage, between 0 and 1.

        Raises:
            ValueError: If the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            msg = f"level {level} must be between 0 and 1, e.g. 0.95"
            raise ValueError(msg)
        groups = self.sums.shape[2]
        if groups < FEWEST_UNITS:
            return torch.full((*self.response.shape, 2), torch.nan, dtype=torch.float64)
        spread = (self._resampled.var(0) * groups / (groups - 1)).sqrt()
        half = float(stats.t.ppf((1 + level) / 2, groups - 1)) * spread
        return torch.stack([self.response - half, self.response + half], -1)

    @property
    def following(self) -> list[Head]:
        """Heads that follow their dominant pairs, the most responsive first.

        Their whole interval is above 0, and their response above that to every random set of other pairs.
        """
        low = self.interval()[..., 0]
        base = torch.where(low.isnan(), self.response, low)
        follows = (base > 0) & (self.response > self.responses[1:].amax(0))
        found = [head for head in self.heads if bool(follows[head])]
        return sorted(found, key=lambda head: -float(self.response[head]))

    @computed_once
    def correlations(self) -> "pd.DataFrame":
        """Does a score predict the response? Spearman's correlation over heads, its interval being over sequences."""
        import pandas as pd

        scores = {"rho": (self.scores.rho, self.scores.bootstrap_rho)}
        if self.scores.null is not None:
            drawn = self.scores.bootstrap_rho
            scores["excess"] = self.scores.excess, None if drawn is None else drawn - self.scores.null.mean
        rows = []
        for name, (values, drawn) in scores.items():
            heads = [head for head in self.heads if not bool((values[head] + self.response[head]).isnan())]
            if len(heads) < FEWEST_HEADS:
                continue
            groups = self.sums.shape[2], self.scores.n_groups

            def of_heads(by_head: Tensor, heads: list[Head] = heads) -> Tensor:
                return torch.stack([by_head[..., head.layer, head.head].double() for head in heads], -1)

            found = rank_agreement(
                (of_heads(self.response), of_heads(values)),
                (of_heads(self._resampled), of_heads(values[None] if drawn is None else drawn)),
                groups if drawn is not None else (1, 1),
                paired=groups[0] == groups[1],
            )
            rows.append({"measure": name, "correlation": found.correlation, "low": found.low, "high": found.high})
            rows[-1]["heads"] = len(heads)
        return pd.DataFrame(rows, columns=["measure", "correlation", "low", "high", "heads"])

    @property
    def description(self) -> str:
        """Model, factors, and how many heads follow, in one line."""
        name = printable(self.model_name, newlines=False)
        factors = ", ".join(f"{factor:g}" for factor in self.factors.tolist())
        return (
            f"{name}: {len(self.heads)} heads, dominant pairs and {len(self.sums) - 1} random sets of others at "
            f"{factors} times their frequency; {len(self.following)} follow their dominant pairs"
        )

    @property
    def verdict(self) -> str:
        """How many heads follow their dominant pairs, and whether the score predicts which, in words."""
        follow, heads = self.following, self.heads
        middle = float(torch.stack([self.response[head] for head in heads]).nanquantile(0.5))
        control = float(torch.stack([self.others[head] for head in heads]).nanquantile(0.5))
        interval = self.sums.shape[2] >= FEWEST_UNITS
        others, whole = len(self.sums) - 1, " with its whole interval" if interval else ""
        parts = [
            f"{len(follow) or 'None'} of {len(heads)} heads follow{'s' if len(follow) == 1 else ''} the dominant pairs "
            f"(response above 0{whole}, and above that to {others} random sets of as many other pairs)"
            f"{self._others_in_words}. The median response is {rounded(middle, 2)}, to other pairs "
            f"{rounded(control, 2)}; 1 would be that of the pairs alone."
        ]
        for row in json_rows(self.correlations()):
            if row["correlation"] is None:
                continue
            known = "no interval below 4 groups of sequences"
            if row["low"] is not None:
                known = f"95 % interval {signed(row['low'], 2)} to {signed(row['high'], 2)}"
            parts.append(
                f"Over heads, {row['measure']} goes with the response by {signed(row['correlation'], 2)} ({known})."
            )
        parts[-1] += rough_note(self.sums.shape[2], "groups of sequences")
        if (under := measured_under(self.provenance)) is not None:
            parts.append(f"Measured under {under}.")
        return " ".join(parts)

    @property
    def _others_in_words(self) -> str:
        """Heads whose attention moves the other way, where that is known."""
        high = self.interval()[..., 1]
        against = sum(bool(high[head] < 0) for head in self.heads)
        return f"; {against} move{'s' if against == 1 else ''} the other way (interval below 0)" if against else ""

    @property
    def _meanings(self) -> Mapping[str, str]:
        return MEANINGS

    def _main_table(self) -> "pd.DataFrame":
        return self.to_frame().drop(columns=["layer", "head"]).sort_values("response", ascending=False, kind="stable")

    @computed_once
    def to_frame(self) -> "pd.DataFrame":
        """One row per head that was tried: response, its interval, that to other pairs, rho, and the pairs."""
        import pandas as pd

        interval, at_one = self.interval(), int((self.factors == 1).nonzero()[0])
        plain = self.sums[0, at_one].sum(0) / self.weights[0, at_one].sum(0)
        columns = {"response": self.response, "low": interval[..., 0], "high": interval[..., 1], "others": self.others}
        columns |= {"reach_plain": plain, "rho": self.scores.rho}
        rows = [
            {"name": str(head), "layer": head.layer, "head": head.head}
            | {name: float(values[head]) for name, values in columns.items()}
            | {"pairs": ", ".join(str(pair) for pair in self.pairs[0][head].tolist() if pair >= 0)}
            for head in self.heads
        ]
        return pd.DataFrame(rows)

    @cached_property
    def _resampled(self) -> Float64[Tensor, "resample layer head"]:
        drawn = bootstrap_weights(self.sums.shape[2], RESAMPLES, 0)
        above, below = (torch.einsum("rg,fglh->frlh", drawn, values[0]) for values in (self.sums, self.weights))
        return self._slopes((above / below).transpose(0, 1))

    def _slopes(self, reach: Float64[Tensor, "any factor layer head"]) -> Float64[Tensor, "any layer head"]:
        """Least squares slope of log reach on the log of the inverse factor."""
        across = -self.factors.log()
        across = across - across.mean()
        return torch.einsum("f,aflh->alh", across, reach.log()) / across.square().sum()

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "table": json_rows(self.to_frame()),
            "correlations": json_rows(self.correlations()),
            "scores": self.scores._content(),
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "DistanceResponse":
        own: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if "." not in name}
        scores = HeadScores._from_file(content["scores"], nested(tensors, "scores"))
        return cls(**own, scores=scores, provenance=content["provenance"])
