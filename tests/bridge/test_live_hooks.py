"""Hooks that never fire are made to fire, edits reach the logits, and the model is given back as it was."""

import pytest
import torch

import positional_heads as ph
from tests.support.tiny_models import BOOTED, DEAD_HOOKS

TOKENS = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(3))


def patched_attributes(model):
    found = []
    for block in model.blocks:
        for module in (block.attn, block.attn.original_component):
            found += [(id(module), name) for name, value in vars(module).items() if callable(value)]
    return sorted(found)


@pytest.mark.parametrize(("family", "compatible"), BOOTED)
@pytest.mark.filterwarnings("ignore:.*")  # compatibility mode warns about what it cannot fold; not ours to judge
def test_rotary_hooks_fire_and_edits_reach_the_logits(family, compatible, tiny):
    model = tiny(family, compatible=compatible)
    rotary = ph.resolve_layers(model).layers
    plain, before = model(TOKENS), patched_attributes(model)
    names = [f"blocks.{layer}.attn.hook_rot_{which}" for layer in rotary for which in "qk"]
    with ph.live_rotary_hooks(model):
        _, cache = model.run_with_cache(TOKENS, names_filter=names)
        assert set(names) <= set(cache.cache_dict)
        assert torch.equal(model(TOKENS), plain)
        assert {layer.source for layer in ph.resolve_layers(model).layers.values()} == {"hook"}
        for name in names[:2]:
            edited = model.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda x, hook: x * 0.5)])
            assert (edited - plain).abs().max() > 1e-4, name
    assert torch.equal(model(TOKENS), plain)
    assert patched_attributes(model) == before


@pytest.mark.parametrize("family", DEAD_HOOKS)
def test_the_model_is_as_before_after_an_exception(family, tiny):
    model = tiny(family)
    before = patched_attributes(model)
    inside = []
    with pytest.raises(KeyError, match="broken"), ph.live_rotary_hooks(model):  # noqa: PT012
        inside += patched_attributes(model)
        raise KeyError("broken")
    assert inside != before
    assert patched_attributes(model) == before
    assert ph.resolve_layers(model).layers[0].source == "rebuilt"


@pytest.mark.parametrize("family", DEAD_HOOKS)
def test_scores_are_the_same_through_live_hooks(family, tiny):
    model = tiny(family)
    rebuilt = ph.score_heads(model, TOKENS)
    with ph.live_rotary_hooks(model):
        live = ph.score_heads(model, TOKENS)
    assert torch.allclose(rebuilt.rho, live.rho, atol=1e-3)  # a pair of equal D may swap by a rounding


def test_generation_with_a_cache_works_through_live_hooks(tiny):
    model = tiny("neox")
    arguments = {"max_new_tokens": 5, "do_sample": False, "verbose": False, "stop_at_eos": False}
    plain = model.generate(TOKENS[:1], **arguments)
    with ph.live_rotary_hooks(model):
        assert torch.equal(model.generate(TOKENS[:1], **arguments), plain)


def halve(x, hook):
    x *= 0.5


def spoil_and_return_half(x, hook):
    half = x * 0.5
    x.zero_()
    return half


@pytest.mark.parametrize("family", DEAD_HOOKS)
@torch.no_grad()
def test_edits_in_place_by_return_value_and_by_both_do_the_same(family, tiny):
    """Also with a key-value cache, whose keys must not be changed by an edit in place."""
    model, edits = tiny(family), (lambda x, hook: x * 0.5, halve, spoil_and_return_half)
    names = ("blocks.0.attn.hook_rot_q", "blocks.1.attn.hook_rot_k")
    found = []
    for edit in edits:
        with ph.live_rotary_hooks(model), model.hooks(fwd_hooks=[(name, edit) for name in names]):
            whole = model(TOKENS)
            first, cache = model(TOKENS[:, :7], use_cache=True, return_type="logits_and_cache")
            rest = [
                model(TOKENS[:, at : at + 1], past_key_values=cache, use_cache=True, return_type="logits")
                for at in range(7, 9)
            ]
        assert torch.allclose(torch.cat([first, *rest], dim=1), whole[:, :9], atol=1e-4), edit
        found.append(whole)
    assert (found[0] - model(TOKENS)).abs().max() > 1e-3
    for other in found[1:]:
        assert torch.equal(other, found[0])
