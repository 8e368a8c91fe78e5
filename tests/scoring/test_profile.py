"""Contributions by distance equal a brute force over all queries and keys, and add up to the model's scores."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.core.contributions import contribution_sums, remainder_sums
from positional_heads.core.heads import Head
from positional_heads.results.profile import geometric_edges

TOKENS = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(5))
HEADS = [Head(1, 2), Head(0, 1)]


def diagonal_means(square: torch.Tensor) -> np.ndarray:
    """Mean over sequences and each diagonal below, of [batch query_pos key_pos]."""
    square = square.double().numpy()
    return np.array([np.diagonal(square, -t, 1, 2).mean() for t in range(square.shape[-1])])


@pytest.mark.parametrize("family", ["llama", "neox", "gptj"])
def test_means_are_those_over_every_pair_of_queries_and_keys(family, tiny):
    model = tiny(family)
    profile = ph.contribution_profile(model, TOKENS, HEADS)
    cache = ph.dominant_dimension_cache(model, TOKENS, contributions=True)
    assert profile.heads == HEADS
    for number, (layer, head) in enumerate(HEADS):
        pairs = cache["contributions", layer, "attn"][:, head]
        expected = np.stack([diagonal_means(pairs[..., pair]) for pair in range(pairs.shape[-1])])
        np.testing.assert_allclose(profile.mean[number].numpy(), expected, atol=1e-6)
    assert profile.pair_counts[0].tolist() == [2 * (30 - t) for t in range(30)]


@pytest.mark.parametrize("family", ["llama", "neox", "glm"])
def test_pairs_and_remainder_add_up_to_the_models_own_scores(family, tiny):
    model = tiny(family)
    profile = ph.contribution_profile(model, TOKENS, HEADS)
    _, run = model.run_with_cache(TOKENS)
    for number, (layer, head) in enumerate(HEADS):
        expected = diagonal_means(run["attn_scores", layer, "attn"][:, head])
        total = profile.mean[number].sum(0) + profile.unrotated[number]
        np.testing.assert_allclose(total.numpy(), expected, atol=1e-5)
    assert bool(profile.unrotated.any()) == (family != "llama")


def test_a_sliding_window_and_skipped_keys_do_not_count(tiny):
    profile = ph.contribution_profile(tiny("mistral"), TOKENS, [Head(0, 3)], skip_keys=2)
    assert profile.pair_counts[0].tolist() == [2 * (28 - t) for t in range(12)] + [0] * 18
    assert profile.mean[0, :, 12:].isnan().all()
    pairs = ph.dominant_dimension_cache(tiny("mistral"), TOKENS, contributions=True)["contributions", 0, "attn"][:, 3]
    for distance in (0, 5, 11):
        counted = torch.stack([pairs[:, m, m - distance] for m in range(2 + distance, 30)])
        torch.testing.assert_close(
            profile.mean[0, :, distance], counted.double().mean((0, 1)), atol=1e-6, rtol=0, check_dtype=False
        )


def test_skipped_keys_do_not_count_in_the_remainder_either(tiny):
    model = tiny("neox")
    profile = ph.contribution_profile(model, TOKENS, [Head(1, 2)], skip_keys=3)
    scores = model.run_with_cache(TOKENS)[1]["attn_scores", 1, "attn"][:, 2].double()
    for distance in (0, 4, 20):
        expected = torch.stack([scores[:, m, m - distance] for m in range(3 + distance, 30)]).mean()
        found = profile.mean[0, :, distance].sum() + profile.unrotated[0, distance]
        assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_sequences_of_other_lengths_and_padding_fold_in(tiny):
    model = tiny("llama")
    mask = torch.tensor([[0] * 10 + [1] * 20, [1] * 30])
    padded = ph.contribution_profile(model, TOKENS, HEADS, attention_mask=mask, batch_size=2)
    apart = ph.contribution_profile(model, [TOKENS[0, 10:], TOKENS[1]], HEADS)
    assert torch.equal(padded.pair_counts, apart.pair_counts)
    torch.testing.assert_close(padded.mean, apart.mean, atol=1e-6, rtol=0)


def test_each_distance_is_profiled_as_it_is_rotated(tiny):
    model = tiny("llama")
    with ph.extended_rope(model, "self_extend", group=4, window=8, training_length=20):
        profile = ph.contribution_profile(model, TOKENS, HEADS)
        pairs = ph.dominant_dimension_cache(model, TOKENS, contributions=True)["contributions", 1, "attn"][:, 2]
    expected = np.stack([diagonal_means(pairs[..., pair]) for pair in range(pairs.shape[-1])])
    np.testing.assert_allclose(profile.mean[0].numpy(), expected, atol=1e-6)
    first_layer = ph.contribution_profile(model, TOKENS, HEADS).mean[1]  # reads embeddings, that no method changes
    torch.testing.assert_close(first_layer[:, :8], profile.mean[1, :, :8], atol=1e-6, rtol=0)
    assert not torch.allclose(first_layer[:, 8:], profile.mean[1, :, 8:], atol=1e-3)
    assert profile.provenance["extension"]["method"] == "self_extend"


def test_wider_ranges_hold_the_mean_over_their_query_key_pairs(tiny):
    profile = ph.contribution_profile(tiny("neox"), TOKENS, HEADS)
    binned = profile.binned(6)
    edges = binned.edges.tolist()
    assert edges == sorted({0, *np.geomspace(1, 30, 6).round().astype(int).tolist()})
    assert int(binned.pair_counts.sum()) == int(profile.pair_counts.sum())
    for column, (first, stop) in enumerate(pairwise(edges)):
        weights = profile.pair_counts[0, first:stop].numpy()
        own, rest = profile.mean[1, :, first:stop].numpy(), profile.unrotated[1, first:stop].numpy()
        np.testing.assert_allclose(binned.mean[1, :, column], np.average(own, axis=1, weights=weights))
        np.testing.assert_allclose(binned.unrotated[1, column], np.average(rest, weights=weights))
    assert profile.binned(10**6).edges.tolist() == list(range(31))


@pytest.mark.parametrize(("length", "bins"), [(1, 1), (2, 64), (100_000, 64), (7, 1)])
def test_geometric_edges_cover_every_distance_once(length, bins):
    edges = geometric_edges(length, bins)
    assert (edges[0], edges[-1]) == (0, length)
    assert (np.diff(edges) > 0).all()
    assert len(edges) - 1 <= bins


def test_sums_at_a_distance_equal_plain_python():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(7, 3, 2, generator=generator) for _ in range(2))
    sums, rest = contribution_sums(query, key), remainder_sums(query[:, 0], key[:, 0])
    for distance in range(7):
        for pair in range(3):
            terms = [float(query[m, pair].double() @ key[m - distance, pair].double()) for m in range(distance, 7)]
            assert float(sums[pair, distance]) == pytest.approx(sum(terms))
            if pair == 0:
                assert float(rest[distance]) == pytest.approx(sum(terms))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([], "no head given"),
        ([Head(0, 4)], "L0H4 does not exist: layers go from 0 to 1, heads to 3"),
        ([Head(2, 0)], "L2H0 does not exist"),
    ],
)
def test_heads_that_do_not_exist_have_no_profile(heads, message, tiny):
    with pytest.raises(ValueError, match=message):
        ph.contribution_profile(tiny("llama"), TOKENS, heads)


def test_a_profile_finds_its_heads_and_prints_in_one_line(tiny):
    profile = ph.contribution_profile(tiny("llama"), TOKENS, HEADS)
    assert profile.index(Head(0, 1)) == 1
    assert repr(profile) == "ContributionProfile(L1H2, L0H1: 8 pairs, 30 ranges of distance, 0 to 29 tokens)"
    with pytest.raises(ValueError, match="L0H0 is not in this profile: it has L1H2, L0H1"):
        profile.index(Head(0, 0))
    with pytest.raises(ValueError, match="bins 0 must be at least 1"):
        profile.binned(0)


def test_skipping_every_key_is_refused(tiny):
    with pytest.raises(ValueError, match=r"no query-key pair counts: skip_keys 30 leaves none .* 30 tokens"):
        ph.contribution_profile(tiny("llama"), TOKENS, HEADS, skip_keys=30)


def test_the_plain_rotation_prints_in_one_line(tiny):
    assert "\n" not in repr(ph.plain_rope(tiny("llama")))
