"""The record of a scoring run: every head's score, its null, its interval and its significance."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy import stats
from torch import Tensor

from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import Head
from positional_heads.core.statistics import FEWEST_UNITS, benjamini_hochberg, excess_p_values
from positional_heads.results.files import SCORES
from positional_heads.results.null_scores import NullScores
from positional_heads.results.record import Record, computed_once, json_rows, nested
from positional_heads.results.tables import HEAD_COLUMNS, text_label
from positional_heads.results.text import printable, rounded
from positional_heads.results.verdicts import ALPHA, scores_verdict

if TYPE_CHECKING:
    import pandas as pd

ROUNDED = 1e-6
"""Resampled rhos that differ by less are the same: they are kept in float32."""


@dataclass(frozen=True, repr=False, eq=False)
class HeadScores(Record):
    """How strongly each head moves its dominant dimension with token distance.

    Attributes:
        rho: Spearman's rho between distance and dominant dimension over all query-key pairs; NaN where undefined.
        rho_curve: Spearman's rho between distance and mean dominant dimension; never compare it with rho.
        curve: Mean dominant dimension at each distance in tokens; NaN where no query-key pair counts. None where
            `without_curves` left it out.
        pair_counts: Number of query-key pairs behind each point of the curve; None without curves.
        bound: Largest error of rho by binning and rounding, against Spearman's rho on float64 values of D, tied where
            they fall into one step of the resolution.
        frequencies: Frequency of each rotary pair, in radians per token; NaN beyond a layer's last pair.
        null: Scores with positions shuffled, or None.
        bootstrap_rho: rho over resampled sequences, or None with a single sequence.
        reasons: Why a head has no score.
        provenance: Versions, model, data, settings and seed.
        sampling_sd: Standard deviation that sampling query-key pairs adds to rho; None where all were counted.
        saturation: Share of query-key pairs in which one rotary pair holds more than 99.9 % of the softmax, so that D
            is the index of the largest contribution; None in files of earlier versions.
        control: The scores of the same text and heads without the first `control_keys` keys of each sequence, as if
            scored alone; None without that setting.
    """

    rho: Float[Tensor, "layer head"]
    rho_curve: Float[Tensor, "layer head"]
    curve: Float[Tensor, "layer head distance"] | None
    pair_counts: Int[Tensor, "layer distance"] | None
    bound: Float[Tensor, "layer head"]
    frequencies: Float[Tensor, "layer pair"]
    null: NullScores | None
    bootstrap_rho: Float[Tensor, "resample layer head"] | None
    reasons: dict[Head, str]
    provenance: dict[str, Any]
    sampling_sd: Float[Tensor, "layer head"] | None = None
    saturation: Float[Tensor, "layer head"] | None = None
    control: "HeadScores | None" = None

    saved_as = SCORES

    @property
    def description(self) -> str:
        """What was scored and the best heads, in one line; parts of the provenance may be missing."""
        layers, heads = self.rho.shape
        data = self.provenance.get("data", {})
        longest = data.get("longest", "?") if self.curve is None else self.curve.shape[-1]
        text = f" of {names}" if (names := text_label(self.provenance)) else ""
        best = ", ".join(f"{head} {rounded(float(self.rho[head]))}" for head in self.top(min(3, self.n_scored)))
        return (
            f"{printable(self.model_name, newlines=False)}: {layers} layers of {heads} heads, "
            f"{self.n_scored} with a score, {data.get('sequences', '?')} sequences of up to {longest} "
            f"tokens{text}, {'no' if self.null is None else len(self.null.rho)} shuffles; highest rho: {best or 'none'}"
        )

    def _main_table(self) -> "pd.DataFrame":
        frame = self.to_frame().dropna(subset=["rho"])
        by = ["rho"] if self.null is None else ["beats", "excess"]
        if self.null is not None:
            frame["beats"] = self.beats_null().flatten()[frame.index].numpy()
        frame = frame.sort_values(by, ascending=False)
        return frame[[name for name in HEAD_COLUMNS if name in frame]]

    @property
    def heads(self) -> list[Head]:
        """Every head of the model, in order."""
        layers, heads = self.rho.shape
        return [Head(layer, head) for layer in range(layers) for head in range(heads)]

    @property
    def n_scored(self) -> int:
        """Number of heads that have a score."""
        return int((~self.rho.isnan()).sum())

    @property
    def n_groups(self) -> int:
        """Number of groups of sequences that count as independent."""
        return int(self.provenance.get("data", {}).get("groups", 1))

    @cached_property
    def excess(self) -> Float[Tensor, "layer head"]:
        """Rho minus the mean of its null: the part that geometry does not explain.

        Raises:
            ValueError: If no null was computed.
        """
        return self.rho - self._required_null().mean

    @cached_property
    def p_values(self) -> Float[Tensor, "layer head"]:
        """One-sided p-value of the excess, over shuffles and sequences (see `core.statistics.excess_p_values`)."""
        return excess_p_values(self.rho, self._required_null().rho, self.sampling_variance, self.n_groups)

    @property
    def sampling_variance(self) -> Float64[Tensor, "layer head"] | None:
        """Variance of rho over sequences, by the bootstrap; None with a single group of them."""
        if self.bootstrap_rho is None:
            return None
        # resampling G groups understates their variance by (G - 1) / G
        return self.bootstrap_rho.double().var(0) * self.n_groups / max(self.n_groups - 1, 1)

    @cached_property
    def q_values(self) -> Float[Tensor, "layer head"]:
        """P-values after Benjamini-Hochberg over all heads."""
        return benjamini_hochberg(self.p_values)

    @property
    def z(self) -> Float[Tensor, "layer head"]:
        """Excess in standard deviations of the null."""
        return self.excess / self._required_null().sd

    @checked
    def significant(self, alpha: float = 0.05) -> Bool[Tensor, "layer head"]:
        """Heads whose excess is positive and significant at this false discovery rate, whatever the sign of rho.

        Args:
            alpha: False discovery rate, above 0 and at most 1, where only the sign of the excess counts.

        Raises:
            ValueError: If the rate is out of range, or no null was computed.
        """
        if not 0 < alpha <= 1:
            msg = f"alpha {alpha} must be above 0 and at most 1, e.g. 0.05"
            raise ValueError(msg)
        return (self.q_values <= alpha) & (self.excess > 0)

    @checked
    def beats_null(self, alpha: float = 0.05) -> Bool[Tensor, "layer head"]:
        """Heads that beat their null: rho is positive, and so is its excess, significantly.

        Args:
            alpha: False discovery rate, above 0 and at most 1.

        Raises:
            ValueError: If the rate is out of range, or no null was computed.
        """
        return self.significant(alpha) & (self.rho > 0)

    @checked
    def stays(self, alpha: float = 0.05) -> Bool[Tensor, "layer head"]:
        """Heads that beat their null, and do so without the first keys as well.

        Both are tested over all heads at this false discovery rate, the control as if it were scored alone.
        `positional_heads(alpha=0.05, stays=True)` lists the same heads by name.

        Args:
            alpha: False discovery rate, above 0 and at most 1.

        Raises:
            ValueError: If the rate is out of range, or no control or no null was computed.
        """
        if self.control is None:
            msg = "no control was computed: score again with control_keys=64"
            raise ValueError(msg)
        return self.beats_null(alpha) & self.control.beats_null(alpha)

    @checked
    def interval(self, level: float = 0.95) -> Float[Tensor, "layer head 2"]:
        """Interval of rho over sequences: Student's t on the bootstrap's variance.

        NaN below 4 groups of sequences, and where all groups say the same, as copies of one sequence do: they do not
        show how far off another would be.

        Args:
            level: Coverage, between 0 and 1.

        Raises:
            ValueError: If the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            msg = f"level {level} must be between 0 and 1, e.g. 0.95"
            raise ValueError(msg)
        if self.bootstrap_rho is None or self.n_groups < FEWEST_UNITS:
            return torch.full((*self.rho.shape, 2), torch.nan, dtype=self.rho.dtype)
        # as in `p_values`; quantiles of the resamples are too narrow with few groups
        drawn = self.bootstrap_rho.double()
        variance = drawn.var(0) * self.n_groups / (self.n_groups - 1)
        variance[drawn.amax(0) - drawn.amin(0) <= ROUNDED] = torch.nan
        half = stats.t.ppf((1 + level) / 2, self.n_groups - 1) * variance.sqrt()
        return torch.stack([self.rho - half, self.rho + half], dim=-1).clamp(-1, 1)

    @checked
    def top(self, k: int) -> list[Head]:
        """The k heads with the highest rho, best first.

        Raises:
            ValueError: If k is negative, or fewer heads have a score.
        """
        ranked = [head for head in self.heads if not self.rho[head].isnan()]
        if not 0 <= k <= len(ranked):
            msg = f"{k} heads asked for, {len(ranked)} have a score: ask for 0 to {len(ranked)}"
            raise ValueError(msg)
        return sorted(ranked, key=lambda head: -float(self.rho[head]))[:k]

    @checked
    def positional_heads(
        self,
        fraction: float | None = None,
        *,
        threshold: float | None = None,
        alpha: float | None = None,
        stays: bool = False,
    ) -> list[Head]:
        """The Positional Heads by one rule; the top 10 % by rho when no rule is given.

        Args:
            fraction: The top fraction of scored heads by rho, at least one; the highest rho first.
            threshold: Heads with rho of at least this; the highest rho first.
            alpha: Heads with positive rho whose excess over the null is significant at this false discovery rate; the
                largest excess first. With a null below zero, rho can be negative despite a significant excess: such a
                head's D falls with distance, only less than by geometry alone, so it is not a Positional Head.
            stays: With `alpha`, only the heads that beat their null without the first keys as well.

        Raises:
            ValueError: If more than one rule is given, a number is out of range, or there is no control.
        """
        if sum(rule is not None for rule in (fraction, threshold, alpha)) > 1:
            msg = "give one of fraction, threshold and alpha, not several"
            raise ValueError(msg)
        if stays and alpha is None:
            msg = "stays=True goes with alpha, e.g. positional_heads(alpha=0.05, stays=True)"
            raise ValueError(msg)
        scored = self.top(self.n_scored)
        if threshold is not None:
            return [head for head in scored if self.rho[head] >= threshold]
        if alpha is not None:
            positional = self.stays(alpha) if stays else self.beats_null(alpha)
            return sorted((head for head in scored if positional[head]), key=lambda head: -float(self.excess[head]))
        fraction = 0.1 if fraction is None else fraction
        if not 0 < fraction <= 1:
            msg = f"fraction {fraction} must be above 0 and at most 1, e.g. 0.1 for the top 10 %"
            raise ValueError(msg)
        return scored[: max(1, round(fraction * len(scored)))]

    @checked
    def notable(self, most: int = 4) -> list[Head]:
        """The heads to look at first: those that beat their null, and of these first those that stay; largest excess.

        Where no head beats its null, or none is known to, those with the highest rho.

        Args:
            most: How many heads at most.

        Raises:
            ValueError: If the number is negative.
        """
        in_range("most", most, 0)
        beating = [] if self.null is None else self.positional_heads(alpha=ALPHA)
        if beating and self.control is not None and self.control.null is not None:
            stays = self.stays()
            beating.sort(key=lambda head: not stays[head])  # keeps the order by excess
        return beating[:most] if beating else self.top(min(most, self.n_scored))

    @property
    def verdict(self) -> str:
        """Whether heads beat their null, in words, at a false discovery rate of 0.05."""
        data = self.provenance.get("data", {})
        return scores_verdict(
            self.rho,
            None if self.null is None else self.excess,
            None if self.null is None else self.q_values,
            n_groups=self.n_groups if self.bootstrap_rho is not None else 1,
            repeats=0 if self.null is None else len(self.null.rho),
            monotonous=(data.get("monotonous", 0), data.get("sequences", 1)),
            control=None if self.control is None or self.null is None else (self.control_keys, self.stays()),
        )

    @property
    def control_keys(self) -> int:
        """First keys of each sequence that the control leaves out; 0 without one."""
        return int(self.provenance.get("settings", {}).get("control_keys", 0))

    @checked
    def without_curves(self) -> "HeadScores":
        """The same scores without numbers by distance, small enough to keep many: 270 heads take 0.4 MB, not 110.

        Curves, those of the null and of the control, and the numbers of query-key pairs are left out, and whatever
        draws a curve says so. Other numbers are rounded to float32, the rho of each shuffle and resample to float16, in
        steps below 0.0005: p-values change by less than a hundredth of themselves.
        """
        names = ("rho", "rho_curve", "bound", "frequencies", "sampling_sd", "saturation")
        null, control = self.null, self.control
        if null is not None:
            null = NullScores(null.rho.half(), sampling_sd=_single(null.sampling_sd))
        return replace(
            self,
            **{name: _single(getattr(self, name)) for name in names},
            curve=None,
            pair_counts=None,
            null=null,
            bootstrap_rho=None if self.bootstrap_rho is None else self.bootstrap_rho.half(),
            control=None if control is None else control.without_curves(),
        )

    @computed_once
    def to_frame(self) -> "pd.DataFrame":
        """One row per head: score, interval, null, significance and, where there is no score, the reason."""
        import pandas as pd

        low, high = self.interval().unbind(-1)
        columns = {"rho": self.rho, "low": low, "high": high, "rho_curve": self.rho_curve, "bound": self.bound}
        if self.sampling_sd is not None:
            columns["sampling_sd"] = self.sampling_sd
        if self.saturation is not None:
            columns["saturation"] = self.saturation
        if self.null is not None:
            columns["null_mean"] = self.null.mean
            if self.null.sampling_sd is not None:
                columns["null_error"] = self.null.mean_error
            columns |= {"null_sd": self.null.sd, "excess": self.excess, "z": self.z}
            columns |= {"p_value": self.p_values, "q_value": self.q_values}
        if self.control is not None:
            columns["control_rho"] = self.control.rho
            if self.control.null is not None:
                columns |= {"control_excess": self.control.excess, "control_q_value": self.control.q_values}
        frame = pd.DataFrame({"name": [str(head) for head in self.heads]})
        frame["layer"] = [head.layer for head in self.heads]
        frame["head"] = [head.head for head in self.heads]
        for name, values in columns.items():
            frame[name] = values.flatten().numpy()
        if self.control is not None and self.null is not None:
            judged = zip(self.beats_null().flatten().tolist(), self.stays().flatten().tolist(), strict=True)
            frame["stays"] = pd.Series([stays if beats else None for beats, stays in judged], dtype=object)
        frame["reason"] = [self.reasons.get(head, "") for head in self.heads]
        return frame

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "table": json_rows(self.to_frame()),
            "reasons": {str(head): reason for head, reason in self.reasons.items()},
            "provenance": self.provenance,
            "control": None if self.control is None else self._content_of_control(self.control),
        }

    def _content_of_control(self, control: "HeadScores") -> dict[str, Any]:
        """Reasons, and the provenance that is not that of these scores."""
        unlike = {key: value for key, value in control.provenance.items() if self.provenance.get(key, ...) != value}
        reasons = {str(head): reason for head, reason in control.reasons.items()}
        return {"reasons": reasons, "provenance": unlike}

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "HeadScores":
        null = nested(tensors, "null")
        others = {name: tensor for name, tensor in tensors.items() if "." not in name}
        absent: dict[str, Any] = dict.fromkeys({"bootstrap_rho", "curve", "pair_counts"} - others.keys())
        control = content.get("control")
        if control is not None:
            provenance = content["provenance"] | control["provenance"]
            control = cls._from_file({**control, "provenance": provenance}, nested(tensors, "control"))
        return cls(
            **others,
            **absent,
            null=NullScores(**null) if null else None,
            reasons={Head.parse(name): reason for name, reason in content["reasons"].items()},
            provenance=content["provenance"],
            control=control,
        )

    def _required_null(self) -> NullScores:
        if self.null is None:
            msg = "no null was computed: score again with null_repeats=20"
            raise ValueError(msg)
        return self.null


def kept(values: Tensor | None) -> Tensor:
    """Numbers by distance, where they were kept.

    Raises:
        ValueError: If `HeadScores.without_curves` left them out.
    """
    if values is None:
        msg = (
            "these scores were kept without curves (HeadScores.without_curves), which this needs: score again, or load "
            "the result that they were made from"
        )
        raise ValueError(msg)
    return values


def _single(values: Any) -> Any:
    """Numbers in float32, or none."""
    return None if values is None else values.float()
