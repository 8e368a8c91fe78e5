"""Captured queries and keys give the model's own scores, with padding and under edits."""

import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.capture import capture
from tests.support.tiny_models import SCORED

TOKENS = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(3))
PADDED = torch.tensor([[0] * 5 + [1] * 19, [1] * 24])


def captured(model, tokens, mask=None):
    found = {}
    layers = list(ph.resolve_layers(model).layers.values())
    capture(model, tokens, layers, lambda vectors: found.update({vectors.rotary.layer: vectors}), mask)
    return found


@pytest.mark.parametrize("family", SCORED)
def test_captured_vectors_give_the_models_scores(family, tiny):
    model = tiny(family)
    name = "hook_pattern" if family == "gptj" else "hook_attn_scores"
    _, cache = model.run_with_cache(TOKENS, names_filter=lambda n: n.endswith(name))
    for layer, vectors in captured(model, TOKENS).items():
        scores = vectors.rotary.scores(vectors.rot_q, vectors.rot_k)
        held = cache[f"blocks.{layer}.attn.{name}"]
        if family == "gptj":
            hidden = torch.triu(torch.ones(24, 24, dtype=torch.bool), 1)
            assert torch.allclose(scores.masked_fill(hidden, -torch.inf).softmax(-1), held, atol=1e-5)
        else:
            visible = held > -1e30
            assert visible.any()
            assert torch.allclose(scores[visible], held[visible], atol=1e-4)


@pytest.mark.parametrize("family", SCORED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_score_of_real_tokens(family, side, tiny):
    model = tiny(family)
    mask = PADDED if side == "left" else PADDED.flip(1)
    span = slice(5, 24) if side == "left" else slice(0, 19)
    padded = captured(model, TOKENS, mask)
    alone = captured(model, TOKENS[:1, span])
    for layer, vectors in alone.items():
        expected = vectors.rotary.scores(vectors.rot_q, vectors.rot_k)
        found = vectors.rotary.scores(padded[layer].rot_q[:1, span], padded[layer].rot_k[:1, span])
        assert torch.allclose(found, expected, atol=2e-4)  # angles of other positions, rounded to float32


def test_scores_that_a_hook_changes_are_refused(tiny):
    model = tiny("llama")
    layers = list(ph.resolve_layers(model).layers.values())
    with (
        model.hooks(fwd_hooks=[("blocks.0.attn.hook_attn_scores", lambda scores, hook: scores * 1.5)]),
        pytest.raises(ph.UnsupportedModelError, match=r"layer 0: .* by 0\.33"),
    ):
        capture(model, TOKENS, layers, lambda vectors: None)


def test_edits_of_rotated_queries_are_captured(tiny):
    model = tiny("llama")
    layers = list(ph.resolve_layers(model).layers.values())
    plain, edited = {}, {}
    capture(model, TOKENS, layers, lambda vectors: plain.update({vectors.rotary.layer: vectors}))
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_rot_q", lambda q, hook: q * 2)]):
        capture(model, TOKENS, layers, lambda vectors: edited.update({vectors.rotary.layer: vectors}))
    assert torch.equal(edited[0].rot_q, 2 * plain[0].rot_q)
