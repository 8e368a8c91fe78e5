"""MHA2MLA's ranks: their rule written again in NumPy, their channel order, what is refused, and comparisons."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import positional_heads as ph
from tests.support.synthetic_profile import synthetic_profile

TOKENS, HEADS, KEY_HEADS, CHANNELS = 11, 4, 2, 8


def vectors(seed: int, heads: int) -> np.ndarray:
    """Queries or keys before rotation, of two layers."""
    return np.random.default_rng(seed).normal(size=(2, TOKENS, heads, CHANNELS)) * np.linspace(0.5, 2, CHANNELS)


def profile_of(query: np.ndarray, key: np.ndarray) -> ph.HeadProfile:
    """A profile with the norms of these vectors in layers 0 and 1, pair i being channels i and i + 4."""
    profile = synthetic_profile()

    def norms(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.abs(x[..., :4] + 1j * x[..., 4:]).mean(1))

    pairs = profile.pairs
    query_norm, key_norm = pairs.query_norm.clone(), pairs.key_norm.clone()
    query_norm[:2], key_norm[:2] = norms(query), norms(key).repeat_interleave(2, 1)
    return replace(profile, pairs=replace(pairs, query_norm=query_norm, key_norm=key_norm))


def two_norm(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Ranks of every channel as `2_norm.py` defines them, one number at a time."""
    ranks = np.zeros((2, KEY_HEADS, CHANNELS), dtype=np.uint8)
    for layer in range(2):
        for key_head in range(KEY_HEADS):
            scores = [0.0] * (CHANNELS // 2)
            for head in (2 * key_head, 2 * key_head + 1):  # queries of a group follow each other
                for pair in range(CHANNELS // 2):
                    lengths = [
                        np.mean([np.hypot(token[pair], token[pair + CHANNELS // 2]) for token in of_head])
                        for of_head in (query[layer, :, head], key[layer, :, key_head])
                    ]
                    scores[pair] += lengths[0] * lengths[1]
            for rank, pair in enumerate(sorted(range(CHANNELS // 2), key=lambda pair: -scores[pair])):
                ranks[layer, key_head, pair] = ranks[layer, key_head, pair + CHANNELS // 2] = rank
    return ranks


def test_ranks_are_those_of_their_rule_in_their_channel_order(tmp_path):
    query, key = vectors(0, HEADS), vectors(1, KEY_HEADS)
    file = ph.formats.write_mha2mla_ranks(profile_of(query, key), tmp_path / "new" / "ranks.pth")
    stored = torch.load(file, weights_only=True)
    assert (stored.dtype, stored.shape) == (torch.uint8, (3, KEY_HEADS, CHANNELS))
    np.testing.assert_array_equal(stored[:2].numpy(), two_norm(query, key))
    assert set(stored[2].flatten().tolist()) == {255}
    assert not bool((stored[2] < 4).any())  # their mask keeps no rotation where the model has none
    read = ph.formats.read_mha2mla_ranks(file)
    assert torch.equal(read[:2], stored[:2, :, :4].long())
    assert bool((read[2] == -1).all())
    ph.formats.write_mha2mla_ranks(synthetic_profile(seed=1), file)  # its own kind may be replaced
    assert not torch.equal(torch.load(file, weights_only=True), stored)


@pytest.mark.parametrize(
    ("rotary", "message"),
    [
        ({"layout": "adjacent"}, "MHA2MLA knows the layout half, and this model has adjacent"),
        ({"rotary_dim": 4}, "rotates every channel, and this model leaves some unrotated"),
        ({"sense": -1}, "turns pairs anticlockwise"),
    ],
)
def test_pairs_of_other_channels_are_refused(rotary, message, tmp_path):
    profile = synthetic_profile()
    layer = {"layout": "half", "rotary_dim": 8, "d_head": 8, "sense": 1}
    known = replace(profile, provenance=profile.provenance | {"rotary": [layer, layer]})
    ph.formats.write_mha2mla_ranks(known, tmp_path / "ranks.pth")
    other = replace(profile, provenance=profile.provenance | {"rotary": [layer, layer | rotary]})
    with pytest.raises(ValueError, match=message):
        ph.formats.write_mha2mla_ranks(other, tmp_path / "none.pth")
    assert not (tmp_path / "none.pth").exists()


def test_unrotated_channels_and_missing_pairs_are_noticed_without_provenance(tmp_path):
    profile = synthetic_profile()
    unrotated = profile.pairs.unrotated.clone()
    unrotated[0, 0, 0] = 0.1
    with pytest.raises(ValueError, match="leaves some unrotated"):
        ph.formats.write_mha2mla_ranks(
            replace(profile, pairs=replace(profile.pairs, unrotated=unrotated)), tmp_path / "r"
        )
    fewer = profile.pairs.query_norm.clone()
    fewer[1, :, 3] = torch.nan
    with pytest.raises(ValueError, match="the same number of pairs in every layer"):
        ph.formats.write_mha2mla_ranks(replace(profile, pairs=replace(profile.pairs, query_norm=fewer)), tmp_path / "r")
    nothing = replace(profile, key_heads=torch.full_like(profile.key_heads, -1))
    with pytest.raises(ValueError, match="no layer of this profile was measured"):
        ph.formats.mha2mla_ranks(nothing)
    uneven = replace(profile, key_heads=torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [-1] * 4]))
    with pytest.raises(ValueError, match="different numbers of key heads, up to 2"):
        ph.formats.mha2mla_ranks(uneven)


WRONG = {
    "float": torch.zeros(1, 1, 4),
    "axes": torch.zeros(1, 4, dtype=torch.uint8),
    "empty": torch.zeros(0, 2, 4, dtype=torch.uint8),
    "odd": torch.zeros(1, 1, 3, dtype=torch.uint8),
    "halves": torch.tensor([[[0, 1, 1, 0]]]),
    "twice": torch.tensor([[[0, 0, 0, 0]]]),
    "range": torch.tensor([[[1, 2, 1, 2]]]),
    "repeated": torch.zeros(1, 1, 1, dtype=torch.uint8).expand(10**4, 10**4, 4),
    "sparse": torch.eye(2).to_sparse(),
    "dict": {"ranks": torch.zeros(1, 1, 4, dtype=torch.uint8)},
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_table_of_ranks_is_refused(case, tmp_path):
    torch.save(WRONG[case], tmp_path / "ranks.pth")
    with pytest.raises(ph.ResultFileError, match=r"ranks\.pth: "):
        ph.formats.read_mha2mla_ranks(tmp_path / "ranks.pth")
    with pytest.raises(ph.ResultFileError, match="exists already and is not a file of MHA2MLA ranks"):
        ph.formats.write_mha2mla_ranks(synthetic_profile(), tmp_path / "ranks.pth")


def test_a_comparison_is_scipys_over_pairs_and_for_each_head():
    profile = synthetic_profile()
    own, ranks = ph.formats.mha2mla_ranks(profile), ph.formats.mha2mla_ranks(synthetic_profile(seed=7))
    found = ph.formats.compare_mha2mla(profile, ranks)
    mean = [table[:2].double().mean((0, 1)).numpy() for table in (own, ranks)]
    assert found.correlation == pytest.approx(stats.spearmanr(*mean).statistic)
    np.testing.assert_allclose(found.ours, mean[0])
    np.testing.assert_allclose(found.theirs, mean[1])
    assert f"{found.correlation:+.3f}" in repr(found)
    assert f"of a key head {np.nanmean(found.by_head):+.3f},".replace("+0.000", "0.000") in repr(found)
    assert found.by_head[1, 0] == pytest.approx(stats.spearmanr(own[1, 0], ranks[1, 0]).statistic)
    assert bool(found.by_head[2].isnan().all())
    assert ph.formats.compare_mha2mla(profile, own).correlation == pytest.approx(1)


def test_another_model_is_compared_as_a_whole_and_other_pairs_not_at_all():
    profile = synthetic_profile()
    other = torch.arange(4).expand(5, 3, 4)
    found = ph.formats.compare_mha2mla(profile, other)
    assert found.by_head is None
    expected = stats.spearmanr(ph.formats.mha2mla_ranks(profile)[:2].double().mean((0, 1)), range(4)).statistic
    assert found.correlation == pytest.approx(expected)
    assert np.isnan(ph.formats.compare_mha2mla(profile, torch.tensor([[[0, 1, 2, 3], [3, 2, 1, 0]]])).correlation)
    with pytest.raises(ValueError, match="ranks of 3 pairs cannot be compared with a profile of 4"):
        ph.formats.compare_mha2mla(profile, other[..., :3])
    with pytest.raises(ValueError, match="no head with ranks"):
        ph.formats.compare_mha2mla(profile, other * 0 - 1)
