"""Scores from a sample of query-key pairs agree with the exact ones within their stated error."""

import torch

import positional_heads as ph


def test_sampled_scores_of_a_model_are_within_their_error_of_the_exact_ones(tiny):
    tokens = torch.randint(0, 256, (3, 120), generator=torch.Generator().manual_seed(0))
    exact = ph.score_heads(tiny("gemma2"), tokens, null_repeats=2)  # with a window in one layer
    sampled = ph.score_heads(tiny("gemma2"), tokens, null_repeats=2, pairs=1024, null_pairs=1024)
    assert exact.sampling_sd is None
    assert (sampled.sampling_sd > 0).all()
    assert ((sampled.rho - exact.rho).abs() < 5 * sampled.sampling_sd).all()
    assert exact.null.sampling_sd is None
    # the error of two shuffles has two degrees of freedom: pooled over heads
    error = (sampled.null.rho - exact.null.rho).square().mean().sqrt()
    assert 0.5 < error / sampled.null.sampling_sd.square().mean().sqrt() < 2
    assert not torch.equal(sampled.rho, exact.rho)
    assert int(sampled.pair_counts.sum(-1)[0]) < int(exact.pair_counts.sum(-1)[0])
    assert sampled.provenance["settings"]["pairs"] == 1024


def test_entries_rotated_by_distance_are_sampled_too(bundled):
    tokens = ph.cut_text(bundled, ph.bundled_text())[0][:300]
    with ph.extended_rope(bundled, "self_extend", group=4, window=64, training_length=128):
        exact = ph.score_heads(bundled, tokens, layers=[2], null_repeats=6, null_pairs="all")
        sampled = ph.score_heads(bundled, tokens, layers=[2], pairs=8192, null_repeats=6, null_pairs=8192)
    assert ((sampled.rho - exact.rho)[2].abs() < 5 * sampled.sampling_sd[2]).all()
    error = (sampled.null.rho - exact.null.rho)[:, 2]
    assert 0.5 < (error.square().mean() / sampled.null.sampling_sd[2].square().mean()).sqrt() < 1.6


def test_long_sequences_are_sampled_unless_all_pairs_are_asked_for(tiny, caplog, monkeypatch):
    monkeypatch.setattr("positional_heads.scoring.settings.MOST_EXACT", 2000)
    monkeypatch.setattr("positional_heads.scoring.settings.SAMPLED", 1024)
    tokens = torch.arange(80) * 7 % 256
    assert torch.equal(ph.score_heads(tiny("llama"), tokens).rho, ph.score_heads(tiny("llama"), tokens, pairs=1024).rho)
    assert "sequences of 80 tokens have 3240 query-key pairs: 1024 are sampled" in caplog.text
    caplog.clear()
    assert ph.score_heads(tiny("llama"), tokens, pairs="all").sampling_sd is None
    assert ph.score_heads(tiny("llama"), tokens[:60]).sampling_sd is None
    assert not caplog.text


def test_sampling_error_survives_on_disk(tiny, tmp_path):
    scores = ph.score_heads(tiny("llama"), torch.arange(80), pairs=1024, null_repeats=2, null_pairs=1024)
    loaded = ph.HeadScores.load(scores.save(tmp_path))
    assert torch.equal(loaded.sampling_sd, scores.sampling_sd)
    assert torch.equal(loaded.null.sampling_sd, scores.null.sampling_sd)
    assert {"sampling_sd", "null_error"} <= set(scores.to_frame().columns)
