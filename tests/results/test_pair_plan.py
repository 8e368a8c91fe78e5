"""The record of a pair plan: which pairs each rule keeps, computed anew, and in the ways of MHA2MLA's code."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.results.formats.mha2mla import read_mha2mla_ranks, write_mha2mla_ranks
from positional_heads.results.pair_plan import PairPlan, pair_plan
from tests.support.synthetic_profile import synthetic_profile


def wide(n_pairs=32, n_heads=4, n_kv_heads=2, layers=3, seed=0):
    """A profile of half-split heads with many pairs: all that a choice of pairs reads is random."""
    rng, profile = np.random.default_rng(seed), synthetic_profile()

    def drawn(*shape):
        return torch.from_numpy(rng.random(shape))

    shape = (layers, n_heads, n_pairs)
    pairs = replace(
        profile.pairs,
        frequencies=10000 ** -(torch.arange(n_pairs).double() / n_pairs).repeat(layers, 1),
        query_norm=drawn(*shape),
        key_norm=drawn(*shape),
        query_center=drawn(*shape, 2) - 0.5,
        key_center=drawn(*shape, 2) - 0.5,
        agreement=drawn(*shape),
        contribution=drawn(*shape, 3) - 0.5,
        unrotated=torch.zeros(layers, n_heads, 3, dtype=torch.float64),
        counts=torch.tensor([[4, 9, 0]] * layers),
    )
    key_heads = torch.arange(n_kv_heads).repeat_interleave(n_heads // n_kv_heads).repeat(layers, 1)
    rotary = [
        {"layer": layer, "layout": "half", "rotary_dim": 2 * n_pairs, "d_head": 2 * n_pairs} for layer in range(layers)
    ]
    return replace(profile, pairs=pairs, key_heads=key_heads, provenance={**profile.provenance, "rotary": rotary})


def measured(pairs, by, layer, head, pair):
    """A measure of one query head and pair, from its definition."""
    if by == "band_norm":
        return float(pairs.query_norm[layer, head, pair]) * float(pairs.key_norm[layer, head, pair])
    if by == "agreement":
        return float(pairs.agreement[layer, head, pair])
    if by == "center":
        return np.hypot(*pairs.query_center[layer, head, pair].tolist()) * np.hypot(
            *pairs.key_center[layer, head, pair].tolist()
        )
    counts, means = pairs.counts[layer].numpy(), pairs.contribution[layer, head, pair].numpy()
    known = counts > 0
    return np.average(np.abs(means[known]), weights=counts[known])


@pytest.mark.parametrize("by", ["band_norm", "agreement", "contribution", "center"])
def test_the_highest_over_all_readers_keep_their_rotation(by) -> None:
    profile = wide()
    profile.pairs.contribution[..., 2] = torch.nan  # a range without query-key pairs
    for budget, count in ((0, 0), (0.01, 0), (0.25, 8), (0.5, 16), (0.61, 20), (1, 32)):
        plan = pair_plan(profile, budget, by)
        for layer in range(3):
            for key_head in range(2):
                readers = range(2 * key_head, 2 * key_head + 2)
                values = [sum(measured(profile.pairs, by, layer, head, pair) for head in readers) for pair in range(32)]
                kept = sorted(range(32), key=lambda pair: -values[pair])[:count]
                assert plan.kept[layer, key_head].nonzero().flatten().tolist() == sorted(kept)
        assert plan.counts == (6 * count, 192)
        assert plan.notes == []


def mha2mla_mask(version, rope_dim, d_head):
    """Channels of a head that keep their rotation, as `partial_rope_mask` of their patch_func.py says it."""
    mask, half, rope_half = np.zeros(d_head, dtype=bool), d_head // 2, rope_dim // 2
    if version == "high":
        mask[:rope_half] = mask[half : half + rope_half] = True
    elif version == "low":
        mask[d_head - rope_half :] = mask[half - rope_half : half] = True
    else:
        mask[range(0, d_head, d_head // rope_dim)] = True
    return mask


@pytest.mark.parametrize("by", ["high", "low", "uniform"])
def test_rules_on_frequencies_are_mha2mlas(by) -> None:
    profile = wide()
    for rope_dim in (8, 16, 32, 64):
        kept = pair_plan(profile, rope_dim / 64, by).kept.numpy()
        expected = mha2mla_mask(by, rope_dim, 64)
        assert (np.concatenate([kept, kept], -1) == expected).all()
    if by == "uniform":  # theirs rounds the step, and keeps everything
        assert mha2mla_mask(by, 48, 64).all()
        found = pair_plan(profile, 0.75, by).kept[0, 0].nonzero().flatten().tolist()
        assert found == [pair for pair in range(32) if pair % 4 != 3]


def test_two_norm_is_what_their_code_makes_of_our_rank_file(tmp_path) -> None:
    profile = wide()
    file = write_mha2mla_ranks(profile, tmp_path / "ranks.pth")
    ranks = torch.load(file, weights_only=True)
    for rope_dim in (8, 16, 32, 48):
        masks = ranks < rope_dim // 2  # select_2norm_frequency
        kept = pair_plan(profile, rope_dim / 64).kept
        assert torch.equal(torch.cat([kept, kept], -1), masks)
    assert torch.equal(read_mha2mla_ranks(file) < 8, pair_plan(profile, 0.25, "band_norm").kept)


def test_layers_without_numbers_and_missing_pairs_stay_as_they_are() -> None:
    profile = synthetic_profile()
    profile.pairs.frequencies[1, 3] = torch.nan
    plan = pair_plan(profile, 0.5, "low")
    assert plan.digits == [["0011", "0011"], ["011", "011"], []]
    assert plan.counts == (8, 14)
    assert plan.kept[2].all()
    assert plan.notes == ["Layers 2 were not profiled, and stay as they are."]
    assert plan.extension == {"method": "kept_pairs", "kept": plan.digits, "how": "freeze"}
    profile.pairs.agreement[0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match="agreement has no value of some pairs, the first in layer 0"):
        pair_plan(profile, 0.5, "agreement")
    frame = plan.to_frame()
    assert len(frame) == 14
    assert frame.query("layer == 1 and key_head == 1")["readers"].unique().tolist() == ["L1H2 L1H3"]
    assert frame["wavelength"].iloc[:4].tolist() == pytest.approx(2 * np.pi * 10000 ** (np.arange(4) / 4))


def test_equal_values_are_said_and_own_values_taken() -> None:
    profile = synthetic_profile()
    values = torch.tensor([4.0, 1.0, 1.0, 0.0]).expand(3, 2, 4)
    assert pair_plan(profile, 0.5, ("mine", values)).digits[0] == ["1100", "1100"]
    assert "In 4 key heads pairs share a value of mine" in pair_plan(profile, 0.5, ("mine", values)).notes[1]
    assert len(pair_plan(profile, 0.75, ("mine", values)).notes) == 1
    wrong = {
        "shape": (("mine", values[0]), ValueError, r"must be a tensor \[layer kv_head pair\] of \[3, 2, 4\]"),
        "taken": (("high", values), ValueError, "'high' is a name of ours"),
        "numbers": (("mine", ["a"]), TypeError, "no array of numbers"),
        "infinite": (("mine", values / 0), ValueError, "has no value|infinite"),
        "unknown": ("norm", ValueError, "by 'norm' is no way to choose pairs: give one of band_norm, agreement"),
    }
    for by, error, message in wrong.values():
        with pytest.raises(error, match=message):
            pair_plan(profile, 0.5, by)
    for settings, message in (({"budget": 1.5}, "budget 1.5 must be from 0 to 1"), ({"how": "zero"}, "how")):
        with pytest.raises(ValueError, match=message):
            pair_plan(profile, **settings)


def test_chance_draws_every_pair_alike_and_the_same_by_seed() -> None:
    profile = wide(n_pairs=8)
    drawn = torch.stack([pair_plan(profile, 0.25, "chance", seed=seed).kept for seed in range(200)])
    assert torch.equal(drawn[3], pair_plan(profile, 0.25, "chance", seed=3).kept)
    assert set(drawn.sum(-1).flatten().tolist()) == {2}
    np.testing.assert_allclose(drawn.sum(0).numpy(), 50, atol=25)  # a standard deviation of 6
    assert not torch.equal(drawn[:, 0, 0], drawn[:, 0, 1])


def test_a_plan_is_read_back_and_says_what_it_is(tmp_path) -> None:
    plan = pair_plan(synthetic_profile(), 0.5, "center", "drop")
    loaded = PairPlan.load(plan.save(tmp_path))
    assert torch.equal(loaded.kept, plan.kept)
    assert torch.equal(loaded.ranked_by.nan_to_num(-1), plan.ranked_by.nan_to_num(-1))
    assert loaded.to_frame().equals(plan.to_frame())
    assert (loaded.verdict, loaded.notes, loaded.extension) == (plan.verdict, plan.notes, plan.extension)
    assert plan.verdict.startswith(
        "2 of 4 pairs of each key head keep their rotation, those highest by center in each (8 of 16"
    )
    none, every = (pair_plan(synthetic_profile(), budget, how="drop") for budget in (0, 1))
    assert none.verdict.startswith("no rotary pair keeps its rotation: all 16 of key heads are dropped. This is a")
    assert (
        every.description == "made up: all 16 rotary pairs of key heads keep their rotation: this plan changes nothing"
    )
    assert "the others are dropped. This is a choice, not yet evidence" in plan.verdict
    assert plan.description == (
        "made up: 8 of 16 rotary pairs of key heads keep their rotation, those highest by center in each; the others "
        "are dropped"
    )
    assert ph.PairPlan is PairPlan
