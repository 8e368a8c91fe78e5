"""The verdict of a manipulation study in words: which pairs of the top heads a task needs, and of which heads."""

from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.effects import INTERACTION
from positional_heads.results.printed_manipulations import ALL_COUNTS, EVERY, RANDOM_HEADS, RANDOM_PAIRS
from positional_heads.results.text import p_text, signed
from positional_heads.results.verdicts import ALPHA, unable_verdict

if TYPE_CHECKING:
    import pandas as pd

DOING = {"freeze": "Freezing", "zero": "Zeroing", "scale": "Scaling the frequencies of"}


def manipulation_verdict(
    task: str,
    measure: str,
    effects: "pd.DataFrame",
    contrasts: "pd.DataFrame",
    *,
    how: str,
    factor: float | None,
    heads: int,
    chance: float | None,
    units: int,
) -> str:
    """What manipulated pairs of the top heads cost, and which cost more than random pairs, or heads.

    A claim takes a p-value of at most 0.05, and an interval below zero where there is one. Each contrast is judged
    alone, and after Holm's correction for all of them.

    Args:
        task: Name of the task.
        measure: The measure that the tables are about.
        effects: `ManipulationStudy.effects`; its first reach is the one that is judged.
        contrasts: `ManipulationStudy.contrasts`.
        how: What was done to the pairs.
        factor: The factor of their frequencies.
        heads: Number of the top heads.
        chance: The measure of a guess, or None if unknown.
        units: Independent units of the judged reach.
    """
    reach = effects["reach"].iloc[0]
    here = effects[effects["reach"] == reach]
    if unable := unable_verdict(task, measure, here, chance, units, intact="as it is", edit="a manipulation"):
        return unable
    over = contrasts[contrasts["pairs"] == ALL_COUNTS]
    rows = [row for _, row in over[over["reach"] == reach].iterrows()]
    (slowest,) = [row for row in rows if (row["kind"], row["against"]) == ("slowest", RANDOM_PAIRS)]
    every = here[here["kind"] == EVERY].iloc[0]
    counts = contrasts["pairs"].drop_duplicates().tolist()[:-1]
    by = "" if factor is None else f" by {factor:g}"
    cost = ", ".join(
        f"{signed(row['effect'])} at {row['reach']} range"
        for _, row in over[(over["kind"] == "slowest") & (over["against"] == RANDOM_PAIRS)].iterrows()
        if row["reach"] != INTERACTION
    )
    mean = f", mean over {', '.join(map(str, counts))} pairs" if len(counts) > 1 else ""
    number = "pair" if counts == [1] else f"{counts[0]} pairs" if len(counts) == 1 else "pairs"
    of_heads = f"each of the top {heads} heads" if heads > 1 else "the top head"
    parts = [
        f"{DOING[how]} the slowest {number} of {of_heads}{by} changes {measure} of {task} by {cost}{mean}; all "
        f"{every['pairs']} of their pairs, by {signed(every['effect'])} at {reach} range."
    ]
    parts += _which_pairs([row for row in rows if row["against"] == RANDOM_PAIRS], reach)
    parts += _which_heads(next(row for row in rows if row["against"] == RANDOM_HEADS))
    parts += _together(rows)
    parts += _by_distance(slowest, over)
    return " ".join(parts)


def harmful(row: Any) -> bool:
    """Whether a contrast is significant alone, and its interval, if there is one, below zero."""
    return bool(row["p_value"] <= ALPHA and (isnan(row["high"]) or row["high"] < 0))


def _which_pairs(rows: Sequence[Any], reach: str) -> list[str]:
    """Which pairs cost more than random pairs of the same heads."""
    draws = int(rows[0]["draws"])
    said = [f"{row['kind']} {_numbers(row)}" for row in rows]
    if 1 / (1 + draws) > ALPHA:
        few = f"{draws} random rankings of the pairs cannot give a p-value of {ALPHA:g}, 20 can (n_random=20)"
        return [f"Undecided whether any cost more than random pairs of the same heads ({'; '.join(said)}): {few}."]
    more = [text for row, text in zip(rows, said, strict=True) if harmful(row)]
    others = [text for row, text in zip(rows, said, strict=True) if not harmful(row)]
    parts = [f"More than random pairs of the same heads, at {reach} range, cost: {'; '.join(more)}."] if more else []
    return parts + ([f"Not shown to cost more than random pairs: {'; '.join(others)}."] if others else [])


def _which_heads(row: Any) -> list[str]:
    """Whether the slowest pairs of the top heads cost more than those of others."""
    others = "the slowest pairs of random heads in the same layers"
    if isnan(row["contrast"]):
        others = "those of the top heads of permuted rankings, which may share some"
    draws = int(row["draws"])
    if 1 / (1 + draws) > ALPHA:
        few = f"{draws} permuted rankings cannot give a p-value of {ALPHA:g}; 20 can, where so many exist"
        return [f"Undecided whether they cost more than {others}, {_numbers(row)}: {few}."]
    if harmful(row):
        return [f"The slowest pairs of these heads cost more than {others}: {_numbers(row)}."]
    return [f"The slowest pairs of these heads are not shown to cost more than {others}: {_numbers(row)}."]


def _together(rows: Sequence[Any]) -> list[str]:
    """Which claims remain after Holm's correction."""
    alone = [row for row in rows if harmful(row)]
    if not alone:
        return []
    together = f"Each was tested alone; together (Holm for {len(rows)} contrasts)"
    draws = max(int(row["draws"]) for row in rows)
    if len(rows) / (1 + draws) > ALPHA:
        return [f"{together}, none can remain with {draws} draws: n_random={round(len(rows) / ALPHA)} is enough."]
    left = [row for row in alone if row["p_holm"] <= ALPHA]
    named = ", ".join(f"{row['kind']} against {row['against']} ({p_text(row['p_holm'])})" for row in left)
    return [f"{together}, {f'there remain: {named}' if left else 'none remains'}."]


def _by_distance(slowest: Any, over: "pd.DataFrame") -> list[str]:
    """Whether slow pairs, rather than random ones, matter more at long range than at short."""
    if not harmful(slowest):
        return []
    rows = over[(over["reach"] == INTERACTION) & (over["kind"] == "slowest") & (over["against"] == slowest["against"])]
    if rows.empty:
        return ["There is no short-range control: whether that depends on distance is open."]
    row = rows.iloc[0]
    if harmful(row):
        return [f"This excess is larger at long range than at short: {_numbers(row)}."]
    return [f"This excess is not shown to be larger at long range than at short: {_numbers(row)}."]


def _numbers(row: Any) -> str:
    """A contrast: difference, interval, p-value."""
    if isnan(row["contrast"]):
        return f"no random heads to compare with; {p_text(row['p_value'])}"
    within = f"95 % interval {signed(row['low'])} to {signed(row['high'])}"
    if isnan(row["low"]):
        within = f"no interval below {FEWEST_UNITS} units"
    return f"{signed(row['contrast'])} ({within}, {p_text(row['p_value'])})"
