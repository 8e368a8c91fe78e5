"""The record of an extrapolation study: allocation and task performance of each method at each length."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float64
from scipy import stats
from torch import Tensor

from positional_heads.core.allocation import jump_at, running_means, stretch_between
from positional_heads.core.arguments import in_range
from positional_heads.core.heads import Head
from positional_heads.core.rotary import injective_range, told_apart, wavelengths
from positional_heads.results.files import EXTRAPOLATION
from positional_heads.results.record import Record, computed_once, json_rows, nested
from positional_heads.results.text import printable
from positional_heads.results.verdicts import FEWEST_FOR_INTERVAL, extrapolation_verdict

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 2000
ALLOCATION = ("rho_beyond", "jump", "stretch")
MEASURES = ("rho_within", "rho_beyond", "jump", "stretch", "explained")


@dataclass(frozen=True, repr=False, eq=False)
class ExtrapolationStudy(Record):
    """Curves and task performance of each method at each length.

    Attributes:
        labels: Name of each method and its length, in order.
        lengths: Tokens of each.
        methods: Provenance of each method: its settings and effects, as JSON.
        heads: The heads whose allocation is measured.
        curves: Mean dominant dimension of each head at each distance, or over each `step` consecutive ones, NaN beyond
            the method's length.
        frequencies: Frequency of each pair under each method, in radians per token.
        rho_within: Spearman's rho over query-key pairs at distances below the training length.
        rho_beyond: The same at distances from the training length on.
        performance: exact, log_prob and loss of each, beyond the training length.
        plain: exact and log_prob of the plain model within its training length.
        plain_curves: The plain model's curves within its training length.
        training_length: Tokens that the model was trained on, where extrapolation begins.
        provenance: Versions, model, data, task and settings.
        notes: Parts of the study that were left out, in sentences.
        step: Distances that one entry of a curve is the mean of.
    """

    labels: list[str]
    lengths: list[int]
    methods: list[dict[str, Any]]
    heads: list[Head]
    curves: Float[Tensor, "method head distance"]
    frequencies: Float64[Tensor, "method pair"]
    rho_within: Float64[Tensor, "method head"]
    rho_beyond: Float64[Tensor, "method head"]
    performance: dict[str, Float64[Tensor, " method"]]
    plain: dict[str, float]
    plain_curves: Float[Tensor, "head within"]
    training_length: int
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    step: int = 1

    saved_as = EXTRAPOLATION

    @property
    def description(self) -> str:
        """Model, heads, methods and lengths, in one line; parts of the provenance may be missing."""
        name = printable(self.model_name, newlines=False)
        heads = ", ".join(str(head) for head in self.heads)
        runs = ", ".join(f"{label} at {length}" for label, length in zip(self.labels, self.lengths, strict=True))
        return f"{name}, trained on {self.training_length} tokens: allocation of {heads}; {runs}{self.left_out}"

    @computed_once
    def to_frame(self) -> "pd.DataFrame":
        """One row per method and length: allocation averaged over heads, and task performance.

        `jump` is its absolute value in standard deviations of the curve's own variation; `stretch` is s*, and
        `explained` the share of variance that it explains; `efficiency` is the probability of the answer's tokens
        (geometric mean) beyond the training length over that of the plain model within it; `loss` is in nats per token
        beyond it.
        """
        import pandas as pd

        by_head, n_heads, lines = self.by_head(), len(self.heads), []
        by_head["jump"] = by_head["jump"].abs()
        for index, (label, length) in enumerate(zip(self.labels, self.lengths, strict=True)):
            heads = by_head[index * n_heads : (index + 1) * n_heads]
            performance = {name: float(values[index]) for name, values in self.performance.items()}
            lines.append(
                {
                    "method": label,
                    "length": length,
                    **{name: float(heads[name].mean(skipna=False)) for name in MEASURES},
                    "exact": performance["exact"],
                    "log_prob": performance["log_prob"],
                    "efficiency": float(np.exp(performance["log_prob"] - self.plain["log_prob"])),
                    "loss": performance["loss"],
                }
            )
        return pd.DataFrame(lines)

    @computed_once
    def by_head(self) -> "pd.DataFrame":
        """One row per method, length and head: its allocation, as in `to_frame`; the jump has its sign."""
        import pandas as pd

        tables = []
        for index, (label, length) in enumerate(zip(self.labels, self.lengths, strict=True)):
            window = max(2, self.training_length // 16 // self.step)
            steps = self.curves[index, :, : length // self.step]
            plain, curves = self._by_distance(self.plain_curves), self._by_distance(self.curves[index])[:, :length]
            stretch = stretch_between(plain, curves, 2 * length / self.training_length)
            measures = {
                "rho_within": self.rho_within[index].numpy(),
                "rho_beyond": self.rho_beyond[index].numpy(),
                "jump": jump_at(steps, self.training_length // self.step, window).numpy(),
                "stretch": stretch.factor.numpy(),
                "explained": stretch.explained.numpy(),
            }
            heads = [str(head) for head in self.heads]
            tables.append(pd.DataFrame({"method": label, "length": length, "head": heads, **measures}))
        return pd.concat(tables, ignore_index=True)

    def running_means(self, run: int) -> tuple[Float64[np.ndarray, " point"], Float64[np.ndarray, "head point"]]:
        """Curves of one method and length, as running means over a sixteenth of the training length.

        Args:
            run: Which method and length, by its place in `labels`.

        Returns:
            The middle of each mean, as a distance in tokens, and the means.
        """
        width = max(1, self.training_length // 16)
        means = running_means(self._by_distance(self.curves[run])[:, : self.lengths[run]], width).numpy()
        return np.arange(means.shape[1]) + float(width // 2), means

    def averaged(self, step: int) -> "ExtrapolationStudy":
        """The same study with curves averaged over `step` consecutive distances: 10 runs of 4 heads take 0.1 MB, not 5.

        Means are rounded to float16, by less than 0.01 pairs. A step should be short beside the running mean, a
        sixteenth of the training length: jumps then change by less than a tenth, as fewer places say how much D varies;
        a stretch that explains little can change by any amount.

        Args:
            step: Distances to average.

        Raises:
            ValueError: If it does not divide all lengths, or the curves are averaged already.
        """
        in_range("step", step, 1)
        if self.step > 1:
            msg = f"the curves are means over {self.step} distances already: average those of the study itself"
            raise ValueError(msg)
        if others := [length for length in (self.training_length, *self.lengths) if length % step]:
            msg = f"step {step} must divide the training length and every other, not leave a rest of {others[0]}"
            raise ValueError(msg)
        curves, plain = (
            one.reshape(*one.shape[:-1], -1, step).nanmean(-1).half() for one in (self.curves, self.plain_curves)
        )
        return replace(self, curves=curves, plain_curves=plain, step=step)

    def _by_distance(self, curves: Float[Tensor, "head step"]) -> Float64[Tensor, "head distance"]:
        """Curves with one entry per distance."""
        return curves.double().repeat_interleave(self.step, dim=-1)

    @computed_once
    def told_apart(self) -> "pd.DataFrame":
        """One row per method, length and pair: the distances that the pair tells apart.

        Wavelength, distances before the rotation repeats, and how many of those bfloat16 tells apart. Methods that
        group distances keep the plain frequencies.
        """
        import pandas as pd

        lines = []
        for label, length, frequencies in zip(self.labels, self.lengths, self.frequencies, strict=True):
            numbers = zip(
                wavelengths(frequencies).tolist(),
                injective_range(frequencies, length).tolist(),
                told_apart(frequencies, length).tolist(),
                strict=True,
            )
            for pair, (wavelength, injective, apart) in enumerate(numbers):
                line = {"method": label, "length": length, "pair": pair, "wavelength": wavelength}
                lines.append({**line, "injective_range": injective, "told_apart": apart})
        return pd.DataFrame(lines)

    @computed_once
    def link(self, level: float = 0.95, seed: int = 0) -> "pd.DataFrame":
        """Rank correlation over methods and lengths of each measure of allocation with efficiency, and its interval.

        The points share a model and a text, so the bootstrap interval over them measures only how much the correlation
        depends on the methods tried. Below eight points there is none.

        Args:
            level: Coverage of the interval.
            seed: Seed of the resamples.
        """
        import pandas as pd

        table = self.to_frame()
        rng = np.random.default_rng(seed)
        draws = rng.integers(len(table), size=(RESAMPLES, len(table)))
        lines = []
        for measure in ALLOCATION:
            values, efficiency = table[measure].to_numpy(), table["efficiency"].to_numpy()
            resampled = _rank_correlations(values[draws], efficiency[draws])
            defined = resampled[~np.isnan(resampled)] if len(table) >= FEWEST_FOR_INTERVAL else np.empty(0)
            low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) if defined.size else (np.nan, np.nan)
            correlation = float(_rank_correlations(values[None], efficiency[None])[0])
            lines.append(
                {"measure": measure, "correlation": correlation, "low": low, "high": high, "points": len(table)}
            )
        return pd.DataFrame(lines)

    @property
    def verdict(self) -> str:
        """Whether extending the allocation goes with doing the task, in words."""
        return extrapolation_verdict(self.to_frame(), self.link(), self.training_length)

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "table": json_rows(self.to_frame()),
            "link": json_rows(self.link()),
            "labels": self.labels,
            "lengths": self.lengths,
            "methods": self.methods,
            "heads": [str(head) for head in self.heads],
            "plain": self.plain,
            "training_length": self.training_length,
            "provenance": self.provenance,
            "notes": self.notes,
            "step": self.step,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "ExtrapolationStudy":
        others: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if "." not in name}
        return cls(
            **{name: content[name] for name in ("labels", "lengths", "methods", "plain", "training_length")},
            **others,
            heads=[Head.parse(name) for name in content["heads"]],
            performance=nested(tensors, "performance"),
            provenance=content["provenance"],
            notes=content.get("notes", []),
            step=content.get("step", 1),
        )


def _rank_correlations(
    some: Float64[np.ndarray, "draw point"], others: Float64[np.ndarray, "draw point"]
) -> Float64[np.ndarray, " draw"]:
    """Spearman's correlation of each row, all rows at once; NaN where either does not vary."""
    ranks = [stats.rankdata(values, axis=1) for values in (some, others)]
    one, other = (values - values.mean(1, keepdims=True) for values in ranks)
    spread = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    correlations = np.full(len(spread), np.nan)
    np.divide((one * other).sum(1), spread, out=correlations, where=spread > 0)
    return correlations
