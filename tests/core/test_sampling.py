"""A sample of pairs is fair, stays within the plan, and says what it costs."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, spearmanr

import positional_heads as ph
from positional_heads.core.binning import equal_mass_edges
from positional_heads.core.correlation import CorrelationSums
from positional_heads.core.plan import EntryPlan
from positional_heads.core.sampling import REPLICATES
from tests.support import oracles

LIMITS = [{}, {"window": 30}, {"skip_keys": 5, "min_distance": 3, "max_distance": 50}]
LENGTH = 60


@pytest.mark.parametrize("limits", LIMITS)
def test_without_a_sample_every_pair_that_counts_is_listed_once(limits):
    ((query_pos, key_pos),) = EntryPlan((LENGTH,), **limits).listed(0)
    assert sorted(zip(query_pos.tolist(), key_pos.tolist(), strict=True)) == sorted(
        oracles.counted_pairs(LENGTH, **limits)
    )


@pytest.mark.parametrize("limits", LIMITS)
def test_every_pair_that_counts_is_equally_likely(limits):
    pairs = oracles.counted_pairs(LENGTH, **limits)
    drawn = dict.fromkeys(pairs, 0)
    for seed in range(60):
        plan = EntryPlan((LENGTH,) * 2, **limits, most_entries=1024, seed=seed)
        for query_pos, key_pos in (places for sequence in range(2) for places in plan.listed(sequence)):
            for place in zip(query_pos.tolist(), key_pos.tolist(), strict=True):
                drawn[place] += 1  # a pair that does not count would raise
    assert chisquare(list(drawn.values())).pvalue > 1e-4


@pytest.mark.parametrize("limits", LIMITS)
def test_each_replicate_is_shared_out_over_distances_as_evenly_as_can_be(limits):
    plan = EntryPlan((LENGTH, 47), **limits, most_entries=1024)
    for sequence, length in enumerate(plan.lengths):
        pairs = oracles.counted_pairs(length, **limits)
        pairs_at = np.bincount([m - n for m, n in pairs], minlength=LENGTH)
        replicates = plan.listed(sequence)
        assert len(replicates) == REPLICATES
        for query_pos, key_pos in replicates:
            counts = np.bincount((query_pos - key_pos).numpy(), minlength=LENGTH)
            assert (np.abs(counts - pairs_at / plan.step) < 1).all()  # shorter sequences at the same rate
        assert len({tuple(key_pos.tolist()) for _, key_pos in replicates}) == REPLICATES


def test_the_plan_knows_what_will_be_counted():
    plan = EntryPlan((LENGTH, 50, LENGTH), skip_keys=2, n_groups=2, most_entries=1024, seed=3)
    counts = torch.zeros(REPLICATES, 2, LENGTH, dtype=torch.long)
    for sequence in range(3):
        for replicate, (query_pos, key_pos) in enumerate(plan.listed(sequence)):
            counts[replicate, plan.group(sequence)] += torch.bincount(query_pos - key_pos, minlength=LENGTH)
    assert torch.equal(plan.replicate_pair_counts, counts.sum(1))
    assert torch.equal(plan.group_pair_counts, counts.sum(0))
    assert torch.equal(plan.pair_counts, counts.sum((0, 1)))
    assert torch.equal(plan.rank_grid, EntryPlan((LENGTH, 50, LENGTH), skip_keys=2).rank_grid)


def test_a_sample_as_large_as_the_pairs_is_all_of_them():
    assert EntryPlan((LENGTH,), most_entries=LENGTH * (LENGTH + 1) // 2).step is None
    with pytest.raises(ValueError, match="1000 pairs are too few to sample: 1024 at least"):
        EntryPlan((LENGTH,), most_entries=1000)


def test_sampled_rho_is_unbiased_and_its_spread_is_the_stated_one():
    """Against scipy on every pair, over many samples of the same made-up D."""
    length, rng = 150, np.random.default_rng(0)
    dominant = torch.from_numpy(rng.standard_normal((2, length, length))).float()
    distance = torch.arange(length)[:, None] - torch.arange(length)
    dominant[0] += distance / 60
    below = distance >= 0
    exact = [spearmanr(distance[below], one[below]).statistic for one in dominant]
    edges = equal_mass_edges(dominant[:, below], 2048)
    found, stated = [], []
    for seed in range(200):
        plan = EntryPlan((length,), most_entries=2048, seed=seed)
        statistics = CorrelationSums(plan, edges)
        for replicate, (query_pos, key_pos) in enumerate(plan.listed(0)):
            statistics.update(dominant[:, query_pos, key_pos], query_pos - key_pos, 0, replicate)
        correlation = statistics.correlation()
        found.append(correlation.rho)
        stated.append(correlation.sampling_sd)
    found, stated = torch.stack(found), torch.stack(stated)
    sd = found.std(0)
    assert (abs(found.mean(0) - torch.tensor(exact)) < 4 * sd / 200**0.5).all()
    assert (stated.square().mean(0).sqrt() / sd).sub(1).abs().max() < 0.25


def test_sampled_scores_of_a_model_are_within_their_error_of_the_exact_ones(tiny):
    tokens = torch.randint(0, 256, (3, 120), generator=torch.Generator().manual_seed(0))
    exact = ph.score_heads(tiny("gemma2"), tokens, null_repeats=2)  # with a window in one layer
    sampled = ph.score_heads(tiny("gemma2"), tokens, null_repeats=2, pairs=1024)
    assert exact.sampling_sd is None
    assert (sampled.sampling_sd > 0).all()
    assert ((sampled.rho - exact.rho).abs() < 5 * sampled.sampling_sd).all()
    assert ((sampled.null.rho - exact.null.rho).abs() < 6 * sampled.sampling_sd).all()
    assert not torch.equal(sampled.rho, exact.rho)
    assert int(sampled.pair_counts.sum(-1)[0]) < int(exact.pair_counts.sum(-1)[0])
    assert sampled.provenance["settings"]["pairs"] == 1024


def test_what_an_extension_rotates_by_distance_is_sampled_so_too(bundled):
    tokens = ph.cut_text(bundled, ph.bundled_text())[0][:300]
    with ph.extended_rope(bundled, "self_extend", group=4, window=64, training_length=128):
        exact = ph.score_heads(bundled, tokens, layers=[2])
        sampled = ph.score_heads(bundled, tokens, layers=[2], pairs=8192)
    assert ((sampled.rho - exact.rho)[2].abs() < 5 * sampled.sampling_sd[2]).all()


def test_long_sequences_are_sampled_unless_told_otherwise(tiny, caplog, monkeypatch):
    from positional_heads.scoring.score import score as scoring

    monkeypatch.setattr(scoring, "MOST_EXACT", 2000)
    monkeypatch.setattr(scoring, "SAMPLED", 1024)
    tokens = torch.arange(80) * 7 % 256
    assert ph.score_heads(tiny("llama"), tokens).sampling_sd is not None
    assert "sequences of 80 tokens have 3240 query-key pairs: 1024 are sampled" in caplog.text
    caplog.clear()
    assert ph.score_heads(tiny("llama"), tokens, pairs="all").sampling_sd is None
    assert ph.score_heads(tiny("llama"), tokens[:60]).sampling_sd is None
    assert not caplog.text
    with pytest.raises(ValueError, match="pairs 'some' must be 'all' or a whole number"):
        ph.score_heads(tiny("llama"), tokens, pairs="some")


def test_sampling_error_survives_on_disk(tiny, tmp_path):
    scores = ph.score_heads(tiny("llama"), torch.arange(80), pairs=1024)
    assert torch.equal(ph.HeadScores.load(scores.save(tmp_path)).sampling_sd, scores.sampling_sd)
    assert "sampling_sd" in scores.to_frame().columns
