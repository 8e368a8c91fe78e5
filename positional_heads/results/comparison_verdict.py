"""The verdict of a comparison in words: what differs, how far ranks agree, which heads change, what is not shown."""

from collections.abc import Sequence
from math import isnan

import torch

from positional_heads.core.heads import Head
from positional_heads.core.rank_agreement import RankAgreement
from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.compared import Compared
from positional_heads.results.differing import PRECISION_ONLY, Difference
from positional_heads.results.text import printable
from positional_heads.results.verdicts import ALPHA

TOP = 0.1
"""The fraction of heads whose overlap the verdict gives, as in `HeadScores.positional_heads`."""
NAMED = 5
"""Heads that a sentence names at most."""


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
        *_caveats(comparison),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _what_differs(differing: Sequence[Difference]) -> str:
    if not differing:
        return "nothing that is recorded differs, neither model nor text nor settings"
    names = "; ".join(str(one) for one in differing)
    return f"what differs is {names}" if len(differing) == 1 else f"they differ in {names}"


def _ranks(comparison: Compared) -> str:
    agreement = comparison.agreement
    parts = [f"{_correlation(agreement['rho'])} for rho"]
    if "excess" in agreement:
        parts.append(f"{_correlation(agreement['excess'])} for the excess")
        parts.append(f"{_correlation(agreement['null_mean'])} for the null")
    top = comparison.shared_top[TOP]
    return (
        f"Over {comparison.n_scored} heads the rank correlation is {', '.join(parts)}; {top.shared} of the {top.k} "
        f"heads with the highest rho {'is' if top.shared == 1 else 'are'} the same ({top.expected:.1f} by chance, "
        f"p = {top.p_value:.1g})."
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
    if not changed:
        return f"No head's rho is shown to differ {basis}."
    magnitude = torch.where(comparison.changed, comparison.rho_change.value.abs(), -1.0)
    layer, head = divmod(int(magnitude.argmax()), magnitude.shape[1])
    low, high = comparison.rho_change.interval()[layer, head].tolist()
    before, after = comparison.rho[:, layer, head].tolist()
    return (
        f"rho differs in {changed} of {comparison.n_scored} heads {basis}, most in {Head(layer, head)}, from "
        f"{before:.2f} to {after:.2f} (change {after - before:+.2f}, 95 % interval {low:+.2f} to {high:+.2f})."
    )


def _appeared_and_vanished(comparison: Compared, a: str, b: str) -> str:
    if comparison.beats_null is None:
        return "Which heads are more than geometry is not known: both need a null (null_repeats=20)."
    places = ("both", "a only", "b only")
    in_both, in_a, in_b = ([head for head, one in comparison.beats.items() if one == place] for place in places)
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
        caveats.append("Where both texts share content, these intervals are too wide.")
    return caveats


def _correlation(agreement: RankAgreement) -> str:
    if isnan(agreement.correlation):
        return "undefined"
    about = [] if isnan(agreement.low) else [f"95 % interval {agreement.low:.2f} to {agreement.high:.2f}"]
    if not isnan(agreement.ceiling):
        about.append(f"{agreement.ceiling:.2f} to be expected if only the sequences differed")
    basis = f" ({'; '.join(about)})" if about else ""
    return f"{agreement.correlation:.2f}{basis}"


def named(heads: list[Head]) -> str:
    """The first few heads by name, and how many more there are."""
    more = f" and {len(heads) - NAMED} more" if len(heads) > NAMED else ""
    return ", ".join(map(str, heads[:NAMED])) + more
