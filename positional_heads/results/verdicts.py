"""What does an ablation study show, in words? It may be that the heads do not matter."""

from math import isnan
from typing import TYPE_CHECKING, Any

from positional_heads.core.statistics import FEWEST_UNITS

if TYPE_CHECKING:
    from positional_heads.results.ablation import AblationStudy

ALPHA = 0.05


def ablation_verdict(study: "AblationStudy") -> str:
    """Whether ablating the top heads hurts more than ablating others, and whether far more than nearby.

    The one test is on the mean over all sizes of the most sensitive measure, at a level of 0.05.
    """
    measure = study.measures[0]
    impossible = _cannot_do_task(study, measure)
    if impossible:
        return impossible
    table = study.contrasts(measure)
    far = table[(table["k"] == "all") & (table["reach"] == study.reaches[0])].iloc[0]
    basis = (
        f"{measure} {far['top']:+.3f}, {far['difference']:+.3f} against random sets of as many heads in the same "
        f"layers ({_interval(far)}; p = {far['p_value']:.3f} over "
        f"{far['permutations']} permuted rankings; mean over {len(study.sizes)} sizes)"
    )
    if 1 / (1 + int(far["permutations"])) > ALPHA:
        return f"Undecided: {far['permutations']} permutations cannot give a p-value of {ALPHA:g}. {basis}."
    if far["p_value"] > ALPHA or not (isnan(far["high"]) or far["high"] < 0):
        return f"No effect: {study.task} does not need these heads more than others: {basis}. {_why(study, measure)}"
    claim = f"Ablating the top heads hurts {study.task} at {study.reaches[0]} range more than random heads do: {basis}"
    if "short" not in study.reaches:
        return f"{claim}. There is no short-range control: whether it is distance that they carry is open."
    both = table[(table["k"] == "all") & (table["reach"] == "long - short")].iloc[0]
    apart = f"{both['difference']:+.3f}, {_interval(both)}, p = {both['p_value']:.3f}"
    if both["p_value"] <= ALPHA and (isnan(both["high"]) or both["high"] < 0):
        return f"{claim}. It hurts far away more than nearby ({apart}): these heads carry distance."
    return f"{claim}. But it hurts nearby about as much ({apart}): these heads matter, not for distance in particular."


def _interval(row: Any) -> str:
    if isnan(row["difference"]):
        return "no random set to compare with"
    if isnan(row["low"]):
        return f"no interval below {FEWEST_UNITS} units"
    return f"95 % interval {row['low']:+.3f} to {row['high']:+.3f}"


def _cannot_do_task(study: "AblationStudy", measure: str) -> str | None:
    chance = study.chance.get(measure)
    plain = study.effects(measure)
    far = plain[(plain["kind"] == "none") & (plain["reach"] == study.reaches[0])].iloc[0]
    if chance is None or (far["effect"] if isnan(far["low"]) else far["low"]) > chance:
        return None
    return (
        f"The model does not do {study.task} even with all heads ({measure} {far['effect']:.3f}, chance {chance:.3f}): "
        "nothing can be said about what it loses without some. Choose an easier task or a shorter length."
    )


def _why(study: "AblationStudy", measure: str) -> str:
    """What speaks for and against the identification of the heads."""
    said = ["The identification of Positional Heads may be flawed."]
    significant = study.provenance["scores"].get("significant")
    if significant == 0:
        said.append("No head beats its shuffled null, so that the ranking is one of geometry.")
    effects = study.effects(measure)
    effects = effects[(effects["reach"] == study.reaches[0]) & (effects["k"] == study.sizes[-1])].set_index("kind")
    if "retrieval" in effects.index:
        said.append(
            f"The {study.sizes[-1]} heads with the highest retrieval score change it by "
            f"{effects.loc['retrieval', 'effect']:+.3f}, the top ones by {effects.loc['top', 'effect']:+.3f}."
        )
    harm = study.correlations["score and harm"]
    if not isnan(harm):
        said.append(f"Over single heads, score and harm have a rank correlation of {harm:+.2f}.")
    return " ".join(said)
