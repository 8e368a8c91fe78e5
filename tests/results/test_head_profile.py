"""The record of a head profile: values, intervals, names, key heads, tables and files."""

import numpy as np
import pytest
import torch
from scipy import stats

from positional_heads.core.heads import Head
from positional_heads.results.head_names import head_labels
from positional_heads.results.head_profile import HeadProfile
from tests.support.synthetic_profile import synthetic_profile


def test_a_measure_is_the_ratio_of_its_sums_over_all_groups() -> None:
    profile = synthetic_profile()
    expected = profile.sums["reach"].numpy().sum(0) / profile.weights["reach"].numpy().sum(0)
    np.testing.assert_allclose(profile.values("reach").numpy(), expected)
    assert torch.equal(profile.values("rho").nan_to_num(9), profile.scores.rho.double().nan_to_num(9))
    with pytest.raises(ValueError, match="'lenght' is no measure of this profile: choose one of rho, rho_curve"):
        profile.values("lenght")
    with pytest.raises(ValueError, match="for the excess, profile with null_repeats=20"):
        synthetic_profile(null=False).values("excess")


def test_with_equal_weights_the_interval_is_that_of_the_mean_over_groups() -> None:
    profile = synthetic_profile(groups=40)
    groups = profile.sums["sink_mass"][:, 0, 1].numpy()
    expected = stats.t.interval(0.95, 39, groups.mean(), groups.std(ddof=1) / np.sqrt(40))
    np.testing.assert_allclose(profile.interval("sink_mass")[0, 1].numpy(), expected, rtol=0.1)
    assert bool(synthetic_profile(groups=3).interval("sink_mass").isnan().all())
    assert bool(profile.interval("massive_key").isnan().all())


def test_a_key_head_has_the_largest_value_of_its_readers() -> None:
    profile = synthetic_profile()
    values, found = profile.values("reach"), profile.by_key_head("reach")
    assert found.shape == (3, 2)
    assert float(found[1, 1]) == max(float(values[1, 2]), float(values[1, 3]))
    assert bool(found[2].isnan().all())


def test_heads_are_named_by_every_rule_that_holds() -> None:
    heads = [Head(0, head) for head in range(5)]
    measures = {
        "sink_mass": torch.tensor([[0.5, 0.1, 0.2, 0.49, torch.nan]], dtype=torch.float64),
        "previous_token": torch.tensor([[0.0, 0.4, 0.0, 0.0, torch.nan]], dtype=torch.float64),
        "induction": torch.tensor([[0.2, 0.0, 0.0, 0.0, torch.nan]], dtype=torch.float64),
        "distant_mass": torch.tensor([[0.0, 0.2, 0.05, 0.1, torch.nan]], dtype=torch.float64),
    }
    assert head_labels(heads, measures) == {
        heads[0]: ["induction", "sink"],
        heads[1]: ["previous token", "far"],
        heads[2]: ["local"],
        heads[3]: [],
        heads[4]: [],
    }


def test_rank_correlations_are_scipys() -> None:
    profile = synthetic_profile()
    table = profile.correlations()
    both = profile.values("reach")[:2].flatten(), profile.values("induction")[:2].flatten()
    assert table.loc["reach", "induction"] == pytest.approx(stats.spearmanr(*both).statistic)
    assert list(table.index) == profile.names == list(table.columns)


def test_a_saved_profile_is_the_same(tmp_path) -> None:
    profile = synthetic_profile()
    loaded = HeadProfile.load(profile.save(tmp_path))
    assert loaded.names == profile.names
    for name, tensor in profile._tensors().items():
        assert torch.equal(loaded._tensors()[name].nan_to_num(-9), tensor.nan_to_num(-9)), name
    assert loaded.to_frame().equals(profile.to_frame())
    assert loaded.pair_frame().equals(profile.pair_frame())
    assert len(profile.pair_frame()) == 2 * 4 * 4
