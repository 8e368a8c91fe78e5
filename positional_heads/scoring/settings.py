"""What can be chosen about a score, checked at the door."""

from dataclasses import dataclass
from typing import Literal

import torch

from positional_heads.core.arguments import check_fields, check_temperature, in_range
from positional_heads.core.plan import EntryPlan

MOST_GROUPS = 64
FLOAT32_RESOLUTION = 1e-3
"""Finer cells of D are narrower than what float32 rounds: below it D is counted in float64."""
LONGEST = 2**31
"""Tokens of a sequence at most."""
MOST_REPEATS = 100_000
"""Shuffles and resamples at most: far more than any use, and still countable."""


@dataclass(frozen=True)
class ScoringSettings:
    """What can be chosen about a score; kept with the result.

    Attributes:
        temperature: Softmax temperature of the dominant dimension: 1 is the source's literal reading, "attention" takes
            the model's own attention scale (sqrt(d_head) where that is usual).
        skip_keys: Leading keys of each sequence that do not count, e.g. 1 for an attention sink.
        min_distance: Smallest distance that counts, in tokens.
        max_distance: Largest distance that counts, in tokens; None for no limit.
        resolution: Width, in pair indices, of the cells in which two values of D are equal: those nearest to the same
            multiple of it; one over a whole number, or 0 for every float64 distinction. Below 0.001 D is counted in
            float64, which is slower.
        pairs: "all", or how many pairs to sample of the longest sequence (of shorter ones proportionally fewer);
            None for all of them unless they are too many.
        null_repeats: How often positions are shuffled for the null; 0 for no null.
        resamples: How often sequences are resampled for intervals.
        bins: Bins of D per head; rho is within about 1 / bins of the unbinned one.
        divide_attention_factor: Take the factor that YaRN and others put on cos and sin out of contributions before D,
            so that methods compare by what they do to angles; in plain RoPE it is 1.
        seed: Seed of shuffles, samples and resamples.
    """

    temperature: float | Literal["attention"] = 1.0
    skip_keys: int = 0
    min_distance: int = 0
    max_distance: int | None = None
    resolution: float = 1 / 256
    pairs: int | Literal["all"] | None = None
    null_repeats: int = 0
    resamples: int = 1000
    bins: int = 2048
    divide_attention_factor: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        in_range("seed", self.seed, 0)
        in_range("null_repeats", self.null_repeats, 0, MOST_REPEATS)
        in_range("resamples", self.resamples, 0, MOST_REPEATS)
        for name in ("skip_keys", "min_distance", "max_distance"):
            in_range(name, getattr(self, name), 0, LONGEST)
        in_range("bins", self.bins, 1, 2**20)
        check_temperature(self.temperature)
        if not 0 <= self.resolution <= 1:
            msg = f"resolution {self.resolution}: give pair indices from 0 (tells all values apart) to 1, e.g. 1/256"
            raise ValueError(msg)
        cells = 1 / (self.resolution or 1)
        if abs(cells - round(cells)) > 1e-6 * cells:  # the index of a saturated pair must lie in the middle of a cell
            msg = f"resolution {self.resolution}: give one over a whole number, e.g. {1 / round(cells):.6g}, or 0"
            raise ValueError(msg)
        if self.null_repeats < 0 or self.null_repeats == 1:
            msg = f"null_repeats {self.null_repeats}: give 0 for none, or at least 2 to know its spread (20 is usual)"
            raise ValueError(msg)
        if self.resamples < 2:  # noqa: PLR2004
            msg = f"resamples {self.resamples}: an interval needs at least 2, 1000 is usual"
            raise ValueError(msg)
        self.plan((1,), None)  # which refuses distances and numbers of pairs that cannot be

    @property
    def dtype(self) -> torch.dtype:
        """What D is counted in."""
        return torch.float32 if self.resolution >= FLOAT32_RESOLUTION else torch.float64

    def plan(self, lengths: tuple[int, ...], window: int | None) -> EntryPlan:
        """Which pairs of one layer count.

        Args:
            lengths: Real tokens of each sequence.
            window: Of the layer's mask, in tokens; None for none.
        """
        limits = (self.skip_keys, self.min_distance, self.max_distance)
        most = self.pairs if isinstance(self.pairs, int) else None
        return EntryPlan(lengths, window, *limits, min(len(lengths), MOST_GROUPS), most, self.seed)
