"""Pairs moved head by head, against Hugging Face's own forward with its rotation replaced.

The oracle turns queries and keys by angles of its own, `position * frequency` in float64 from the base of the
configuration; it repeats key heads for the query heads, so that each query head has its own.
"""

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, DynamicCache

import positional_heads as ph
from positional_heads.bridge.answer_run import answer_run, runs_plainly
from tests.support.extended import contributions_by_distance, dominant_dimension
from tests.support.tiny_models import ADJACENT, SCORED

TOKENS = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(3))
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "gemma3": ("gemma3", {}),
    "neox": ("neox", {}),
    "gptj": ("gptj", {}),
    "codegen": ("codegen", {}),
    "yarn": ("llama", {"rope_parameters": YARN}),
}
SCORES = [f"blocks.{layer}.attn.hook_attn_scores" for layer in (0, 1)]


def ways(pairs):
    """Arguments of every way of moving, for heads with so many pairs, and what the oracle makes of a phase of them."""
    last, half = pairs - 1, pairs // 2
    return {
        "freeze": {"pairs": [0, last]},
        "zero": {"pairs": [0, last]},
        "scale": {"pairs": [0, last], "factor": -0.7},
        "remap": {"pairs": [0, last], "to": [last, last]},
        "drop_slowest": {"n": half},
        "drop_fastest": {"n": 1},
        "swap_bands": {"n": half},
    }


def turned(angles, how, pairs=(), factor=None, to=(), n=0):
    """Cos and sin [pos pair] of the moved pairs, from the angle of every position and pair."""
    angles, size, last = angles.copy(), np.ones(angles.shape[1]), angles.shape[1] - 1
    own = angles.copy()
    if how == "zero":
        size[list(pairs)] = 0
    for pair, other in zip(pairs, to, strict=False):
        angles[:, pair] = own[:, other]
    for pair in pairs if how in ("freeze", "scale") else ():
        angles[:, pair] = 0 if how == "freeze" else factor * own[:, pair]
    for one in range(n):
        fast, slow = one, last - one
        if how == "drop_slowest":
            angles[:, slow] = 0
        elif how == "drop_fastest":
            angles[:, fast] = 0
        else:
            angles[:, fast], angles[:, slow] = own[:, slow], own[:, fast]
    return size * np.cos(angles), size * np.sin(angles)


def turned_channels(x, cos, sin, adjacent, width):
    """One head's vectors [batch pos d] turned, pair by pair."""
    new = x.clone()
    for pair in range(width // 2):
        first, second = (2 * pair, 2 * pair + 1) if adjacent else (pair, pair + width // 2)
        c, s = (torch.tensor(part[:, pair], dtype=x.dtype) for part in (cos, sin))
        new[..., first] = x[..., first] * c - x[..., second] * s
        new[..., second] = x[..., second] * c + x[..., first] * s
    return new


def expected_logits(name, folder, rotary, heads, how, arguments, tokens, monkeypatch):
    """Logits of Hugging Face's model, whose attention gets the moved queries and keys of these heads."""
    family, _ = FAMILIES[name]
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    module, layer_of = sys.modules[type(model).__module__], []
    config = model.config
    position, pairs = np.arange(tokens.shape[1]), np.arange(rotary.n_pairs)

    def moved(layer, q, k, factor):
        """Scores' queries and keys [batch head pos d], before rotation in, after it out; the given heads' only."""
        base = 1e4
        if family == "gemma3":
            kind = config.layer_types[layer]
            base = config.rope_parameters[kind]["rope_theta"]
        frequency = base ** (-2 * pairs / rotary.rotary_dim)
        if name == "yarn":
            frequency = model.model.rotary_emb.inv_freq.double().numpy()
        cos, sin = turned(position[:, None] * frequency, how, **arguments)
        new = {}
        for head in [head for of, head in heads if of == layer]:
            own = [
                turned_channels(x[:, head], factor * cos, factor * sin, family in ADJACENT, rotary.rotary_dim)
                for x in (q, k)
            ]
            new[head] = own
        return new

    if family in ("gptj", "codegen"):
        # rotation is inside the attention: it is undone by its inverse, on what `_attn` is given
        component = type(model.transformer.h[0].attn)
        original = component._attn

        def by_head(self, query, key, *rest, **more):
            layer = [block.attn for block in model.transformer.h].index(self)
            frequency = 1e4 ** (-2 * pairs / rotary.rotary_dim)
            back = [np.cos(-position[:, None] * frequency), np.sin(-position[:, None] * frequency)]
            q, k = (
                torch.stack([turned_channels(x[:, head], *back, True, rotary.rotary_dim) for head in range(4)], dim=1)
                for x in (query, key)
            )
            query, key = query.clone(), key.clone()
            for head, (new_q, new_k) in moved(layer, q, k, 1.0).items():
                query[:, head], key[:, head] = new_q, new_k
            return original(self, query, key, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr(component, "_attn", by_head)
            return model(tokens).logits

    rotate, attend = module.apply_rotary_pos_emb, module.eager_attention_forward
    kept = {}

    def remember(q, k, cos, sin, *rest, **more):
        layer = len(layer_of)
        layer_of.append(layer)
        group = q.shape[1] // k.shape[1]
        kept[layer] = moved(layer, q, k.repeat_interleave(group, 1), float(cos[0, 0, 0]))
        return rotate(q, k, cos, sin, *rest, **more)

    def attend_by_head(attention, query, key, value, mask, **settings):
        # every query head its own key head, so that they can differ
        group = query.shape[1] // key.shape[1]
        query, key, value = query.clone(), key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        for head, (new_q, new_k) in kept[layer_of[-1]].items():
            query[:, head], key[:, head] = new_q, new_k
        monkeypatch.setattr(attention, "num_key_value_groups", 1, raising=False)
        return attend(attention, query, key, value, mask, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(module, "apply_rotary_pos_emb", remember)
        patch.setattr(module, "eager_attention_forward", attend_by_head)
        return model(tokens).logits


@pytest.mark.parametrize("how", ways(2))
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_a_model_that_turns_so(name, how, tiny, tiny_folder, monkeypatch):
    family, overrides = FAMILIES[name]
    model = tiny(family, **overrides)
    rotary = ph.resolve_layers(model).layers[0]
    heads, arguments = [(0, 1), (1, 0), (1, 3)], ways(rotary.n_pairs)[how]
    before = model(TOKENS)
    _, plain = model.run_with_cache(TOKENS, names_filter=SCORES)
    expected = expected_logits(
        name, tiny_folder(family, **overrides), rotary, heads, how, arguments, TOKENS, monkeypatch
    )
    with ph.manipulated_pairs(model, heads, how=how, **arguments, shared="split"):
        found = model(TOKENS)
        _, cache = model.run_with_cache(TOKENS, names_filter=SCORES)
        with answer_run(model) as run:
            answers = run(TOKENS, [7, 28])
        assert runs_plainly(model) == (family not in ("gptj", "codegen"))
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)
    torch.testing.assert_close(answers, expected[:, [7, 28]], atol=3e-5, rtol=0)
    assert float((found - before).abs().max()) > 1e-2
    assert torch.equal(cache[SCORES[0]][:, [0, 2, 3]], plain[SCORES[0]][:, [0, 2, 3]])
    assert not torch.equal(cache[SCORES[0]][:, 1], plain[SCORES[0]][:, 1])
    assert torch.equal(model(TOKENS), before)
