"""The trials of an extrapolation study, each one method at one length, and what of them may be left out."""

from dataclasses import dataclass
from typing import Any

from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.results.verdicts import FEWEST_POINTS


@dataclass(frozen=True)
class Trial:
    """One method at one length.

    Attributes:
        label: What the record calls the method.
        method: The method.
        length: Tokens of the sequences.
    """

    label: str
    method: Method
    length: int

    @property
    def name(self) -> str:
        """What its result is kept under."""
        return f"{self.label} at {self.length}"


@dataclass(frozen=True)
class TrialPlan:
    """Methods, each at every one of some lengths.

    Attributes:
        trials: The trials, method by method.
    """

    trials: tuple[Trial, ...]

    @property
    def names(self) -> list[str]:
        """Name of each trial."""
        return [trial.name for trial in self.trials]

    @property
    def labels(self) -> list[str]:
        """Each method once, in order."""
        return list(dict.fromkeys(trial.label for trial in self.trials))

    @property
    def lengths(self) -> list[int]:
        """Each length once, ascending."""
        return sorted({trial.length for trial in self.trials})

    def as_json(self) -> dict[str, Any]:
        """The plan for a file."""
        return {"trials": self.names}

    def left_out_of(self, asked: "TrialPlan") -> list[str]:
        """What a larger plan has that this one has not, in words."""
        lengths = [str(length) for length in asked.lengths if length not in self.lengths]
        methods = [label for label in asked.labels if label not in self.labels]
        parts = [f"lengths of {' and '.join(lengths)} tokens"] if lengths else []
        return [*parts, f"the methods {', '.join(methods)}"] if methods else parts


def smaller_trial_plans(asked: TrialPlan) -> list[TrialPlan]:
    """A plan, and what is left of it as more and more is left out, but not below the fewest points with a correlation.

    Every method stays at every length that is left, because points that differ in both say little about either. First
    go the longest lengths, which cost the most and may be run on their own later; then methods, the last one first,
    because the first ones are what they are compared with.
    """
    fewest = min(FEWEST_POINTS, len(asked.trials))
    plans = [asked]
    for length in reversed(asked.lengths[1:]):
        shorter = TrialPlan(tuple(trial for trial in plans[-1].trials if trial.length < length))
        plans += [shorter] if len(shorter.trials) >= fewest else []
    for label in reversed(asked.labels[1:]):
        fewer = TrialPlan(tuple(trial for trial in plans[-1].trials if trial.label != label))
        plans += [fewer] if len(fewer.trials) >= fewest else []
    return plans
