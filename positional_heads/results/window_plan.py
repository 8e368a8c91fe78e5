"""Choose the key heads that may see only the first keys and a window, by a measure of a head profile."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import head_values
from positional_heads.core.key_heads import drawn_values, lowest, most_of_readers
from positional_heads.core.number_ranges import number_ranges
from positional_heads.results.edits import under_notes
from positional_heads.results.head_plan import CHANCE, HeadPlan
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.key_cache import KeyCache, key_cache
from positional_heads.results.plan_checks import LONGEST_NAME
from positional_heads.results.text import printable

RESERVED = (CHANCE, "none", "all")
"""Names that no measure of the user's own may have."""
WINDOW, SINKS = 256, 4
"""Where a profile does not say what it was measured with."""
OF_WINDOW = {"reach": ("sinks",), "sink_mass": ("sinks",), "distant_mass": ("window", "sinks")}
"""Measures of a profile that depend on its own window or sinks."""


@checked
def window_plan(
    profile: HeadProfile,
    budget: float = 0.5,
    window: int | None = None,
    sinks: int | None = None,
    by: str | tuple[Any, ...] = "reach",
    *,
    seed: int = 0,
) -> HeadPlan:
    """Choose the key heads that may see only the first `sinks` keys and the last `window` ones.

    What a key head must keep is what the most demanding of its readers needs: of a measure of query heads it has the
    largest value among those that read it. The key heads with the lowest values get windows; equal ones the first by
    layer and number, which the notes say. Left as they are, and not counted by the budget: layers that were not
    profiled, which cannot be given windows, and layers that have a sliding window of their own. A key head without a
    value keeps all keys, and counts. Where layers read the keys of others, a key head is that of the layer which holds
    it, and has the readers of all these layers.

    Args:
        profile: What `profile_heads` returned.
        budget: Share of the key heads to choose from that keep all keys, from 0 to 1, to the nearest whole head. This
            is no share of the cache at any length: `HeadPlan.kept_share` is.
        window: Last keys that the others see, the query's own among them; at least 2. When None, the window that the
            profile was measured with; distant mass depends on it.
        sinks: First keys of the text that they see. When None, those of the profile; reach and distant mass leave them
            out.
        by: A measure of the profile, one of `profile.names`; the same with a minus before it, where heads with high
            values need least, e.g. "-sink_mass"; "chance"; or a measure of your own: its name, and a value for each
            head or key head, layers first, NaN where there is none.
        seed: Seed of "chance".

    Raises:
        ValueError: If the profile has no such measure, no key head can get a window, too few have a value, or a setting
            makes no sense.
        TypeError: If a measure of your own is no name with numbers.
    """
    window, sinks = plan_window(profile, budget, window, sinks)
    in_range("seed", seed, 0)
    name, values = ranking(profile, by, seed)
    cache, among = key_cache(profile), windowable(profile)
    count = windowed_count(among, budget)
    n_valued = int((among & ~values.isnan()).sum())
    if n_valued < count:
        msg = (
            f"budget {budget:g} gives windows to {count} key heads, and only {n_valued} have a value of {name}: give a "
            "larger budget, or another measure"
        )
        raise ValueError(msg)
    windowed = lowest(values, among, count)
    notes = [
        *under_notes(profile.provenance),
        *_layer_notes(profile, cache),
        *_window_notes(profile, name, window, sinks),
    ]
    return HeadPlan(
        windowed=windowed,
        ranked_by=values.masked_fill(~among, torch.nan),
        key_heads=profile.key_heads,
        cache=cache,
        by=name,
        budget=budget,
        window=window,
        sinks=sinks,
        notes=[*notes, *value_notes(name, values, among, windowed)],
        provenance={**profile.provenance, "plan": {"seed": seed}},
    )


def plan_window(profile: HeadProfile, budget: float, window: int | None, sinks: int | None) -> tuple[int, int]:
    """Window and sinks of a plan: those given, else those that the profile was measured with.

    Raises:
        ValueError: If the budget is no share, the window holds no key but the query's own, or sinks are negative.
    """
    if not 0 <= budget <= 1:
        msg = f"budget {budget} must be from 0 to 1: the share of key heads that keep all keys, e.g. 0.5"
        raise ValueError(msg)
    own = profile.provenance.get("settings", {})
    window = int(own.get("window", WINDOW)) if window is None else window
    sinks = int(own.get("sinks", SINKS)) if sinks is None else sinks
    in_range("window", window, 2)
    in_range("sinks", sinks, 0)
    return window, sinks


def ranking(
    profile: HeadProfile, by: str | Sequence[Any], seed: int = 0
) -> tuple[str, Float64[Tensor, "layer kv_head"]]:
    """Name and value of what ranks the key heads, see `window_plan`.

    Raises:
        ValueError: If the profile has no such measure, or the values do not fit the model.
        TypeError: If a measure of the user's own is no name with numbers.
    """
    key_heads, keys_of = profile.key_heads, key_cache(profile).keys_of
    shape = (len(key_heads), int(key_heads.max()) + 1)
    if isinstance(by, str):
        if by == CHANCE:
            return by, drawn_values(shape, f"chance-{seed}")
        sign = -1 if by.startswith("-") else 1
        return by, most_of_readers(sign * profile.values(by.removeprefix("-")), key_heads, keys_of)
    name = own_name(by, (*profile.names, *RESERVED))
    if tuple(getattr(by[1], "shape", ())) == shape:
        return name, head_values(name, by[1], shape)
    return name, most_of_readers(head_values(name, by[1], key_heads.shape), key_heads, keys_of)


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


def windowable(profile: HeadProfile) -> Bool[Tensor, "layer kv_head"]:
    """Key heads that can get a window: of layers without one of their own, all of whose readers were profiled.

    Raises:
        ValueError: If there are none.
    """
    cache, profiled = key_cache(profile), (profile.key_heads >= 0).all(-1)
    reads = cache.keys_of == torch.arange(len(profiled))[:, None]  # [holder reader]
    known = (reads & profiled).any(-1) & ~(reads & ~profiled).any(-1)
    among = cache.holds(int(profile.key_heads.max()) + 1) & (known & (cache.windows == 0))[:, None]
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


def _layer_notes(profile: HeadProfile, cache: KeyCache) -> list[str]:
    """Which layers stay as they are, and what is not known of the cache, in sentences."""
    notes, unprofiled = [], (profile.key_heads < 0).all(-1)
    if unknown := (unprofiled & (cache.keys_of >= 0)).nonzero().flatten().tolist():
        notes.append(f"Layers {number_ranges(unknown)} were not profiled, and stay as they are.")
    if own := cache.windows.nonzero().flatten().tolist():
        notes.append(f"Layers {number_ranges(own)} have a sliding window of their own, and stay as they are.")
    if "cache" not in profile.provenance:
        notes.append(
            "This profile does not say whether layers share keys; if they do (Gemma-3n, Gemma-4), profile the model "
            "again."
        )
    return [*notes, *cache.notes]


def _window_notes(profile: HeadProfile, name: str, window: int, sinks: int) -> list[str]:
    """That the measure is of another window than the plan gives, in a sentence."""
    own, given = profile.provenance.get("settings", {}), {"window": window, "sinks": sinks}
    depends = [one for one in OF_WINDOW.get(name.removeprefix("-"), ()) if own.get(one, given[one]) != given[one]]
    if not depends:
        return []
    measured, planned = (" and ".join(f"{one}={of[one]}" for one in depends) for of in (own, given))
    return [f"{name.removeprefix('-')} was measured with {measured}; this plan has {planned}."]
