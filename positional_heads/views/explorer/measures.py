"""The measures of every head that an explorer colours, sorts and filters by: of scores, profiles, studies, comparisons.

Values, intervals and judgements are those of the results; nothing is computed anew.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.distance_tables import DISTANCE_MEANINGS
from positional_heads.results.head_profile import SCORE_MEASURES, HeadProfile
from positional_heads.results.profile_tables import SHOWN_AS, UNITS
from positional_heads.results.scores import HeadScores
from positional_heads.results.tables import FILE_MEANINGS, MEANINGS, title
from positional_heads.views.explorer.numbers import flags, number, numbers
from positional_heads.views.explorer.runs import Run

Scale = Literal["diverging", "sequential", "flag"]
Measure = dict[str, Any]
SIGNED = {"rho", "rho_curve", "excess", "null_mean", "z", "semantic"}
"""Measures whose sign means something: their colours are symmetric about 0."""
LOWER = ("p_value", "q_value", "_q")
"""Ends of the names of measures of which a small value is the notable one."""
OWN_MEANINGS = {
    "excess": (
        "how much higher the head's rho is than the mean rho of the same queries and keys in shuffled positions, "
        "below 0 if it is lower"
    ),
    "z": (
        "the excess in standard deviations of rho over the shuffles; it knows nothing of the spread over sequences, so "
        "judge heads by q"
    ),
}
"""Meanings in the words of the page, where those of tables speak of columns."""
PURE = {"-1 to 1", "0 to 1", "rho minus null", "correlation"}
"""Units that are none: a range, or how a number is made."""


def measure(
    run: Run,
    name: str,
    values: Tensor,
    meaning: str,
    *,
    titled: str | None = None,
    unit: str = "",
    scale: Scale | None = None,
    interval: Tensor | None = None,
) -> Measure:
    """One measure of every head, with the range of its colours.

    Args:
        run: The run that it is of.
        name: Its name, unlike those of the run's other measures.
        values: One number of each head, by layer and head.
        meaning: What it is, without a full stop.
        titled: Its title; that of the name when None.
        unit: Its unit, empty for a pure number.
        scale: How its colours go; by the name when None.
        interval: Its 95 % interval; left out where it is unknown for all heads.
    """
    scale = scale or ("diverging" if name in SIGNED else "sequential")
    low, high = _range(values.double().numpy(), scale)
    known = interval is not None and not bool(interval.isnan().all())
    ends = (
        {}
        if interval is None
        else {end: numbers(interval[..., at].flatten()) for at, end in enumerate(("low", "high"))}
    )
    return {
        "id": f"{run.id}/{name}",
        "run": run.id,
        "name": name,
        "title": title(name) if titled is None else titled,
        "unit": unit,
        "meaning": sentence(meaning),
        "scale": scale,
        "lower": name.endswith(LOWER) or name.startswith("effect_"),  # harm is negative
        "low": number(low),
        "high": number(high),
        "values": numbers(values.flatten()),
        "intervals": ends if known else None,
    }


def sentence(text: str) -> str:
    """A meaning as a sentence of its own."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def score_measures(run: Run, scores: HeadScores) -> Iterator[Measure]:
    """The measures of scores: rho, and with a null what it says; those that the scores themselves have."""
    known = ~scores.rho.isnan()
    yield measure(run, "rho", scores.rho, MEANINGS["rho"], interval=scores.interval())
    yield measure(run, "rho_curve", scores.rho_curve, MEANINGS["rho_curve"])
    if scores.null is not None:
        yield measure(run, "excess", scores.excess, OWN_MEANINGS["excess"])
        yield measure(run, "null_mean", scores.null.mean, MEANINGS["null_mean"])
        yield measure(run, "z", scores.z, OWN_MEANINGS["z"])
        yield measure(run, "p_value", scores.p_values, FILE_MEANINGS["p_value"])
        yield measure(run, "q_value", scores.q_values, MEANINGS["q_value"])
    if scores.saturation is not None:
        yield measure(run, "saturation", scores.saturation, MEANINGS["saturation"], unit="share of query-key pairs")
    if scores.null is not None:
        beats = "1 if the head beats its null (q <= 0.05 and rho > 0), else 0"
        yield _flag(run, "beats_null", "beats its null", scores.beats_null(), known, beats)
        if scores.control is not None and scores.control.null is not None:
            stays = (
                f"1 if the head beats its null and does so without the first {scores.control_keys} keys as well, else 0"
            )
            yield _flag(run, "stays", "stays", scores.stays(), known, stays)


def profile_measures(run: Run, profile: HeadProfile) -> Iterator[Measure]:
    """The measures of a head profile but for those of its scores."""
    for name in profile.names:
        if name not in SCORE_MEASURES:
            column = SHOWN_AS.get(name, name)
            unit = "" if UNITS.get(name, "") in PURE else UNITS.get(name, "")
            yield measure(
                run,
                name,
                profile.values(name),
                MEANINGS.get(column, title(column)),
                titled=title(column),
                unit=unit,
                interval=profile.interval(name),
            )


def distance_measures(run: Run, profile: DistanceProfile) -> Iterator[Measure]:
    """The measures of a distance profile."""
    for name in profile.names:
        column = SHOWN_AS.get(name, name)
        meaning = DISTANCE_MEANINGS.get(name) or MEANINGS.get(column, title(column))
        unit = {"reach": "tokens", "half_distance": "tokens"}.get(name, "")
        unit = unit or ("share of attention" if name.endswith("_mass") else "")
        values, interval = profile.values(name), profile.interval(name)
        yield measure(run, name, values, meaning, titled=title(column), unit=unit, interval=interval)


def same_scores(some: HeadScores, others: HeadScores) -> bool:
    """Whether two results have the same scores and null, as a profile and the scoring of the same text have."""
    if (some.null is None) != (others.null is None) or (some.control is None) != (others.control is None):
        return False
    pairs = [(some.rho, others.rho), (some.rho_curve, others.rho_curve)]
    if some.null is not None and others.null is not None:
        pairs.append((some.null.rho, others.null.rho))
    return all(a.shape == b.shape and torch.equal(a.double().nan_to_num(9), b.double().nan_to_num(9)) for a, b in pairs)


def _flag(run: Run, name: str, titled: str, values: Tensor, known: Tensor, meaning: str) -> Measure:
    one = measure(run, name, values.double(), meaning, titled=titled, scale="flag")
    return one | {"low": 0, "high": 1, "values": flags(values, known)}


def _range(values: np.ndarray, scale: Scale) -> tuple[float, float]:
    """Range of the colours: that of the data, about 0 if diverging; never empty."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if scale == "diverging":
        most = max(abs(low), abs(high)) or 1.0
        return -most, most
    if low == high:
        return (min(low, 0.0), max(high, 0.0)) if low else (0.0, 1.0)
    return low, high
