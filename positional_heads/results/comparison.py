"""The record of a comparison: how two scorings of one shape differ, head by head, and how far their ranks agree.

A change is the second result (b) minus the first (a).
"""

from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from scipy import stats
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head
from positional_heads.core.rank_agreement import RankAgreement, SharedTop, shared_top
from positional_heads.core.statistics import benjamini_hochberg
from positional_heads.results.comparison_tables import CHANGE_COLUMNS
from positional_heads.results.comparison_verdict import comparison_verdict
from positional_heads.results.differing import Difference
from positional_heads.results.files import COMPARISON
from positional_heads.results.pair_change import MeanShare, PairChange
from positional_heads.results.record import Record, computed_once, json_rows, nested
from positional_heads.results.text import printable
from positional_heads.results.verdicts import ALPHA

if TYPE_CHECKING:
    import pandas as pd

TOP_FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)
BOTH, NEITHER, UNKNOWN = "both", "neither", "unknown"


@dataclass(frozen=True)
class Change:
    """Change of one number of every head from a to b, and how certain it is.

    Attributes:
        value: The number in b minus that in a; NaN where either is undefined.
        variance: Variance of the change, over sequences and, for the excess, over shuffles; NaN if unknown.
        freedom: Degrees of freedom of that variance.
    """

    value: Float64[Tensor, "layer head"]
    variance: Float64[Tensor, "layer head"]
    freedom: Float64[Tensor, "layer head"]

    def __repr__(self) -> str:
        layers, heads = self.value.shape
        return f"Change({layers} layers of {heads} heads)"

    @cached_property
    def p_values(self) -> Float64[Tensor, "layer head"]:
        """Two-sided p-value of each change, by Student's t."""
        t = (self.value / self.variance.sqrt()).abs()
        return torch.from_numpy(np.asarray(2 * stats.t.sf(t.numpy(), self.freedom.numpy())))

    @cached_property
    def q_values(self) -> Float64[Tensor, "layer head"]:
        """P-values after Benjamini-Hochberg over all heads."""
        return benjamini_hochberg(self.p_values)

    @checked
    def interval(self, level: float = 0.95) -> Float64[Tensor, "layer head 2"]:
        """Interval of each change; NaN where its variance is unknown.

        Args:
            level: Coverage, between 0 and 1.

        Raises:
            ValueError: If the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            msg = f"level {level} must be between 0 and 1, e.g. 0.95"
            raise ValueError(msg)
        quantile = torch.from_numpy(np.asarray(stats.t.ppf((1 + level) / 2, self.freedom.numpy())))
        half = quantile * self.variance.sqrt()
        return torch.stack([self.value - half, self.value + half], dim=-1)


@dataclass(frozen=True, repr=False, eq=False)
class Comparison(Record):
    """How two scorings of one shape differ, head by head, and how far their ranks agree.

    Attributes:
        names: What the two results, a and b, are called.
        rho: rho of every head in a and in b.
        intervals: 95 % intervals of rho.
        rho_curve: rho of the curve in a and in b; no interval of it is known.
        rho_change: Change of rho.
        excess: Excess over the null in a and in b; None unless both have a null.
        excess_change: Change of the excess; None unless both have a null.
        beats_null: Heads with a positive rho that beat their null in a and in b, at a false discovery rate of 0.05;
            None unless both have a null.
        agreement: How far the ranks of the heads agree, by rho, excess, null_mean and rho_curve.
        paired: Whether both scored the same sequences, so that differences between sequences drop out.
        groups: Groups of sequences that count as independent, in a and in b.
        reasons: Why a head has no score in a or in b.
        provenance: The model, what differs, and the provenance of both results.
        stays: Heads that stay when the first keys are left out, in a and in b; None unless both have a control and
            nulls.
        control_change: Change of the excess without these keys; None unless both have a control and nulls.
        curve_distance: Root mean square difference of the mean dominant dimension by distance, in rotary pairs, over
            the distances that both have, each alike; None without curves, and in files of earlier versions.
        pairs: Change of every rotary pair, where two head profiles were compared.
    """

    names: tuple[str, str]
    rho: Float64[Tensor, "side layer head"]
    intervals: Float64[Tensor, "side layer head 2"]
    rho_curve: Float64[Tensor, "side layer head"]
    rho_change: Change
    excess: Float64[Tensor, "side layer head"] | None
    excess_change: Change | None
    beats_null: Bool[Tensor, "side layer head"] | None
    agreement: dict[str, RankAgreement]
    paired: bool
    groups: tuple[int, int]
    reasons: dict[Head, str]
    provenance: dict[str, Any]
    stays: Bool[Tensor, "side layer head"] | None = None
    control_change: Change | None = None
    curve_distance: Float64[Tensor, "layer head"] | None = None
    pairs: PairChange | None = None

    saved_as = COMPARISON

    @property
    def description(self) -> str:
        """What was compared, in one line."""
        a, b = (printable(name, newlines=False) for name in self.names)
        layers, heads = self.rho.shape[1:]
        name = printable(self.model_name, newlines=False)
        how = "paired by sequence" if self.paired else "other sequences"
        return f"{b} against {a}, {name}: {layers} layers of {heads} heads, {self.n_scored} with a score in both, {how}"

    @property
    def heads(self) -> list[Head]:
        """Every head of the model, in order."""
        _, layers, heads = self.rho.shape
        return [Head(layer, head) for layer in range(layers) for head in range(heads)]

    @property
    def n_scored(self) -> int:
        """Number of heads that have a score in both."""
        return int((~self.rho_change.value.isnan()).sum())

    @property
    def differing(self) -> list[Difference]:
        """Everything recorded in which the two runs differ: model, text, settings."""
        return [Difference(**one) for one in self.provenance["differing"]]

    @property
    def changed(self) -> Bool[Tensor, "layer head"]:
        """Heads whose rho differs, at a false discovery rate of 0.05."""
        return self.rho_change.q_values <= ALPHA

    @property
    def excess_changed(self) -> Bool[Tensor, "layer head"]:
        """Heads whose excess over the null differs, at a false discovery rate of 0.05; none without nulls."""
        if self.excess_change is None:
            return torch.zeros_like(self.changed)
        return self.excess_change.q_values <= ALPHA

    @property
    def beats(self) -> dict[Head, str]:
        """Where each head beats its null with a positive rho: "both", "neither", "a only" or "b only"; or "unknown"."""
        return self._where(self.beats_null)

    @property
    def remains(self) -> dict[Head, str]:
        """Where each head stays when the first keys are left out, in the words of `beats`."""
        return self._where(self.stays)

    @property
    def control_changed(self) -> Bool[Tensor, "layer head"]:
        """Heads whose excess without the first keys differs, at a false discovery rate of 0.05; none if unknown."""
        if self.control_change is None:
            return torch.zeros_like(self.changed)
        return self.control_change.q_values <= ALPHA

    @property
    def trained_length(self) -> int:
        """Tokens that a was trained on, as its context says; those of its longest sequence where that is unknown."""
        model, data = (self.provenance["a"].get(part, {}) for part in ("model", "data"))
        return int(model.get("context") or data.get("longest", 0))

    @cached_property
    def pair_shares(self) -> dict[str, MeanShare]:
        """Share of the squared change in the slow half of the pairs ("slow"), and in those that are "beyond".

        Beyond are the pairs whose wavelength in a is longer than `trained_length`. Empty unless two head profiles were
        compared, and a head has changed.
        """
        if self.pairs is None or not bool(self.pairs.changed.any()):
            return {}
        of = {"slow": self.pairs.slow, "beyond": self.pairs.beyond(self.trained_length)}
        return {name: self.pairs.mean_share(pairs) for name, pairs in of.items()}

    def _where(self, sides: Bool[Tensor, "side layer head"] | None) -> dict[Head, str]:
        if sides is None:
            return dict.fromkeys(self.heads, UNKNOWN)
        in_words = {(True, True): BOTH, (False, False): NEITHER, (True, False): "a only", (False, True): "b only"}
        pairs = zip(*(side.flatten().tolist() for side in sides), strict=True)
        defined = (~self.rho_change.value.isnan()).flatten().tolist()
        found = [in_words[pair] if known else UNKNOWN for pair, known in zip(pairs, defined, strict=True)]
        return dict(zip(self.heads, found, strict=True))

    @property
    def verdict(self) -> str:
        """What differs, and what cannot be told, in words, at a false discovery rate of 0.05."""
        return comparison_verdict(self)

    @cached_property
    def shared_top(self) -> dict[float, SharedTop]:
        """Heads among the top ones by rho of both, against chance, by the fraction of heads that counts as top."""
        defined = ~self.rho_change.value.isnan()
        some, others = self.rho[0][defined], self.rho[1][defined]
        return {part: shared_top(some, others, max(1, round(part * len(some)))) for part in TOP_FRACTIONS}

    @computed_once
    def to_frame(self) -> "pd.DataFrame":
        """One row per head: rho in both, its change and, with nulls, the excess, its change and where it beats them."""
        import pandas as pd

        columns = {"rho_a": self.rho[0], "rho_b": self.rho[1], **_columns("change", self.rho_change)}
        if self.excess is not None and self.excess_change is not None:
            columns |= {"excess_a": self.excess[0], "excess_b": self.excess[1]}
            columns |= _columns("excess_change", self.excess_change)
        columns |= {"rho_curve_a": self.rho_curve[0], "rho_curve_b": self.rho_curve[1]}
        if self.curve_distance is not None:
            columns["curve_distance"] = self.curve_distance
        if self.pairs is not None:
            columns |= {"pair_change": self.pairs.total.sqrt(), "slow_share": self.pairs.held(self.pairs.slow)}
            columns["beyond_share"] = self.pairs.held(self.pairs.beyond(self.trained_length))
        frame = pd.DataFrame({"name": [str(head) for head in self.heads]})
        frame["layer"] = [head.layer for head in self.heads]
        frame["head"] = [head.head for head in self.heads]
        for name, values in columns.items():
            frame[name] = values.flatten().numpy()
        if self.beats_null is not None:
            frame["beats"] = list(self.beats.values())
        if self.stays is not None and self.control_change is not None:
            for name, values in _columns("control_change", self.control_change).items():
                frame[name] = values.flatten().numpy()
            frame["stays_in"] = list(self.remains.values())
        frame["reason"] = [self.reasons.get(head, "") for head in self.heads]
        return frame

    @computed_once
    def agreement_frame(self) -> "pd.DataFrame":
        """One row per measure: how far the ranks of the heads agree."""
        import pandas as pd

        return pd.DataFrame([{"measure": name, **one._asdict()} for name, one in self.agreement.items()])

    @computed_once
    def top_frame(self) -> "pd.DataFrame":
        """One row per fraction of heads: how many of the top ones by rho are shared, against chance.

        Of fractions that are as many heads, the first.
        """
        import pandas as pd

        rows = [{"fraction": part, **one._asdict()} for part, one in self.shared_top.items()]
        return pd.DataFrame(rows).drop_duplicates("k", ignore_index=True).rename(columns={"p_value": "p_shared"})

    @computed_once
    def pair_frame(self) -> "pd.DataFrame":
        """One row per rotary pair: its mean share of the squared change, over the heads that changed.

        The share has a 95 % interval over heads, as if they were independent, and `even` is what to expect if every
        pair changed as much. `level` is the part of the share that is the same at every distance. A pair that only some
        layers have is averaged over their heads, so that the shares of all pairs need not add up to 1. Wavelengths are
        NaN where layers have several, and infinite for pairs that do not turn.

        Raises:
            ValueError: If no head profiles were compared.
        """
        if self.pairs is None:
            msg = "only two head profiles show the change by pair: compare what profile_heads returned"
            raise ValueError(msg)
        return self.pairs.to_frame()

    def _main_table(self) -> "pd.DataFrame":
        frame = self.to_frame().dropna(subset=["change"]).sort_values("change", key=abs, ascending=False)
        return frame[[name for name in CHANGE_COLUMNS if name in frame]]

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "names": list(self.names),
            "table": json_rows(self.to_frame()),
            "agreement": [  # in full precision, because it is read back; JSON has no NaN
                {"measure": name, **{key: None if isnan(value) else value for key, value in one._asdict().items()}}
                for name, one in self.agreement.items()
            ],
            "top": json_rows(self.top_frame()),
            "pairs": [] if self.pairs is None else json_rows(self.pair_frame()),
            "paired": self.paired,
            "groups": list(self.groups),
            "reasons": {str(head): reason for head, reason in self.reasons.items()},
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "Comparison":
        excess_change, control_change = (nested(tensors, name) for name in ("excess_change", "control_change"))
        pairs = nested(tensors, "pairs")
        a, b = content["names"]
        some, others = content["groups"]
        agreement = {}
        for row in content["agreement"]:
            numbers = {name: nan if value is None else value for name, value in row.items() if name != "measure"}
            agreement[row["measure"]] = RankAgreement(**numbers)
        return cls(
            names=(a, b),
            rho=tensors["rho"],
            intervals=tensors["intervals"],
            rho_curve=tensors["rho_curve"],
            rho_change=Change(**nested(tensors, "rho_change")),
            excess=tensors.get("excess"),
            excess_change=Change(**excess_change) if excess_change else None,
            beats_null=tensors.get("beats_null"),
            stays=tensors.get("stays"),
            control_change=Change(**control_change) if control_change else None,
            curve_distance=tensors.get("curve_distance"),
            pairs=PairChange(**pairs) if pairs else None,
            agreement=agreement,
            paired=content["paired"],
            groups=(some, others),
            reasons={Head.parse(name): reason for name, reason in content["reasons"].items()},
            provenance=content["provenance"],
        )


def _columns(name: str, change: Change) -> dict[str, Tensor]:
    low, high = change.interval().unbind(-1)
    ends = {f"{name}_low": low, f"{name}_high": high}
    return {name: change.value, **ends, f"{name}_p": change.p_values, f"{name}_q": change.q_values}
