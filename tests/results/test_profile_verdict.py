"""The verdict of a head profile says what its numbers say, and what is not known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from positional_heads.results.profile_verdict import profile_verdict
from tests.support.explored_results import controlled_scores
from tests.support.synthetic_profile import synthetic_profile

PROVENANCE = {
    "data": {"sequences": 8, "longest": 512},
    "settings": {"window": 64, "sinks": 4},
    "retrieval": {"task": "passkey", "answered": 5},
}
NAMES = {"sink": 30, "far": 50, "mixed": 20}


def verdict(values, names=None, **changed):
    """The verdict on these measures of 100 heads."""
    table = pd.DataFrame(values).corr("spearman")
    told = {"scores": ("rho", "rho_curve", "excess"), "unknown": set(), "beating": 3, "groups": 8}
    return profile_verdict(NAMES if names is None else names, table, provenance=PROVENANCE, **told | changed)


@pytest.fixture
def drawn():
    return np.random.default_rng(0).normal(size=(5, 100))


def test_names_are_counted_the_commonest_first(drawn):
    said = verdict({"rho": drawn[0], "reach": drawn[1]})
    assert said.startswith(
        "Of 100 heads, each by the first rule that holds: 50 far, 30 sink; no rule names the other 20. 3 beat their "
    )
    assert verdict({"rho": drawn[0]}, {"mixed": 100}).startswith("No rule names any of 100 heads.")
    assert verdict({"rho": drawn[0]}, {}) == "No head was profiled."
    assert "other" not in verdict({"rho": drawn[0]}, {"far": 100}).split("All of this")[0]
    assert " 1 beats its null" in verdict({"rho": drawn[0]}, beating=1)
    assert " No head beats its null with a positive rho. " in verdict({"rho": drawn[0]}, beating=0, staying=(64, 0))
    said = verdict({"rho": drawn[0]}, staying=(64, 2))
    assert " 3 beat their null with a positive rho; 2 of the 3 stay when the first 64 keys are left out. " in said
    assert "; 1 of the 3 stays when the first 8" in verdict({"rho": drawn[0]}, staying=(8, 1))


def test_measures_that_order_heads_alike_are_told_whatever_the_sign(drawn):
    a, b, c, *_ = drawn
    said = verdict({"rho": c, "reach": a, "sink_mass": -a, "semantic": a + 0.1 * b})
    assert "Nearly one thing under two names (rank correlation over heads of 0.9 or more, or -0.9 or less): " in said
    near = stats.spearmanr(a, a + 0.1 * b).statistic
    assert f"reach and sink_mass -1.00, reach and semantic {near:+.2f}, sink_mass and semantic {-near:+.2f}." in said
    assert "No two measures are nearly the same thing" in verdict({"rho": a, "reach": b})


def test_rho_goes_with_a_measure_only_beyond_what_chance_gives(drawn):
    a, b, c, *_ = drawn
    said = verdict({"rho": a, "rho_curve": a, "reach": a + 2 * b, "sink_mass": c})
    value = stats.spearmanr(a, a + 2 * b).statistic
    chance = stats.norm.isf(0.05 / 4) / np.sqrt(99)
    assert abs(value) > chance
    assert (
        f"rho goes most with reach {value:+.2f} (chance alone: up to {chance:.2f} over 100 independent heads)." in said
    )
    small = stats.spearmanr(a, c).statistic
    assert f"rho goes with none of the 1 other measures: at most {small:+.2f}, sink_mass" in verdict(
        {"rho": a, "sink_mass": c}
    )
    assert "excess goes with" not in said


def test_what_is_not_known_is_told_with_the_way_to_know_it(drawn):
    full = verdict({"rho": drawn[0]})
    assert full.endswith("8 sequences of up to 512 tokens: other text can change numbers and names.")
    bare = {"retrieval": "No retrieval scores: no tokenizer."}
    table = pd.DataFrame({"rho": drawn[0]}).corr()
    said = profile_verdict(
        NAMES, table, scores=("rho",), unknown={"distant_mass"}, beating=None, groups=3, provenance=PROVENANCE | bare
    )
    for part in (
        "too few for intervals, which need 4",
        "No null was counted, so there is no excess: profile again with null_repeats=20.",
        "no sequence is longer than window and sinks together, 68 tokens; profile longer ones, or with a smaller wind",
        "No retrieval scores: no tokenizer.",
    ):
        assert part in said
        assert part not in full


def test_the_verdict_of_a_record_is_that_of_its_numbers():
    profile = synthetic_profile()
    said = profile.verdict
    assert said.startswith("Of 8 heads, ")
    assert f"rho and rho_curve {profile.correlations().loc['rho', 'rho_curve']:+.2f}" in said
    assert "5 sequences of up to 9 tokens" in said
    assert "No retrieval score was asked for" in said
    assert "8 heads are too few" not in said
    assert "No null was counted" in synthetic_profile(null=False).verdict
    assert " stay" not in said
    scores = controlled_scores(0)
    said = replace(profile, scores=scores).verdict
    assert " 1 beats its null with a positive rho; 0 of the 1 stay when the first 64 keys are left out. " in said
    counted = sum(len(heads) for heads in profile.by_name.values())
    assert counted == 8
    for name, heads in profile.by_name.items():
        assert {profile.name(head) for head in heads} == {name}


def test_the_heads_of_a_name_are_those_that_show_it_most_first():
    profile = synthetic_profile()
    kept = {name: profile.sums[name] for name in ("reach", "sink_mass", "distant_mass")}
    kept["distant_mass"] = kept["distant_mass"] / 20
    by_name = replace(profile, sums=kept, weights={name: profile.weights[name] for name in kept}).by_name
    assert [*by_name] == ["sink", "local"]
    for name, measure, sign in (("sink", "sink_mass", -1), ("local", "distant_mass", 1)):
        values = [sign * float(profile.values(measure)[head]) for head in by_name[name]]
        assert len(values) > 1
        assert values == sorted(values)
