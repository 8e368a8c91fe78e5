"""D is one number: hook, cache, examples and counts give that of a float64 oracle, under every extension method."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import positional_heads as ph
from positional_heads.bridge.rope_scaling.methods import METHODS as NAMES
from tests.support.oracles import channels

LENGTH, TRAINED, PAIRS, HEADS, BASE = 24, 16, 8, 4, 10000.0
TOKENS = torch.randint(256, (2, LENGTH), generator=torch.Generator().manual_seed(3))
ROWS, COLUMNS = np.tril_indices(LENGTH)
LONGROPE = {"short_factor": [1.0] * PAIRS, "long_factor": [1 + 0.3 * pair for pair in range(PAIRS)]}
YARN = 0.1 * math.log(4) + 1
SOME = {"heads": [ph.Head(0, 1), ph.Head(0, 2)]}

ROTATING = {
    "none": (1.0, {}),
    "linear": (1.0, {}),
    "ntk": (1.0, {}),
    "dynamic": (1.0, {}),
    "yarn": (YARN, {}),
    "llama3": (1.0, {}),
    "longrope": (math.sqrt(1 + math.log(4) / math.log(TRAINED)), LONGROPE),
    "p_rope": (1.0, {"keep": 0.5}),
}
"""What a method multiplies cos and sin by at a factor of 4, from its paper, and its settings."""


def grouped(groups, window):
    """Relative positions of pairs, [query key pair]: from the window on, positions are counted in groups."""
    query, key, groups = np.arange(LENGTH)[:, None, None], np.arange(LENGTH)[None, :, None], np.array(groups)
    far = query // groups + window - window // groups - key // groups
    return np.where((query - key < window) | (groups == 1), query - key, far)


def leaking(window, leak):
    """The same of ReRoPE: from the window on, distances grow by `leak` only."""
    back = np.arange(LENGTH)[:, None, None] - np.arange(LENGTH)[None, :, None]
    return np.where(back < window, back, window + leak * (back - window)).repeat(PAIRS, axis=2)


REGROUPING = {
    "rerope": ({"window": 4, "leak": 0.25}, leaking(4, 0.25)),
    "self_extend": ({"group": 2, "window": 4}, grouped([2] * PAIRS, 4)),
    "dpe": ({"pair_groups": [1, 1, 2, 2, 4, 4, 4, 4], "window": 4}, grouped([1, 1, 2, 2, 4, 4, 4, 4], 4)),
}
"""Settings of methods that change distances, and the distance of every query, key and pair, from their papers."""


def extended(model, method, settings, **where):
    factor = (4.0,) if method in ROTATING and "keep" not in settings else ()
    return ph.extended_rope(model, method, *factor, training_length=TRAINED, **settings, **where)


def dominant(contributions, temperature):
    weights = np.exp((contributions - contributions.max(-1, keepdims=True)) / temperature)
    return (weights * np.arange(PAIRS)).sum(-1) / weights.sum(-1)


@torch.no_grad()
def planes(model):
    """Rotated queries and keys of layer 0 as the model's own hooks have them, complex, [batch pos head pair]."""
    _, run = model.run_with_cache(TOKENS)
    found = []
    for name in "qk":
        x = run[f"blocks.0.attn.hook_rot_{name}"].double().numpy()
        x = x.repeat(HEADS // x.shape[2], axis=2)
        first, second = zip(*(channels("half", pair, PAIRS) for pair in range(PAIRS)), strict=True)
        found.append(x[..., list(first)] + 1j * x[..., list(second)])
    return found


def contributed(query, key):
    return np.einsum("bmhp,bnhp->bhmnp", query, key.conj()).real


def brute_force(model, method, temperature):
    """D of layer 0 when all its heads are extended, [batch head query key], in float64."""
    if method in ROTATING:
        factor, settings = ROTATING[method]
        with extended(model, method, settings):
            return dominant(contributed(*planes(model)) / factor**2, temperature)
    distance, frequencies = REGROUPING[method][1], BASE ** (-np.arange(PAIRS) / PAIRS)
    back = np.exp(-1j * np.arange(LENGTH)[:, None, None] * frequencies)  # content is what is left unrotated
    query, key = (x * back for x in planes(model))
    products = np.einsum("bmhp,bnhp->bhmnp", query, key.conj())
    return dominant((products * np.exp(1j * distance * frequencies)).real, temperature)


def agree(found, expected):
    np.testing.assert_allclose(found.numpy()[..., ROWS, COLUMNS], expected[..., ROWS, COLUMNS], atol=1e-3)


def spearman(expected):
    distance = np.tile(ROWS - COLUMNS, 2)
    return [spearmanr(distance, expected[:, head][:, ROWS, COLUMNS].ravel()).statistic for head in range(HEADS)]


def hook(model, temperature):
    with ph.contribution_hooks(model, layers=[0], temperature=temperature):
        return model.run_with_cache(TOKENS)[1]["blocks.0.attn.hook_dominant_dim"]


def cache(model, temperature):
    return ph.dominant_dimension_cache(model, TOKENS, layers=[0], temperature=temperature)["dominant_dim", 0, "attn"]


def examples(model, temperature):
    heads = [ph.Head(0, head) for head in range(HEADS)]
    return torch.stack([ph.head_examples(model, row, heads, temperature=temperature).dominant for row in TOKENS])


READINGS = {"hook": hook, "cache": cache, "examples": examples}
CASES = [
    *((method, 1.0, {}) for method in (*ROTATING, *REGROUPING)),
    *((method, "attention", {}) for method in ("none", "yarn", "self_extend")),
    *((method, 1.0, SOME) for method in ("yarn", "llama3", "self_extend", "dpe", "rerope")),
]


def test_every_method_is_tried():
    assert {*ROTATING, *REGROUPING} == {*NAMES} - {
        "clex",
        "kept_pairs",
    }  # frequencies of a checkpoint; pairs, in test_kept_pairs


@pytest.mark.parametrize(("method", "temperature", "where"), CASES)
@torch.no_grad()
def test_every_reading_of_d_is_the_definitions(method, temperature, where, tiny):
    model, (settings, *_) = tiny("llama"), REGROUPING.get(method, ROTATING.get(method, ())[1:])
    divisor = 4.0 if temperature == "attention" else 1.0
    expected = brute_force(model, method, divisor)
    if where:
        rest = [head for head in range(HEADS) if ph.Head(0, head) not in where["heads"]]
        expected[:, rest] = brute_force(model, "none", divisor)[:, rest]
    with extended(model, method, settings, **where):
        for name, read in READINGS.items():
            if name == "hook" and method in REGROUPING:
                with pytest.raises(ph.UnsupportedModelError, match=f"{method} rotates far keys otherwise"):
                    read(model, temperature)
            else:
                agree(read(model, temperature), expected)
        rho = ph.score_heads(model, TOKENS, layers=[0], temperature=temperature).rho[0]
    np.testing.assert_allclose(rho, spearman(expected), atol=2e-3)  # bins of D


@pytest.mark.parametrize("method", ["yarn", "self_extend"])
@torch.no_grad()
def test_cache_and_examples_hold_the_same_contributions(method, tiny):
    model, (settings, *_) = tiny("llama"), REGROUPING.get(method, ROTATING.get(method, ())[1:])
    with extended(model, method, settings, **SOME):
        held = ph.dominant_dimension_cache(model, TOKENS, layers=[0], contributions=True)["contributions", 0, "attn"]
        found = ph.head_examples(model, TOKENS[1], [ph.Head(0, head) for head in range(HEADS)]).contributions
    torch.testing.assert_close(found[:, ROWS, COLUMNS], held[1][:, ROWS, COLUMNS])


@torch.no_grad()
def test_each_head_has_its_own_attention_factor(tiny):
    model = tiny("llama")
    with extended(model, "yarn", {}, **SOME):
        divided, undivided = (
            ph.score_heads(model, TOKENS, layers=[0], divide_attention_factor=divide).rho[0] for divide in (True, False)
        )
    change = abs(undivided - divided)
    assert change[1:3].max() > 1e-3
    assert change[[0, 3]].max() < 1e-6
