"""Each ablation mode does what its definition says, on every family, with and without a key-value cache."""

import inspect

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.bridge.ablation import Ablation, ablation_mode
from tests.support.tiny_models import SCORED

TOKENS = torch.randint(256, (2, 14), generator=torch.Generator().manual_seed(3))
OTHERS = torch.randint(256, (3, 20), generator=torch.Generator().manual_seed(4))
HEADS = [ph.Head(0, 1), ph.Head(1, 3), ph.Head(1, 0)]
SETTINGS = {
    "zero": {},
    "mean": {"reference": OTHERS},
    "resample": {"reference": OTHERS},
    "uniform": {},
    "far": {"distance": 4},
    "near": {"distance": 4},
}
OUTPUT_PROJECTION = ("o_proj", "dense", "out_proj")


@pytest.mark.parametrize("family", SCORED)
@torch.no_grad()
def test_zero_is_hugging_faces_model_without_the_heads_share_of_w_o(family, tiny, tiny_folder):
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder(family), attn_implementation="eager").eval()
    projections = [
        module
        for name, module in reference.named_modules()
        if name.rsplit(".", 1)[-1] in OUTPUT_PROJECTION and any(part in name for part in ("attn", "attention"))
    ]
    for layer, head in HEADS:
        weight = projections[layer].weight
        width = weight.shape[1] // 4
        weight[:, head * width : (head + 1) * width] = 0
    with ph.ablated_heads(tiny(family), HEADS):
        found = tiny(family)(TOKENS)
    expected = reference(TOKENS).logits
    assert torch.allclose(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())))
    assert (found - tiny(family)(TOKENS)).abs().max() > 1e-4


def seen(model, *names):
    _, cache = model.run_with_cache(TOKENS, names_filter=list(names))
    return [cache[name].double().numpy() for name in names]


def attended(q, k, v, scale, mode, distance):
    """z of one query head from its vectors, [pos d_head], in plain loops."""
    z = np.zeros_like(q)
    for m in range(len(q)):
        keys = [
            n for n in range(m + 1) if mode == "uniform" or (m - n <= distance if mode == "far" else m - n >= distance)
        ]
        if not keys:
            continue
        scores = np.array([0.0 if mode == "uniform" else q[m] @ k[n] * scale for n in keys])
        weights = np.exp(scores - scores.max())
        z[m] = weights @ v[keys] / weights.sum()
    return z


@pytest.mark.parametrize("mode", ["uniform", "far", "near"])
@pytest.mark.parametrize("family", ["llama", "neox", "qwen3"])
@torch.no_grad()
def test_attention_is_recomputed_from_queries_keys_and_values(family, mode, tiny):
    model = tiny(family)
    scale = ph.resolve_layers(model).layers[0].scale
    with ph.live_rotary_hooks(model):
        q, k, v, plain = seen(model, *(f"blocks.0.attn.hook_{name}" for name in ("rot_q", "rot_k", "v", "z")))
    with ph.ablated_heads(model, [ph.Head(0, 2)], mode, **SETTINGS[mode]):
        (z,) = seen(model, "blocks.0.attn.hook_z")
    group = 4 // k.shape[2]
    for row in range(2):
        expected = attended(q[row, :, 2], k[row, :, 2 // group], v[row, :, 2 // group], scale, mode, 4)
        np.testing.assert_allclose(z[row, :, 2], expected, atol=1e-5)
    np.testing.assert_array_equal(np.delete(z, 2, axis=2), np.delete(plain, 2, axis=2))


@torch.no_grad()
def test_mean_and_resample_take_z_from_the_reference(tiny):
    model = tiny("llama")
    _, cache = model.run_with_cache(OTHERS, names_filter="blocks.0.attn.hook_z")
    source = cache["blocks.0.attn.hook_z"].double().numpy()[:, :, 1]
    for mode, expected in (("mean", np.broadcast_to(source.mean((0, 1)), (2, 14, 16))), ("resample", source[:2, :14])):
        with ph.ablated_heads(model, [ph.Head(0, 1)], mode, reference=OTHERS):
            (z,) = seen(model, "blocks.0.attn.hook_z")
        np.testing.assert_allclose(z[:, :, 1], expected, atol=1e-6)


@torch.no_grad()
def test_a_reference_may_be_text(tiny):
    model = tiny("llama")
    text = "In the beginning God created the heaven and the earth."
    tokens = torch.tensor([[256, *text.encode()]])
    with ph.ablated_heads(model, HEADS, "mean", reference=text):
        by_text = model(TOKENS)
    with ph.ablated_heads(model, HEADS, "mean", reference=tokens):
        assert torch.equal(model(TOKENS), by_text)


@pytest.mark.parametrize("mode", SETTINGS)
@pytest.mark.parametrize("family", ["llama", "neox", "mistral"])
@torch.no_grad()
def test_generating_with_a_cache_is_generating_without(family, mode, tiny):
    model = tiny(family)
    with ph.ablated_heads(model, HEADS, mode, **SETTINGS[mode]):
        logits, cache = model(TOKENS[:, :9], use_cache=True, return_type="logits_and_cache")
        steps = [logits]
        for position in range(9, 14):
            arguments = {"past_key_values": cache, "return_type": "logits_and_cache"}
            logits, cache = model(TOKENS[:, position : position + 1], **arguments)
            steps.append(logits)
        assert torch.allclose(torch.cat(steps, dim=1), model(TOKENS), atol=1e-4)


@pytest.mark.parametrize("mode", SETTINGS)
@pytest.mark.parametrize("family", ["llama", "gptj", "codegen", "gemma2", "gpt_oss"])
@torch.no_grad()
def test_the_model_is_given_back_as_it_was(family, mode, tiny):
    if family == "gptj" and mode in {"uniform", "far", "near"}:
        with pytest.raises(ph.UnsupportedModelError, match="attention scores cannot be edited"):
            ph.ablation_hooks(tiny(family), HEADS, mode, **SETTINGS[mode])
        return
    model = tiny(family)
    plain = model(TOKENS)
    with ph.ablated_heads(model, [], mode, **SETTINGS[mode]):
        assert torch.equal(model(TOKENS), plain)
    with pytest.raises(KeyError, match="broken"), ph.ablated_heads(model, HEADS, mode, **SETTINGS[mode]):
        raise KeyError("broken")
    assert torch.equal(model(TOKENS), plain)
    hooks = ph.ablation_hooks(model, HEADS, mode, **SETTINGS[mode])
    assert (model.run_with_hooks(TOKENS, fwd_hooks=hooks) - plain).abs().max() > 1e-4
    assert torch.equal(model(TOKENS), plain)


@torch.no_grad()
def test_far_of_everything_changes_nothing_and_near_of_everything_is_zero(tiny):
    plain = tiny("llama")(TOKENS)
    with ph.ablated_heads(tiny("llama"), HEADS, "zero"):
        without = tiny("llama")(TOKENS)
    for mode, distance, expected in (("far", 13, plain), ("near", 14, without)):
        with ph.ablated_heads(tiny("llama"), HEADS, mode, distance=distance):
            assert torch.equal(tiny("llama")(TOKENS), expected)


BAD = {
    "no reference": ({"mode": "mean"}, "mode 'mean' needs reference="),
    "no distance": ({"mode": "far"}, "mode 'far' needs distance="),
    "idle distance": ({"mode": "zero", "distance": 3}, "distance= goes with far and near, not with mode 'zero'"),
    "idle reference": ({"mode": "far", "distance": 3, "reference": OTHERS}, "reference= goes with mean and resample"),
    "idle sinks": ({"mode": "near", "distance": 3, "sinks": 2}, "sinks= goes with far, not with mode 'near'"),
    "sinks of the future": ({"mode": "far", "distance": 3, "sinks": -2}, "sinks -2 must be at least 0"),
    "the future": ({"mode": "far", "distance": -5}, "distance -5 must be at least 1"),
    "no distance at all": ({"mode": "near", "distance": 0}, "distance 0 must be at least 1"),
    "lengths": ({"mode": "resample", "reference": ["abc", "abcdef"]}, r"of one length, got \[4, 7\]"),
}


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'mask' is unknown: choose one of zero, mean"):
        ablation_mode("mask", None)


@pytest.mark.parametrize("case", BAD)
def test_impossible_ablations_are_refused(case, tiny):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):  # past the type checker, which only tests run
        inspect.unwrap(ph.ablation_hooks)(tiny("llama"), HEADS, **arguments)


@pytest.mark.parametrize("distance", [4.0, 2.5, True, "4"])
def test_distances_that_are_not_whole_numbers_are_refused(distance, tiny):
    with pytest.raises((TypeError, ValueError), match=f"distance must be a whole number or None, got {distance!r}"):
        Ablation(tiny("llama"), "far", distance=distance)  # which every way to ablate makes


def test_heads_that_do_not_exist_are_refused(tiny):
    for head in (ph.Head(2, 0), ph.Head(0, 4), ph.Head(0, -1)):
        with pytest.raises(ValueError, match=f"{head} does not exist: layers go from 0 to 1, heads to 3"):
            ph.ablation_hooks(tiny("llama"), [head])


def test_a_reference_too_short_for_the_run_is_refused(tiny):
    with (
        ph.ablated_heads(tiny("llama"), HEADS, "resample", reference=OTHERS[:, :10]),
        pytest.raises(ValueError, match="the reference has 10 positions, the run has reached 14"),
    ):
        tiny("llama")(TOKENS)
