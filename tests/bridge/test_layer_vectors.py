"""Queries and keys by distance give the model's own scores, under methods with one rotation and with several."""

import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.capture import capture

TOKENS = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(9))
METHODS = {"none": {}, "yarn": {"factor": 4}, "self_extend": {"group": 4, "window": 8}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_contributions_at_every_distance_sum_to_the_models_scores(family, method, tiny):
    model, own = tiny(family), {}

    def compare(vectors):
        rotary = vectors.rotary
        for row in range(len(TOKENS)):
            rest = ph.unrotated_remainder(vectors.rot_q, vectors.rot_k, rotary.rotary_dim)[row]
            total = rotary.soft_capped((vectors.contributions(row).sum(-1) + rest) * rotary.scale)
            visible = own[rotary.layer][row] > -1e30
            assert torch.allclose(total[visible], own[rotary.layer][row][visible], atol=1e-4)
            rebuilt = vectors.scores(row, torch.arange(30))[0]
            assert torch.allclose(rebuilt[visible], total[visible], atol=1e-4)

    with ph.extended_rope(model, method, training_length=24, **METHODS[method]):
        _, cache = model.run_with_cache(TOKENS, names_filter=lambda name: name.endswith("hook_attn_scores"))
        own.update({layer: cache[f"blocks.{layer}.attn.hook_attn_scores"] for layer in range(2)})
        capture(model, TOKENS, ph.resolve_layers(model).select(None), compare)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_cover_every_distance_once(method, tiny):
    model, ranges = tiny("llama"), []
    with ph.extended_rope(model, method, training_length=24, **METHODS[method]):
        layers = ph.resolve_layers(model).select([0])
        capture(model, TOKENS, layers, lambda vectors: ranges.extend(vectors.by_distance(0)))
    assert ranges[0].nearest == 0
    assert ranges[-1].furthest is None
    assert [one.furthest + 1 for one in ranges[:-1]] == [one.nearest for one in ranges[1:]]
