"""Settings of a head profile, checked when the record is made."""

from dataclasses import dataclass

from positional_heads.core.arguments import check_fields, in_range


@dataclass(frozen=True)
class ProfileSettings:
    """Settings of a head profile; kept with the result.

    Attributes:
        window: Distances that count as near, 0 to window - 1; attention beyond is distant.
        sinks: First keys of each sequence that count as sinks, e.g. 4 as in StreamingLLM.
        ranges: Ranges of distance at most, each in proportion to its distance.
        queries: Queries sampled of each sequence, evenly over its second half, for agreement and for the semantic and
            positional score.
        agreement_keys: K of Contextual Agreement, and keys that are moved for the semantic and positional score.
    """

    window: int = 256
    sinks: int = 4
    ranges: int = 24
    queries: int = 4
    agreement_keys: int = 64

    def __post_init__(self) -> None:
        check_fields(self)
        in_range("window", self.window, 1, 2**31)
        in_range("sinks", self.sinks, 0, 2**20)
        in_range("ranges", self.ranges, 1, 2**10)
        in_range("queries", self.queries, 1, 2**20)
        in_range("agreement_keys", self.agreement_keys, 2, 2**20)
