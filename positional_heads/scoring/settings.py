"""Settings of a score: one record, checked when it is created, and the same fields as keywords."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import torch

from positional_heads.core.arguments import Temperature, check_fields, check_settings, check_temperature, in_range
from positional_heads.core.plan import MOST_EXACT, SAMPLED, EntryPlan
from positional_heads.core.shuffles import ShufflePlan

MOST_GROUPS = 64
FLOAT32_RESOLUTION = 1e-3
"""Finer resolutions are below the rounding of float32, so D is counted in float64."""
LONGEST = 2**31
"""Tokens of a sequence at most."""
FEW_TOKENS, ENTRIES_PER_TOKEN = 128, 32
"""Length up to which every entry of a shuffle counts, and entries per token sampled of longer sequences."""
MOST_REPEATS = 100_000
"""Shuffles and resamples at most."""


class ScoringOptions(TypedDict, total=False):
    """The fields of `ScoringSettings`, as keywords of `score_heads` and `score_shard`."""

    temperature: Temperature
    skip_keys: int
    control_keys: int
    min_distance: int
    max_distance: int | None
    resolution: float
    pairs: int | Literal["all"] | None
    null_repeats: int
    null_pairs: int | Literal["all"] | None
    resamples: int
    bins: int
    divide_attention_factor: bool
    seed: int


@dataclass(frozen=True)
class ScoringSettings:
    """Settings of a score; kept with the result.

    Attributes:
        temperature: Softmax temperature of the dominant dimension. 1 is the literal reading of the source; "attention"
            takes the model's attention scale (sqrt(d_head) in most models).
        skip_keys: Ignore the first keys of each sequence, e.g. 1 for an attention sink.
        control_keys: Score every head a second time in the same pass over the model, without so many first keys of each
            sequence, e.g. 64: leading positions differ in content even in an untrained model. The second score is
            `HeadScores.control`. 0 for none.
        min_distance: Smallest distance that counts, in tokens.
        max_distance: Largest distance that counts, in tokens; None for no limit.
        resolution: Values of D that round to the same multiple of this are ties, in pair indices. One over a whole
            number, or 0 to tie equal float64 values only. Below 0.001 D is counted in float64, which is slower.
        pairs: "all", or how many query-key pairs to sample of the longest sequence (of shorter ones proportionally
            fewer), stratified by distance; `HeadScores.sampling_sd` is the error that this adds. When None, all in
            sequences of up to 8192 tokens, 2^20 in longer ones.
        null_repeats: Shuffles of positions for the null; 0 for no null.
        null_pairs: "all", or how many query-key pairs to sample in each shuffle of the longest sequence (of shorter
            ones proportionally fewer); `NullScores.sampling_sd` is the error that this adds. When None, all in
            sequences of up to 128 tokens, 32 per token in longer ones.
        resamples: Bootstrap resamples of the sequences, for intervals.
        bins: Bins of D per head; binning changes rho by about 1 / bins.
        divide_attention_factor: Divide contributions by the squared factor that YaRN and LongRoPE put on cos and sin,
            before D is computed from them: D then depends on the angles alone, and methods can be compared. Plain RoPE
            has a factor of 1.
        seed: Seed of shuffles, samples and resamples.
    """

    temperature: Temperature = 1.0
    skip_keys: int = 0
    control_keys: int = 0
    min_distance: int = 0
    max_distance: int | None = None
    resolution: float = 1 / 256
    pairs: int | Literal["all"] | None = None
    null_repeats: int = 0
    null_pairs: int | Literal["all"] | None = None
    resamples: int = 1000
    bins: int = 2048
    divide_attention_factor: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        in_range("seed", self.seed, 0)
        in_range("null_repeats", self.null_repeats, 0, MOST_REPEATS)
        in_range("resamples", self.resamples, 0, MOST_REPEATS)
        for name in ("skip_keys", "control_keys", "min_distance", "max_distance"):
            in_range(name, getattr(self, name), 0, LONGEST)
        if 0 < self.control_keys <= self.skip_keys:
            msg = (
                f"control_keys {self.control_keys} must be more than skip_keys {self.skip_keys}: the control leaves "
                "out more of the first keys than the score, 64 is usual; 0 for no control"
            )
            raise ValueError(msg)
        in_range("bins", self.bins, 1, 2**20)
        check_temperature(self.temperature)
        if not 0 <= self.resolution <= 1:
            msg = f"resolution {self.resolution}: give pair indices from 0 (only equal values tie) to 1, e.g. 1/256"
            raise ValueError(msg)
        # D saturates at whole indices: they must be multiples of the resolution, or rounding would split them
        cells = 1 / (self.resolution or 1)
        if abs(cells - round(cells)) > 1e-6 * cells:
            msg = f"resolution {self.resolution}: give one over a whole number, e.g. {1 / round(cells):.6g}, or 0"
            raise ValueError(msg)
        if self.null_repeats == 1:
            msg = "null_repeats 1: give 0 for none, or at least 2 to know its spread (20 is usual)"
            raise ValueError(msg)
        if self.resamples < 2:  # noqa: PLR2004
            msg = f"resamples {self.resamples}: an interval needs at least 2, 1000 is usual"
            raise ValueError(msg)
        plan = self.plan((1,), None)  # refuses distances and numbers of entries that make no sense
        self.shuffle_plan(plan)

    def by_length(self, longest: int) -> "ScoringSettings":
        """The same with `pairs` chosen, where it is not, by the tokens of the longest sequence."""
        few = longest * (longest + 1) // 2 <= MOST_EXACT
        return replace(self, pairs="all" if few else SAMPLED) if self.pairs is None else self

    @property
    def control(self) -> "ScoringSettings | None":
        """Settings of the control, as if it were scored alone; None without one."""
        return replace(self, skip_keys=self.control_keys, control_keys=0) if self.control_keys else None

    @property
    def scored(self) -> list["ScoringSettings"]:
        """These settings, and those of the control if there is one."""
        return [self] if self.control is None else [self, self.control]

    def refuse_short(self, longest: int) -> None:
        """Refuse sequences that are too short for the control.

        Args:
            longest: Tokens of the longest.

        Raises:
            ValueError: If the control has no two distances to correlate anything with.
        """
        if self.control is None or _distances(self.control, longest) >= 2:  # noqa: PLR2004
            return
        msg = (
            f"control_keys {self.control_keys} leaves fewer than two distances in sequences of at most {longest} "
            "tokens, so no head has a control score: give longer sequences, fewer control_keys, or 0 for no control"
        )
        raise ValueError(msg)

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which D is computed."""
        return torch.float32 if self.resolution >= FLOAT32_RESOLUTION else torch.float64

    def plan(self, lengths: tuple[int, ...], window: int | None) -> EntryPlan:
        """The entries of one layer that count.

        Args:
            lengths: Real tokens of each sequence.
            window: Sliding window of the layer's mask, in tokens; None for none.
        """
        limits = (self.skip_keys, self.min_distance, self.max_distance)
        most = self.pairs if isinstance(self.pairs, int) else None
        return EntryPlan(lengths, window, *limits, min(len(lengths), MOST_GROUPS), most, self.seed)

    def shuffle_plan(self, plan: EntryPlan) -> ShufflePlan:
        """The entries of each shuffle that count.

        Args:
            plan: Those at their own positions, in the same layer.
        """
        most = self.null_pairs if isinstance(self.null_pairs, int) else None
        if self.null_pairs is None and plan.distances > FEW_TOKENS:
            most = ENTRIES_PER_TOKEN * plan.distances
        return ShufflePlan(replace(plan, n_groups=1, most_entries=None), self.null_repeats, most)


def _distances(settings: ScoringSettings, length: int) -> int:
    """How many distances count in a sequence of this length."""
    return int((settings.plan((length,), None).all_entry_counts > 0).sum())


def updated_settings(
    owner: str, settings: ScoringSettings | None, options: Mapping[str, Any], parameters: Sequence[str]
) -> ScoringSettings:
    """The settings with some of them changed by keyword.

    Args:
        owner: Name of the function that takes the keywords, for the message.
        settings: Settings to start from; the defaults when None.
        options: Keywords.
        parameters: Names of the function's other keywords, for the message.

    Raises:
        TypeError: If there is no such setting, or one is of another kind.
        ValueError: If a value makes no sense.
    """
    check_settings(owner, options, [*parameters, *ScoringOptions.__annotations__])
    return replace(settings or ScoringSettings(), **options)
