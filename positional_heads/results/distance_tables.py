"""The tables of a distance profile and its verdict in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from positional_heads.core.number_ranges import number_ranges
from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.edits import measured_under
from positional_heads.results.tables import ResultTable, model_label, text_label
from positional_heads.results.text import printable
from positional_heads.results.verdicts import rough_note

DISTANCE_COLUMNS = (
    *("name", "encoding", "reach", "reach_low", "reach_high", "even_reach", "half_distance"),
    *("distant_mass", "even_distant_mass", "sink_mass", "eta2", "eta2_repeated"),
)
DISTANCE_MEANINGS = {
    "encoding": "rotary, alibi, added (to the embeddings, learned or sinusoidal) or none",
    "reach_low": "lower end of the 95 % interval of the reach over sequences",
    "reach_high": "upper end of that interval",
    "even_reach": "the reach of a head that attends evenly to every key that it sees",
    "half_distance": "half of that attention goes no further, in tokens",
    "even_distant_mass": "the distant mass of a head that attends evenly",
    "eta2": "share of the variance of the score, up to a constant of each query, that distance explains",
    "eta2_repeated": "the part of that share that other sequences repeat",
}
SHOWN_AS = {"reach": "head_reach"}
"""Column whose name means something else in the tables of studies."""
ORDER = "The heads with the largest reach first."
NAMED = 10
WORDS = {
    "rotary": "rotary",
    "alibi": "ALiBi",
    "added": "added to the embeddings (learned or sinusoidal)",
    "none": "none",
}


def distance_table(table: Sequence[Mapping[str, Any]], top: int) -> ResultTable:
    """The heads that look furthest.

    Args:
        table: Rows of `DistanceProfile.to_frame`.
        top: How many heads.
    """
    known = sorted((row for row in table if row["reach"] is not None), key=lambda row: -row["reach"])
    columns = [SHOWN_AS.get(name, name) for name in DISTANCE_COLUMNS if known and name in known[0]]
    shown = [{SHOWN_AS.get(name, name): row[name] for name in row} for row in known[:top]]
    return ResultTable(columns, shown, DISTANCE_MEANINGS)


def distance_line(provenance: Mapping[str, Any], encodings: Sequence[str]) -> str:
    """What was profiled on what, in one line; parts of the provenance may be missing.

    Args:
        provenance: Of the profile.
        encodings: Encoding of each layer.
    """
    data = provenance.get("data", {})
    name, named = printable(model_label(provenance), newlines=False), text_label(provenance)
    return (
        f"{name}: position {encodings_in_words(encodings)}; {data.get('sequences', '?')} sequences of up to "
        f"{data.get('longest', '?')} tokens{f' of {named}' if named else ''}"
    )


def encodings_in_words(encodings: Sequence[str]) -> str:
    """The encoding of position of a model, by layer where layers differ."""
    kinds = {kind: [layer for layer, one in enumerate(encodings) if one == kind] for kind in encodings if kind}
    if len(kinds) == 1:
        return WORDS.get(*kinds, *kinds)
    return ", ".join(f"{WORDS.get(kind, kind)} in layers {number_ranges(layers)}" for kind, layers in kinds.items())


def distance_verdict(profile: Any) -> str:
    """How many heads look far, how much of their scores distance explains, and what is not known.

    Args:
        profile: A `DistanceProfile`.
    """
    far, heads = profile.long_range, profile.heads
    groups = len(profile.sums["reach"])
    how = "with its whole interval" if groups >= FEWEST_UNITS else "without an interval, for want of sequences"
    names = ", ".join(map(str, far[:NAMED])) + (f" and {len(far) - NAMED} more" if len(far) > NAMED else "")
    parts = [
        f"{len(far) or 'None'} of {len(heads)} heads look{'s' if len(far) == 1 else ''} over a tenth further than even "
        f"attention would ({how}){': ' + names if far else ''}."
    ]
    repeated = groups > 1
    name = "eta2_repeated" if repeated else "eta2"
    values = profile.values(name)
    shares = sorted(((float(values[head]), head) for head in heads if values[head] == values[head]), reverse=True)
    if shares:
        median, most = (f"{round(share, 2) + 0.0:.0%}" for share in (shares[len(shares) // 2][0], shares[0][0]))
        part = "the part that other sequences repeat" if repeated else "of one sequence, content among it"
        parts.append(
            f"Distance explains {median} of the variance of the median head's scores ({part}), and most in "
            f"{shares[0][1]} ({most})."
        )
    by_reason: dict[str, list[int]] = {}
    for layer, reason in profile.reasons.items():
        by_reason.setdefault(reason, []).append(layer)
    parts += [f"Layers {number_ranges(layers)}: {reason}." for reason, layers in by_reason.items()]
    parts[-1] += rough_note(groups, "groups of sequences")
    if (under := measured_under(profile.provenance)) is not None:
        parts.append(f"Measured under {under}.")
    return printable(" ".join(parts), newlines=False)
