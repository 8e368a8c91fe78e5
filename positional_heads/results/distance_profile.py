"""The record of a distance profile: how the attention and the scores of every head depend on distance.

Everything in it is defined for every encoding of position, so heads of models with different ones can be compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head
from positional_heads.core.ratio_intervals import ratio_interval
from positional_heads.results.distance_tables import (
    DISTANCE_COLUMNS,
    DISTANCE_MEANINGS,
    SHOWN_AS,
    distance_line,
    distance_verdict,
)
from positional_heads.results.files import DISTANCE_PROFILE
from positional_heads.results.plan_checks import check_notes, check_shape
from positional_heads.results.record import Record, computed_once, json_rows, nested
from positional_heads.results.text import printable

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("reach", "distant_mass", "sink_mass", "eta2", "eta2_repeated")
"""Measures that are means over sequences; the first three have a value for even attention, too."""
FURTHER = 1.1
"""Reach of a long-range head over that of even attention, at least."""


@dataclass(frozen=True, repr=False, eq=False)
class DistanceProfile(Record):
    """How far every head attends, and how much of its scores distance explains, whatever the encoding of position.

    Attributes:
        sums: Sum of each measure over the queries of each group of sequences.
        weights: What each sum is divided by: attention, queries, or the variance of the score.
        half_distance: Tokens up to which half of the attention to keys that are no sinks goes.
        even: What reach, distant mass, sink mass and half distance would be if every query attended evenly to the keys
            that it sees.
        mass: Share of a query's attention that goes to each range of distances, sinks left out; with the sink mass, the
            shares add up to 1.
        even_mass: The same for even attention.
        score: Effect of distance on the score in each range, its mean over query-key pairs being 0.
        score_sd: Standard deviation of the score within each range, less each query's mean.
        dominant: Mean dominant dimension D in each range; NaN in layers that do not rotate, and None where none does.
        counts: Query-key pairs in each range, sinks left out.
        edges: First distance of each range in tokens, then the first distance beyond the last range.
        encodings: Encoding of position in each layer: "rotary", "none", "alibi", or "added" (to the embeddings, learned
            or sinusoidal); empty for layers that were left out.
        reasons: Why a layer was left out, or has no dominant dimension.
        provenance: Versions, model, data and settings, among them `window` and `sinks`.
    """

    sums: dict[str, Float64[Tensor, "_group layer head"]]
    weights: dict[str, Float64[Tensor, "_group layer head"]]
    half_distance: Float64[Tensor, "layer head"]
    even: dict[str, Float64[Tensor, " layer"]]
    mass: Float64[Tensor, "layer head range"]
    even_mass: Float64[Tensor, "layer range"]
    score: Float64[Tensor, "layer head range"]
    score_sd: Float64[Tensor, "layer head range"]
    dominant: Float64[Tensor, "layer head range"] | None
    counts: Int[Tensor, "layer range"]
    edges: Int[Tensor, " edge"]
    encodings: list[str]
    reasons: dict[int, str]
    provenance: dict[str, Any]

    saved_as = DISTANCE_PROFILE

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together, e.g. in a file that somebody edited.

        Raises:
            ValueError: If some do not.
        """
        check_notes([], self.provenance)
        layers, heads = self.half_distance.shape
        ranges = len(self.edges) - 1
        for name in MEASURES:
            groups = len(self.sums[name])
            check_shape(f"sums of {name}", self.sums[name], (groups, layers, heads), torch.float64)
            check_shape(f"weights of {name}", self.weights[name], (groups, layers, heads), torch.float64)
        for name in ("mass", "score", "score_sd", "dominant"):
            if getattr(self, name) is not None:
                check_shape(name, getattr(self, name), (layers, heads, ranges), torch.float64)
        for name, values in self.even.items():
            check_shape(f"even {name}", values, (layers,), torch.float64)
        check_shape("even_mass", self.even_mass, (layers, ranges), torch.float64)
        check_shape("counts", self.counts, (layers, ranges), torch.long)
        if len(self.encodings) != layers:
            msg = f"{len(self.encodings)} encodings for {layers} layers: give one for each"
            raise ValueError(msg)

    @property
    def heads(self) -> list[Head]:
        """Every head of the layers that were profiled, in order."""
        layers, heads = self.half_distance.shape
        return [Head(layer, head) for layer in range(layers) if self.encodings[layer] for head in range(heads)]

    @property
    def names(self) -> list[str]:
        """Names of all measures, as `values` takes them."""
        return [*MEASURES, "half_distance"]

    @checked
    def values(self, name: str) -> Float64[Tensor, "layer head"]:
        """One measure of every head; NaN where it is not defined.

        Args:
            name: One of `names`.

        Raises:
            ValueError: If the profile has no such measure.
        """
        if name not in self.names:
            msg = f"{name!r} is no measure of this profile: choose one of {', '.join(self.names)}"
            raise ValueError(msg)
        return self.half_distance if name == "half_distance" else self.sums[name].sum(0) / self.weights[name].sum(0)

    @checked
    def interval(self, name: str, level: float = 0.95) -> Float64[Tensor, "layer head 2"]:
        """Interval of one measure over sequences, as in `HeadProfile.interval`; NaN below 4 groups of sequences.

        Args:
            name: One of `names`.
            level: Coverage, between 0 and 1.

        Raises:
            ValueError: If the profile has no such measure, or the level is not between 0 and 1.
        """
        values = self.values(name)
        if not 0 < level < 1:
            msg = f"level {level} must be between 0 and 1, e.g. 0.95"
            raise ValueError(msg)
        if name not in self.sums:
            return torch.full((*values.shape, 2), torch.nan, dtype=torch.float64)
        return ratio_interval(self.sums[name], self.weights[name], level)

    @cached_property
    def long_range(self) -> list[Head]:
        """Heads that look further than even attention would, the furthest first: by more than a tenth.

        The whole interval of their reach is above 1.1 times that of even attention; where there are too few sequences
        for an interval, the reach itself. Random weights attend nearly evenly, a little further or nearer: with enough
        sequences any such difference is certain, and none means anything.
        """
        reach = self.values("reach")
        low = self.interval("reach")[..., 0]
        beyond = torch.where(low.isnan(), reach, low) > FURTHER * self.even["reach"][:, None]
        found = [head for head in self.heads if bool(beyond[head])]
        return sorted(found, key=lambda head: -float(reach[head]))

    @property
    def description(self) -> str:
        """Model, text, encodings and number of long-range heads, in one line."""
        return f"{distance_line(self.provenance, self.encodings)}; {len(self.long_range)} look further than evenly"

    @property
    def verdict(self) -> str:
        """How many heads look far, how much of their scores distance explains, and what is not known, in words."""
        return distance_verdict(self)

    def _main_table(self) -> "pd.DataFrame":
        frame = self.to_frame().sort_values("reach", ascending=False, kind="stable")
        return frame[[name for name in DISTANCE_COLUMNS if name in frame]].rename(columns=SHOWN_AS)

    @property
    def _meanings(self) -> Mapping[str, str]:
        return DISTANCE_MEANINGS

    @computed_once
    def to_frame(self) -> "pd.DataFrame":
        """One row per head that was profiled: every measure, its interval, and its value for even attention."""
        import pandas as pd

        rows: dict[str, list[Any]] = {"name": [str(head) for head in self.heads]}
        rows["layer"], rows["head"] = [head.layer for head in self.heads], [head.head for head in self.heads]
        rows["encoding"] = [self.encodings[head.layer] for head in self.heads]
        for name in self.names:
            values, interval = self.values(name), self.interval(name)
            rows[name] = [float(values[head]) for head in self.heads]
            if not bool(interval.isnan().all()):
                for at, end in enumerate(("low", "high")):
                    rows[f"{name}_{end}"] = [float(interval[head][at]) for head in self.heads]
            if name in self.even:
                rows[f"even_{name}"] = [float(self.even[name][head.layer]) for head in self.heads]
        return pd.DataFrame(rows)

    @computed_once
    def curves(self) -> "pd.DataFrame":
        """One row per head and range of distances: attention, score, its deviation, and D, with the number of pairs."""
        import pandas as pd

        parts = []
        for head in self.heads:
            one = {"mass": self.mass[head], "even_mass": self.even_mass[head.layer], "score": self.score[head]}
            one["score_sd"] = self.score_sd[head]
            if self.dominant is not None:
                one["dominant"] = self.dominant[head]
            columns = {"first_distance": self.edges[:-1].numpy(), "last_distance": self.edges[1:].numpy() - 1}
            columns |= {name: values.numpy() for name, values in one.items()}
            parts.append(pd.DataFrame({"name": str(head), **columns, "pair_count": self.counts[head.layer].numpy()}))
        return pd.concat(parts, ignore_index=True)

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "table": json_rows(self.to_frame()),
            "encodings": self.encodings,
            "reasons": {str(layer): reason for layer, reason in self.reasons.items()},
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "DistanceProfile":
        own: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if "." not in name}
        read: dict[str, Any] = {name: nested(tensors, name) for name in ("sums", "weights", "even")}
        return cls(
            **{"dominant": None, **own, **read},
            encodings=[printable(one, newlines=False) for one in content["encodings"]],
            reasons={int(layer): reason for layer, reason in content["reasons"].items()},
            provenance=content["provenance"],
        )
