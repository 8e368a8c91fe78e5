"""The verdict of a head profile in words: names, measures that are nearly the same thing, and what is not known."""

from collections.abc import Collection, Mapping
from itertools import combinations
from math import sqrt
from typing import TYPE_CHECKING, Any

from scipy.stats import norm

from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.edits import measured_under
from positional_heads.results.head_names import MIXED
from positional_heads.results.text import printable, signed
from positional_heads.results.verdicts import ALPHA, FEWEST_FOR_INTERVAL

if TYPE_CHECKING:
    import pandas as pd

SAME = 0.9
"""Rank correlation, of either sign, from which on two measures are called nearly the same thing."""
NAMED_PAIRS = 6
RELATED = 3
"""Measures that are named as related to rho, or to the excess."""


def profile_verdict(
    names: Mapping[str, int],
    correlations: "pd.DataFrame",
    *,
    scores: Collection[str],
    unknown: Collection[str],
    beating: int | None,
    groups: int,
    provenance: Mapping[str, Any],
    staying: tuple[int, int] | None = None,
) -> str:
    """What the heads are, in sentences.

    Args:
        names: How many heads have which name.
        correlations: `HeadProfile.correlations`.
        scores: Measures that are those of the scores.
        unknown: Measures that no head has.
        beating: How many heads beat their null with a positive rho; None without a null.
        groups: Groups of sequences that count as independent.
        provenance: Provenance of the profile.
        staying: How many first keys a control leaves out, and how many of these heads stay then; None without one.
    """
    n_heads = sum(names.values())
    if n_heads == 0:
        return "No head was profiled."
    sentences = [_named(names, n_heads)]
    if beating is not None:
        several = f"{beating} beat their" if beating else "No head beats its"
        stay = ""
        if beating and staying is not None:
            keys, number = staying
            stay = f"; {number} of the {beating} stay{'s' * (number == 1)} when the first {keys} keys are left out"
        sentences.append(f"{'1 beats its' if beating == 1 else several} null with a positive rho{stay}.")
    sentences += _related(correlations, scores, n_heads)
    if under := measured_under(provenance):
        sentences.append(f"All was measured under {under}.")
    sentences += [_basis(provenance, groups), *_missing(provenance, unknown, beating)]
    return " ".join(sentences)


def _named(names: Mapping[str, int], n_heads: int) -> str:
    known = {name: number for name, number in names.items() if name != MIXED.name}
    others = names.get(MIXED.name, 0)
    if not known:
        return f"No rule names any of {n_heads} heads."
    parts = [f"{number} {name}" for name, number in sorted(known.items(), key=lambda one: -one[1])]
    rest = f"; no rule names the other {others}" if others else ""
    return f"Of {n_heads} heads, each by the first rule that holds: {', '.join(parts)}{rest}."


def _related(correlations: "pd.DataFrame", scores: Collection[str], n_heads: int) -> list[str]:
    """Which measures order the heads alike, and what goes with rho and the excess."""
    if n_heads < FEWEST_FOR_INTERVAL:
        return [f"{n_heads} heads are too few for rank correlations of their measures."]
    alike = [(one, other, correlations.loc[one, other]) for one, other in combinations(correlations.columns, 2)]
    alike = sorted((pair for pair in alike if abs(pair[2]) >= SAME), key=lambda pair: -abs(pair[2]))
    shown = ", ".join(f"{one} and {other} {signed(value, 2)}" for one, other, value in alike[:NAMED_PAIRS])
    more = f" and {len(alike) - NAMED_PAIRS} more pairs" if len(alike) > NAMED_PAIRS else ""
    rule = f"rank correlation over heads of {SAME:g} or more, or -{SAME:g} or less"
    found = [
        f"Nearly one thing under two names ({rule}): {shown}{more}."
        if alike
        else f"No two measures are nearly the same thing ({rule})."
    ]
    for name in ("rho", "excess"):
        if name in correlations:
            others = correlations[name].drop([*filter(correlations.columns.__contains__, scores)]).dropna()
            if len(others):
                found.append(_goes_with(name, others, n_heads))
    return found


def _goes_with(name: str, others: "pd.Series[float]", n_heads: int) -> str:
    """What a score goes with most, or that it goes with nothing more than chance gives.

    The level is that of the largest of all correlations (Bonferroni), over heads taken as independent.
    """
    chance = norm.isf(ALPHA / (2 * len(others))) / sqrt(n_heads - 1)
    ordered = others.reindex(others.abs().sort_values(ascending=False, kind="stable").index)
    beyond = ordered[ordered.abs() > chance].head(RELATED)
    by_chance = f"chance alone: up to {min(chance, 1):.2f} over {n_heads} independent heads"
    if not len(beyond):
        return (
            f"{name} goes with none of the {len(others)} other measures: at most {signed(ordered.iloc[0], 2)}, "
            f"{ordered.index[0]} ({by_chance})."
        )
    listed = ", ".join(f"{measure} {signed(value, 2)}" for measure, value in beyond.items())
    return f"{name} goes most with {listed} ({by_chance})."


def _basis(provenance: Mapping[str, Any], groups: int) -> str:
    data = provenance.get("data", {})
    number, longest = data.get("sequences", "?"), data.get("longest", "?")
    intervals = "" if groups >= FEWEST_UNITS else f", too few for intervals, which need {FEWEST_UNITS}"
    intervals += ", too few to rely on intervals" if FEWEST_UNITS <= groups < FEWEST_FOR_INTERVAL else ""
    return (
        f"All of this is about {number} sequence{'s' * (number != 1)} of up to {longest} tokens{intervals}: other text "
        "can change numbers and names."
    )


def _missing(provenance: Mapping[str, Any], unknown: Collection[str], beating: int | None) -> list[str]:
    """What is not known of any head, and how to get it."""
    settings, missing = provenance.get("settings", {}), []
    if beating is None:
        missing.append("No null was counted, so there is no excess: profile again with null_repeats=20.")
    if "distant_mass" in unknown:
        near = int(settings.get("window", 0)) + int(settings.get("sinks", 0))
        missing.append(
            f"No distant mass, and so no head is far or local: no sequence is longer than window and sinks together, "
            f"{near} tokens; profile longer ones, or with a smaller window=."
        )
    asked = provenance.get("retrieval")
    if isinstance(asked, str):
        missing.append(printable(asked, newlines=False))
    elif asked is None:
        missing.append("No retrieval score was asked for (retrieval='passkey' measures one).")
    return missing
