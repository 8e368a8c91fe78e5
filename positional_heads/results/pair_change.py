"""Change of every rotary pair from one head profile to another: where among the wavelengths it sits."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from positional_heads.core.rotary import wavelengths
from positional_heads.core.statistics import mean_interval
from positional_heads.results.head_profile import HeadProfile

if TYPE_CHECKING:
    import pandas as pd

ROUNDED = 1e-5
"""Contributions that differ by less than this part of themselves are the same: models compute in float32."""


class MeanShare(NamedTuple):
    """Share of the squared change that some pairs hold, as a mean over the heads that changed.

    Attributes:
        share: Mean share.
        low: Lower end of its 95 % interval over heads; NaN with fewer than four.
        high: Its upper end.
        even: The share if every pair changed as much.
        heads: Number of heads that changed.
    """

    share: float
    low: float
    high: float
    even: float
    heads: int


@dataclass(frozen=True)
class PairChange:
    """How much the mean contribution of every pair changed, over all distances alike.

    A pair is matched by its index, whatever its frequency in either model.

    Attributes:
        squared: Mean over distances of the squared change of the mean contribution; 0 in heads that changed within
            rounding, NaN in layers that one has not profiled and beyond a layer's last pair.
        level: The part of it that is the same at every distance, the square of the mean change.
        frequencies: Frequency of each pair in a and in b, in radians per token.
    """

    squared: Float64[Tensor, "layer head pair"]
    level: Float64[Tensor, "layer head pair"]
    frequencies: Float64[Tensor, "side layer pair"]

    def __repr__(self) -> str:
        layers, heads, pairs = self.squared.shape
        return f"PairChange({layers} layers of {heads} heads, {pairs} pairs, {int(self.changed.sum())} heads changed)"

    @property
    def total(self) -> Float64[Tensor, "layer head"]:
        """Squared change of all pairs together; NaN where it is not known."""
        known = self.squared.isfinite().any(-1)
        return torch.where(known, self.squared.nansum(-1), torch.nan)

    @property
    def changed(self) -> Bool[Tensor, "layer head"]:
        """Heads that changed by more than rounding."""
        return self.total > 0

    @cached_property
    def shares(self) -> Float64[Tensor, "layer head pair"]:
        """Share of each pair in the squared change of its head; NaN in heads that did not change."""
        return self.squared / torch.where(self.changed, self.total, torch.nan)[..., None]

    @cached_property
    def slow(self) -> Bool[Tensor, "layer pair"]:
        """The half of each layer's pairs, rounded down, with the lowest frequencies in a; of equal ones the last."""
        slow = torch.zeros_like(self.frequencies[0], dtype=torch.bool)
        for layer, frequencies in enumerate(self.frequencies[0]):
            pairs = frequencies.isfinite().nonzero()[:, 0].flip(0)
            order = pairs[frequencies[pairs].argsort(stable=True)]
            slow[layer, order[: len(order) // 2]] = True
        return slow

    def beyond(self, length: int) -> Bool[Tensor, "layer pair"]:
        """Pairs whose wavelength in a is longer than so many tokens: they never turn once within them."""
        return wavelengths(self.frequencies[0]) > length

    def held(self, pairs: Bool[Tensor, "layer pair"]) -> Float64[Tensor, "layer head"]:
        """Share of each head's squared change that some pairs hold; NaN in heads that did not change."""
        share = torch.where(pairs[:, None], self.shares, 0.0).nansum(-1)
        return torch.where(self.changed, share, torch.nan)

    def mean_share(self, pairs: Bool[Tensor, "layer pair"]) -> MeanShare:
        """The same as a mean over heads, with an interval as if the heads were independent, and what to expect."""
        known = self.frequencies[0].isfinite()
        even = ((pairs & known).sum(-1) / known.sum(-1))[:, None].expand_as(self.changed)[self.changed]
        held = self.held(pairs)[self.changed]
        low, high = mean_interval(held).clamp(0, 1).tolist()
        return MeanShare(float(held.mean()), low, high, float(even.double().mean()), len(held))

    def to_frame(self) -> "pd.DataFrame":
        """One row per pair, see `Comparison.pair_frame`."""
        import pandas as pd

        shares = self.shares[self.changed]
        known = shares.isfinite()
        low, high = torch.full((2, shares.shape[1]), torch.nan, dtype=torch.float64)
        for pair, heads in enumerate(known.T):
            low[pair], high[pair] = mean_interval(shares[heads, pair]).clamp(0, 1)
        a, b = (_of_every_layer(wavelengths(side)) for side in self.frequencies)
        level = self.level[self.changed] / self.total[self.changed][:, None]
        columns = {"wavelength_a": a, "wavelength_b": b, "share": shares.nanmean(0), "share_low": low}
        columns |= {"share_high": high, "even": (known / known.sum(1, keepdim=True)).sum(0) / known.sum(0)}
        columns |= {"level": level.nanmean(0)}
        frame = pd.DataFrame({"pair": range(shares.shape[1])})
        for name, values in columns.items():
            frame[name] = values.numpy()
        return frame


def pair_change(a: HeadProfile, b: HeadProfile) -> PairChange:
    """Change of the mean contribution of every pair from a to b, at every distance alike.

    Args:
        a: One profile.
        b: Another of one shape and with the same ranges of distances, see `refuse_unlike`.
    """
    before, after = a.pairs.contribution, b.pairs.contribution
    change = after - before
    width = (a.edges[1:] - a.edges[:-1]).double() * change.isfinite()  # distances that a range stands for
    width = width / width.sum(-1, keepdim=True)

    def over_distances(values: Float64[Tensor, "layer head pair range"]) -> Float64[Tensor, "layer head pair"]:
        known = width.isfinite().all(-1)
        return torch.where(known, (values.nan_to_num() * width).sum(-1), torch.nan)

    squared, level = over_distances(change**2), over_distances(change) ** 2
    size = (over_distances(before**2) + over_distances(after**2)).nansum(-1)
    rounded = (squared.nansum(-1) <= ROUNDED**2 * size)[..., None] & squared.isfinite()
    return PairChange(
        squared.masked_fill(rounded, 0.0),
        level.masked_fill(rounded, 0.0),
        torch.stack([a.pairs.frequencies, b.pairs.frequencies]),
    )


def refuse_unlike(a: HeadProfile, b: HeadProfile, names: tuple[str, str]) -> None:
    """Refuse profiles whose pairs or ranges of distances are not the same.

    Raises:
        ValueError: If they are not.
    """
    counts = [one.pairs.frequencies.isfinite().sum(-1) for one in (a, b)]
    both = (counts[0] > 0) & (counts[1] > 0)  # layers that both profiled
    if a.pairs.agreement.shape != b.pairs.agreement.shape or bool((counts[0] != counts[1])[both].any()):
        sizes = [int(count.max()) for count in counts]
        msg = (
            f"{names[0]} has {sizes[0]} rotary pairs in a head and {names[1]} {sizes[1]}, or other ones in some layer: "
            "only heads with as many pairs can be compared pair by pair; their .scores can be compared by head"
        )
        raise ValueError(msg)
    if not torch.equal(a.edges, b.edges):
        reach = [f"{len(one.edges) - 1} ranges up to {int(one.edges[-1])} tokens" for one in (a, b)]
        msg = (
            f"{names[0]} has {reach[0]} and {names[1]} {reach[1]}: profile sequences of one length with the same "
            "ranges, or compare their .scores"
        )
        raise ValueError(msg)


def _of_every_layer(values: Float64[Tensor, "layer pair"]) -> Float64[Tensor, " pair"]:
    """The value that all layers which have one share; NaN where they have several."""
    known = ~values.isnan()  # a wavelength may be infinite, and stays so
    low, high = torch.where(known, values, torch.inf).amin(0), torch.where(known, values, -torch.inf).amax(0)
    return torch.where(low == high, low, torch.nan)
