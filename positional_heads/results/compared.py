"""What a verdict on two scorings reads of their comparison, so that it need not import the record, which imports it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float64
from torch import Tensor

from positional_heads.core.heads import Head
from positional_heads.core.rank_agreement import RankAgreement, SharedTop
from positional_heads.results.differing import Difference
from positional_heads.results.pair_change import MeanShare, PairChange


@runtime_checkable
class ComparedValue(Protocol):
    """Change of one number of every head, see `Change`."""

    @property
    def value(self) -> Float64[Tensor, "layer head"]:
        """The change."""

    @property
    def variance(self) -> Float64[Tensor, "layer head"]:
        """Its variance; NaN if unknown."""

    def interval(self, level: float = 0.95) -> Float64[Tensor, "layer head 2"]:
        """Its interval."""


@runtime_checkable
class Compared(Protocol):
    """The numbers of a comparison, see `Comparison`."""

    @property
    def names(self) -> tuple[str, str]:
        """What both results are called."""

    @property
    def differing(self) -> Sequence[Difference]:
        """Everything recorded in which the two runs differ."""

    @property
    def agreement(self) -> Mapping[str, RankAgreement]:
        """How far the ranks agree, by measure."""

    @property
    def shared_top(self) -> Mapping[float, SharedTop]:
        """Heads among the top ones of both, by the fraction that counts as top."""

    @property
    def n_scored(self) -> int:
        """Heads with a score in both."""

    @property
    def paired(self) -> bool:
        """Whether both scored the same sequences."""

    @property
    def groups(self) -> tuple[int, int]:
        """Groups of sequences in both."""

    @property
    def rho(self) -> Float64[Tensor, "side layer head"]:
        """Rho in both."""

    @property
    def rho_change(self) -> ComparedValue:
        """Change of rho."""

    @property
    def changed(self) -> Bool[Tensor, "layer head"]:
        """Heads whose rho differs."""

    @property
    def excess_changed(self) -> Bool[Tensor, "layer head"]:
        """Heads whose excess differs."""

    @property
    def beats_null(self) -> Bool[Tensor, "side layer head"] | None:
        """Heads that beat their null in both, if known."""

    @property
    def beats(self) -> Mapping[Head, str]:
        """Where each head beats its null."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Provenance of both, under "a" and "b"."""

    @property
    def stays(self) -> Bool[Tensor, "side layer head"] | None:
        """Heads that stay without the first keys in both, if known."""

    @property
    def remains(self) -> Mapping[Head, str]:
        """Where each head stays."""

    @property
    def control_changed(self) -> Bool[Tensor, "layer head"]:
        """Heads whose excess without the first keys differs."""

    @property
    def curve_distance(self) -> Float64[Tensor, "layer head"] | None:
        """Distance of each head's curves, if known."""

    @property
    def trained_length(self) -> int:
        """Tokens that the first model was trained on."""

    @property
    def pair_shares(self) -> Mapping[str, MeanShare]:
        """Share of the squared change in slow pairs and in those beyond the training length."""

    @property
    def pairs(self) -> PairChange | None:
        """Change of every pair, if known."""
