"""SelfExtend and DPE are what their definitions say: complex numbers in float64, entry by entry, are the oracle."""

import re

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.bridge.rope_scaling.methods import rope_method
from positional_heads.bridge.rope_scaling.self_extend import Dpe, self_extend_advice
from tests.support import oracles
from tests.support.extended import PAIRS, contributions_by_distance, dominant_dimension, scores_by_distance

TOKENS = torch.randint(256, (2, 150), generator=torch.Generator().manual_seed(0))


def grouped(m, n, group=4, window=8):
    """SelfExtend's distance of a key at n from a query at m."""
    return m - n if m - n < window else m // group + window - window // group - n // group


@pytest.mark.parametrize("family", PAIRS)
@torch.no_grad()
def test_self_extend_is_what_its_definition_says(family, tiny):
    model, tokens = tiny(family), TOKENS[:1, :30]
    expected = scores_by_distance(model, tokens, 0, grouped)
    with extended_rope(model, "self_extend", group=4, window=8):
        _, cache = model.run_with_cache(tokens)
    found = cache["blocks.0.attn.hook_attn_scores"][0].numpy()
    visible = np.tril(np.ones((30, 30), dtype=bool))
    np.testing.assert_allclose(found[:, visible], expected[:, visible], atol=1e-4)
    assert (found[:, ~visible] < -1e30).all()


@pytest.mark.parametrize(("group", "window"), [(1, 8), (4, 152), (8, 160)])
@pytest.mark.parametrize("family", PAIRS)
@torch.no_grad()
def test_self_extend_that_groups_nothing_is_plain(family, group, window, tiny):
    model = tiny(family)
    plain = model(TOKENS)
    with extended_rope(model, "self_extend", group=group, window=window):
        found = model(TOKENS)
    assert torch.allclose(found, plain, atol=1e-5)
    if window > TOKENS.shape[1]:
        assert torch.equal(found, plain)


@torch.no_grad()
def test_dpe_with_one_group_for_all_pairs_is_self_extend(tiny):
    model = tiny("llama")
    with extended_rope(model, "self_extend", group=4, window=8):
        expected = model(TOKENS)
    with extended_rope(model, "dpe", pair_groups=[4] * 8, window=8):
        assert torch.allclose(model(TOKENS), expected, atol=1e-5)


@torch.no_grad()
def test_dpe_without_key_pairs_is_plain(tiny):
    model = tiny("llama")
    plain = model(TOKENS)
    none = {layer: torch.zeros(4, 8, dtype=torch.bool) for layer in range(2)}
    with extended_rope(model, Dpe((4,) * 8, 8, key_pairs=none)):
        assert torch.allclose(model(TOKENS), plain, atol=1e-5)


@pytest.mark.parametrize(
    ("key_pairs", "found"),
    [
        ({0: torch.ones(4, 8, dtype=torch.bool)}, "for layer 1, .* got None"),
        ({0: torch.ones(4, 8)}, r"got torch\.float32 of shape \(4, 8\)"),
        ({0: torch.ones(1, 8, dtype=torch.bool)}, r"of 4 heads x 8 pairs, got torch\.bool of shape \(1, 8\)"),
    ],
)
def test_key_pairs_that_are_not_every_layers_heads_and_pairs_are_refused(key_pairs, found, tiny):
    refused = pytest.raises(ValueError, match=rf"dpe: key_pairs must hold, .*{found}")
    with refused, extended_rope(tiny("llama"), "dpe", pair_groups=[4] * 8, window=8, key_pairs=key_pairs):
        pass


@pytest.mark.parametrize("key_pairs", [[99], 3])
def test_key_pairs_that_are_no_table_are_refused(key_pairs, tiny):
    refused = pytest.raises(TypeError, match=f"^key_pairs must be a dict or None, got {re.escape(str(key_pairs))}$")
    with refused, extended_rope(tiny("llama"), "dpe", pair_groups=[4] * 8, window=8, key_pairs=key_pairs):
        pass


@pytest.mark.parametrize("family", PAIRS)
@torch.no_grad()
def test_scores_under_self_extend_use_the_distance_really_used(family, tiny):
    model, tokens = tiny(family), TOKENS[:1, :60]
    dominant = dominant_dimension(contributions_by_distance(model, tokens, 0, grouped))
    rows, columns = np.tril_indices(60)
    with extended_rope(model, "self_extend", group=4, window=8):
        scores = ph.score_heads(model, tokens, null_repeats=2, layers=[0])
        cache = ph.dominant_dimension_cache(model, tokens, layers=[0])
    found = cache["dominant_dim", 0, "attn"][0].numpy()
    np.testing.assert_allclose(found[:, rows, columns], dominant[:, rows, columns], atol=1e-4)
    for head in range(4):
        expected = oracles.rho(rows - columns, dominant[head, rows, columns], 1 / 256)
        assert float(scores.rho[0, head]) == pytest.approx(expected, abs=1e-3)
    assert scores.provenance["extension"]["method"] == "self_extend"
    assert scores.provenance["extension"]["group"] == 4


@pytest.mark.parametrize(("window", "longest"), [(32, 160), (64, 64), (96, 64)])
def test_its_reach_is_where_a_distance_would_exceed_the_training_length(window, longest):
    method = rope_method("self_extend", group=4, window=window)
    assert method.reach(64) == longest
    assert grouped(longest - 1, 0, 4, window) == 63


def test_advice_is_the_smallest_group_that_reaches_and_the_authors_rule():
    advice = self_extend_advice(4096, 16384, window=1024)
    assert advice.smallest == 8  # (4096 - 1024) * 8 + 1024 = 25600; group 4 reaches 13312
    assert advice.recommended == 16  # 1024 + 15360 / 16 = 1984 < 2731; at 8 it is 2944


def test_a_target_that_no_group_reaches_is_refused():
    with pytest.raises(ValueError, match=r"target length 999999 .* at most 456"):
        self_extend_advice(64, 999_999, window=8)
