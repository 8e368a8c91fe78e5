"""Made-up results of one shape, as a folder of several runs has them: what an explorer shows side by side."""

from dataclasses import replace
from typing import Any

import numpy as np

import positional_heads as ph
from positional_heads.core.heads import Head
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.record import Record
from positional_heads.results.scores import HeadScores
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_distances import synthetic_distances
from tests.support.synthetic_examples import synthetic_examples
from tests.support.synthetic_profile import synthetic_profile
from tests.support.synthetic_studies import HEADS, LAYERS, all_heads, planted_extrapolation, planted_study


def named(record: Any, text: str | None = None, **model: Any) -> Any:
    """A record of this text and model."""
    provenance = {**record.provenance, "model": {**record.provenance.get("model", {}), **model}}
    provenance["data"] = {**record.provenance.get("data", {}), "texts": [text], "sha256": text} if text else {}
    return replace(record, provenance={**record.provenance, **provenance})


def controlled_scores(seed: int = 0, **names: Any) -> HeadScores:
    """Scores with a control, in which no head beats its null."""
    scores = synthetic_scores(seed=seed)
    control = synthetic_scores(seed=seed + 7)
    assert scores.null is not None
    control = replace(control, rho=control.rho * 0, null=scores.null)
    settings = {**scores.provenance["settings"], "control_keys": 64, "null_repeats": 6}
    scores = replace(scores, control=control, provenance={**scores.provenance, "settings": settings})
    return named(scores, names.pop("text", "prose"), context=16, **names)  # type: ignore[no-any-return]


def several_results(**names: Any) -> dict[str, Record]:
    """Three layers of four heads: scores of two texts, their comparison, a profile, distances, and two heads' texts."""
    scores, other = controlled_scores(**names), controlled_scores(3, text="code", **names)
    other = replace(other, rho=other.rho * 0.8 + 0.01)  # neither rho nor excess is that of the first
    profile = synthetic_profile()
    profile = named(replace(profile, scores=scores), "prose", context=16, **names)
    assert isinstance(profile, HeadProfile)
    return {
        "scores": scores,
        "other": other,
        "profile": profile,
        "distances": named(synthetic_distances(heads=4), "prose", **names),
        "compared": ph.compare(scores, other, names=["scores", "other"]),
        "texts": named(synthetic_examples(), **{"layers": 3, "heads": 4, **names}),
    }


def studied_results() -> dict[str, Record]:
    """Four layers of eight heads: each head of the first two layers ablated alone, and two heads under extension."""
    rng = np.random.default_rng(1)
    long, short = rng.normal(0, 0.3, (2, LAYERS, HEADS))
    singles = [head for head in all_heads() if head < Head(2, 0)]
    return {
        "ablation": planted_study(long, short, all_heads(), singles=len(singles), sizes=(2,)),
        "extension": planted_extrapolation(),
    }
