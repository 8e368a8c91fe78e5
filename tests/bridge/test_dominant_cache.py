"""The dominant-dimension cache composes like any other ActivationCache, and holds what a brute force finds."""

import numpy as np
import pytest
import torch

import positional_heads as ph
from tests.support import hugging_face, oracles

TOKENS = torch.randint(256, (2, 14), generator=torch.Generator().manual_seed(3))


def test_entries_are_found_by_short_and_by_full_name(tiny):
    cache = ph.dominant_dimension_cache(tiny("llama"), TOKENS, layers=[1])
    assert list(cache.cache_dict) == ["blocks.1.attn.hook_dominant_dim"]
    assert torch.equal(
        cache["dominant_dim", 1, "attn"].nan_to_num(), cache["blocks.1.attn.hook_dominant_dim"].nan_to_num()
    )
    assert cache["dominant_dim", 1, "attn"].shape == (2, 4, 14, 14)


def test_the_cache_stacks_slices_and_drops_the_batch(tiny):
    cache = ph.dominant_dimension_cache(tiny("llama"), TOKENS, contributions=True)
    assert cache.stack_activation("dominant_dim", sublayer_type="attn").shape == (2, 2, 4, 14, 14)
    assert cache.stack_activation("contributions", sublayer_type="attn").shape == (2, 2, 4, 14, 14, 8)
    first = cache.apply_slice_to_batch_dim(0)
    assert first["dominant_dim", 0, "attn"].shape == (4, 14, 14)
    single = ph.dominant_dimension_cache(tiny("llama"), TOKENS[:1])
    single.remove_batch_dim()
    assert torch.allclose(
        single["dominant_dim", 0, "attn"], first["dominant_dim", 0, "attn"], atol=1e-5, equal_nan=True
    )


def test_the_cache_merges_into_a_runs_own(tiny):
    _, run = tiny("llama").run_with_cache(TOKENS)
    run.cache_dict.update(ph.dominant_dimension_cache(tiny("llama"), TOKENS, layers=[0]).cache_dict)
    assert run["dominant_dim", 0, "attn"].shape == run["attn_scores", 0, "attn"].shape


@pytest.mark.parametrize("family", ["llama", "neox", "gptj"])
def test_the_cache_equals_a_brute_force(family, tiny, tiny_folder):
    cache = ph.dominant_dimension_cache(tiny(family), TOKENS[:1])
    queries, keys, layout, n_pairs = hugging_face.rotated(family, tiny_folder(family), TOKENS[0].numpy())
    for layer, head in np.ndindex(2, 4):
        found = cache["dominant_dim", layer, "attn"][0, head]
        for m, n in oracles.counted_pairs(14):
            expected = oracles.dominant(
                oracles.contributions(queries[layer][head][m], keys[layer][head][n], layout, n_pairs)
            )
            assert float(found[m, n]) == pytest.approx(expected, abs=1e-4)
        assert found.isnan().sum() == 14 * 13 / 2


def test_padding_has_no_dominant_dimension(tiny):
    mask = torch.tensor([[0] * 4 + [1] * 10, [1] * 14])
    dominant = ph.dominant_dimension_cache(tiny("llama"), TOKENS, attention_mask=mask)["dominant_dim", 0, "attn"]
    assert dominant[0, :, :4].isnan().all()
    assert dominant[0, :, :, :4].isnan().all()
    assert int((~dominant[0, 0].isnan()).sum()) == 55
    assert int((~dominant[1, 0].isnan()).sum()) == 105


def test_contributions_add_up_to_the_models_scores(tiny):
    model = tiny("llama")
    cache = ph.dominant_dimension_cache(model, TOKENS, contributions=True)
    _, run = model.run_with_cache(TOKENS)
    scores = run["attn_scores", 1, "attn"]
    visible = scores > -1e30
    assert torch.allclose(cache["contributions", 1, "attn"].sum(-1)[visible], scores[visible], atol=1e-5)


def test_the_same_question_twice_gives_the_same_answer(tiny):
    before = TOKENS.clone()
    first, again = (ph.dominant_dimension_cache(tiny("qwen3"), TOKENS)["dominant_dim", 1, "attn"] for _ in "ab")
    assert torch.equal(first.nan_to_num(), again.nan_to_num())
    assert torch.equal(TOKENS, before)


def test_layers_without_rotation_are_left_out_or_refused(tiny):
    assert list(ph.dominant_dimension_cache(tiny("smollm3"), TOKENS).cache_dict) == ["blocks.0.attn.hook_dominant_dim"]
    with pytest.raises(ValueError, match="layer 1 cannot be scored: it has no rotary embedding"):
        ph.dominant_dimension_cache(tiny("smollm3"), TOKENS, layers=[1])
