"""D is one number: live hook, cache, examples and counts agree with a float64 oracle under every method."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import positional_heads as ph
from positional_heads.scoring.head_examples import head_examples
from tests.support.oracles import channels

LENGTH, TRAINED, PAIRS = 24, 16, 8
TOKENS = torch.randint(256, (2, LENGTH), generator=torch.Generator().manual_seed(3))
HEADS = [ph.Head(0, head) for head in range(4)]
ROWS, COLUMNS = np.tril_indices(LENGTH)
LONGROPE = {"short_factor": [1.0] * PAIRS, "long_factor": [1 + 0.3 * pair for pair in range(PAIRS)]}
METHODS = {
    "none": (1.0, {}),
    "linear": (1.0, {}),
    "ntk": (1.0, {}),
    "dynamic": (1.0, {}),
    "yarn": (0.1 * math.log(4) + 1, {}),
    "llama3": (1.0, {}),
    "longrope": (math.sqrt(1 + math.log(4) / math.log(TRAINED)), LONGROPE),
    "p_rope": (1.0, {"keep": 0.5}),
}
"""What each method multiplies cos and sin by at a factor of 4, from its paper, and its settings."""


def extended(model, method, settings, **where):
    factor = () if {"keep", "window"} & settings.keys() else (4.0,)
    return ph.extended_rope(model, method, *factor, training_length=TRAINED, **settings, **where)


def softmax_mean(contributions, temperature):
    weights = np.exp((contributions - contributions.max(-1, keepdims=True)) / temperature)
    return (weights * np.arange(PAIRS)).sum(-1) / weights.sum(-1)


def brute_force(run, factor, temperature):
    """D of layer 0 from the model's own rotated queries and keys, [batch head query key], in float64."""
    q, k = (run[f"blocks.0.attn.hook_rot_{which}"].double().numpy() for which in "qk")
    k = k.repeat(q.shape[2] // k.shape[2], axis=2)
    parts = []
    for pair in range(PAIRS):
        two = list(channels("half", pair, PAIRS))
        parts.append(np.einsum("bmhc,bnhc->bhmn", q[..., two], k[..., two]))
    return softmax_mean(np.stack(parts, axis=-1) / factor**2, temperature)


def agree(found, expected):
    np.testing.assert_allclose(found.numpy()[..., ROWS, COLUMNS], expected[..., ROWS, COLUMNS], atol=1e-3)


def counted(model, **settings):
    return ph.score_heads(model, TOKENS, layers=[0], **settings).rho[0].numpy()


def spearman(dominant):
    distance = np.tile(ROWS - COLUMNS, 2)
    return [spearmanr(distance, dominant[:, head][:, ROWS, COLUMNS].ravel()).statistic for head in range(4)]


@pytest.mark.parametrize(("method", "temperature"), [*((method, 1.0) for method in METHODS), ("yarn", "attention")])
@torch.no_grad()
def test_hook_cache_examples_and_counts_hold_one_dimension(method, temperature, tiny):
    model, (factor, settings) = tiny("llama"), METHODS[method]
    with extended(model, method, settings):
        with ph.contribution_hooks(model, layers=[0], temperature=temperature):
            _, run = model.run_with_cache(TOKENS)
        cache = ph.dominant_dimension_cache(model, TOKENS, layers=[0], temperature=temperature)
        examples = head_examples(model, TOKENS[1], HEADS, temperature=temperature)
        rho = counted(model, temperature=temperature)
    expected = brute_force(run, factor, 4.0 if temperature == "attention" else 1.0)
    agree(run["blocks.0.attn.hook_dominant_dim"], expected)
    agree(cache["dominant_dim", 0, "attn"], expected)
    agree(examples.dominant, expected[1])
    np.testing.assert_allclose(rho, spearman(expected), atol=2e-3)  # bins of D


REWRITING = {
    "self_extend": {"group": 2, "window": 4},
    "dpe": {"pair_groups": [1, 1, 2, 2, 4, 4, 4, 4], "window": 4},
    "yarn": {},
}


@pytest.mark.parametrize("method", REWRITING)
@torch.no_grad()
def test_where_scores_are_rewritten_hooks_refuse_and_the_others_agree(method, tiny):
    model, settings = tiny("llama"), REWRITING[method]
    with extended(model, method, settings, heads=[ph.Head(0, 1), ph.Head(0, 2)]):
        with (
            pytest.raises(ph.UnsupportedModelError, match=f"do not work while {method} rewrites scores"),
            ph.contribution_hooks(model, layers=[0]),
        ):
            pass
        cache = ph.dominant_dimension_cache(model, TOKENS, layers=[0], contributions=True)
        examples = head_examples(model, TOKENS[1], HEADS)
        rho = counted(model)
    dominant = cache["dominant_dim", 0, "attn"].double().numpy()
    agree(examples.dominant, dominant[1])
    np.testing.assert_allclose(rho, spearman(dominant), atol=2e-3)
    torch.testing.assert_close(
        examples.contributions[..., ROWS, COLUMNS, :], cache["contributions", 0, "attn"][1][:, ROWS, COLUMNS]
    )


@torch.no_grad()
def test_each_head_has_its_own_attention_factor(tiny):
    """Layer 0 sees the same whatever happens to its heads: each is as in a run in which all are as it is."""
    model, own = tiny("llama"), [ph.Head(0, 1), ph.Head(0, 2)]
    plain = ph.dominant_dimension_cache(model, TOKENS, layers=[0])["dominant_dim", 0, "attn"]
    with extended(model, "yarn", {}):
        whole = ph.dominant_dimension_cache(model, TOKENS, layers=[0])["dominant_dim", 0, "attn"]
    with extended(model, "yarn", {}, heads=own):
        found = ph.dominant_dimension_cache(model, TOKENS, layers=[0])["dominant_dim", 0, "attn"]
        rho = counted(model)
        undivided = counted(model, divide_attention_factor=False)
    expected = plain.clone()
    expected[:, 1:3] = whole[:, 1:3]
    agree(found, expected.double().numpy())
    np.testing.assert_allclose(rho, spearman(expected.double().numpy()), atol=2e-3)
    assert abs(undivided - rho)[1:3].max() > 1e-3
    assert abs(undivided - rho)[[0, 3]].max() < 1e-6


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, True, "attn", None])
def test_what_is_no_temperature_is_refused_before_anything_runs(temperature, tiny):
    model, asked = tiny("llama"), {"temperature": temperature}
    for call in (
        lambda: ph.contribution_hooks(model, **asked).__enter__(),
        lambda: ph.dominant_dimension_cache(model, TOKENS, **asked),
        lambda: head_examples(model, TOKENS[0], HEADS, **asked),
    ):
        with pytest.raises((TypeError, ValueError), match=r"temperature (must be|.* must be positive)"):
            call()
