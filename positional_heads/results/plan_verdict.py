"""The verdict of a plan study in words: which measure chooses best, and which choose better than chance."""

from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.plan_tables import ALL_BUDGETS
from positional_heads.results.plan_words import PlanWords
from positional_heads.results.text import p_text, printable
from positional_heads.results.verdicts import ALPHA, unable_verdict

if TYPE_CHECKING:
    import pandas as pd


def plan_verdict(
    task: str,
    measure: str,
    effects: "pd.DataFrame",
    contrasts: "pd.DataFrame",
    differences: "pd.DataFrame",
    *,
    chance: float | None,
    units: int,
    words: PlanWords,
) -> str:
    """Which measure chooses the windows, or pairs, that cost a task least, over all budgets of a study.

    A measure chooses better than chance if few random plans cost as little (p of at most 0.05) and the interval of its
    gain over their mean lies above zero; worse if the reverse holds of both.

    Args:
        task: Name of the task.
        measure: The measure of the task that the tables are about.
        effects: `PlanStudy.effects`; its first reach is the one that is judged.
        contrasts: `PlanStudy.contrasts`.
        differences: `PlanStudy.differences` to the measure that costs least at that reach.
        chance: The measure of a guess, or None if unknown.
        units: Independent units of the judged reach.
        words: How the plans are named.
    """
    reach = effects["reach"].iloc[0]
    here = effects[effects["reach"] == reach]
    if unable := unable_verdict(task, measure, here, chance, units):
        return unable
    over = contrasts[(contrasts["budget"] == ALL_BUDGETS) & (contrasts["reach"] == reach)]
    over = over.sort_values("effect", ascending=False, kind="stable")
    best = over.iloc[0]
    by_kind = here[here["kind"].isin(["chance", "all"])].groupby("kind")["effect"].mean()
    budgets = contrasts["budget"].drop_duplicates().tolist()[:-1]
    found = (
        f"{words.best.format(by=_name(best), task=task)} at {reach} range: {measure} "
        f"{best['effect']:+.3f}, mean over {'the budgets' if len(budgets) > 1 else 'the budget'} "
        f"{', '.join(f'{budget:g}' for budget in budgets)}; random plans cost {by_kind['chance']:+.3f}, "
        f"{words.every} {by_kind['all']:+.3f}."
    )
    return " ".join(
        [found, *_against_chance(over, int(best["plans"]), words.alike), *_against_best(best, reach, differences)]
    )


def _against_chance(over: "pd.DataFrame", plans: int, alike: str) -> list[str]:
    """Which measures choose better than chance, as sentences."""
    if 1 / (1 + plans) > ALPHA:
        return [f"Undecided whether that is chance: {plans} random plans cannot give a p-value of {ALPHA:g}, 20 can."]
    rows = [row for _, row in over.iterrows()]
    better = [row for row in rows if row["p_chance"] <= ALPHA and (isnan(row["low"]) or row["low"] > 0)]
    names = {row["by"] for row in better}
    as_bad = 1 + 1 / (1 + plans) - ALPHA - 1e-9  # few random plans cost as much or more
    worse = [row for row in rows if row["p_chance"] >= as_bad and row["high"] < 0]
    open_ = [row for row in rows if row["by"] not in names | {row["by"] for row in worse}]
    parts = [f"Better than random plans of as many {alike}: {_listed(better)}."] if better else []
    if not better:
        parts = ["No measure is shown to choose better than chance."]
    parts += [f"Not shown to be better: {_listed(open_)}."] if open_ else []
    parts += [f"Worse than random plans: {_listed(worse)}."] if worse else []
    if len(rows) > 1:
        parts.append(f"{len(rows)} measures were tried: one in 20 would seem better by chance.")
    return parts


def _against_best(best: Any, reach: str, differences: "pd.DataFrame") -> list[str]:
    """Which measures are not told apart from the one that costs least, as a sentence."""
    rows = differences[(differences["budget"] == ALL_BUDGETS) & (differences["reach"] == reach)]
    if rows.empty:
        return []
    if bool(rows["low"].isna().any()):
        return [f"No intervals below {FEWEST_UNITS} units: which measures differ is open."]
    same = [row for _, row in rows.iterrows() if row["high"] >= 0]
    if not same:
        return [f"Every other measure costs more than {_name(best)}."]
    return [f"Not told apart from {_name(best)}: {_listed(same, p_values=False)}."]


def _listed(rows: Sequence[Any], *, p_values: bool = True) -> str:
    return "; ".join(
        f"{_name(row)} {row['gain']:+.3f} ({_interval(row)}{', ' + p_text(row['p_chance']) if p_values else ''})"
        for row in rows
    )


def _interval(row: Any) -> str:
    if isnan(row["low"]):
        return f"no interval below {FEWEST_UNITS} units"
    return f"95 % interval {row['low']:+.3f} to {row['high']:+.3f}"


def _name(row: Any) -> str:
    return printable(row["by"], newlines=False)
