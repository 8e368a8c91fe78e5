"""The verdict of a comparison in words: what differs, how far ranks agree, which heads change, what is not shown."""

from collections.abc import Sequence
from math import isnan

import torch

from positional_heads.core.heads import Head, named_heads
from positional_heads.core.rank_agreement import RankAgreement
from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.compared import Compared
from positional_heads.results.differing import PRECISION_ONLY, Difference
from positional_heads.results.pair_change import MeanShare
from positional_heads.results.text import p_text, printable, rounded, signed
from positional_heads.results.verdicts import ALPHA, rough_note

TOP = 0.1
"""The fraction of heads whose overlap the verdict gives, as in `HeadScores.positional_heads`."""
ONE_OR_BOTH = ("both", "a only", "b only")
NAMED = 5
"""Heads that a sentence names at most."""
FARTHEST = 3
"""Heads whose curves it gives."""
SAME_CURVE = 0.005
"""Rotary pairs that two places would show as 0."""
SAME_FREQUENCY = 1e-5
"""Frequencies that differ by less than this part are equal, but for rounding."""


def comparison_verdict(comparison: Compared) -> str:
    """What a comparison shows, in words.

    Args:
        comparison: The comparison.
    """
    a, b = (printable(name, newlines=False) for name in comparison.names)
    sentences = [
        f"{b} against {a}: {_what_differs(comparison.differing)}.",
        _ranks(comparison),
        _changes(comparison),
        _appeared_and_vanished(comparison, a, b),
        _staying(comparison, a, b),
        _curves(comparison),
        _pairs(comparison, a),
        *_caveats(comparison),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _what_differs(differing: Sequence[Difference]) -> str:
    if not differing:
        return "nothing that is recorded differs, neither model nor text nor settings"
    *names, last = map(str, differing)
    return f"they differ in {', '.join(names)} and {last}" if names else f"they differ in {last} only"


def _ranks(comparison: Compared) -> str:
    agreement = comparison.agreement
    parts = [f"{_correlation(agreement['rho'])} for rho"]
    if "excess" in agreement:
        parts.append(f"{_correlation(agreement['excess'], at_least=True)} for the excess")
        parts.append(f"{_correlation(agreement['null_mean'])} for the null")
    top = comparison.shared_top[TOP]
    return (
        f"Over {comparison.n_scored} heads the rank correlation is {', '.join(parts)}; {top.shared} of the {top.k} "
        f"heads with the highest rho {'is' if top.shared == 1 else 'are'} the same ({top.expected:.1f} by chance, "
        f"{p_text(top.p_value)})."
    )


def _changes(comparison: Compared) -> str:
    some, others = comparison.groups
    if bool(comparison.rho_change.variance.isnan().all()):
        return (
            f"Which heads differ is undecided: an interval needs at least {FEWEST_UNITS} groups of sequences in both, "
            f"there are {some} and {others}."
        )
    units = (
        f"paired over {some} groups of sequences"
        if comparison.paired
        else (f"{some} and {others} groups of sequences as independent samples")
    )
    basis = f"(false discovery rate {ALPHA:g}; {units})"
    changed = int(comparison.changed.sum())
    rough = rough_note(min(some, others), "groups of sequences")
    if not changed:
        return f"No head's rho is shown to differ {basis}.{rough}"
    magnitude = torch.where(comparison.changed, comparison.rho_change.value.abs(), -1.0)
    layer, head = divmod(int(magnitude.argmax()), magnitude.shape[1])
    low, high = comparison.rho_change.interval()[layer, head].tolist()
    before, after = comparison.rho[:, layer, head].tolist()
    return (
        f"rho differs in {changed} of {comparison.n_scored} heads {basis}, most in {Head(layer, head)}, from "
        f"{rounded(before, 2)} to {rounded(after, 2)} (change {signed(after - before, 2)}, 95 % interval "
        f"{signed(low, 2)} to {signed(high, 2)}).{rough}"
    )


def _appeared_and_vanished(comparison: Compared, a: str, b: str) -> str:
    if comparison.beats_null is None:
        return "Which heads are more than geometry is not known: both need a null (null_repeats=20)."
    in_both, in_a, in_b = ([head for head, one in comparison.beats.items() if one == where] for where in ONE_OR_BOTH)
    one_only = in_a + in_b
    if not one_only and not in_both:
        return "No head beats its null with a positive rho in either."
    if not one_only:
        return f"The same {len(in_both)} heads beat their null with a positive rho in both."
    differ = [head for head in one_only if bool(comparison.excess_changed[head])]
    left = len(one_only) - len(differ)
    counts = (
        f"{len(in_both)} heads beat their null with a positive rho in both, {len(in_a)} in {a} only and {len(in_b)} in "
        f"{b} only. Of these {len(one_only)}, {len(differ)} {'differs' if len(differ) == 1 else 'differ'} "
        f"significantly in excess{f' ({named(differ)})' if differ else ''}"
    )
    if not left:
        return f"{counts}."
    return (
        f"{counts}; {left} {'is' if left == 1 else 'are'} not shown to differ: that a head is significant in one and "
        "not in the other is no evidence that it differs."
    )


def _staying(comparison: Compared, a: str, b: str) -> str:
    """Which heads stay without the first keys: in both, or in one only."""
    keys = [comparison.provenance[side].get("settings", {}).get("control_keys") or 0 for side in "ab"]
    if comparison.stays is None:
        name = a if keys[0] else b
        return f"Only {name} has a control without its first keys, so it is not compared." if any(keys) else ""
    in_both, in_a, in_b = ([head for head, one in comparison.remains.items() if one == where] for where in ONE_OR_BOTH)
    left_out = f"{keys[0]}" if keys[0] == keys[1] else f"{keys[0]} or {keys[1]}"
    names = f" ({named(in_both)})" if in_both else ""
    said = (
        f"When the first {left_out} keys are left out, {len(in_both)} {'stays' if len(in_both) == 1 else 'stay'} in "
        f"both{names}, {len(in_a)} in {a} only and {len(in_b)} in {b} only"
    )
    differ = [head for head in in_a + in_b if bool(comparison.control_changed[head])]
    if not in_a + in_b:
        return f"{said}."
    return (
        f"{said}; of these {len(in_a + in_b)}, {len(differ)} {'differs' if len(differ) == 1 else 'differ'} "
        f"significantly in the excess without these keys{f' ({named(differ)})' if differ else ''}."
    )


def _curves(comparison: Compared) -> str:
    """Which heads' curves of D differ most, against the median head, which is no measure of noise."""
    if comparison.curve_distance is None or bool(comparison.curve_distance.isnan().all()):
        return ""
    distance = comparison.curve_distance.flatten().nan_to_num(0)
    if float(distance.max()) < SAME_CURVE:
        return f"The mean dominant dimension by distance is the same in all heads, within {SAME_CURVE:g} rotary pairs."
    heads = comparison.curve_distance.shape[1]
    most = [
        f"{Head(*divmod(int(index), heads))} ({float(distance[index]):.2f})"
        for index in distance.argsort(descending=True, stable=True)[:FARTHEST]
        if distance[index] >= SAME_CURVE
    ]
    median = float(comparison.curve_distance.nanquantile(0.5))
    basis = "" if comparison.paired else "; other sequences alone move curves, too"
    return (
        f"The mean dominant dimension by distance differs most in {', '.join(most)}, as a root mean square over "
        f"distances, in rotary pairs; the median over heads is {median:.2f}{basis}."
    )


def _pairs(comparison: Compared, a: str) -> str:
    """Whether the change of the pairs sits in the slow ones."""
    if comparison.pairs is None:
        return ""
    if not comparison.pair_shares:
        return "No rotary pair changed its mean contribution by more than rounding."
    slow, beyond = (comparison.pair_shares[name] for name in ("slow", "beyond"))
    frequencies = comparison.pairs.frequencies
    rescaled = bool(((frequencies[0] - frequencies[1]).abs() > SAME_FREQUENCY * frequencies[0].abs()).any())
    other = " Frequencies differ: pairs are matched by index." if rescaled else ""
    sample = "" if isnan(slow.low) else " These intervals are over heads, which are no independent sample."
    known = bool(comparison.provenance["a"].get("model", {}).get("context"))
    never = f"not turn once within {comparison.trained_length} tokens, the "
    never += f"context of {a}" if known else f"longest sequence of {a}, whose context is not recorded"
    apart = f", and {_share(beyond)} in the pairs that do {never}"
    far = comparison.pairs.beyond(comparison.trained_length)
    if not bool(far.any()):
        apart = f"; there is no pair that does {never}"
    elif torch.equal(far, comparison.pairs.slow):
        apart = f", which are the pairs that do {never}"
    return (
        f"The mean contributions of rotary pairs changed in {slow.heads} head{'s' * (slow.heads != 1)}: "
        f"{_share(slow)} of the squared change sits in the slow half of the pairs{apart}.{sample}{other}"
    )


def _share(share: MeanShare) -> str:
    interval = "" if isnan(share.low) else f"95 % interval {share.low:.2f} to {share.high:.2f}; "
    return f"{share.share:.2f} ({interval}{share.even:.2f} if all changed alike)"


def _caveats(comparison: Compared) -> list[str]:
    kinds = {one.kind for one in comparison.differing}
    caveats = []
    if any(one.kind == "setting" and one.name not in PRECISION_ONLY for one in comparison.differing):
        caveats.append("With other settings rho is another quantity, so a change of it is no change of the model.")
    if "model" in kinds:
        caveats.append(
            "Heads are matched by layer and number, which has a meaning only if one model was trained from the other."
        )
    if not comparison.paired:
        texts = [{*comparison.provenance[side].get("data", {}).get("texts", [None])} for side in "ab"]
        if shared := texts[0] & texts[1] - {None}:
            names = printable(", ".join(sorted(shared)), newlines=False)
            caveats.append(f"Both read {names}: where they read the same parts of it, these intervals are too wide.")
        elif None in texts[0] | texts[1]:
            caveats.append("If both texts have parts in common, which is not recorded, these intervals are too wide.")
    return caveats


def _correlation(agreement: RankAgreement, *, at_least: bool = False) -> str:
    """A rank correlation, its interval, and what to expect of other sequences; only the least of it is known if so."""
    if isnan(agreement.correlation):
        return "undefined"
    low, high = rounded(agreement.low, 2), rounded(agreement.high, 2)
    about = [] if isnan(agreement.low) else [f"95 % interval {low} to {high}"]
    if not isnan(agreement.ceiling):
        least = "at least " if at_least else ""
        about.append(f"{least}{rounded(agreement.ceiling, 2)} to be expected if only the sequences differed")
    basis = f" ({'; '.join(about)})" if about else ""
    return f"{rounded(agreement.correlation, 2)}{basis}"


def named(heads: list[Head]) -> str:
    """The first few heads by name, and how many more there are."""
    return named_heads(heads, NAMED)
