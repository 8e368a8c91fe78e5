"""One to four sentences on each head: what the results say of it, with their uncertainty, and nothing more."""

from collections.abc import Iterator
from math import isnan
from typing import Any

from positional_heads.core.heads import Head
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.comparison import Comparison
from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import LEAST_P, printable, rounded, signed
from positional_heads.results.verdicts import ALPHA
from positional_heads.views.explorer.runs import Run, Runs
from positional_heads.views.explorer.short_names import compared_names

NAMED_PLACES = 3
"""Runs that judge a head otherwise and are named."""
FEW_TOKENS = 10
"""Tokens below which a distance has a place after the point."""


def head_sentences(runs: Runs, scored: list[tuple[Run, HeadScores]], labels: list[list[str]] | None) -> list[str]:
    """What is known of each head, in its own words.

    Args:
        runs: The results.
        scored: The scores of each run; the first are spoken of.
        labels: Every name of each head, if a profile gives them.
    """
    attention = [run for kind in (HeadProfile, DistanceProfile) for run in runs.of(kind)][:1]
    apart = bool(attention and scored) and attention[0].text not in {None, scored[0][0].text}
    looks = _looks(attention[0].record, f"on {attention[0].text} " if apart else "") if attention else {}
    found = [_scored(scored), _otherwise(scored)] if scored else []
    ablated = (_ablated(run.record) for run in runs.of(AblationStudy))
    compared = (_compared(run.record) for run in runs.of(Comparison))
    changes = [next(filter(None, found), {}) for found in (ablated, compared)]
    texts = []
    for at, head in enumerate(runs.names):
        about = _named(head, labels[at]) if labels is not None and labels[at] else head
        parts = [f"{about}: {looks[head]}" if head in looks else about] if about != head or head in looks else []
        parts += [one[head] for one in found if head in one]
        if changed := [one[head] for one in changes if head in one]:
            joined = "; ".join(changed)
            parts.append(joined[0].upper() + joined[1:])
        if parts and not parts[0].startswith(head):
            parts[0] = f"{head}: {parts[0][0].lower()}{parts[0][1:]}"
        texts.append(" ".join(f"{part}." for part in parts))
    return texts


def _named(head: str, names: list[str]) -> str:
    """What a head is by the names that its profile gives it."""
    if names == ["mixed"]:
        return f"{head} is a head without a name of its own"
    joined = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    return f"{head} is {'an' if joined[0] in 'aeiou' else 'a'} {joined} head"


def _looks(record: Any, on: str) -> dict[str, str]:
    """How far each head looks, where its attention to the first keys is known; first where that was measured."""
    settings = record.provenance.get("settings", {})
    sinks, window = settings.get("sinks", "?"), settings.get("window", "?")
    reach, distant, sink = (_values(record.values(name)) for name in ("reach", "distant_mass", "sink_mass"))
    ends = [_values(end) for end in record.interval("reach").unbind(-1)]
    first = "the first key" if sinks == 1 else f"the first {sinks} keys"
    said = {}
    for head in reach:
        if isnan(reach[head]) or isnan(sink[head]):
            continue
        near = f" ({_interval(ends[0][head], ends[1][head], _tokens)})" if not isnan(ends[0][head]) else ""
        far = (
            f"of the attention of queries that have such keys {window} or more tokens back, {_percent(distant[head])} "
            "goes there, and "
        )
        said[head] = (
            f"{on}its attention past {first} reaches {_tokens(reach[head])} tokens back on average{near}; "
            f"{'' if isnan(distant[head]) else far}{_percent(sink[head])} of all its attention rests on {first}"
        )
    return said


def _places(scored: list[tuple[Run, HeadScores]]) -> list[str]:
    """Where each run was scored: on which text, or in which run where texts do not tell them apart."""
    texts = [run.text for run, _ in scored]
    if len({*texts} - {None}) == len(texts):
        return [f"on {text}" for text in texts]
    return [f"in {run.name}" for run, _ in scored]


def _scored(scored: list[tuple[Run, HeadScores]]) -> dict[str, str]:
    """What each head scores in the first run, where that is if there are more, and whether it beats its null."""
    scores, place = scored[0][1], _places(scored)[0] if scored[1:] else ""
    its, it = (f"{place[0].upper()}{place[1:]} its", f"{place} it") if place else ("Its", "it")
    rho, (low, high) = _values(scores.rho), (_values(end) for end in scores.interval().unbind(-1))
    reasons = {str(head): printable(reason, newlines=False) for head, reason in scores.reasons.items()}
    judged = _judged(scores) if scores.null is not None else dict.fromkeys(rho, ": no null was computed to judge it by")
    said = {}
    for head, value in rho.items():
        if isnan(value):
            it_has = f"{it[0].upper()}{it[1:]} has"
            said[head] = f"{it_has} no score{f', because {reasons[head]}' if head in reasons else ''}"
        else:
            spread = "" if isnan(low[head]) else f" ({_interval(low[head], high[head])})"
            said[head] = f"{its} rho is {rounded(value)}{spread}{judged[head]}"
    return said


def _otherwise(scored: list[tuple[Run, HeadScores]]) -> dict[str, str]:
    """Where other runs judge a head otherwise than the first: whether it beats its null, and stays."""
    known = [
        (place, _judgements(scores))
        for place, (_, scores) in zip(_places(scored), scored, strict=True)
        if scores.null is not None
    ]
    said: dict[str, str] = {}
    if not known or scored[0][1].null is None:
        return said
    (_, own), *others = known
    for head, (beats, stays) in own.items():
        places: dict[str, list[str]] = {}
        for place, judged in others:
            also_beats, also_stays = judged.get(head, (beats, None))
            if also_beats != beats or (stays and also_stays and also_stays[1] != stays[1]):
                places.setdefault(_in_words(also_beats, also_stays), []).append(place)
        parts = [f"{_listed(where)} {words}" for words, where in places.items()]
        if parts:
            joined = "; ".join(parts)
            said[head] = f"{joined[0].upper()}{joined[1:]}"
    return said


def _judgements(scores: HeadScores) -> dict[str, tuple[bool, tuple[int, bool] | None]]:
    """Whether each head with a score beats its null; and without how many first keys it does so or not, if known."""
    rho, beats = _values(scores.rho), _values(scores.beats_null(ALPHA))
    controlled = scores.control is not None and scores.control.null is not None
    stays = _values(scores.stays(ALPHA)) if controlled else {}
    return {
        head: (beats[head], (scores.control_keys, stays[head]) if controlled and beats[head] else None)
        for head, value in rho.items()
        if not isnan(value)
    }


def _in_words(beats: bool, stays: tuple[int, bool] | None) -> str:
    if not beats:
        return "it is not shown to beat its null"
    if stays is None:
        return "it beats its null"
    keys, staying = stays
    return f"it beats its null{', also' if staying else ', but is not shown to'} without the first {keys} keys"


def _listed(places: list[str]) -> str:
    """Places, or how many where they are too many to name."""
    if len(places) > NAMED_PLACES:
        return f"in {len(places)} other results"
    return " and ".join([", ".join(places[:-1]), places[-1]] if places[1:] else places)


def _judged(scores: HeadScores) -> dict[str, str]:
    """How each head's rho stands to its null, as `beats_null`, `significant` and `stays` judge it."""
    excess, q = _values(scores.excess), _values(scores.q_values)
    beats, significant = _values(scores.beats_null(ALPHA)), _values(scores.significant(ALPHA))
    controlled = scores.control is not None and scores.control.null is not None
    stays = _values(scores.stays(ALPHA)) if controlled else {}
    keys, said = scores.control_keys, {}
    for head, value in excess.items():
        side = "above" if value >= 0 else "below"
        text = f", {rounded(abs(value))} {side} that of shuffled positions ({_q(q[head])})" if not isnan(value) else ""
        if beats[head]:
            without = "still does so" if stays.get(head) else "is not shown to do so"
            text += ": it beats its null" + (f", and {without} without the first {keys} keys" if controlled else "")
        elif significant[head]:
            text += ": above its null, but not positive, so it is no Positional Head"
        else:
            text += ": it is not shown to beat its null"
        said[head] = text
    return said


def _ablated(study: Any) -> dict[str, str]:
    """What ablating each head alone did, at the longest range."""
    frame = study.by_head()
    if not len(frame):
        return {}
    reach, task = study.reaches[0], printable(study.task, newlines=False)
    what = f"ablating it alone changes {study.measures[0]} of {task} ({reach})"
    rows = zip(*(frame[name].tolist() for name in ("name", reach, f"{reach} low", f"{reach} high")), strict=True)
    return {head: f"{what} by {signed(effect)}{_shown(low, high, len(frame))}" for head, effect, low, high in rows}


def _compared(comparison: Any) -> dict[str, str]:
    """How each head's rho differs in the second result."""
    a, b = compared_names(comparison)
    change, q = _values(comparison.rho_change.value), _values(comparison.rho_change.q_values)
    low, high = (_values(end) for end in comparison.rho_change.interval().unbind(-1))
    said = {}
    for head, value in change.items():
        if isnan(value):
            continue
        if isnan(q[head]):
            said[head] = f"from {a} to {b} its rho changes by {signed(value)}, of unknown certainty"
        else:
            verb = "changes" if q[head] <= ALPHA else "is not shown to change"
            said[head] = (
                f"from {a} to {b} its rho {verb} ({signed(value)}, {_interval(low[head], high[head])}, {_q(q[head])})"
            )
    return said


def _shown(low: float, high: float, heads: int) -> str:
    """The interval of an effect, that it may be none, and else how many such intervals chance gives."""
    if isnan(low):
        return ", of too few answers for an interval"
    chance = f"; of {heads} heads, about {max(1, round(0.05 * heads))} have an interval without 0 by chance"
    return f" ({_interval(low, high)}{chance if low > 0 or high < 0 else ', so no effect is shown'})"


def _interval(low: float, high: float, words: Any = rounded) -> str:
    return f"95 % interval {words(low)} to {words(high)}"


def _q(value: float) -> str:
    return f"q < {LEAST_P:g}" if value < LEAST_P else f"q = {rounded(value)}"


def _tokens(value: float) -> str:
    return rounded(value, 1 if value < FEW_TOKENS else 0)


def _percent(share: float) -> str:
    return f"{rounded(100 * share, 0 if share >= FEW_TOKENS / 100 else 1)} %"


def _values(values: Any) -> dict[str, Any]:
    """A tensor of layers and heads by the names of the heads."""
    return dict(_by_name(values.tolist()))


def _by_name(rows: list[list[Any]]) -> Iterator[tuple[str, Any]]:
    for layer, row in enumerate(rows):
        for head, value in enumerate(row):
            yield str(Head(layer, head)), value
