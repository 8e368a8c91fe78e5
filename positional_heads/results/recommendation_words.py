"""A recommendation in words: the diagnosis, and the verdict, which may be to change nothing."""

from math import isfinite
from typing import TYPE_CHECKING

from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.number_ranges import number_ranges
from positional_heads.core.statistics import FEWEST_UNITS, mean_interval
from positional_heads.results.choosing import SIMPLEST
from positional_heads.results.text import rounded, signed

if TYPE_CHECKING:
    from positional_heads.results.recommendation import Recommendation

NAMED = 10
"""Heads that are named at most."""
RULE = f"the order is {', '.join(SIMPLEST)}"


def diagnosis_words(made: "Recommendation") -> str:
    """Which pairs meet angles that they never saw, and which heads' curves jump, without extension.

    Args:
        made: The recommendation.
    """
    pairs, sentences = made.pair_frame(), []
    for kind in made.kinds:
        where = "" if len(made.kinds) == 1 else f"layers {number_ranges(kind.layers)}: "
        own = pairs[pairs["layers"] == ", ".join(map(str, kind.layers))]
        if kind.window is not None and kind.window <= made.training_length:
            sentences.append(
                f"{where}their window of {kind.window} tokens is within the training length, so no pair meets an angle "
                "that it never saw."
            )
            continue
        slow, fresh = own[~own["completed"]], own[own["unseen"] > 0]
        text = f"{where}{len(slow)} of {len(own)} rotary pairs never completed a turn in {made.training_length} tokens"
        if len(slow):
            names, shortest = number_ranges(slow["pair"].tolist()), slow["wavelength"].min()
            text += f" (pairs {names}, wavelengths from {shortest:.0f} tokens)"
        if len(fresh):
            text += (
                f"; {len(fresh)} meet angles they never saw at {made.target_length} tokens, up to "
                f"{fresh['unseen'].max():.0%} of the circle"
            )
        sentences.append(f"{text}.")
    if len(made.heads):
        frame = made.head_frame()
        visible = frame[frame["visible"]]
        names = ", ".join(
            f"{row['name']} ({signed(row['jump'], 1)} sd)" for row in frame.head(NAMED).to_dict("records")
        )
        sentences.append(
            f"Without extension the curve of D of {len(visible)} of {len(frame)} heads visibly jumps at "
            f"{made.training_length} tokens: {names}, the highest rho first."
        )
    return " ".join(sentences)


def recommendation_verdict(made: "Recommendation") -> str:
    """What to do, with its evidence.

    Args:
        made: The recommendation.
    """
    if not made.labels:
        return f"Nothing to do: {made.notes[0]}"
    choice, taken = made.choice, made.choice.taken
    if taken is None:
        return f"{_nothing_better(made)}{_needing_code(made, None)}"
    change = made.losses[taken] - made.losses[0]
    parts = [
        f"Take {made.labels[taken]}: beyond {made.training_length} tokens, up to {made.target_length}, its loss is "
        f"{float(made.losses[taken].mean()):.3f} nats per token, {_with_interval(change, '+')} against no extension "
        f"(95 % interval over {len(change)} sequences)"
    ]
    if "exact" in made.answers:
        exact = made.answers["exact"]
        parts.append(
            f"; it recalls {float(exact[taken].mean()):.2f} of {exact.shape[1]} answers from farther back than that, "
            f"without extension {float(exact[0].mean()):.2f}"
        )
    parts.append(f". {_runner_up(made)}")
    if choice.behind:
        names, one = ", ".join(made.labels[place] for place in choice.behind), len(choice.behind) == 1
        parts.append(
            f" {names} {'recalls' if one else 'recall'} noticeably less and {'is' if one else 'are'} set aside."
        )
    lost = made.losses_within[taken] - made.losses_within[0]
    parts.append(f" Texts within the training length change by {_with_interval(lost, '+')} nats per token.")
    if made.methods[taken]["method"] == "dynamic":
        parts.append(
            f" Dynamic NTK takes max_position_embeddings for the training length, so it stays {made.training_length}: "
            f"tell programs that limit a context by it {made.target_length} otherwise. Keys in a cache keep the "
            "frequencies of the length at which they came in, which was not measured here."
        )
    return "".join(parts) + _needing_code(made, taken)


def _runner_up(made: "Recommendation") -> str:
    choice, taken = made.choice, made.choice.taken
    assert taken is not None
    if len(choice.tied) > 1:
        names = ", ".join(made.labels[place] for place in choice.tied if place != taken)
        first = choice.ranked[0]
        are = "is" if len(choice.tied) == 2 else "are"  # noqa: PLR2004
        text = f"{names} {are} as good within the interval of the difference"
        if first != taken:
            gap = made.losses[taken] - made.losses[first]
            text += f" ({made.labels[first]} has the lowest loss, by {_with_interval(gap)})"
        return f"{text}; of these it is taken because {_preferred(made)}."
    if len(choice.ranked) == 1:
        return "No other candidate is better than doing nothing and recalls as much."
    second = choice.ranked[1]
    behind = _with_interval(made.losses[second] - made.losses[taken])
    return f"The runner-up is {made.labels[second]}, whose loss is {behind} higher."


def _preferred(made: "Recommendation") -> str:
    """Which rule decided among candidates that are tied on long texts."""
    choice = made.choice
    gentle, taken = choice.gentle, choice.taken
    assert taken is not None
    if len(gentle) == 1:
        return "it loses least on short texts"
    own, least = (float(made.losses_within[place].mean()) for place in (taken, gentle[0]))
    if taken == gentle[0]:
        alike = f"its loss on short texts, {own:.3f}, is the least"
    else:
        alike = f"its loss on short texts, {own:.3f}, is not told apart from the least, {least:.3f}"
    if len(gentle) < len(choice.tied):
        alike += f" ({len(gentle)} of {len(choice.tied)} are alike there)"
    same = [place for place in gentle if made.methods[place]["factor"] == made.methods[taken]["factor"]]
    if len(same) == 1:
        return f"{alike}, and its factor is the smallest that reaches the target"
    if len(same) < len(gentle):
        alike += ", its factor is the smallest that reaches the target"
    return f"{alike}, and it is the simplest to deploy ({RULE})"


def _nothing_better(made: "Recommendation") -> str:
    sequences, target = made.losses.shape[1], made.target_length
    tried = [place for place, block in enumerate(made.blocks) if block is not None]
    if not tried:
        return "Keep the model as it is: no candidate was tried that a configuration can express."
    best = min(tried, key=lambda place: float(made.losses[place].mean()))
    lowest = f"the lowest loss at {target} tokens is that of {made.labels[best]}"
    gain = made.losses[0] - made.losses[best]
    if not all(map(isfinite, mean_interval(gain, made.choice.level).tolist())) and float(gain.mean()) > 0:
        return (
            f"Undecided: {lowest}, {float(gain.mean()):.3f} nats per token lower than without extension, but "
            f"{sequences} sequence{'s are' if sequences > 1 else ' is'} too few to compare {len(made.labels) - 1} "
            f"candidates by; give a longer text, for at least {max(2 * FEWEST_UNITS, sequences + 1)} sequences. Its "
            "block is in blocks."
        )
    return (
        f"Keep the model as it is: of {len(tried)} candidate{'s' * (len(tried) > 1)} that a configuration can express, "
        f"none is better than doing nothing; {lowest}, {_with_interval(-gain, '+')} against no extension (95 % "
        "interval)."
    )


def _needing_code(made: "Recommendation", taken: int | None) -> str:
    """Which candidates that no configuration expresses have a lower loss than the one taken, or than none."""
    than = 0 if taken is None else taken
    sentences = []
    for place, block in enumerate(made.blocks):
        gain = made.losses[than] - made.losses[place]
        if place and block is None and bool(mean_interval(gain, made.choice.level)[0] > 0):
            still = "" if taken is None else " still"
            text = f"{made.labels[place]} has a loss that is {_with_interval(gain)} lower{still}"
            sentences.append(f" {text}, but {made.reasons[place]}.")
    return "".join(sentences)


def _with_interval(differences: Float64[Tensor, " unit"], sign: str = "") -> str:
    low, high = mean_interval(differences).tolist()
    known = isfinite(low) and isfinite(high)
    ends = f" ({rounded(low, sign=sign)} to {rounded(high, sign=sign)})" if known else " (no interval)"
    return f"{rounded(float(differences.mean()), sign=sign)}{ends}"
