"""The record of a pair plan: which rotary pairs of each key head keep their rotation.

The others are frozen, as in MHA2MLA's partial RoPE (Ji et al., arXiv 2502.14837): they are turned at every position as
at position 0, and their contribution no longer knows distance. Or they are dropped, and contribute nothing. The budget
is a share of the pairs of every key head: each keeps so many, to the nearest whole pair, a half being rounded up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import Head
from positional_heads.core.key_heads import drawn_values
from positional_heads.results.edits import under_notes
from positional_heads.results.files import PAIR_PLAN
from positional_heads.results.head_plan import CHANCE
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.plan_checks import check_key_heads, check_plan, check_shape
from positional_heads.results.record import Record
from positional_heads.results.rotation import profiled_layers, summed_over_readers
from positional_heads.results.text import printable
from positional_heads.results.window_plan import own_name

if TYPE_CHECKING:
    import pandas as pd

How = Literal["freeze", "drop"]
DONE = {"freeze": "frozen", "drop": "dropped"}
MEASURES = ("band_norm", "agreement", "contribution", "center")
POSITIONS = ("high", "low", "uniform")
PAIR_RULES = (*MEASURES, *POSITIONS)
"""What a profile can choose pairs by."""
RESERVED = (*PAIR_RULES, CHANCE, "none", "all")
PairValues = Float64[Tensor, "layer kv_head pair"]


@dataclass(frozen=True, repr=False, eq=False)
class PairPlan(Record):
    """Which rotary pairs of each key head keep their rotation; the others are frozen or dropped.

    Attributes:
        kept: The pairs that keep their rotation; all are in layers that were not profiled, which stay as they are.
        ranked_by: What they were chosen by: the highest keep their rotation. NaN where there is no pair to choose.
        frequencies: Frequency of each pair in radians per token; NaN where there is no pair to choose.
        key_heads: Key head that each query head reads; -1 in layers that were not profiled.
        by: Name of what they were chosen by.
        budget: Share of the pairs of a key head that was to keep its rotation.
        how: What becomes of the others: "freeze" or "drop".
        notes: What the choice could not decide, in sentences.
        provenance: Versions, model, data and settings of the profile, and seed of the plan.
    """

    kept: Bool[Tensor, "layer kv_head pair"]
    ranked_by: PairValues
    frequencies: Float64[Tensor, "layer pair"]
    key_heads: Int[Tensor, "layer head"]
    by: str
    budget: float
    how: str
    notes: list[str]
    provenance: dict[str, Any]

    saved_as = PAIR_PLAN

    def __post_init__(self) -> None:
        """Refuse what is no plan, e.g. in a file that somebody edited."""
        check_plan(self)
        check_key_heads(self.key_heads)
        if self.how not in DONE:
            msg = f"how must be {' or '.join(DONE)}, got {self.how!r:.40}"
            raise ValueError(msg)
        layers, n_pairs = len(self.key_heads), self.frequencies.shape[-1] if self.frequencies.ndim else 0
        shape = layers, int(self.key_heads.max()) + 1, n_pairs
        check_shape("frequencies", self.frequencies, (layers, n_pairs), torch.float64)
        check_shape("kept", self.kept, shape, torch.bool)
        check_shape("ranked_by", self.ranked_by, shape, torch.float64)
        exists = existing_pairs(self.key_heads, self.frequencies)
        absent = self.frequencies.isnan()
        if bool((absent[:, :-1] & ~absent[:, 1:]).any()) or bool(self.frequencies.isinf().any()):
            msg = "frequencies must be finite, or NaN for pairs that a layer does not have, its last ones"
            raise ValueError(msg)
        if not bool(self.kept[~exists].all()) or not bool(self.ranked_by[exists].isfinite().all()):
            msg = "kept must be True where there is no pair to choose, and ranked_by finite where there is one"
            raise ValueError(msg)

    @property
    def extension(self) -> dict[str, Any]:
        """The plan as an extension: `with ph.extended_rope(model, **plan.extension)` is a model that rotates so.

        `extended_rope` refuses a model of another shape, and cannot know another of the same: give it the one that was
        profiled (`model_name`). `pair_study` and the command refuse another.
        """
        return {"method": "kept_pairs", "kept": self.digits, "how": self.how}

    @property
    def digits(self) -> list[list[str]]:
        """For each layer and key head a 1 for every pair that keeps its rotation, a 0 for every other.

        A layer that stays as it is has no key heads here.
        """
        n_pairs = (~self.frequencies.isnan()).sum(-1).tolist()
        return [
            ["".join("01"[int(one)] for one in row[:pairs]) for row in layer[:heads]] if pairs else []
            for layer, heads, pairs in zip(
                self.kept.tolist(), (self.key_heads.amax(-1) + 1).tolist(), n_pairs, strict=True
            )
        ]

    @property
    def counts(self) -> tuple[int, int]:
        """How many pairs keep their rotation, and how many there are to choose from, over all key heads."""
        texts = ["".join(layer) for layer in self.digits]
        return sum(text.count("1") for text in texts), sum(map(len, texts))

    @property
    def description(self) -> str:
        """Model, how many pairs keep their rotation, by what, and what becomes of the others, in one line."""
        kept, n = self.counts
        return f"{printable(self.model_name, newlines=False)}: {self._said(f'{kept} of {n} rotary pairs of key heads')}"

    @property
    def verdict(self) -> str:
        """What the plan is, and that it is no evidence."""
        kept, n = self.counts
        each = sorted({f"{row.count('1')} of {len(row)}" for layer in self.digits for row in layer})
        which = f" ({kept} of {n} in all)" if 0 < kept < n else ""
        said = self._said(f"{' or '.join(each)} pairs of each key head", which)
        return f"{said}. This is a choice, not yet evidence: run pair_study to test what it costs."

    def _said(self, pairs: str, more: str = "") -> str:
        """Which pairs keep their rotation, and what becomes of the others."""
        kept, n = self.counts
        if kept == n:
            return f"all {n} rotary pairs of key heads keep their rotation: this plan changes nothing"
        if not kept:
            return f"no rotary pair keeps its rotation: all {n} of key heads are {DONE[self.how]}"
        return f"{pairs} keep their rotation, {self._chosen} in each{more}; the others are {DONE[self.how]}"

    @property
    def _chosen(self) -> str:
        named = {CHANCE: "drawn at random", "high": "the fastest", "low": "the slowest", "uniform": "evenly spaced"}
        return named.get(self.by, f"those highest by {printable(self.by, newlines=False)}")

    def to_frame(self) -> "pd.DataFrame":
        """One row per key head and pair: who reads it, its wavelength, what it was chosen by, whether it is kept."""
        import pandas as pd

        rows = []
        wavelengths = 2 * torch.pi / self.frequencies
        for layer, heads in enumerate(self.digits):
            for key_head, digits in enumerate(heads):
                read = [
                    str(Head(layer, head)) for head in (self.key_heads[layer] == key_head).nonzero().flatten().tolist()
                ]
                for pair, digit in enumerate(digits):
                    known = {"wavelength": float(wavelengths[layer, pair]), "kept": digit == "1"}
                    value = float(self.ranked_by[layer, key_head, pair])
                    place = {"layer": layer, "key_head": key_head, "readers": " ".join(read), "pair": pair}
                    rows.append({**place, "value": value, **known})
        return pd.DataFrame(rows)

    def _content(self) -> dict[str, Any]:
        names = ("by", "budget", "how", "notes", "provenance")
        return {"verdict": self.verdict, "kept": self.digits, **{name: getattr(self, name) for name in names}}

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "PairPlan":
        names = ("by", "budget", "how", "notes", "provenance")
        return cls(**tensors, **{name: content[name] for name in names})  # type: ignore[arg-type]


@checked
def pair_plan(
    profile: HeadProfile,
    budget: float = 0.5,
    by: str | tuple[Any, ...] = "band_norm",
    how: How = "freeze",
    *,
    seed: int = 0,
) -> PairPlan:
    """Choose the rotary pairs of each key head that keep their rotation; the others are frozen or dropped.

    A key head rotates for all query heads that read it, so a measure of query heads is summed over these. Every key
    head keeps as many pairs, those with the highest values; of equal ones the first. Layers that were not profiled stay
    as they are.

    Args:
        profile: What `profile_heads` returned.
        budget: Share of the pairs that keep their rotation, from 0 to 1, to the nearest whole pair.
        by: What chooses: "band_norm", mean query norm times mean key norm (MHA2MLA's 2-norm); "agreement", FASA's
            Contextual Agreement; "contribution", the mean over query-key pairs of the size of the mean contribution in
            each range of distances; "center", length of the query centre times that of the key centre (TriAttention);
            "high", the fastest pairs, "low", the slowest, and "uniform", evenly spaced ones from the fastest on, as
            MHA2MLA has them; "chance"; or a measure of your own: its name, and a tensor [layer kv_head pair].
        how: "freeze" to turn the others at every position as at position 0; "drop" to leave them out of scores.
        seed: Seed of "chance".

    Raises:
        ValueError: If there is no such measure, it has no value of some pair, or a setting makes no sense.
        TypeError: If a measure of your own is no name with numbers.
    """
    if not 0 <= budget <= 1:
        msg = f"budget {budget} must be from 0 to 1: the share of the pairs that keep their rotation, e.g. 0.5"
        raise ValueError(msg)
    in_range("seed", seed, 0)
    name, values = pair_ranking(profile, by, budget, seed)
    exists = choosable(profile)
    if bool((values.isnan() & exists).any()):
        layer = int((values.isnan() & exists).any(-1).any(-1).nonzero()[0])
        msg = f"{name} has no value of some pairs, the first in layer {layer}: choose by another measure"
        raise ValueError(msg)
    values = values.masked_fill(~exists, -torch.inf)
    order = values.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).expand_as(order))
    counts = kept_counts(exists, budget)
    unknown = (profile.key_heads < 0).all(-1).nonzero().flatten().tolist()
    notes = [f"Layers {', '.join(map(str, unknown))} were not profiled, and stay as they are."] if unknown else []
    return PairPlan(
        kept=(ranks < counts[..., None]) | ~exists,
        ranked_by=values.masked_fill(~exists, torch.nan),
        frequencies=profile.pairs.frequencies,
        key_heads=profile.key_heads,
        by=name,
        budget=budget,
        how=how,
        notes=[*under_notes(profile.provenance), *notes, *_tie_notes(name, values, ranks, counts, exists)],
        provenance={**profile.provenance, "plan": {"seed": seed}},
    )


def choosable(profile: HeadProfile) -> Bool[Tensor, "layer kv_head pair"]:
    """The pairs that a plan can choose from: those of key heads that were profiled.

    Raises:
        ValueError: If there are none.
    """
    profiled_layers(profile)
    exists = existing_pairs(profile.key_heads, profile.pairs.frequencies)
    if not bool(exists.any()):
        msg = "this profile has no rotary pairs to choose from: profile layers that rotate"
        raise ValueError(msg)
    return exists


def existing_pairs(
    key_heads: Int[Tensor, "layer head"], frequencies: Float64[Tensor, "layer pair"]
) -> Bool[Tensor, "layer kv_head pair"]:
    """The pairs of key heads that exist, and were profiled."""
    heads = torch.arange(int(key_heads.max()) + 1)
    return (heads <= key_heads.amax(-1, keepdim=True))[..., None] & ~frequencies.isnan()[:, None]


def kept_counts(exists: Bool[Tensor, "layer kv_head pair"], budget: float) -> Int[Tensor, "layer kv_head"]:
    """How many pairs of each key head keep their rotation: a share of them, to the nearest whole; a half rounds up."""
    return (budget * exists.sum(-1).double() + 0.5 + 1e-9).long()


def pair_ranking(
    profile: HeadProfile, by: str | tuple[Any, ...], budget: float = 0.5, seed: int = 0
) -> tuple[str, PairValues]:
    """Name and value of what ranks the pairs of each key head, see `pair_plan`.

    Raises:
        ValueError: If there is no such measure, or the values do not fit the model.
        TypeError: If a measure of the user's own is no name with numbers.
    """
    exists = choosable(profile)
    if not isinstance(by, str):
        name = own_name(by, RESERVED)
        try:
            values = torch.as_tensor(by[1]).detach().cpu().to(torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            msg = f"the values of {name} are no array of numbers ({error}): give a tensor [layer kv_head pair]"
            raise TypeError(msg) from error
        if values.shape != exists.shape:
            shape = [*exists.shape]
            msg = f"by: the values of {name} must be a tensor [layer kv_head pair] of {shape}, got {[*values.shape]}"
            raise ValueError(msg)
        if bool(values.isinf().any()):
            msg = f"a value of {name} is infinite: give finite ones, which have an order"
            raise ValueError(msg)
        return name, values
    if by == CHANCE:
        layers, heads, pairs = exists.shape
        return by, drawn_values((layers * heads, pairs), f"chance-{seed}").view(exists.shape)
    if by not in PAIR_RULES:
        msg = f"by {by!r} is no way to choose pairs: give one of {', '.join((*PAIR_RULES, CHANCE))}, or your own"
        raise ValueError(msg)
    if by in _SUMMED:
        values = _SUMMED[by](profile)
        unknown = summed_over_readers(profile, values.isnan().double()) > 0  # a sum leaves out what is not known
        return by, summed_over_readers(profile, values).masked_fill(unknown, torch.nan)
    return by, _by_frequency(profile.pairs.frequencies, by, budget)[:, None].expand(exists.shape)


def _by_frequency(frequencies: Float64[Tensor, "layer pair"], by: str, budget: float) -> Float64[Tensor, "layer pair"]:
    """Values that rank pairs by MHA2MLA's rules on frequencies; NaN where there is no pair."""
    order = frequencies.nan_to_num(-torch.inf).argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).expand_as(order)).double()
    values = {"high": -place, "low": place}.get(by, -place)
    if by == "uniform":
        for layer, exists in enumerate(~frequencies.isnan()):
            n = int(exists.sum())
            count = int(budget * n + 0.5 + 1e-9)
            spaced = torch.tensor([number * n // count for number in range(count)], dtype=torch.double)
            values[layer] = torch.isin(place[layer], spaced).double()
    return values.masked_fill(frequencies.isnan(), torch.nan)


def _contribution(profile: HeadProfile) -> Float64[Tensor, "layer head pair"]:
    """Mean size of the mean contribution in each range, over the query-key pairs of all ranges."""
    pairs = profile.pairs
    weights = pairs.counts.double()[:, None, None]
    sizes = torch.where(weights > 0, pairs.contribution.abs(), 0.0)
    return (sizes * weights).sum(-1) / weights.sum(-1)


def _center(profile: HeadProfile) -> Float64[Tensor, "layer head pair"]:
    query, key = (center.square().sum(-1).sqrt() for center in (profile.pairs.query_center, profile.pairs.key_center))
    return query * key


_SUMMED: dict[str, Callable[[HeadProfile], Float64[Tensor, "layer head pair"]]] = {
    "band_norm": lambda profile: profile.pairs.band_norm,
    "agreement": lambda profile: profile.pairs.agreement,
    "contribution": _contribution,
    "center": _center,
}


def _tie_notes(
    name: str,
    values: PairValues,
    ranks: Int[Tensor, "layer kv_head pair"],
    counts: Int[Tensor, "layer kv_head"],
    exists: Bool[Tensor, "layer kv_head pair"],
) -> list[str]:
    """In how many key heads equal values were broken by the order of the pairs, in a sentence."""
    if name in POSITIONS:
        return []
    kept, other = exists & (ranks < counts[..., None]), exists & (ranks >= counts[..., None])
    lowest = values.masked_fill(~kept, torch.inf).amin(-1)
    highest = values.masked_fill(~other, -torch.inf).amax(-1)
    tied = int((lowest == highest).sum())
    return [f"In {tied} key heads pairs share a value of {name}; the first by number were kept."] if tied else []
