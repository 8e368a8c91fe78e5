"""The record of the jump study: D just beyond the training length, as it is and as queries and keys predict it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.core.allocation import jump_at
from positional_heads.core.heads import Head
from positional_heads.core.rank_agreement import row_correlations
from positional_heads.core.rotary import wavelengths
from positional_heads.core.statistics import permutation_p
from positional_heads.results.files import JUMPS
from positional_heads.results.jump_tables import JUMP_MEANINGS
from positional_heads.results.record import Record, computed_once, json_rows
from positional_heads.results.text import printable
from positional_heads.results.verdicts import VISIBLE_JUMP

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 2000
PREDICTIONS = {"rotation": "predicted", "unseen angles held": "held", "the step before": "before"}
"""What each prediction is called, and its column."""
FEWEST_HEADS = 8
"""Fewer heads give no interval over heads."""


@dataclass(frozen=True, repr=False, eq=False)
class JumpStudy(Record):
    """Curves of D of every head around the training length: measured, and predicted from shorter texts.

    Attributes:
        heads: The heads, in the order of the first axis.
        measured: Mean dominant dimension at each distance, in runs beyond the training length.
        places: Some distances: spread over all, and closer around the training length.
        predicted: Mean D there by rotation alone, from queries and keys of other sequences within the training length.
        held: Predicted with the pairs whose wavelength exceeds the training length held at the angle that they have
            there: no pair meets an angle that it never saw.
        frequencies: Frequency of each pair of each head, in radians per token.
        training_length: Tokens that the model was trained on.
        provenance: Versions, model, data and settings.
    """

    heads: list[Head]
    measured: Float64[Tensor, "head distance"]
    places: Int[Tensor, " place"]
    predicted: Float64[Tensor, "head place"]
    held: Float64[Tensor, "head place"]
    frequencies: Float64[Tensor, "head pair"]
    training_length: int
    provenance: dict[str, Any]

    saved_as = JUMPS

    @property
    def description(self) -> str:
        """Model, heads and lengths, in one line."""
        name = printable(self.model_name, newlines=False)
        reach = self.measured.shape[1]
        return (
            f"{name}, trained on {self.training_length} tokens: D of {len(self.heads)} heads up to distance {reach - 1}"
        )

    @property
    def window(self) -> int:
        """Distances averaged on either side of the training length."""
        return self.measured.shape[1] - self.training_length

    def unseen(self) -> Float64[Tensor, " head"]:
        """Pairs of each head with a wavelength above the training length: beyond it they meet angles they never saw."""
        return (wavelengths(self.frequencies) > self.training_length).sum(-1).double()

    @computed_once
    def to_frame(self) -> "pd.DataFrame":
        """One row per head; steps are in pairs, the unit of D.

        `step` is mean D just beyond the training length less mean D just within, in pairs; `predicted` the same by
        rotation alone; `held` the predicted step with pairs held where their angles would be new; `before` the measured
        step one window earlier, a control; `jump` is the measured step in standard deviations of such steps elsewhere
        (`ExtrapolationStudy.by_head`).
        """
        import pandas as pd

        every = torch.arange(self.measured.shape[1])
        return pd.DataFrame(
            {
                "name": [str(head) for head in self.heads],
                "step": self._step(self.measured, every).numpy(),
                "predicted": self._step(self.predicted, self.places).numpy(),
                "held": self._step(self.held, self.places).numpy(),
                "before": self._step(self.measured, every, self.window).numpy(),
                "jump": jump_at(self.measured, self.training_length, self.window).numpy(),
                "unseen_pairs": self.unseen().long().numpy(),
            }
        )

    @computed_once
    def agreement(self, level: float = 0.95, seed: int = 0) -> "pd.DataFrame":
        """How well each prediction tells the measured steps of the heads, with intervals over heads.

        `explained` is the share of the variance of the steps that the prediction leaves no error in, without any
        parameter fitted; `p_value` that of the rank correlation, by permuting heads.

        Args:
            level: Coverage of the intervals.
            seed: Seed of resamples and permutations.
        """
        import pandas as pd

        frame, rng = self.to_frame().dropna(subset=["step"]), np.random.default_rng(seed)
        columns = {name: torch.from_numpy(frame[name].to_numpy().copy()) for name in ("step", *PREDICTIONS.values())}
        step, count, ends = columns["step"], len(frame), torch.tensor([(1 - level) / 2, (1 + level) / 2]).double()
        draws = torch.from_numpy(rng.integers(count, size=(RESAMPLES, count)))
        orders = torch.from_numpy(rng.permuted(np.tile(np.arange(count), (RESAMPLES, 1)), axis=1))
        lines = []
        for name, column in PREDICTIONS.items():
            predicted = columns[column]
            correlation, explained = _agreement(step[None], predicted[None])
            both = _agreement(step[draws], predicted[draws])
            permuted, _ = _agreement(step.expand(RESAMPLES, -1), predicted[orders])
            unknown = [np.nan] * 2
            (low, high), (least, most) = (
                torch.nanquantile(one, ends).tolist() if count >= FEWEST_HEADS else unknown for one in both
            )
            lines.append(
                {
                    "prediction": name,
                    "correlation": float(correlation),
                    "correlation_low": low,
                    "correlation_high": high,
                    "p_value": permutation_p(-float(correlation), -permuted) if count >= FEWEST_HEADS else np.nan,
                    "explained": float(explained),
                    "explained_low": least,
                    "explained_high": most,
                    "heads": count,
                }
            )
        return pd.DataFrame(lines)

    @property
    def verdict(self) -> str:
        """Whether the jump follows from queries and keys, and from angles that pairs never saw, in words."""
        frame, (whole, held, before) = self.to_frame(), self.agreement().to_dict("records")
        visible = int((frame["jump"].abs() > VISIBLE_JUMP).sum())
        if np.isnan(whole["correlation_low"]):
            return f"Undecided: {whole['heads']} heads are too few for intervals, which need {FEWEST_HEADS}."
        follows = whole["correlation_low"] > 0 and whole["explained_low"] > 0
        told = (
            f"rank correlation {whole['correlation']:.2f} ({whole['correlation_low']:.2f} to "
            f"{whole['correlation_high']:.2f}), {whole['explained']:.0%} of their variance explained without a fit"
        )
        answer = (
            "follow from rotation alone: queries and keys within the training length, turned further, give them"
            if follows
            else "do not follow from rotation alone"
        )
        control = f"the step one window of {self.window} tokens earlier, a control"
        jump = f"jump{'s' if visible == 1 else ''} visibly (by more than {VISIBLE_JUMP:g} sd of such steps elsewhere)"
        return (
            f"The steps of D of {whole['heads']} heads across {self.training_length} tokens {answer} ({told}). With "
            f"pairs held where their angles would be new, {_share(held['explained'])} is explained; by {control}, "
            f"{_share(before['explained'])}. {visible or 'None'} of the heads {jump}."
        )

    @property
    def _meanings(self) -> Mapping[str, str]:
        return JUMP_MEANINGS

    def _step(
        self, curve: Float64[Tensor, "head place"], places: Int[Tensor, " place"], back: int = 0
    ) -> Float64[Tensor, " head"]:
        """Mean D over the window beyond the training length less that over the window within; or of windows before."""
        at = places - (self.training_length - back)
        within, beyond = (curve[:, (at >= low) & (at < low + self.window)].nanmean(-1) for low in (-self.window, 0))
        return beyond - within

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "table": json_rows(self.to_frame()),
            "agreement": json_rows(self.agreement()),
            "heads": [str(head) for head in self.heads],
            "training_length": self.training_length,
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "JumpStudy":
        heads = [Head.parse(name) for name in content["heads"]]
        return cls(heads=heads, training_length=content["training_length"], provenance=content["provenance"], **tensors)


def _agreement(
    step: Float64[Tensor, "row head"], predicted: Float64[Tensor, "row head"]
) -> tuple[Float64[Tensor, " row"], Float64[Tensor, " row"]]:
    """Rank correlation of each row, and the share of variance explained; NaN where heads do not differ."""
    variation = (step - step.mean(1, keepdim=True)).square().sum(1)
    return row_correlations(step, predicted), 1 - (step - predicted).square().sum(1) / variation


def _share(explained: float) -> str:
    """A share of variance as a text; a prediction may be worse than none."""
    return f"{explained:.0%}" if explained > 0 else "nothing"
