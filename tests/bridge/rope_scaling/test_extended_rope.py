"""A block of `extended_rope` extends what was asked for, in every kind of run, and gives the model back."""

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.bridge.rope_scaling.methods import rope_method
from positional_heads.bridge.rope_scaling.plain_rope import plain_rope
from tests.support import oracles
from tests.support.extended import PAIRS, TRAINED, dominant_dimension

TOKENS = torch.randint(256, (2, 150), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["linear", "yarn", "self_extend"])
@torch.no_grad()
def test_a_key_value_cache_changes_nothing(method, tiny):
    model = tiny("llama")
    settings = {"group": 4, "window": 8} if method == "self_extend" else {"factor": 4.0}
    with extended_rope(model, method, training_length=TRAINED, **settings):
        whole = model(TOKENS[:1, :40])
        first, cache = model(TOKENS[:1, :25], return_type="logits_and_cache", use_cache=True)
        parts = [first]
        for start, stop in ((25, 33), (33, 40)):
            logits, cache = model(
                TOKENS[:1, start:stop], past_key_values=cache, return_type="logits_and_cache", use_cache=True
            )
            parts.append(logits)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "yarn", "ntk"])
@torch.no_grad()
def test_extending_every_head_by_itself_is_extending_the_layer(method, tiny):
    for family in PAIRS:
        model = tiny(family)
        with extended_rope(model, method, 4.0, layers=[1], training_length=TRAINED):
            expected = model(TOKENS)
        heads = [ph.Head(1, head) for head in range(4)]
        with extended_rope(model, method, 4.0, heads=heads, training_length=TRAINED):
            assert torch.allclose(model(TOKENS), expected, atol=2e-5)
        with extended_rope(model, method, 4.0, heads=heads[:1], training_length=TRAINED):
            _, cache = model.run_with_cache(TOKENS)
        _, plain = model.run_with_cache(TOKENS)
        one, other = (run["blocks.1.attn.hook_attn_scores"] for run in (cache, plain))
        assert torch.equal(one[:, 1:], other[:, 1:])
        assert not torch.equal(one[:, :1], other[:, :1])


def test_a_block_that_fails_gives_the_model_back(tiny):
    model = tiny("llama")
    plain = model(TOKENS)
    with pytest.raises(RuntimeError, match="stop"), extended_rope(model, "yarn", 4.0):
        raise RuntimeError("stop")
    assert torch.equal(model(TOKENS), plain)
    for method, settings in (("self_extend", {"group": 2, "window": 4}), ("linear", {"factor": 1.0})):
        with extended_rope(model, method, **settings):
            pass
        assert torch.equal(model(TOKENS), plain)


BAD = {
    "unknown": ({"method": "yarm", "factor": 2}, ValueError, "method 'yarm' is unknown: did you mean yarn"),
    "below 1": ({"method": "linear", "factor": 0.5}, ValueError, "factor 0.5 must be at least 1"),
    "no factor": ({"method": "ntk"}, ValueError, "method 'ntk' needs factor="),
    "setting": ({"method": "linear", "factor": 2, "beta": 1}, ValueError, "method 'linear' has no setting beta"),
    "group": ({"method": "self_extend", "group": 3, "window": 8}, ValueError, "group 3 must divide window 8"),
    "no group": ({"method": "self_extend", "window": 8}, ValueError, "needs group= and window="),
    "lists": ({"method": "longrope", "factor": 2}, ValueError, "needs short_factor= and long_factor="),
    "keep": ({"method": "p_rope", "keep": 0}, ValueError, "keep 0 must be above 0"),
    "both": ({"method": "none", "layers": [0], "heads": [ph.Head(0, 0)]}, ValueError, "layers or heads, not both"),
    "head": ({"method": "none", "heads": [ph.Head(0, 9)]}, ValueError, "L0H9 does not exist"),
    "layer": ({"method": "none", "layers": [7]}, ValueError, "layer 7 does not exist"),
    "dpe": ({"method": "dpe", "pair_groups": [2, 2], "window": 4}, ValueError, "2 pair_groups given, layer 0 has 8"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_extensions_are_refused(case, tiny):
    arguments, error, message = BAD[case]
    with pytest.raises(error, match=message), extended_rope(tiny("llama"), **arguments):
        pass


def test_a_run_beyond_the_reach_is_refused(tiny):
    model = tiny("llama")
    refused = pytest.raises(ValueError, match=r"150 tokens .* at most 24")
    with extended_rope(model, "self_extend", group=2, window=8, training_length=16), refused:
        model(TOKENS)


def test_a_second_extension_is_refused(tiny):
    model = tiny("llama")
    refused = pytest.raises(RuntimeError, match="leave the other")
    with extended_rope(model, "linear", 2), refused, extended_rope(model, "none"):
        pass


def test_a_table_that_ends_with_the_context_cannot_be_extended(tiny):
    with pytest.raises(ph.UnsupportedModelError, match="cannot be extended"), extended_rope(tiny("gptj"), "linear", 2):
        pass


@torch.no_grad()
def test_the_attention_factor_is_taken_out_of_the_dominant_dimension(tiny):
    model, tokens = tiny("llama"), TOKENS[:1, :60]
    table = rope_method("yarn", 4).table(plain_rope(model, training_length=TRAINED), 60)
    assert table.attention_factor > 1.1
    contributions = contributions_at(model, tokens, table.inv_freq)
    rows, columns = np.tril_indices(60)
    for divide, factor in ((True, 1.0), (False, table.attention_factor**2)):
        dominant = dominant_dimension(contributions * factor)
        with extended_rope(model, "yarn", 4.0, training_length=TRAINED):
            scores = ph.score_heads(model, tokens, layers=[0], divide_attention_factor=divide)
        for head in range(4):
            expected = oracles.rho(rows - columns, dominant[head, rows, columns], 1 / 256)
            assert float(scores.rho[0, head]) == pytest.approx(expected, abs=1e-3)


def contributions_at(model, tokens, inv_freq):
    """Contributions of layer 0 with given frequencies, from unrotated queries and keys, in numpy."""
    _, cache = model.run_with_cache(tokens)
    q, k = (cache[f"blocks.0.attn.hook_{name}"][0].double().numpy() for name in "qk")
    turn, position = inv_freq.double().numpy(), np.arange(len(q))[:, None, None]
    pairs = len(turn)
    query, key = ((x[..., :pairs] + 1j * x[..., pairs:]) * np.exp(1j * turn * position) for x in (q, k))
    key = np.repeat(key, q.shape[1] // k.shape[1], axis=1)
    return np.einsum("mhp,nhp->hmnp", query, key.conj()).real


@torch.no_grad()
def test_hooked_contributions_add_up_to_the_extended_scores(tiny):
    model = tiny("llama")
    with extended_rope(model, "yarn", 4.0, training_length=TRAINED), ph.contribution_hooks(model, [0]):
        _, cache = model.run_with_cache(TOKENS[:, :20])
    total = cache["blocks.0.attn.hook_contributions"].sum(-1)
    rows, columns = np.tril_indices(20)
    scores = cache["blocks.0.attn.hook_attn_scores"]
    assert torch.allclose(total[..., rows, columns], scores[..., rows, columns], atol=1e-5)


@torch.no_grad()
def test_heads_are_ablated_inside_an_extension(tiny):
    model = tiny("llama")
    with extended_rope(model, "yarn", 4.0, training_length=TRAINED):
        extended = model(TOKENS[:, :20])
        with ph.ablated_heads(model, [ph.Head(0, 1)]):
            assert not torch.equal(model(TOKENS[:, :20]), extended)
    blind = ph.ablated_heads(model, [ph.Head(0, 1)], "far", distance=8)
    with extended_rope(model, "self_extend", group=4, window=8), blind:
        _, cache = model.run_with_cache(TOKENS[:, :30])
    assert (cache["blocks.0.attn.hook_pattern"][:, 1, 20, :12] == 0).all()


def test_contribution_hooks_are_refused_where_scores_are_rewritten(tiny):
    model = tiny("llama")
    refused = pytest.raises(ph.UnsupportedModelError, match="self_extend rotates far keys otherwise")
    with extended_rope(model, "self_extend", group=4, window=8), refused, ph.contribution_hooks(model, [0]):
        pass


def test_an_extension_inside_an_ablation_of_scores_is_refused_with_the_order_that_works(bundled):
    tokens = torch.arange(20)[None]
    with (
        ph.ablated_heads(bundled, "L0H1", "uniform"),
        pytest.raises(ph.UnsupportedModelError, match="open extended_rope or score first, and ablate inside"),
        ph.extended_rope(bundled, "linear", 2.0),
    ):
        pass
    with ph.extended_rope(bundled, "linear", 2.0), ph.ablated_heads(bundled, "L0H1", "uniform"):
        assert bundled(tokens).isfinite().all()
