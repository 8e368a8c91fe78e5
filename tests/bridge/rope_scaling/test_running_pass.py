"""Rewritten scores take earlier keys from the cache of the run, whatever was done to it between passes.

The oracle of every case is one whole run without a cache.
"""

import pytest
import torch
from transformers import DynamicCache, StaticCache

import positional_heads as ph
from positional_heads.bridge.loading import load_model
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from tests.bridge.rope_scaling.test_extended_checkpoints import YARN, extended_folder

TOKENS = torch.randint(256, (3, 40), generator=torch.Generator().manual_seed(21))
METHODS = {
    "self_extend": {"group": 4, "window": 8},
    "dpe": {"pair_groups": [8, 4, 4, 2, 2, 1, 1, 1], "window": 8},
    "rerope": {"window": 8, "leak": 0.25},
    "heads": {"factor": 4.0, "heads": [ph.Head(0, 1), ph.Head(1, 2)], "training_length": 16},
}


def applied(model, name):
    return extended_rope(model, "yarn" if name == "heads" else name, **METHODS[name])


def passed(model, tokens, cache=None):
    """Logits and the cache after a pass."""
    cache = DynamicCache(config=model.original_model.config) if cache is None else cache
    return model(tokens, past_key_values=cache, return_type="logits_and_cache", use_cache=True)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_two_runs_with_caches_do_not_mix(method, tiny):
    model = tiny("llama")
    with applied(model, method):
        whole = model(TOKENS[:1])
        _, mine = passed(model, TOKENS[:1, :25])
        _, other = passed(model, TOKENS[1:2, :25])
        logits, mine = passed(model, TOKENS[:1, 25:33], mine)
        passed(model, TOKENS[1:2, 25:33], other)
        last, _ = passed(model, TOKENS[:1, 33:], mine)
    assert torch.allclose(torch.cat([logits, last], dim=1), whole[:, 25:], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_cache_may_be_reordered_cut_and_repeated(method, tiny):
    model, order = tiny("llama"), torch.tensor([2, 0, 0])
    with applied(model, method):
        _, cache = passed(model, TOKENS[:, :30])
        cache.reorder_cache(order)
        cache.crop(-6)
        found, _ = passed(model, TOKENS[:, 24:], cache)
        whole = model(torch.cat([TOKENS[order, :24], TOKENS[:, 24:]], dim=1))
        _, one = passed(model, TOKENS[:1, :24])
        one.batch_repeat_interleave(3)
        repeated, _ = passed(model, TOKENS[:, 24:], one)
        expected = model(torch.cat([TOKENS[:1, :24].expand(3, -1), TOKENS[:, 24:]], dim=1))
    assert torch.allclose(found, whole[:, 24:], atol=1e-5)
    assert torch.allclose(repeated, expected[:, 24:], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "neox"])
@torch.no_grad()
def test_a_cache_may_be_filled_before_the_block_or_have_empty_slots(family, tiny):
    model = tiny(family)
    _, early = passed(model, TOKENS[:1, :25])
    static = StaticCache(config=model.original_model.config, max_cache_len=64)
    with extended_rope(model, "self_extend", group=4, window=8, layers=[0]):  # later layers' keys are those of layer 0
        whole = model(TOKENS[:1])
        parts = [passed(model, TOKENS[:1, start : start + 10], static)[0] for start in range(0, 40, 10)]
        assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    with extended_rope(model, "self_extend", group=4, window=8, layers=[1]):  # keys of layer 1 are what they were
        found, _ = passed(model, TOKENS[:1, 25:], early)
        assert torch.allclose(found, model(TOKENS[:1])[:, 25:], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_beam_search_finds_the_same_with_and_without_a_cache(method, tiny):
    model = tiny("llama")
    settings = {"num_beams": 4, "max_new_tokens": 12, "do_sample": False, "eos_token_id": 999, "pad_token_id": 257}
    with applied(model, method):
        mask = torch.ones_like(TOKENS[:2])
        found = [
            model.original_model.generate(TOKENS[:2], attention_mask=mask, use_cache=cached, **settings)
            for cached in (False, True)
        ]
    plain = model.original_model.generate(TOKENS[:2], attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["mistral", "gemma3"])
@torch.no_grad()
def test_a_cache_that_drops_keys_has_those_of_the_window(family, method, tiny):
    model = tiny(family)  # its window of 12 drops keys
    with applied(model, method):
        whole, cache, parts = model(TOKENS), None, []
        for start, stop in [(0, 20), (20, 21), (21, 22), (22, 35), (35, 40)]:
            logits, cache = passed(model, TOKENS[:, start:stop], cache)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_static_cache_that_dropped_keys_is_refused(tiny):
    model = tiny("mistral")
    with applied(model, "self_extend"):
        static = StaticCache(config=model.original_model.config, max_cache_len=64)
        _, cache = passed(model, TOKENS[:1, :20], static)
        with pytest.raises(RuntimeError, match="keeps every key, or grows up to a sliding window"):
            passed(model, TOKENS[:1, 20:30], cache)


@torch.no_grad()
def test_padding_is_refused_where_scores_are_rewritten(tiny):
    padded = torch.ones_like(TOKENS)
    padded[0, :5] = 0
    with applied(tiny("llama"), "self_extend"), pytest.raises(ValueError, match="give sequences of one length"):
        tiny("llama")(TOKENS, attention_mask=padded)


@torch.no_grad()
def test_a_cache_of_other_keys_is_refused(tiny, monkeypatch):
    model = tiny("llama")
    with applied(model, "self_extend"):
        _, cache = passed(model, TOKENS[:1, :20])
        own = cache.layers[0].update
        monkeypatch.setattr(cache.layers[0], "update", lambda key, *rest, **more: own(key * 2, *rest, **more))
        with pytest.raises(RuntimeError, match="does not hold this run's keys"):
            passed(model, TOKENS[:1, 20:], cache)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_scores_are_rewritten_from_edited_keys_before_they_are_edited(method, tiny):
    """Patches act under an extension too: of keys on what is rewritten, of scores on the result."""
    model, first = tiny("llama"), 0

    def doubled(key, hook):
        return torch.where(torch.arange(first, first + key.shape[1])[:, None, None] >= 20, key * 2, key)

    def halved(scores, hook):
        return torch.where(scores > -1e4, scores / 2, scores)

    hooks = [("blocks.0.attn.hook_rot_k", doubled), ("blocks.1.attn.hook_attn_scores", halved)]
    with applied(model, method):
        plain = model(TOKENS[:1])
        with model.hooks(fwd_hooks=hooks):
            whole = model(TOKENS[:1])
        expected = model.run_with_hooks(TOKENS[:1], fwd_hooks=hooks)
        _, cache = passed(model, TOKENS[:1, :20])
        first = 20
        with model.hooks(fwd_hooks=hooks[:1]):
            found, _ = passed(model, TOKENS[:1, 20:], cache)
        first = 0
        keys = model.run_with_hooks(TOKENS[:1], fwd_hooks=hooks[:1])
    assert torch.equal(whole, expected)
    assert float((whole - plain).abs().max()) > 1e-2
    assert float((whole - keys).abs().max()) > 1e-2
    torch.testing.assert_close(found, keys[:, 20:], atol=2e-5, rtol=0)


@pytest.fixture
def dynamic(tmp_path):
    """A checkpoint whose own frequencies follow the length of the run from 30 tokens on."""
    own = {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 30}
    return load_model(str(extended_folder(tmp_path, "llama", own)))


@torch.no_grad()
def test_cached_keys_that_were_rotated_in_several_ways_are_refused(dynamic):
    with extended_rope(dynamic, "none", heads=[ph.Head(0, 0)]):
        _, cache = passed(dynamic, TOKENS[:1, :20])
        _, cache = passed(dynamic, TOKENS[:1, 20:28], cache)
        with pytest.raises(ph.UnsupportedModelError, match="run without a cache"):
            passed(dynamic, TOKENS[:1, 28:], cache)


@torch.no_grad()
def test_rows_of_several_lengths_are_refused_where_heads_are_extended(dynamic):
    padded = torch.ones_like(TOKENS)
    padded[0, 35:] = 0
    refused = pytest.raises(ValueError, match=r"rows of \[35, 40, 40\] tokens")
    with extended_rope(dynamic, "none", heads=[ph.Head(0, 0)]), refused:
        dynamic(TOKENS, attention_mask=padded)


@torch.no_grad()
def test_distances_are_counted_alike_near_and_far_on_an_extended_checkpoint(tmp_path):
    plain = load_model(str(extended_folder(tmp_path / "plain", "llama", {})))
    model = load_model(str(extended_folder(tmp_path / "yarn", "llama", {"rope_scaling": YARN})))
    with extended_rope(plain, "self_extend", group=4, window=8):
        expected = plain(TOKENS)
        rho = ph.score_heads(plain, TOKENS).rho
    with extended_rope(model, "self_extend", group=4, window=8):
        assert torch.allclose(model(TOKENS), expected, atol=1e-5)
        assert torch.allclose(ph.score_heads(model, TOKENS).rho, rho, atol=1e-4)
        first, cache = passed(model, TOKENS[:, :25])
        last, _ = passed(model, TOKENS[:, 25:], cache)
        assert torch.allclose(torch.cat([first, last], dim=1), expected, atol=1e-5)


@torch.no_grad()
def test_other_heads_of_an_extended_checkpoint_stay_as_they_are(tmp_path):
    model = load_model(str(extended_folder(tmp_path, "llama", {"rope_scaling": YARN})))
    before = ph.score_heads(model, TOKENS, layers=[0], divide_attention_factor=False).rho[0]
    with extended_rope(model, "none", layers=[0]):
        put_back = ph.score_heads(model, TOKENS, layers=[0], divide_attention_factor=False).rho[0]
    with extended_rope(model, "none", heads=[ph.Head(0, 1)]):
        rho = ph.score_heads(model, TOKENS, layers=[0], divide_attention_factor=False).rho[0]
    assert torch.allclose(rho[[0, 2, 3]], before[[0, 2, 3]], atol=1e-4)
    assert float(rho[1]) == pytest.approx(float(put_back[1]), abs=1e-4)
    assert float(rho[1]) != pytest.approx(float(before[1]), abs=1e-3)
