"""The record of a head plan: which key heads keep all keys, and which see the first keys and a window.

A window of W keys is a query's own key and the W - 1 before it. A key head with S first keys and a window of W has
min(n, S + W) entries in the cache at n tokens, any other min(n, V), where V is its layer's own sliding window. The
budget of a plan is a share of key heads: of those that could get a window, so many keep all keys. What share of the
entries that is depends on the length: `kept` and `kept_share` say it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import Head, head_values
from positional_heads.core.key_heads import drawn_values, lowest, most_of_readers, readers
from positional_heads.results.files import HEAD_PLAN
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.record import Record, json_rows
from positional_heads.results.text import printable

if TYPE_CHECKING:
    import pandas as pd

CHANCE = "chance"
RESERVED = (CHANCE, "none", "all")
"""Names that no measure of the user's own may have."""
LONGEST_NAME = 80


@dataclass(frozen=True, repr=False, eq=False)
class HeadPlan(Record):
    """Which key heads see only the first `sinks` keys and the last `window` ones; the others keep all keys.

    Attributes:
        windowed: The key heads with a window.
        ranked_by: What they were chosen by: the lowest got windows. NaN where it is not defined.
        key_heads: Key head that each query head reads; -1 in layers that were not profiled, which stay as they are.
        own_windows: Sliding window that each layer has itself, in keys; 0 where it has none.
        by: Name of what they were chosen by.
        budget: Share of the key heads to choose from that was to keep all keys.
        window: Last keys that a windowed head sees, the query's own among them.
        sinks: First keys of the text that it sees.
        notes: What the choice could not decide, in sentences.
        provenance: Versions, model, data and settings of the profile, and seed of the plan.
    """

    windowed: Bool[Tensor, "layer kv_head"]
    ranked_by: Float64[Tensor, "layer kv_head"]
    key_heads: Int[Tensor, "layer head"]
    own_windows: Int[Tensor, " layer"]
    by: str
    budget: float
    window: int
    sinks: int
    notes: list[str]
    provenance: dict[str, Any]

    saved_as = HEAD_PLAN

    @property
    def heads(self) -> list[Head]:
        """The query heads that read a windowed key head."""
        return readers(self.windowed, self.key_heads)

    @property
    def full_attention(self) -> Float64[Tensor, "layer kv_head"]:
        """1 for a key head that keeps all keys, 0 for one with a window, as DuoAttention's tables say it."""
        return (~self.windowed).double()

    @property
    def ablation(self) -> dict[str, Any]:
        """The plan as an ablation: `with ph.ablated_heads(model, **plan.ablation)` is a model with these windows."""
        return {"heads": self.heads, "mode": "far", "distance": self.window - 1, "sinks": self.sinks}

    @checked
    def kept(self, length: int) -> int:
        """Entries in the cache after so many tokens, one for each key head and token that is kept.

        Args:
            length: Tokens, at least 1.

        Raises:
            ValueError: If there are none.
        """
        in_range("length", length, 1)
        windowed = torch.full_like(self.windowed, min(length, self.sinks + self.window), dtype=torch.long)
        return int(torch.where(self.windowed, windowed, self._whole(length)).sum())

    @checked
    def kept_share(self, length: int) -> float:
        """The same as a share of the entries without the plan.

        Args:
            length: Tokens, at least 1.

        Raises:
            ValueError: If there are none.
        """
        return self.kept(length) / int(self._whole(length).sum())

    @property
    def description(self) -> str:
        """Model, how many key heads have a window, by what, and what share of the cache is kept, in one line."""
        n, number = self.windowed.numel(), int(self.windowed.sum())
        length = self._length
        return (
            f"{printable(self.model_name, newlines=False)}: {number} of {n} key heads, those lowest by "
            f"{printable(self.by, newlines=False)}, see the first {self.sinks} and the last {self.window} keys; at "
            f"{length} tokens {self.kept_share(length):.0%} of the cache is kept"
        )

    @property
    def verdict(self) -> str:
        """What the plan is, and that it is no evidence."""
        number, n = int(self.windowed.sum()), self.windowed.numel()
        shares = ", ".join(f"{self.kept_share(length):.1%} at {length} tokens" for length in self._lengths)
        values = self.ranked_by[self.windowed]
        bound = f" ({float(values.max()):.4g} or less)" if number and self.by != CHANCE else ""
        chosen = f"those lowest by {self.by}{bound}" if self.by != CHANCE else "drawn at random"
        return (
            f"{number} of {n} key heads, {chosen}, see the first {self.sinks} and the last {self.window} keys; "
            f"{n - number} stay as they are. Entries of the cache that are kept: {shares}. This is a choice, not yet "
            "evidence: run plan_study to test what it costs."
        )

    def to_frame(self) -> "pd.DataFrame":
        """One row per key head: who reads it, what it was chosen by, and whether it has a window."""
        import pandas as pd

        layers, heads = self.windowed.shape
        places = [(layer, head) for layer in range(layers) for head in range(heads)]
        by_key_head: dict[tuple[int, int], list[str]] = {}
        for layer, row in enumerate(self.key_heads.tolist()):
            for head, key_head in enumerate(row):
                by_key_head.setdefault((layer, key_head), []).append(str(Head(layer, head)))
        frame = pd.DataFrame(places, columns=["layer", "key_head"])
        frame["readers"] = [" ".join(by_key_head.get(place, [])) for place in places]
        frame["value"] = self.ranked_by.flatten().numpy()
        frame["windowed"] = self.windowed.flatten().numpy()
        frame["own_window"] = self.own_windows.repeat_interleave(heads).numpy()
        return frame

    def _whole(self, length: int) -> Int[Tensor, "layer kv_head"]:
        """Entries of each key head without the plan."""
        own = torch.where(self.own_windows > 0, self.own_windows.clamp(max=length), length)
        return own[:, None].expand(self.windowed.shape)

    @property
    def _length(self) -> int:
        """A length to speak of: the model's context."""
        return int(self.provenance.get("model", {}).get("context") or 4096)

    @property
    def _lengths(self) -> list[int]:
        return sorted({max(1, self._length // 4), max(1, self._length // 2), self._length})

    def _content(self) -> dict[str, Any]:
        names = ("by", "budget", "window", "sinks", "notes", "provenance")
        return {
            "verdict": self.verdict,
            "table": json_rows(self.to_frame()),
            "kept": {str(length): self.kept(length) for length in self._lengths},
            **{name: getattr(self, name) for name in names},
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "HeadPlan":
        names = ("by", "budget", "window", "sinks", "notes", "provenance")
        return cls(**tensors, **{name: content[name] for name in names})  # type: ignore[arg-type]


@checked
def window_plan(
    profile: HeadProfile,
    budget: float = 0.5,
    window: int = 256,
    sinks: int = 4,
    by: str | tuple[Any, ...] = "reach",
    *,
    seed: int = 0,
) -> HeadPlan:
    """Choose the key heads that may see only the first `sinks` keys and the last `window` ones.

    What a key head must keep is what the most demanding of its readers needs: of a measure of query heads it has the
    largest value among those that read it. The key heads with the lowest values get windows; equal ones the first by
    layer and number, which the notes say. Left as they are, and not counted by the budget: layers that were not
    profiled, which cannot be given windows, and layers that have a sliding window of their own. A key head without a
    value keeps all keys, and counts.

    Args:
        profile: What `profile_heads` returned.
        budget: Share of the key heads to choose from that keep all keys, from 0 to 1, to the nearest whole head. This
            is no share of the cache at any length: `HeadPlan.kept_share` is.
        window: Last keys that the others see, the query's own among them; at least 2.
        sinks: First keys of the text that they see.
        by: A measure of the profile, one of `profile.names`; the same with a minus before it, where heads with high
            values need least, e.g. "-sink_mass"; "chance"; or a measure of your own: its name, and a value for each
            head or key head, layers first, NaN where there is none.
        seed: Seed of "chance".

    Raises:
        ValueError: If the profile has no such measure, no key head can get a window, too few have a value, or a setting
            makes no sense.
        TypeError: If a measure of your own is no name with numbers.
    """
    check_window(budget, window, sinks)
    in_range("seed", seed, 0)
    name, values = ranking(profile, by, seed)
    own_windows, among = layer_windows(profile), windowable(profile)
    count = windowed_count(among, budget)
    notes = _notes(profile, own_windows)
    n_valued = int((among & ~values.isnan()).sum())
    if n_valued < count:
        msg = (
            f"budget {budget:g} gives windows to {count} key heads, and only {n_valued} have a value of {name}: give a "
            "larger budget, or another measure"
        )
        raise ValueError(msg)
    windowed = lowest(values, among, count)
    return HeadPlan(
        windowed=windowed,
        ranked_by=values.masked_fill(~among, torch.nan),
        key_heads=profile.key_heads,
        own_windows=own_windows,
        by=name,
        budget=budget,
        window=window,
        sinks=sinks,
        notes=[*notes, *value_notes(name, values, among, windowed)],
        provenance={**profile.provenance, "plan": {"seed": seed}},
    )


def check_window(budget: float, window: int, sinks: int) -> None:
    """Refuse settings of a plan that make no sense.

    Raises:
        ValueError: If the budget is no share, the window holds no key but the query's own, or sinks are negative.
    """
    if not 0 <= budget <= 1:
        msg = f"budget {budget} must be from 0 to 1: the share of key heads that keep all keys, e.g. 0.5"
        raise ValueError(msg)
    in_range("window", window, 2)
    in_range("sinks", sinks, 0)


def ranking(
    profile: HeadProfile, by: str | Sequence[Any], seed: int = 0
) -> tuple[str, Float64[Tensor, "layer kv_head"]]:
    """Name and value of what ranks the key heads, see `window_plan`.

    Raises:
        ValueError: If the profile has no such measure, or the values do not fit the model.
        TypeError: If a measure of the user's own is no name with numbers.
    """
    key_heads = profile.key_heads
    shape = (len(key_heads), int(key_heads.max()) + 1)
    if isinstance(by, str):
        if by == CHANCE:
            return by, drawn_values(shape, f"chance-{seed}")
        sign = -1 if by.startswith("-") else 1
        return by, most_of_readers(sign * profile.values(by.removeprefix("-")), key_heads)
    name = own_name(by, (*profile.names, *RESERVED))
    if tuple(getattr(by[1], "shape", ())) == shape:
        return name, head_values(name, by[1], shape)
    return name, most_of_readers(head_values(name, by[1], key_heads.shape), key_heads)


def own_name(by: Sequence[Any], taken: Sequence[str]) -> str:
    """Name of a measure of the user's own, given as a name and values.

    Raises:
        ValueError: If it is the name of one of ours, too long, or not printable.
        TypeError: If there is no name, or not just values besides it.
    """
    if len(by) != 2 or not isinstance(by[0], str) or not by[0].strip():  # noqa: PLR2004
        msg = 'by is a tuple, but not of a name and values: give ("name", values), values a tensor'
        raise TypeError(msg)
    name = by[0].strip()
    if name.removeprefix("-") in taken or len(name) > LONGEST_NAME:
        msg = f"by: {name[:LONGEST_NAME]!r} is a name of ours, or too long: name your measure otherwise"
        raise ValueError(msg)
    if printable(name, newlines=False) != name:
        msg = f"by: {printable(name, newlines=False)!r} holds characters that cannot be printed: name it otherwise"
        raise ValueError(msg)
    return name


def layer_windows(profile: HeadProfile) -> Int[Tensor, " layer"]:
    """Sliding window that each layer has itself, as far as the profiled text is long enough to show it; 0 for none."""
    found = torch.zeros(len(profile.key_heads), dtype=torch.long)
    for layer in profile.provenance.get("rotary") or profile.scores.provenance.get("rotary") or []:
        found[layer["layer"]] = layer.get("window") or 0
    return found


def windowable(profile: HeadProfile) -> Bool[Tensor, "layer kv_head"]:
    """Key heads that can get a window: of profiled layers that have none.

    Raises:
        ValueError: If there are none.
    """
    among = most_of_readers(torch.zeros(profile.key_heads.shape, dtype=torch.float64), profile.key_heads).isfinite()
    among &= (layer_windows(profile) == 0)[:, None]
    if not bool(among.any()):
        msg = "no key head can get a window: every layer has a sliding window of its own, or was not profiled"
        raise ValueError(msg)
    return among


def windowed_count(among: Bool[Tensor, "layer kv_head"], budget: float) -> int:
    """How many of these key heads get a window, so that a share of them keeps all keys; a half is rounded to more."""
    n = int(among.sum())
    return n - int(budget * n + 0.5 + 1e-9)


def value_notes(
    name: str,
    values: Float64[Tensor, "layer kv_head"],
    among: Bool[Tensor, "layer kv_head"],
    windowed: Bool[Tensor, "layer kv_head"],
) -> list[str]:
    """What the values left to the order of the heads, or did not say, in sentences.

    Args:
        name: The measure.
        values: Its values.
        among: Key heads that were chosen from.
        windowed: Those that got windows.
    """
    notes, missing = [], int((among & values.isnan()).sum())
    if missing:
        notes.append(f"{missing} key heads have no value of {name}, and keep all keys.")
    if bool(windowed.any()):
        edge = values[windowed].max()
        same = among & (values == edge)
        inside = int((same & windowed).sum())
        if inside < int(same.sum()):
            notes.append(
                f"{int(same.sum())} key heads share the value {float(edge):g} of {name}; {inside} of them get a "
                "window, the first by layer and number, for no other reason."
            )
    return notes


def _notes(profile: HeadProfile, own_windows: Int[Tensor, " layer"]) -> list[str]:
    """Which layers stay as they are, in sentences."""
    notes, unknown = [], (profile.key_heads < 0).all(-1).nonzero().flatten().tolist()
    if unknown:
        notes.append(f"Layers {', '.join(map(str, unknown))} were not profiled, and stay as they are.")
    if own := own_windows.nonzero().flatten().tolist():
        notes.append(f"Layers {', '.join(map(str, own))} have a sliding window of their own, and stay as they are.")
    return notes
