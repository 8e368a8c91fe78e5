"""The verdict of a plan study in words: which measure chooses best, and which choose better than chance."""

from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

from positional_heads.core.statistics import FEWEST_UNITS, holm
from positional_heads.results.plan_words import ALL_BUDGETS, PlanWords
from positional_heads.results.text import p_text, printable, signed
from positional_heads.results.verdicts import ALPHA, unable_verdict

if TYPE_CHECKING:
    import pandas as pd

EQUAL = 1e-12
"""Effects as close as this differ by rounding only."""


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
    planned: str,
    same_question: str | None,
) -> str:
    """Which measure chooses the windows, or pairs, that cost a task least, over all budgets of a study.

    A measure chooses better than chance if few random plans cost as little (p of at most 0.05) and the interval of its
    gain over their mean lies above zero; worse if the reverse holds of both. Without an interval, both are open.

    Args:
        task: Name of the task.
        measure: The measure of the task that the tables are about.
        effects: `PlanStudy.effects`; its first reach is the one that is judged.
        contrasts: `PlanStudy.contrasts`.
        differences: `PlanStudy.differences` to the measure that costs least at that reach.
        chance: The measure of a guess, or None if unknown.
        units: Independent units of the judged reach.
        words: How the plans are named.
        planned: What the plans do.
        same_question: The task that the retrieval score was measured on, if it is one of the measures and this task
            asks such questions, too; None otherwise.
    """
    reach = effects["reach"].iloc[0]
    here = effects[effects["reach"] == reach]
    in_words = {"intact": f"without {planned}", "edit": "a plan"}
    if unable := unable_verdict(task, measure, here, chance, units, **in_words):
        return unable
    over = contrasts[(contrasts["budget"] == ALL_BUDGETS) & (contrasts["reach"] == reach)]
    over = over.sort_values("effect", ascending=False, kind="stable")
    best, tied = over.iloc[0], cheapest(contrasts, reach, ALL_BUDGETS)
    by_kind = here[here["kind"].isin(["chance", "all"])].groupby("kind")["effect"].mean()
    budgets = contrasts["budget"].drop_duplicates().tolist()[:-1]
    found = (
        f"{words.best.format(by=_names(tied), task=task)} at {reach} range: {measure} "
        f"{signed(best['effect'])}, mean over {'the budgets' if len(budgets) > 1 else 'the budget'} "
        f"{', '.join(f'{budget:g}' for budget in budgets)}; random plans cost {signed(by_kind['chance'])}, "
        f"{words.every} {signed(by_kind['all'])}."
    )
    if len(tied) > 1:
        found += f" {_names(tied)} cost the same: which comes first is the order in which they were given."
    if len(budgets) > 1:
        found += f" {_at_each(budgets, contrasts, reach)}"
    seen = []
    if same_question is not None:
        seen = [
            f"The profile measured retrieval on {printable(same_question, newlines=False)}, the same kind of question "
            "as this task asks: another task tests that measure better."
        ]
    return " ".join(
        [
            found,
            *_against_chance(over, int(best["plans"]), words.alike),
            *_against_best(best, reach, differences[~differences["by"].isin(tied)]),
            *seen,
        ]
    )


def cheapest(contrasts: "pd.DataFrame", reach: str, budget: object) -> list[str]:
    """The measures whose plans cost least at a budget, or over all: several if they cost the same, as given.

    Args:
        contrasts: `PlanStudy.contrasts`.
        reach: The range to look at.
        budget: One of its budgets, or "all".
    """
    rows = contrasts[(contrasts["budget"] == budget) & (contrasts["reach"] == reach)]
    return list(rows[rows["effect"] >= rows["effect"].max() - EQUAL]["by"])


def _at_each(budgets: Sequence[float], contrasts: "pd.DataFrame", reach: str) -> str:
    """What costs least at each budget, as a sentence."""
    here = contrasts[contrasts["reach"] == reach].groupby("budget", sort=False)["effect"].max()
    least = (f"{_names(cheapest(contrasts, reach, one))} {signed(here[one])} at {one:g}" for one in budgets)
    return f"Cheapest at each budget: {', '.join(least)}."


def _against_chance(over: "pd.DataFrame", plans: int, alike: str) -> list[str]:
    """Which measures choose better than chance, as sentences."""
    if 1 / (1 + plans) >= ALPHA:
        enough = round(1 / ALPHA)
        few = f"{plans} random plans cannot give a p-value below {ALPHA:g}, {enough} can"
        return [f"Undecided whether that is chance: {few}."]
    rows = [row for _, row in over.iterrows()]
    if bool(over["low"].isna().any()):
        return [f"Open which measures choose better than chance, as that takes an interval above 0: {_listed(rows)}."]
    better = [row for row in rows if row["p_chance"] <= ALPHA and row["low"] > 0]
    names = {row["by"] for row in better}
    as_bad = 1 + 1 / (1 + plans) - ALPHA - 1e-9  # few random plans cost as much or more
    worse = [row for row in rows if row["p_chance"] >= as_bad and row["high"] < 0]
    open_ = [row for row in rows if row["by"] not in names | {row["by"] for row in worse}]
    if not better:
        parts = ["No measure is shown to choose better than chance."]
    elif len(rows) == 1:
        parts = [f"Better than random plans of as many {alike}: {_listed(better)}."]
    else:
        parts = [f"Better than random plans of as many {alike}, each tested alone: {_listed(better)}."]
        parts.append(_after_holm(rows, better, plans))
    parts += [f"Not shown to be better: {_listed(open_)}."] if open_ else []
    parts += [f"Worse than random plans: {_listed(worse)}."] if worse else []
    return parts


def _after_holm(rows: Sequence[Any], better: Sequence[Any], plans: int) -> str:
    """Which measures are better than chance after Holm's correction for all that were tried, as a sentence."""
    tried = len(rows)
    together = f"Tested together (Holm for {tried} measures)"
    if tried / (1 + plans) >= ALPHA:
        return f"{together}, none can remain with {plans} random plans: {round(tried / ALPHA)} are needed."
    corrected = dict(zip([row["by"] for row in rows], holm([row["p_chance"] for row in rows]), strict=True))
    left = [row for row in better if corrected[row["by"]] <= ALPHA]
    listed = ", ".join(f"{_name(row)} ({p_text(corrected[row['by']])})" for row in left)
    remain = f"{len(left)} remain{'s' if len(left) == 1 else ''}: {listed}" if left else "none remains"
    return f"{together}, {remain}."


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
        f"{_name(row)} {signed(row['gain'])} ({_interval(row)}{', ' + p_text(row['p_chance']) if p_values else ''})"
        for row in rows
    )


def _interval(row: Any) -> str:
    if isnan(row["low"]):
        return f"no interval below {FEWEST_UNITS} units"
    return f"95 % interval {signed(row['low'])} to {signed(row['high'])}"


def _names(names: Sequence[str]) -> str:
    return " and ".join(printable(name, newlines=False) for name in names)


def _name(row: Any) -> str:
    return printable(row["by"], newlines=False)
