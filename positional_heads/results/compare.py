"""Compare two scorings of one shape: changes of every head with their uncertainty, and how far the ranks agree.

Two runs on other sequences are independent samples: the variances of both add up. Two runs on the same sequences
(another temperature, checkpoint or setting) are compared sequence by sequence: with the same seed both are resampled
alike, so the variance of a change is that of the differences of the resamples. See docs/compare.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.rank_agreement import RankAgreement, rank_agreement, row_correlations
from positional_heads.core.statistics import FEWEST_UNITS, added_variances, bootstrap_weights
from positional_heads.results.comparison import Change, Comparison
from positional_heads.results.differing import differing
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.pair_change import pair_change, refuse_unlike
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import printable

Part = tuple[Float64[Tensor, "layer head"], int]
"""A variance, and the degrees of freedom that it was estimated with."""


@checked
def compare(
    a: HeadScores | HeadProfile, b: HeadScores | HeadProfile, *, names: Sequence[str] = ("a", "b")
) -> Comparison:
    """Compare two scorings head by head: of two texts, lengths, temperatures, checkpoints or models of one shape.

    Everything is allowed to differ but the shape, and the verdict names everything recorded that does. A change is b
    minus a. Its interval and p-value count the variation over sequences: paired where both scored the same sequences,
    and otherwise as two independent samples. Two head profiles are compared by their scores, and by how much the mean
    contribution of every rotary pair changed.

    Args:
        a: What `score_heads` or `profile_heads` returned, e.g. before training or on one text.
        b: What it returned for something else.
        names: What to call them.

    Raises:
        ValueError: If they have different shapes, no head with a score in both, or are the same result; if they are
            of the same sequences, resampled with other seeds; if one is a profile and the other is not; or if profiles
            have other rotary pairs or ranges of distances.
    """
    called = _two_names(names)
    if isinstance(a, HeadProfile) and isinstance(b, HeadProfile):
        _refuse(a.scores, b.scores, called, same=_equal(a._tensors(), b._tensors()))
        refuse_unlike(a, b, called)
        return replace(_compared(a.scores, b.scores, called), pairs=pair_change(a, b))
    if isinstance(a, HeadProfile) or isinstance(b, HeadProfile):
        profile, scores = called if isinstance(a, HeadProfile) else called[::-1]
        msg = f"{profile} is a head profile and {scores} scores only: give two of a kind, such as the profile's .scores"
        raise ValueError(msg)
    _refuse(a, b, called)
    return _compared(a, b, called)


def _compared(a: HeadScores, b: HeadScores, called: tuple[str, str]) -> Comparison:
    paired = same_sequences(a, b)
    both_null = a.null is not None and b.null is not None
    defined = ~(a.rho.isnan() | b.rho.isnan())
    groups = tuple(one.n_groups if one.bootstrap_rho is not None else 1 for one in (a, b))
    controls = [one.control for one in (a, b) if one.control is not None and both_null]
    differences = differing(a.provenance, b.provenance)
    sides = torch.stack([a.rho, b.rho]).double()
    change = _change(sides, _over_sequences(a, b, paired))
    reasons = {head: f"{called[1]}: {reason}" for head, reason in b.reasons.items()}
    return Comparison(
        names=called,
        rho=sides,
        intervals=torch.stack([a.interval(), b.interval()]).double(),
        rho_curve=torch.stack([a.rho_curve, b.rho_curve]).double(),
        rho_change=_beyond_rounding(change, a.bound + b.bound) if paired else change,
        excess=torch.stack([a.excess, b.excess]).double() if both_null else None,
        excess_change=_excess_change(a, b, paired) if both_null else None,
        beats_null=torch.stack([one.beats_null() for one in (a, b)]) if both_null else None,
        agreement=_agreement(a, b, defined, (groups[0], groups[1]), paired),
        paired=paired,
        groups=(groups[0], groups[1]),
        reasons=reasons | {head: f"{called[0]}: {reason}" for head, reason in a.reasons.items()},
        provenance={
            "model": {"name": " and ".join(dict.fromkeys([a.model_name, b.model_name]))},
            "differing": [one._asdict() for one in differences],
            "a": a.provenance,
            "b": b.provenance,
        },
        stays=torch.stack([a.stays(), b.stays()]) if len(controls) == 2 else None,  # noqa: PLR2004
        control_change=_excess_change(controls[0], controls[1], paired) if len(controls) == 2 else None,  # noqa: PLR2004
        curve_distance=_curve_distance(a, b),
    )


def _curve_distance(a: HeadScores, b: HeadScores) -> Float64[Tensor, "layer head"] | None:
    """Root mean square difference of D by distance, over the distances that both have, each alike."""
    if a.curve is None or b.curve is None or a.frequencies.shape != b.frequencies.shape:
        return None
    shared = min(a.curve.shape[-1], b.curve.shape[-1])
    difference = b.curve[..., :shared].double() - a.curve[..., :shared].double()
    return difference.square().nanmean(-1).sqrt()


def same_sequences(a: HeadScores, b: HeadScores) -> bool:
    """Whether both scored the same tokens in the same groups."""
    mine, other = (one.provenance.get("data", {}) for one in (a, b))
    return mine.get("sha256") is not None and all(mine.get(key) == other.get(key) for key in ("sha256", "groups"))


def _change(sides: Float64[Tensor, "side layer head"], parts: list[Part] | None) -> Change:
    value = sides[1] - sides[0]
    if parts is None:
        unknown = torch.full_like(value, torch.nan)
        return Change(value, unknown, unknown)
    variance, freedom = added_variances(*parts)
    return Change(value, torch.where(value.isnan(), torch.nan, variance), freedom)


def _beyond_rounding(change: Change, error: Float[Tensor, "layer head"]) -> Change:
    """The same, with changes that rounding alone could make less certain than that error.

    Resamples of the same sequences are rounded alike, so their spread does not show it.
    """
    error = error.double().nan_to_num().clamp(min=torch.finfo(torch.float64).tiny ** 0.5)
    rounded = change.value.abs() <= error
    variance = torch.where(rounded, torch.maximum(change.variance, error**2), change.variance)
    freedom = torch.where(rounded & change.freedom.isnan(), torch.inf, change.freedom)  # 0/0 of a variance of 0
    return Change(change.value, variance, freedom)


def _over_sequences(a: HeadScores, b: HeadScores, paired: bool) -> list[Part] | None:
    """Variances of a change of rho over sequences; None where one is unknown, or of too few groups.

    The bootstrap understates the variance over G groups by (G - 1) / G, as in `HeadScores.interval`.
    """
    if a.bootstrap_rho is None or b.bootstrap_rho is None or min(a.n_groups, b.n_groups) < FEWEST_UNITS:
        return None
    if paired:
        resampled = [(b.bootstrap_rho - a.bootstrap_rho, a.n_groups)]
    else:
        resampled = [(a.bootstrap_rho, a.n_groups), (b.bootstrap_rho, b.n_groups)]
    return [(rho.double().var(0) * groups / (groups - 1), groups - 1) for rho, groups in resampled]


def _excess_change(a: HeadScores, b: HeadScores, paired: bool) -> Change:
    """Change of the excess: the variance of rho over sequences, and that of the mean of the null over shuffles.

    A null varies over sequences too, but rho varies with it: where order has no effect, rho is the null of its
    sequences plus noise, so the excess varies less than rho.
    """
    assert a.null is not None
    assert b.null is not None
    sequences = _over_sequences(a, b, paired)
    # with one seed, shuffle r permutes the same positions in both, and the difference drops what they share
    alike = paired and len(a.null.rho) == len(b.null.rho)
    shuffled = [b.null.rho - a.null.rho] if alike else [a.null.rho, b.null.rho]
    shuffles = [(rho.double().var(0) / len(rho), len(rho) - 1) for rho in shuffled]
    sides = torch.stack([a.excess, b.excess]).double()
    change = _change(sides, None if sequences is None else [*sequences, *shuffles])
    return _beyond_rounding(change, 2 * (a.bound + b.bound)) if paired else change  # rho and its null are both rounded


def _agreement(
    a: HeadScores, b: HeadScores, defined: Tensor, groups: tuple[int, int], paired: bool
) -> dict[str, RankAgreement]:
    """Rank correlations over heads that have a score in both."""

    def of(measure: str, *resamples: Tensor | None) -> RankAgreement:
        scores = tuple(_measure(one, measure)[defined].double() for one in (a, b))
        known = (~(scores[0].isnan() | scores[1].isnan())).nonzero()[:, 0]
        mine, other = (one[known] for one in scores)
        if any(one is None for one in resamples) or not resamples:
            return RankAgreement(float(row_correlations(mine[None], other[None])[0]))
        some, others = (one[:, defined][:, known].double() for one in resamples if one is not None)
        return rank_agreement((mine, other), (some, others), groups, paired=paired)

    agreement = {"rho": of("rho", a.bootstrap_rho, b.bootstrap_rho)}
    if a.null is not None and b.null is not None:
        agreement["excess"] = of("excess", _resampled_excess(a, 1), _resampled_excess(b, 2))
        agreement["null_mean"] = of("null_mean")
    return agreement | {"rho_curve": of("rho_curve")}


def _measure(scores: HeadScores, measure: str) -> Tensor:
    if measure == "null_mean" and scores.null is not None:
        return scores.null.mean
    values: Tensor = getattr(scores, measure)
    return values


def _resampled_excess(scores: HeadScores, seed: int) -> Tensor | None:
    """The excess over resampled sequences and resampled shuffles."""
    if scores.bootstrap_rho is None or scores.null is None:
        return None
    null = scores.null.rho.double()
    weights = bootstrap_weights(len(null), len(scores.bootstrap_rho), seed) / len(null)
    return scores.bootstrap_rho - torch.einsum("rs,slh->rlh", weights, null)


def _two_names(names: Sequence[str]) -> tuple[str, str]:
    if len(names) != 2 or len(set(names)) != 2 or not all(name.strip() for name in names):  # noqa: PLR2004
        msg = f"names {list(names)!r}: give two different ones, e.g. ('prose', 'code')"
        raise ValueError(msg)
    a, b = names
    return a, b


def _refuse(a: HeadScores, b: HeadScores, names: tuple[str, str], *, same: bool | None = None) -> None:
    """Refuse what cannot be compared.

    Raises:
        ValueError: If shapes differ, no head has a score in both, both are one result, or the same sequences were
            resampled with other seeds.
    """
    name_a, name_b = (printable(name, newlines=False) for name in names)
    if a.rho.shape != b.rho.shape:
        shapes = [f"{layers} layers of {heads} heads" for layers, heads in (a.rho.shape, b.rho.shape)]
        msg = f"{name_a} has {shapes[0]} and {name_b} {shapes[1]}: only models of one shape can be compared by head"
        raise ValueError(msg)
    if same_result(a, b) if same is None else same:
        msg = f"{name_a} and {name_b} are the same result, every number is equal: give two"
        raise ValueError(msg)
    if bool((a.rho.isnan() | b.rho.isnan()).all()):
        msg = f"no head has a score in both {name_a} and {name_b}: score the same layers"
        raise ValueError(msg)
    if not same_sequences(a, b) or a.bootstrap_rho is None or b.bootstrap_rho is None:
        return
    drawn = [_drawn(one) for one in (a, b)]
    if drawn[0] != drawn[1]:
        said = " and ".join(f"seed {seed} and {resamples} resamples" for seed, resamples in drawn)
        msg = (
            f"{name_a} and {name_b} are of the same sequences, resampled differently ({said}), so that they cannot be "
            "compared sequence by sequence: score one again with the seed and resamples of the other"
        )
        raise ValueError(msg)


def _drawn(scores: HeadScores) -> tuple[Any, int]:
    """Seed and number of the resamples: equal ones draw the same sequences."""
    assert scores.bootstrap_rho is not None
    return scores.provenance.get("settings", {}).get("seed"), len(scores.bootstrap_rho)


def same_result(a: HeadScores, b: HeadScores) -> bool:
    """Whether every number of both is equal."""
    return _equal(a._tensors(), b._tensors())


def _equal(mine: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return mine.keys() == other.keys() and all(
        one.shape == other[name].shape and torch.equal(one.nan_to_num(9), other[name].nan_to_num(9))
        for name, one in mine.items()
    )
