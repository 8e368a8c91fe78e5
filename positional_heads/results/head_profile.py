"""The record of a head profile: every measure of every head in one table, and the statistics of its rotary pairs."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import AnyHead, Head, as_heads
from positional_heads.core.key_heads import most_of_readers
from positional_heads.core.ratio_intervals import ratio_interval, weighted_groups
from positional_heads.results.files import HEAD_PROFILE
from positional_heads.results.head_names import MIXED, NAMED_BY, RULES, head_labels
from positional_heads.results.pair_statistics import PairStatistics
from positional_heads.results.profile_checks import check_profile
from positional_heads.results.profile_tables import PROFILE_COLUMNS, ROW_COLUMNS, SHOWN_AS, head_rows, order_of
from positional_heads.results.profile_verdict import profile_verdict
from positional_heads.results.rank_correlations import rank_correlations
from positional_heads.results.record import Record, computed_once, json_rows, nested
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import printable

if TYPE_CHECKING:
    import pandas as pd

SCORE_MEASURES = ("rho", "rho_curve", "excess")
"""Measures that are those of the scores; `excess` only where there is a null."""


@dataclass(frozen=True, repr=False, eq=False)
class HeadProfile(Record):
    """What every head does: how far it looks and at what, which rotary pairs it uses, and its score.

    Attributes:
        scores: rho, its null and its intervals, from the same pass.
        sums: Sum of each attention measure over the queries of each group of sequences.
        weights: What each sum is divided by: queries, or attention.
        others: Measures without a spread over sequences: massive values, and the kernel score of the weights.
        mass: Share of each head's attention in each range of distances.
        reached: Mean distance in tokens of the attention in each range; NaN where there is none.
        edges: First distance of each range in tokens, then the first distance beyond the last range.
        pairs: Statistics of every rotary pair.
        key_heads: Key head that each query head reads; -1 in layers that were not profiled.
        provenance: Versions, model, data and settings, among them `window` and `sinks`.
    """

    scores: HeadScores
    sums: dict[str, Float64[Tensor, "_group layer head"]]
    weights: dict[str, Float64[Tensor, "_group layer head"]]
    others: dict[str, Float64[Tensor, "layer head"]]
    mass: Float64[Tensor, "layer head range"]
    reached: Float64[Tensor, "layer head range"]
    edges: Int[Tensor, " edge"]
    pairs: PairStatistics
    key_heads: Int[Tensor, "layer head"]
    provenance: dict[str, Any]

    saved_as = HEAD_PROFILE

    @property
    def heads(self) -> list[Head]:
        """Every head of the model, in order."""
        return self.scores.heads

    @property
    def names(self) -> list[str]:
        """Names of all measures that this profile has, as `values` takes them."""
        scored = SCORE_MEASURES if self.scores.null is not None else SCORE_MEASURES[:-1]
        return [*scored, *self.sums, *self.others]

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
            if name == "excess":
                msg += "; for the excess, profile with null_repeats=20"
            raise ValueError(msg)
        if name in SCORE_MEASURES:
            return getattr(self.scores, name).double()  # type: ignore[no-any-return]
        return self.others[name] if name in self.others else self.sums[name].sum(0) / self.weights[name].sum(0)

    @checked
    def interval(self, name: str, level: float = 0.95) -> Float64[Tensor, "layer head 2"]:
        """Interval of one measure over sequences: Student's t on the bootstrap's variance, as for rho.

        Groups in which nothing counts for a head, see `groups`, are left out, as the measure itself does. NaN below 4
        groups, where all groups have the same value, and for measures that have no spread over sequences.

        Args:
            name: One of `names`.
            level: Coverage, between 0 and 1.

        Raises:
            ValueError: If the profile has no such measure, or the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            msg = f"level {level} must be between 0 and 1, e.g. 0.95"
            raise ValueError(msg)
        values = self.values(name)
        if name == "rho":
            return self.scores.interval(level).double()
        if name not in self.sums:
            return torch.full((*values.shape, 2), torch.nan, dtype=torch.float64)
        return ratio_interval(self.sums[name], self.weights[name], level)

    @checked
    def groups(self, name: str) -> Int[Tensor, "layer head"]:
        """Groups of sequences that one measure of each head rests on; of the retrieval score, examples.

        Fewer than all where nothing counts in some, e.g. for `distant_mass` in sequences no longer than the window.

        Args:
            name: One of `names` that is a mean over sequences.

        Raises:
            ValueError: If the profile has no such measure, or it has no spread over sequences.
        """
        self.values(name)
        if name not in self.sums:
            msg = f"{name!r} is no mean over groups of sequences: choose one of {', '.join(self.sums)}"
            raise ValueError(msg)
        return weighted_groups(self.weights[name])

    @cached_property
    def labels(self) -> dict[Head, list[str]]:
        """Every name that a head has by the rules of `head_names`, the first being what `name` shows; often several."""
        known = [name for name in NAMED_BY if name in self.names]
        return head_labels(self.heads, {name: self.values(name) for name in known})

    def name(self, head: Head) -> str:
        """What the head is by the first rule that holds for it, e.g. "sink" or "induction"; "mixed" if none does."""
        return (self.labels[head] or [MIXED.name])[0]

    @cached_property
    def by_name(self) -> dict[str, list[Head]]:
        """The profiled heads of each name that any has, in the order of the rules, the clearest cases first."""
        profiled = [head for head in self.heads if int(self.key_heads[head]) >= 0]
        found = {}
        for rule in (*RULES, MIXED):
            if named := [head for head in profiled if self.name(head) == rule.name]:
                values = rule.sign * self.values(rule.needs[0]).nan_to_num(-torch.inf)
                found[rule.name] = sorted(named, key=lambda head, values=values: -float(values[head]))  # type: ignore[misc]
        return found

    @checked
    def mean_contribution(self, first: int = 0, last: int | None = None) -> Float64[Tensor, "layer head pair"]:
        """Mean contribution of every pair to the scores at distances in some ranges; NaN where they have no keys.

        Args:
            first: Number of the first range.
            last: One past the number of the last range, as a slice takes it; up to the end when None.

        Raises:
            ValueError: If the profile has no such range.
        """
        ranges = len(self.edges) - 1
        in_range("first", first, 0, ranges)
        in_range("last", ranges if last is None else last, 0, ranges)
        chosen = slice(first, last)
        counts = self.pairs.counts[:, None, None, chosen].double()
        values = self.pairs.contribution[..., chosen]
        return (values.nan_to_num() * counts).sum(-1) / (counts * values.isfinite()).sum(-1)

    @checked
    def by_key_head(self, name: str) -> Float64[Tensor, "layer kv_head"]:
        """One measure of every key head: the largest of the query heads that read it; NaN where none has it.

        What a key head must keep is what the most demanding of its readers needs.

        Args:
            name: One of `names`.

        Raises:
            ValueError: If the profile has no such measure.
        """
        return most_of_readers(self.values(name), self.key_heads)

    @computed_once
    def correlations(self) -> "pd.DataFrame":
        """Spearman's rank correlation over heads of every two measures: which are one thing under two names?"""
        return rank_correlations({name: self.values(name) for name in self.names})

    @property
    def description(self) -> str:
        """Model, text, and how many heads have which name, in one line."""
        data, named = self.provenance.get("data", {}), self.by_name
        counts = ", ".join(f"{len(named[name])} {name}" for name in sorted(named, key=lambda name: -len(named[name])))
        layers, heads = self.mass.shape[:2]
        return (
            f"{printable(self.model_name, newlines=False)}: {layers} layers of {heads} heads, "
            f"{data.get('sequences', '?')} sequences of up to {data.get('longest', '?')} tokens; {counts}"
        )

    @property
    def verdict(self) -> str:
        """How many heads have which name, which measures are nearly the same thing, and what is not known."""
        beating = None if self.scores.null is None else int(self.scores.beats_null().sum())
        control = self.scores.control
        controlled = control is not None and control.null is not None
        unknown = {name for name in self.names if bool(self.values(name).isnan().all())}
        return profile_verdict(
            {name: len(heads) for name, heads in self.by_name.items()},
            self.correlations(),
            scores=SCORE_MEASURES,
            unknown=unknown,
            beating=beating,
            staying=(self.scores.control_keys, int(self.scores.stays().sum())) if controlled else None,
            groups=self.scores.n_groups,
            provenance=self.provenance,
        )

    def _main_table(self) -> "pd.DataFrame":
        frame = self.to_frame()
        frame = frame[frame["key_head"] >= 0]
        order = order_of(json_rows(frame))
        frame = frame.sort_values(order, ascending=False, kind="stable")
        return frame[[name for name in PROFILE_COLUMNS if name in frame]].rename(columns=SHOWN_AS)

    @computed_once
    def to_frame(self) -> "pd.DataFrame":
        """One row per head: its names, every measure with its interval where there is one; null, p and q of its rho."""
        import pandas as pd

        frame = pd.DataFrame({"name": [str(head) for head in self.heads]})
        frame["layer"] = [head.layer for head in self.heads]
        frame["head"] = [head.head for head in self.heads]
        frame["key_head"] = self.key_heads.flatten().numpy()
        frame["is"] = [self.name(head) for head in self.heads]
        frame["names"] = [", ".join(self.labels[head] or [MIXED.name]) for head in self.heads]
        for name in self.names:
            frame[name] = self.values(name).flatten().numpy()
            low, high = self.interval(name).flatten(0, 1).unbind(-1)
            if not bool(low.isnan().all()):
                frame[f"{name}_low"], frame[f"{name}_high"] = low.numpy(), high.numpy()
                if name in self.sums and bool((self.groups(name) < len(self.sums[name])).any()):
                    frame[f"{name}_groups"] = self.groups(name).flatten().numpy()
        if (null := self.scores.null) is not None:
            judged = {"null_mean": null.mean, "p_value": self.scores.p_values, "q_value": self.scores.q_values}
            for name, values in judged.items():
                frame[name] = values.double().flatten().numpy()
        return frame

    @checked
    def head_frame(self, head: AnyHead) -> "pd.DataFrame":
        """One row per measure of one head: value, interval, and rank among the heads that have it, 1 for the largest.

        Values are rounded to six digits, as in files; heads whose values are then equal have one rank.

        Args:
            head: Like "L3H7" or (3, 7).

        Raises:
            TypeError: If this is no head.
            ValueError: If it does not exist.
        """
        import pandas as pd

        (one,) = as_heads([head], *self.mass.shape[:2])
        rows = head_rows(json_rows(self.to_frame()), str(one))
        frame = pd.DataFrame(rows, columns=ROW_COLUMNS).set_index("measure")
        return frame.astype({"value": float, "low": float, "high": float, "rank": int, "of": int, "unit": str})

    @computed_once
    def pair_frame(self) -> "pd.DataFrame":
        """One row per head and rotary pair: wavelength, norms, centres, agreement, contributions by distance."""
        import pandas as pd

        pairs, shape = self.pairs, self.pairs.agreement.shape
        index = [torch.arange(n).view([-1 if axis == at else 1 for axis in range(3)]) for at, n in enumerate(shape)]
        layer, head, pair = (axis.expand(shape).flatten().numpy() for axis in index)
        frame = pd.DataFrame({"layer": layer, "head": head, "pair": pair})
        by_head = {"frequency": pairs.frequencies[:, None], "wavelength": pairs.wavelengths[:, None]}
        by_head |= {"query_norm": pairs.query_norm, "key_norm": pairs.key_norm, "band_norm": pairs.band_norm}
        for name, center in (("query", pairs.query_center), ("key", pairs.key_center)):
            by_head |= {f"{name}_center_{part}": center[..., at] for at, part in enumerate(("real", "imag"))}
        by_head["agreement"] = pairs.agreement
        for number, (first, beyond) in enumerate(pairwise(self.edges.tolist())):
            by_head[f"contribution_{first}_{beyond - 1}"] = pairs.contribution[..., number]
        for name, values in by_head.items():
            frame[name] = values.expand(shape).flatten().numpy()
        frame.insert(0, "name", [str(Head(*one)) for one in zip(layer.tolist(), head.tolist(), strict=True)])
        return frame[~frame["query_norm"].isna()].reset_index(drop=True)

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "table": json_rows(self.to_frame()),
            "heads_by_name": {name: [*map(str, heads)] for name, heads in self.by_name.items()},
            "correlations": json_rows(self.correlations().reset_index(names="measure")),
            "measures": [*self.sums, *self.others],
            "scores": self.scores._content(),
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "HeadProfile":
        scores = HeadScores._from_file(content["scores"], nested(tensors, "scores"))
        own = {name: tensor for name, tensor in tensors.items() if "." not in name}
        read = {name: nested(tensors, name) for name in ("sums", "weights", "others")}
        order = content["measures"]  # a safetensors file has its own
        grouped = {name: {key: one[key] for key in order if key in one} for name, one in read.items()}
        pairs = PairStatistics(**nested(tensors, "pairs"))
        found = cls(scores=scores, pairs=pairs, provenance=content["provenance"], **grouped, **own)  # type: ignore[arg-type]
        check_profile(found)
        return found
