"""What an ablation study concludes where controls are missing, or the model may not be able to do the task."""

import re

import numpy as np
import pytest

import positional_heads as ph
from positional_heads.core.heads import head_values
from tests.support.synthetic_studies import HEADS, LAYERS, all_heads, planted_study


def crowded(sizes=(2, 5), ranked=5, **settings):
    """The first heads are those of layer 3, which leaves too few there to match the larger sets; effects grow."""
    first = [ph.Head(3, head) for head in range(ranked)]
    effects = np.zeros((LAYERS, HEADS))
    effects[3] = -np.arange(1, HEADS + 1) / 10
    ranking = first + [head for head in all_heads() if head not in first]
    return planted_study(effects, effects / 2, ranking, sizes=sizes, noise=0.01, n_anywhere=9, **settings)


def test_the_mean_over_sizes_is_that_of_sizes_with_random_sets_on_both_sides():
    study = crowded()
    means = study.by_set().groupby(["kind", "k", "reach", "number"])["effect"].mean()
    table = study.contrasts().set_index(["k", "reach"])
    for reach in ("long", "short", "long - short"):
        row = table.loc[("all", reach)]
        assert np.isnan(table.loc[(5, reach), "difference"])
        assert row["top"] == pytest.approx(means["top", 2, reach, 0], abs=1e-12)
        difference = means["top", 2, reach, 0] - means["random", 2, reach].mean()
        assert row["difference"] == pytest.approx(difference, abs=1e-12)
        as_harmful = (means["permuted", 2, reach] <= means["top", 2, reach, 0]).sum()
        assert row["p_value"] == pytest.approx((1 + as_harmful) / 21)
    assert "mean over 1 size of 2, those with random sets)" in study.verdict
    anywhere = study.contrasts(control="anywhere").set_index(["k", "reach"])
    assert anywhere["difference"].notna().all()
    assert "a weaker control" not in study.verdict  # it has sets of 5 heads, so its mean is over other sizes
    assert "a weaker control" in crowded(sizes=(2, 3)).verdict


@pytest.mark.parametrize(
    ("sizes", "ranked", "said"),
    [
        (
            (5,),
            5,
            r"no more than ablating heads of permuted rankings, which may share some, does: log_prob -1\.\d+, with no "
            r"random set to compare with: too few other heads are left in these ",
        ),
        (
            (32,),
            5,
            r"0 permutations cannot .*, no others of these sizes exist: ablate fewer heads\. log_prob -3\.\d+, ",
        ),
        ((8,), 8, r"0 permutations cannot .*, no others of these sizes exist: ablate more heads\."),
    ],
)
def test_a_verdict_without_random_sets_says_so_and_has_no_nan(sizes, ranked, said):
    study = crowded(sizes, ranked)
    assert re.search(said, study.verdict)
    assert "nan" not in study.verdict
    assert "p = " not in study.verdict or study.contrasts()["permutations"].min() > 0


@pytest.mark.parametrize(
    ("chance", "said"),
    [
        (-0.2, None),
        (-0.108, "The model is not shown to beat a guess at planted on 24 units even with all heads (log_prob -0.1"),
        (-0.05, "The model cannot do planted even with all heads (log_prob -0.1"),
    ],
)
@pytest.mark.parametrize("sizes", [(2,), ()])
def test_a_task_is_impossible_only_where_a_guess_is_above_the_interval(chance, said, sizes):
    study = planted_study(np.zeros((LAYERS, HEADS)), np.zeros((LAYERS, HEADS)), all_heads(), sizes=sizes)
    study.chance["log_prob"] = chance
    intact = study.effects().iloc[0]
    assert (intact["low"] > chance) == (said is None)
    assert (intact["high"] <= chance) == (chance == -0.05)
    assert said is None or study.verdict.startswith(said)
    assert said is not None or "even with all heads" not in study.verdict
    assert ("or more examples" in study.verdict) == (chance == -0.108)


def test_few_units_show_nothing_about_a_guess():
    study = planted_study(np.zeros((4, 8)), np.zeros((4, 8)), all_heads(), units=3, baseline=-3.0)
    assert study.verdict.startswith("The model is not shown to beat a guess at planted on 3 units even with all heads")


def test_no_value_of_a_property_is_refused():
    with pytest.raises(ValueError, match=r"no value of reach given: choose among \['long', 'short'\]"):
        crowded().where(reach=[])


def test_complex_values_do_not_rank_heads():
    with pytest.raises(TypeError, match="the values of mine are complex, and have no order"):
        head_values("mine", np.ones((4, 8)) * 1j, (4, 8))
