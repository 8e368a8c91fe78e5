"""Caveats of results: the limits of what they show, in sentences, from their provenance alone."""

from collections.abc import Sequence

from positional_heads.core.edit_words import MANIPULATED
from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.distance_response import DistanceResponse
from positional_heads.results.edits import edits_of, extension_of
from positional_heads.results.emergence import EmergenceStudy
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.head_plan import HeadPlan
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.jump_study import JumpStudy
from positional_heads.results.manipulation import ManipulationStudy
from positional_heads.results.pair_plan import PairPlan
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.recommendation import Recommendation
from positional_heads.results.scores import HeadScores

FEW_GROUPS = 16
ENOUGH_REPEATS = 10
ENOUGH_PERMUTATIONS = 19
"""With fewer, no p-value can reach 0.05."""

OF_PAPER = ("rho", "excess")
"""Measures that a plan shows values of, and that the paper defines."""

_PLAN_STUDY = (
    "A study of plans is of one model and task, without further training: elsewhere another measure may choose better. "
    "Plans are imposed on runs with all keys, so no memory is saved and no speed measured."
)
_MANIPULATION = (
    "A manipulated model is one that was never trained: that a task needs pairs as they are does not say that they "
    "carry distance. Freezing leaves their content in place, zeroing takes that, too."
)
_RECOMMENDATION = (
    "A recommendation holds for this text and these questions, among the methods and factors that were tried, without "
    "training; runs were whole ones, without a cache."
)


_EMERGENCE = (
    "A birth lies between two checkpoints: more of them place it better. That heads and a skill are born in some order "
    "shows no cause; to show that a head matters to the skill, ablate it. This is one run of training, and one text."
)


_MOVED = (
    "Steps of D and responses are about attention scores, one head at a time: they do not show what the model does "
    "with them. Ablate heads, or manipulate their pairs, to show that a task needs them."
)


def caveats(
    scores: HeadScores | None,
    studies: list[AblationStudy],
    extended: list[ExtrapolationStudy],
    profiles: Sequence[HeadProfile] = (),
    *,
    distances: Sequence[DistanceProfile] = (),
    plans: Sequence[HeadPlan | PairPlan] = (),
    plan_studies: Sequence[PlanStudy] = (),
    manipulations: Sequence[ManipulationStudy] = (),
    made: Sequence[Recommendation] = (),
    emergences: Sequence[EmergenceStudy] = (),
    moved: Sequence[JumpStudy | DistanceResponse] = (),
) -> list[str]:
    """The limits of these results, in sentences."""
    heads = [one for one in (scores, *studies, *manipulations, *extended, *profiles) if one is not None]
    others = [*distances, *plans, *plan_studies, *made, *emergences, *moved]
    about_heads = bool(heads) or not others
    notes = ["rho is a correlation. To show that a head matters for long range, ablate it."] if about_heads else []
    stored = {
        origin["storage"] for one in (*heads, *others) if (origin := one.provenance.get("model", {}).get("origin"))
    }
    notes += [f"The weights were {how}: they are not the original's to the bit." for how in sorted(stored)]
    if scores is not None:
        notes += _score_caveats(scores)
    if profiles:
        notes.append(
            "A head profile says where heads attend, not what the model does with it, and its names are thresholds: "
            "ablate heads to show that they matter."
        )
    if distances:
        notes.append(
            "A distance profile says how far heads attend, not what for: far content and far positions look the same "
            "in the attention. Of the score, only the effect of distance that other sequences repeat is position's."
        )
    if plans and not plan_studies:
        notes.append("A plan is a choice. This folder has no study of plans, so it does not show what this one costs.")
    notes += [_PLAN_STUDY] if plan_studies else []
    notes += [_MANIPULATION] if manipulations else []
    notes += [_RECOMMENDATION] if made else []
    notes += [_EMERGENCE] if emergences else []
    notes += [_MOVED] if moved else []
    if about_heads and not (studies or manipulations):
        notes.append("This folder has no ablation study, so it does not show whether the model needs these heads.")
    for study in studies:
        settings = study.provenance.get("settings", {})
        permutations = int(settings.get("n_permuted", settings.get("n_random", 0)))
        if permutations < ENOUGH_PERMUTATIONS and study.sizes:
            notes.append(f"The ablation of {study.task} has {permutations} permuted rankings, too few for p = 0.05.")
    if extended:
        notes.append(
            "Methods and lengths of an extrapolation study share a model and a text, so the intervals of its "
            "correlations measure only how much they depend on the methods tried."
        )
    if about_heads or any(one.by.removeprefix("-") in OF_PAPER for one in plans):
        notes.append(
            "The definitions are the paper's; its numbers could not be compared, because its code is not published."
        )
    return notes


def _score_caveats(scores: HeadScores) -> list[str]:
    settings, groups = scores.provenance.get("settings", {}), scores.n_groups
    repeats = int(settings.get("null_repeats", 0))
    notes = []
    if scores.null is None:
        notes.append(
            "No null was computed. Even without content, D changes with distance. Score again with null_repeats=20."
        )
    elif repeats < ENOUGH_REPEATS:
        notes.append(f"The null has only {repeats} shuffles, so its spread is a rough estimate; 20 are usual.")
    if scores.bootstrap_rho is None:
        notes.append("There is a single sequence and so no interval: the variation of rho between texts is unknown.")
    elif groups < FEW_GROUPS:
        enough = groups >= FEWEST_UNITS
        rest = "Intervals and p-values rest" if enough else f"No interval below {FEWEST_UNITS} groups; p-values rest"
        notes.append(
            f"{rest} on {groups} groups of sequences. With few groups, small p-values are too small; score at least "
            f"{FEW_GROUPS} sequences to test many heads."
        )
    if not settings.get("skip_keys"):
        check = "score with control_keys=64 to see which heads stay without them."
        if scores.control is not None:
            check = (
                f"the column 'stays' has the heads that beat their null without the first {scores.control_keys} too."
            )
        notes.append(
            "The first keys are counted. An attention sink, or the content of the first positions, can look like an "
            f"effect of distance: {check}"
        )
    if extension := scores.provenance.get("extension"):
        moved = extension.get("method") == MANIPULATED
        how = extension_of(scores.provenance) if moved else "its context extended"
        notes.append(f"The model was scored with {how}, not as it was trained.")
    if edits := edits_of(scores.provenance):
        notes.append(f"The model was scored under {edits}, not as it is.")
    notes.append(
        "Sequences cut from one document are not fully independent, so intervals are slightly too narrow. "
        "Query-key pairs are not independent at all, so no p-value is computed over them."
    )
    return notes
