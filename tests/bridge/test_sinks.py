"""Heads that see the first keys and a window, against Hugging Face's eager attention with a mask for each head."""

from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import positional_heads as ph
from positional_heads.bridge.answer_run import answer_run, runs_plainly
from tests.bridge.test_positions import LENGTH, TOKENS, in_parts, padded

HEADS = [ph.Head(0, 1), ph.Head(1, 3), ph.Head(1, 0)]
WINDOW, SINKS = 5, 2
SETTINGS = {"mode": "far", "distance": WINDOW - 1, "sinks": SINKS}
FAMILIES = ("llama", "neox", "gemma3", "mistral")
"""Grouped keys, partial rotation, a layer with a window of 12 tokens, and two of them."""


@contextmanager
def masked(model, gap=0):
    """Hugging Face's own model, to whose masks a number is added for each head, query and key."""
    size = LENGTH + gap
    added = torch.zeros(2, 4, size, size)
    for layer, head in HEADS:
        for query in range(gap, size):
            for key in range(gap, query + 1):
                if query - key >= WINDOW and key - gap >= SINKS:
                    added[layer, head, query, key] = -torch.inf
    modules = [module for name, module in model.named_modules() if name.endswith((".self_attn", ".attention"))]
    assert len(modules) == 2

    def add(number):
        def hook(_, args, kwargs):
            return args, {**kwargs, "attention_mask": kwargs["attention_mask"] + added[number]}

        return hook

    handles = [one.register_forward_pre_hook(add(number), with_kwargs=True) for number, one in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_heads_see_the_first_keys_and_a_window(family, tiny, tiny_folder):
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder(family), attn_implementation="eager").eval()
    mask = torch.ones(2, LENGTH + 3, dtype=torch.long)
    mask[:, :3] = 0
    with masked(reference):
        expected = reference(TOKENS).logits
    with masked(reference, gap=3):
        behind_pads = reference(torch.cat([TOKENS[:, :3], TOKENS], dim=1), attention_mask=mask).logits[:, 3:]
    assert torch.allclose(behind_pads, expected, atol=1e-5)  # of the oracle
    model, positions = tiny(family), list(range(LENGTH))
    plain = model(TOKENS)
    with ph.ablated_heads(model, HEADS, **SETTINGS):
        assert torch.allclose(model(TOKENS), expected, atol=1e-5)
        assert torch.allclose(in_parts(model, DynamicCache(config=model.original_model.config)), expected, atol=1e-5)
        for side in ("left", "right"):
            assert torch.allclose(padded(model, side), expected, atol=1e-5), side
        assert runs_plainly(model)
        with answer_run(model) as logits_at:
            assert torch.allclose(logits_at(TOKENS, positions), expected, atol=1e-5)
    assert torch.equal(model(TOKENS), plain)
    with ph.ablated_heads(model, HEADS, "far", distance=WINDOW - 1):
        without = model(TOKENS)
    assert (without - expected).abs().max() > 1e-3
    assert (plain - expected).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "mistral"])
@torch.no_grad()
def test_generating_with_a_cache_is_generating_without(family, tiny):
    model = tiny(family)
    arguments = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 257}
    plain = model.original_model.generate(TOKENS, **arguments)
    with ph.ablated_heads(model, HEADS, **SETTINGS):
        by_cache, without = (model.original_model.generate(TOKENS, use_cache=use, **arguments) for use in (True, False))
    assert torch.equal(by_cache, without)
    assert not torch.equal(by_cache, plain)


@torch.no_grad()
def test_windows_nest_and_as_many_first_keys_as_tokens_change_no_bit(tiny):
    model = tiny("llama")
    plain = model(TOKENS)
    with ph.ablated_heads(model, HEADS, "far", distance=4, sinks=LENGTH):
        assert torch.equal(model(TOKENS), plain)
    with ph.ablated_heads(model, HEADS, "far", distance=4):
        far = model(TOKENS)
    with ph.ablated_heads(model, HEADS, "far", distance=4, sinks=0):
        assert torch.equal(model(TOKENS), far)
    with ph.ablated_heads(model, HEADS, **SETTINGS):
        inner = model(TOKENS)
        with ph.ablated_heads(model, HEADS, "far", distance=9, sinks=4):  # shows nothing that is hidden
            assert torch.equal(model(TOKENS), inner)
        with ph.ablated_heads(model, HEADS, "far", distance=4):
            assert torch.equal(model(TOKENS), far)
