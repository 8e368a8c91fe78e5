"""What is planted is found, and where nothing is planted nothing is found."""

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.core.plan import EntryPlan
from positional_heads.core.shuffles import ShufflePlan
from tests.support.planted import save_planted_model
from tests.support.tiny_models import boot

POSITIONAL, GEOMETRIC, NOISY = ph.Head(0, 0), ph.Head(0, 1), ph.Head(0, 2)


def increasing_tokens(sequences=8, length=64):
    """Texts in which content tells position: random token ids in increasing order."""
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.choice(256, length, replace=False)) for _ in range(sequences)]
    return torch.from_numpy(np.stack(rows))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return boot(save_planted_model(tmp_path_factory.mktemp("planted")))


def test_a_planted_head_is_distinguished_from_others(planted):
    # half of its D lies within 1e-7 of the slowest pair's index: what follows distance is below any coarser resolution
    scores = ph.score_heads(planted, increasing_tokens(), null_repeats=10, resolution=0.0)
    assert scores.rho[POSITIONAL] > 0.9
    assert scores.excess[POSITIONAL] > 0.9
    assert scores.positional_heads(alpha=0.05) == [POSITIONAL]
    assert scores.rho[NOISY].abs() < 0.1
    assert "1 of 4 heads" in scores.verdict


def test_geometry_alone_scores_high_and_beats_no_null(planted):
    scores = ph.score_heads(planted, increasing_tokens(), null_repeats=10)
    assert scores.rho[GEOMETRIC] > 0.5
    assert scores.excess[GEOMETRIC].abs() < 0.02
    assert not scores.significant()[GEOMETRIC]


def test_shuffled_content_scores_nothing(planted):
    tokens = increasing_tokens()
    order = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(row)) for row in range(8)])
    scores = ph.score_heads(planted, tokens.gather(1, order), null_repeats=10)
    assert not scores.significant().any()
    assert scores.rho[POSITIONAL].abs() < 0.1
    assert scores.verdict.startswith("No head beats its null")


@pytest.mark.parametrize("seed", range(4))
def test_random_weights_on_random_tokens_have_no_significant_head(seed, tiny):
    tokens = torch.randint(256, (8, 96), generator=torch.Generator().manual_seed(seed))
    scores = ph.score_heads(tiny("llama", initializer_range=0.02 + 0.01 * seed), tokens, null_repeats=10, seed=seed)
    assert not scores.significant().any()
    assert scores.verdict.startswith("No head beats its null")


def test_random_weights_on_text_have_no_significant_head_behind_the_first_positions():
    """In an untrained model later positions average over more, so that content at the first ones tells position."""
    model = ph.load_bundled_model(step=0)
    sequences = ph.cut_text(model, ph.bundled_text(), 256)[:8]
    assert not ph.score_heads(model, sequences, null_repeats=8, skip_keys=64).significant().any()


def test_the_null_keeps_skipped_keys_where_they_are(tiny):
    """With two keys left there are two orders to shuffle into, one of which is the actual one."""
    tokens = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(0))
    scores = ph.score_heads(tiny("llama"), tokens, null_repeats=12, skip_keys=38, resolution=0.0)
    assert int(scores.pair_counts[0].sum()) == 3
    shuffled = {tuple(rho.flatten().tolist()) for rho in scores.null.rho.round(decimals=6)}
    assert len(shuffled) == 2
    assert tuple(scores.rho.round(decimals=6).flatten().tolist()) in shuffled


def test_shuffles_are_permutations_that_differ_between_sequences_and_repeats():
    plan = ShufflePlan(EntryPlan((40, 40, 2), skip_keys=3, seed=5), repeats=2)
    orders = [*plan.orders(0), *plan.orders(1)]
    for order in orders:
        assert order[:3].tolist() == [0, 1, 2]
        assert sorted(order.tolist()) == list(range(40))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert plan.orders(2).tolist() == [[0, 1], [0, 1]]  # all keys of a short sequence are skipped


def test_shuffling_is_running_the_model_on_the_moved_vectors(tiny):
    """In layer 0, where content does not depend on context, permuted content is that of permuted tokens."""
    tokens = torch.randint(256, (1, 48), generator=torch.Generator().manual_seed(0))
    scores = ph.score_heads(tiny("llama"), tokens, null_repeats=2, seed=7, layers=[0])
    for repeat in range(2):
        order = np.random.default_rng([7, 0, repeat]).permutation(48)
        permuted = ph.score_heads(tiny("llama"), tokens[:, order], layers=[0])
        assert torch.allclose(scores.null.rho[repeat, 0], permuted.rho[0], atol=2e-3)  # angles rounded in float32


def test_a_sampled_null_is_within_its_stated_error_of_the_exact_one(bundled):
    """By default, and with the same shuffles: what is left is sampling alone."""
    tokens = ph.cut_text(bundled, ph.bundled_text(), 256)[:2]
    exact, sampled = (
        ph.score_heads(bundled, tokens, null_repeats=32, null_pairs=pairs).null for pairs in ("all", None)
    )
    assert exact.sampling_sd is None
    error = (sampled.rho - exact.rho).flatten(1)
    assert (error.mean(0).abs() < 4 * sampled.mean_error.flatten()).all()
    # pooled over 32 heads and as many shuffles, each standard deviation is known to a few per cent
    ratio = (error.square().mean() / sampled.sampling_sd.square().mean()).sqrt()
    assert 0.8 < ratio < 1.25
    assert sampled.mean_error.median() < exact.sd.median() / 5
    assert (sampled.sd / exact.sd).median().sub(1).abs() < 0.2
    assert torch.equal(sampled.sd, sampled.rho.std(0))  # a spread that sampling explains is not 0
