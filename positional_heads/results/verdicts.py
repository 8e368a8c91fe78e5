"""The verdicts of scores and studies in words, from their numbers. Each one can be negative."""

from collections.abc import Mapping
from math import isnan
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor

from positional_heads.core.heads import Head, named_heads
from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.text import p_text, printable, rounded, signed

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
FEWEST_SHUFFLES = 4
"""Shuffles below which a head that does not beat its null shows nothing."""
FEWEST_POINTS = 4
"""Methods and lengths below which no correlation is reported."""
FEWEST_FOR_INTERVAL = 8
"""With fewer points, intervals of resampled correlations cover 52 to 95 % instead of 95 (measured at 4 to 6 points);
intervals of means over 4 units are 3.5 times as wide as over 8 (median of 600 samples of normal values)."""
SCORES_OF_DISTANCE = ("rho", "excess", "rho_curve")
"""What can rank heads as Positional Heads."""
NAMED_STAYING = 10
"""Heads that stay, the largest excess first, that the verdict of scores names at most."""
VISIBLE_JUMP = 3.0
"""Standard deviations of the curve from which a jump is called visible."""


def scores_verdict(
    rho: Float[Tensor, "layer head"],
    excess: Float[Tensor, "layer head"] | None,
    q_values: Float[Tensor, "layer head"] | None,
    *,
    n_groups: int,
    repeats: int,
    monotonous: tuple[int, int] = (0, 1),
    control: tuple[int, Bool[Tensor, "layer head"]] | None = None,
) -> str:
    """Whether heads beat their null, at a false discovery rate of 0.05.

    Args:
        rho: Score of each head, NaN where undefined.
        excess: rho minus its null; None without one.
        q_values: p-values of the excess after Benjamini-Hochberg; None without a null.
        n_groups: Groups of sequences that count as independent.
        repeats: Shuffles of the null.
        monotonous: The number of sequences in which one token fills half or more, and of all sequences.
        control: How many first keys a second score leaves out, and which heads beat their null in both with a positive
            rho; None without one.
    """
    verdict = _heads_that_beat_their_null(rho, excess, q_values, n_groups, repeats, control)
    if monotonous[0]:
        verdict += (
            f" In {monotonous[0]} of {monotonous[1]} sequences one token fills half or more: content hardly varies "
            "there, so rho shows what position alone does to this model, not how it treats text."
        )
    return verdict


def _heads_that_beat_their_null(
    rho: Float[Tensor, "layer head"],
    excess: Float[Tensor, "layer head"] | None,
    q_values: Float[Tensor, "layer head"] | None,
    n_groups: int,
    repeats: int,
    control: tuple[int, Bool[Tensor, "layer head"]] | None,
) -> str:
    n_heads = int((~rho.isnan()).sum())
    if n_heads == 0:
        return "No head has a defined score: this text shows nothing about this model."
    if q_values is None or excess is None:
        return (
            f"{n_heads} heads scored, without a null model: geometry alone can correlate D with distance, so a high "
            "rho is not yet evidence. Score again with null_repeats=20."
        )
    significant = (q_values <= ALPHA) & (excess > 0)
    rising = significant & (rho > 0)
    n_significant, n_rising = int(significant.sum()), int(rising.sum())
    unit = f"{n_groups} groups of sequences" if n_groups > 1 else "a single sequence (no spread over sequences known)"
    basis = f"at a false discovery rate of {ALPHA:g}, over {unit}"
    if n_significant == 0 and (repeats < FEWEST_SHUFFLES or n_groups < FEWEST_UNITS):
        return (
            f"Undecided: none of {n_heads} heads beats its null ({basis}), but {repeats} shuffles and "
            f"{n_groups} group{'s' * (n_groups > 1)} of sequences are too few to detect one. Score again with "
            "null_repeats=20 and at least 8 sequences."
        )
    if n_significant == 0:
        return (
            f"No head beats its null: of {n_heads} heads, none correlates dominant dimension with distance more than "
            f"with positions shuffled ({basis}). Do not read the ranking as Positional Heads."
        )
    falling = n_significant - n_rising
    not_positional = f"{falling} more" if n_rising else f"{falling} of {n_heads} heads"
    not_positional += (
        f" {'have' if falling > 1 else 'has'} a significant excess but rho of 0 or less: no Positional Heads"
    )
    if n_rising == 0:
        return f"No head with a positive rho beats its null ({basis}); {not_positional}."
    without, advice = "", "Leading positions differ in content even in an untrained model: score with control_keys=64. "
    if control is not None:
        keys, stays = control
        staying = sorted(map(Head._make, stays.nonzero().tolist()), key=lambda head: -float(excess[head]))
        number = f"{len(staying)} of the {n_rising} stay{'s' * (len(staying) == 1)}"
        names = f" ({named_heads(staying, NAMED_STAYING)})" if staying else ""
        without, advice = f"{number} when the first {keys} keys are left out{names}; ", ""
    return (
        f"{n_rising} of {n_heads} heads beat their null with a positive rho ({basis}); {without}"
        f"{not_positional + '; ' if falling else ''}the largest excess of rho over shuffled positions is "
        f"{float(excess[rising].max()):.3f}. {advice}This is a correlation; run ablation_study to test whether "
        "long-range tasks need these heads."
    )


def ablation_verdict(
    task: str,
    measure: str,
    contrasts: "pd.DataFrame",
    effects: "pd.DataFrame",
    *,
    chance: float | None,
    units: int,
    significant: int | None,
    harm: float,
    singles: int,
    scored: int,
    exhausted: bool,
    rank_by: str,
    anywhere: "pd.DataFrame | None",
) -> str:
    """Whether ablating the top heads hurts more than ablating others, and whether more at long range than at short.

    The one test is on the mean over the sizes of the set that have random sets, at a level of 0.05.

    Args:
        task: Name of the task.
        measure: The measure that contrasts and effects are about.
        contrasts: `AblationStudy.contrasts`; its first reach is the one that is judged.
        effects: `AblationStudy.effects`.
        chance: The measure of a guess, or None if unknown.
        units: Independent units of the judged reach.
        significant: How many heads beat their null, or None if unknown.
        harm: Rank correlation over single heads of score and harm; NaN if unknown.
        singles: How many heads were ablated alone, from the top of the ranking on.
        scored: How many heads the ranking has.
        exhausted: Whether no more permutations exist than there are.
        rank_by: What ranks the heads.
        anywhere: The contrasts with random heads of any layer, or None without them.
    """
    over_sizes = contrasts[contrasts["k"] == "all"].set_index("reach")
    reach = over_sizes.index[0]
    here = effects[effects["reach"] == reach]
    if unable := unable_verdict(task, measure, here, chance, units):
        return unable
    long = over_sizes.loc[reach]
    by_size = contrasts[(contrasts["k"] != "all") & (contrasts["reach"] == reach)]
    sizes = by_size["k"]
    basis = f"{measure} {signed(long['top'])}{_compared(long, by_size)}"
    random = "random heads" if long["random_sets"] else "heads of permuted rankings, which may share some,"
    weaker = _against_any_layer(long, reach, anywhere)
    top = "the top heads" if rank_by == "rho" else f"the top heads by {printable(rank_by, newlines=False)}"
    if 1 / (1 + int(long["permutations"])) > ALPHA:
        too_few = f"{long['permutations']} permutations cannot give a p-value of {ALPHA:g}"
        if exhausted:
            remedy = f"no others of these sizes exist: ablate {'fewer' if 2 * sizes.min() > scored else 'more'} heads"
        else:
            remedy = "20 can (n_permuted=20)"
        return f"Undecided: {too_few}, {remedy}. {basis}.{weaker}"
    if not _harmful(long):
        others = _other_evidence(here[here["k"] == sizes.max()].set_index("kind"), significant, rank_by)
        others += _evidence_of_single_heads(harm, singles, scored)
        return (
            f"No effect: ablating {'these heads' if rank_by == 'rho' else top} hurts {task} no more than ablating "
            f"{random} does: {basis}.{weaker}{others}"
        )
    claim = f"Ablating {top} hurts {task} at {reach} range more than ablating {random} does: {basis}.{weaker}"
    if "long - short" not in over_sizes.index:
        return f"{claim} There is no short-range control: whether the heads are specific to distance is open."
    apart = over_sizes.loc["long - short"]
    against = "" if isnan(apart["difference"]) else f"{signed(apart['difference'])}, "
    numbers = f"{against}{_interval(apart)}, {p_text(apart['p_value'])}"
    if _harmful(apart):
        meaning = "the effect of these heads depends on distance"
        return f"{claim} It hurts more at long range than at short ({numbers}): {meaning}."
    return f"{claim} But it hurts as much at short range ({numbers}): these heads are not specific to distance."


def single_heads_verdict(
    task: str,
    measure: str,
    effects: "pd.DataFrame",
    by_head: "pd.DataFrame",
    prediction: Mapping[str, Any],
    *,
    chance: float | None,
    units: int,
) -> str:
    """What a study of single heads alone shows; it can say nothing of heads that are needed together.

    Args:
        task: Name of the task.
        measure: The measure that effects are about.
        effects: `AblationStudy.effects`.
        by_head: `AblationStudy.by_head`.
        prediction: The first row of `AblationStudy.predictors` for what ranks the heads; empty with too few heads.
        chance: The measure of a guess, or None if unknown.
        units: Independent units of the judged reach.
    """
    reach = effects["reach"].iloc[0]
    if unable := unable_verdict(task, measure, effects[effects["reach"] == reach], chance, units):
        return unable
    worst = by_head.loc[by_head[reach].idxmin()]
    related = ""
    if prediction and not isnan(prediction["correlation"]):
        within = (
            f"no interval below {FEWEST_UNITS} units and {FEWEST_FOR_INTERVAL} heads"
            if isnan(prediction["low"])
            else f"95 % interval {signed(prediction['low'], 2)} to {signed(prediction['high'], 2)}"
        )
        related = (
            f" Over heads, {printable(prediction['measure'], newlines=False)} and harm have a rank correlation of "
            f"{signed(prediction['correlation'], 2)} ({within}; {p_text(prediction['p_within'])} over permutations "
            "within layers)."
        )
    return (
        f"Of {len(by_head)} heads, each ablated alone, {worst['name']} is missed most by {task} at {reach} range "
        f"({measure} {signed(worst[reach])}, the largest of {len(by_head)} and so likely overstated).{related} No set "
        "of heads was ablated: whether heads are needed together, and more than others of their layers, is open."
    )


def unable_verdict(
    task: str,
    measure: str,
    here: "pd.DataFrame",
    chance: float | None,
    units: int,
    *,
    intact: str = "with all heads",
    edit: str = "an ablation",
) -> str | None:
    """That the model cannot do the task, or is not shown to, if so.

    Args:
        task: Name of the task.
        measure: The measure that the effects are about.
        here: Effects at one reach.
        chance: The measure of a guess, or None if unknown.
        units: Independent units.
        intact: How the model was that cannot do it.
        edit: What was done to it.
    """
    whole = here[here["kind"] == "none"].iloc[0]
    unknown = isnan(whole["low"])
    if chance is None or (whole["effect"] if unknown else whole["low"]) > chance:
        return None
    within = "" if unknown else f"95 % interval {rounded(whole['low'])} to {rounded(whole['high'])}, "
    able, remedy = f"is not shown to beat a guess at {task} on {units} {'unit' if units == 1 else 'units'}", ""
    if whole["high"] <= chance:
        able = f"cannot do {task}"
    elif whole["effect"] > chance:
        remedy = ", or more examples"
    return (
        f"The model {able} even {intact} ({measure} {rounded(whole['effect'])}, {within}chance {rounded(chance)}), so "
        f"{edit} shows nothing. Choose an easier task or a shorter length{remedy}."
    )


def rough_note(units: int, what: str = "units") -> str:
    """That intervals rest on few independent units, as a sentence after others; empty if they do not, or are none.

    Args:
        units: Number of independent units.
        what: What they are.
    """
    if not FEWEST_UNITS <= units < FEWEST_FOR_INTERVAL:
        return ""
    return f" Intervals over {units} {what} are rough: give {FEWEST_FOR_INTERVAL} or more before you rely on them."


def _harmful(row: Any) -> bool:
    """Whether a contrast is significant, and its interval, if there is one, below zero."""
    return bool(row["p_value"] <= ALPHA and (isnan(row["high"]) or row["high"] < 0))


def _compared(row: Any, by_size: "pd.DataFrame") -> str:
    """What the mean over sizes is compared with, and over which sizes, as the rest of a sentence."""
    paired = int((by_size["random_sets"] > 0).sum())
    n_sizes = paired or len(by_size)
    about = [_interval(row)] if paired else []
    if row["permutations"]:
        about.append(f"{p_text(row['p_value'])} over {row['permutations']} permuted rankings")
    about.append(f"mean over {n_sizes} {'size' if n_sizes == 1 else 'sizes'}")
    if 0 < paired < len(by_size):
        about[-1] += f" of {len(by_size)}, those with random sets"
    against = ", with no random set to compare with: too few other heads are left in these layers"
    if paired:
        against = f", {signed(row['difference'])} against random sets of as many heads in the same layers"
    return f"{against} ({'; '.join(about)})"


def _interval(row: Any) -> str:
    if isnan(row["difference"]):
        return "no random set to compare with"
    if isnan(row["low"]):
        return f"no interval below {FEWEST_UNITS} units"
    return f"95 % interval {signed(row['low'])} to {signed(row['high'])}"


def _against_any_layer(matched: Any, reach: str, anywhere: "pd.DataFrame | None") -> str:
    """How much more, or less, the weaker control would show."""
    if anywhere is None:
        return ""
    row = anywhere[(anywhere["k"] == "all") & (anywhere["reach"] == reach)].iloc[0]
    if isnan(row["difference"]) or isnan(matched["difference"]):
        return ""
    layers = row["difference"] - matched["difference"]
    return (
        f" Against random heads of any layer, a weaker control, the difference would be {signed(row['difference'])} "
        f"({_interval(row)}): {signed(layers)} of it is that of the layers."
    )


def _other_evidence(largest: "pd.DataFrame", significant: int | None, rank_by: str) -> str:
    """What the failure, the null and retrieval heads say about the ranking."""
    evidence = " The identification of Positional Heads may be flawed." if rank_by in SCORES_OF_DISTANCE else ""
    if significant == 0 and rank_by in SCORES_OF_DISTANCE:
        evidence += " No head beats its shuffled null, so the ranking reflects geometry."
    if "retrieval" in largest.index:
        evidence += (
            f" Ablating the {largest.loc['top', 'k']} heads with the highest retrieval score changes it by "
            f"{signed(largest.loc['retrieval', 'effect'])}, ablating the top ones by "
            f"{signed(largest.loc['top', 'effect'])}."
        )
    return evidence


def _evidence_of_single_heads(harm: float, singles: int, scored: int) -> str:
    """Whether heads with a higher score harm more alone; among the top ones only, scores hardly differ."""
    if isnan(harm):
        return ""
    over = "Over single heads" if singles == scored else f"Over the top {singles} of {scored} heads alone"
    narrow = "" if singles == scored else " (of scores as close as these, it says little about the others)"
    return f" {over}, score and harm have a rank correlation of {signed(harm, 2)}{narrow}."


def extrapolation_verdict(table: "pd.DataFrame", link: "pd.DataFrame", training_length: int) -> str:
    """Whether extending the allocation goes with doing the task beyond the training length.

    Args:
        table: `ExtrapolationStudy.to_frame`.
        link: `ExtrapolationStudy.link`.
        training_length: Tokens that the model was trained on.
    """
    plain = table.loc[table["method"] == "none", "jump"]
    jump = "the plain model was not tried"
    if len(plain):
        visible = "is visible" if plain.max() > VISIBLE_JUMP else "is not visible"
        jump = f"without extension the jump at {training_length} tokens {visible} ({plain.max():.1f} sd at most)"
    best = table.loc[table["efficiency"].idxmax()]
    tried = f"Of {len(table)} methods and lengths, " if len(table) > 1 else ""
    verdict = (
        f"{tried}{best['method']} at {best['length']} tokens does the task best "
        f"beyond the training length (efficiency {best['efficiency']:.2f}); {jump}."
    )
    if len(table) < FEWEST_POINTS:
        return f"{verdict} Too few to say whether extending the allocation goes with it."
    parts = []
    for row in link.to_dict("records"):
        interval = ""
        if not isnan(row["low"]):
            zero = ", not significantly different from zero" if row["low"] <= 0 <= row["high"] else ""
            interval = f" ({signed(row['low'], 2)} to {signed(row['high'], 2)}{zero})"
        correlation = "undefined" if isnan(row["correlation"]) else f"{signed(row['correlation'], 2)}"
        parts.append(f"{row['measure']} {correlation}{interval}")
    if len(table) < FEWEST_FOR_INTERVAL:
        parts.append(f"no interval below {FEWEST_FOR_INTERVAL} methods and lengths")
    return f"{verdict} Rank correlation of allocation with efficiency: {'; '.join(parts)}."
