"""Frequencies and logits of these methods are those of Hugging Face's own models, or vectors printed in papers."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.bridge.rope_scaling.methods import rope_method
from positional_heads.bridge.rope_scaling.plain_rope import PlainRope, plain_rope
from tests.support.extended import PAIRS, SCALED, TRAINED, hugging_face, settings_for

TOKENS = torch.randint(256, (2, 150), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", SCALED)
@pytest.mark.parametrize("family", PAIRS)
@torch.no_grad()
def test_logits_are_those_of_hugging_faces_extended_model(family, method, tiny, tiny_folder):
    ours, theirs = settings_for(family, method)
    expected = hugging_face(tiny_folder(family), theirs)(TOKENS).logits
    model = tiny(family)
    plain = model(TOKENS)
    with extended_rope(model, method, training_length=TRAINED, **ours):
        found = model(TOKENS)
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - plain).abs().max() > 1e-4
    assert torch.equal(model(TOKENS), plain)


@pytest.mark.parametrize("family", PAIRS)
def test_frequencies_are_those_of_hugging_face_to_the_bit(family, tiny, tiny_folder):
    model = tiny(family)
    rope = plain_rope(model, training_length=TRAINED)
    for method in SCALED:
        ours, theirs = settings_for(family, method)
        reference = hugging_face(tiny_folder(family), theirs)
        rotary = next(module for module in reference.modules() if type(module).__name__.endswith("RotaryEmbedding"))
        length = 150
        rotary(torch.zeros(1, 1, 8), torch.arange(length)[None])  # dynamic and longrope settle when run
        table = rope_method(method, ours.pop("factor"), **ours).table(rope, length)
        assert torch.equal(table.inv_freq, rotary.inv_freq), method
        assert table.attention_factor == pytest.approx(rotary.attention_scaling), method


def test_the_static_ntk_has_the_base_it_is_defined_by(bundled):
    rope = plain_rope(bundled)
    assert (rope.base, rope.rotary_dim, rope.training_length) == (10000, 32, 512)
    base = 10000 * 4 ** (32 / 30)
    expected = torch.tensor([base ** (-2 * pair / 32) for pair in range(16)])
    assert torch.allclose(rope_method("ntk", 4).table(rope, 100).inv_freq, expected, rtol=1e-6)
    # and the dynamic one reaches it at its own factor and length
    dynamic = rope_method("dynamic", 2).table(rope, 1024).inv_freq
    assert torch.allclose(dynamic, rope_method("ntk", 3).table(rope, 1).inv_freq, rtol=1e-6)
    assert torch.equal(rope_method("dynamic", 2).table(rope, 512).inv_freq, rope_method("none").table(rope, 1).inv_freq)


def large_rope(length, width=128, base=10000.0):
    """A configuration as large models have it."""
    config = LlamaConfig(hidden_size=width, num_attention_heads=1, head_dim=width, max_position_embeddings=length)
    return PlainRope(base, width, length, {"rope_theta": base, "rope_type": "default"}, config)


@pytest.mark.parametrize(
    ("length", "factor", "betas", "low", "high", "scale"),
    [
        (4096, 16, {}, 20, 46, 1.277259),
        (4096, 32, {}, 20, 46, 1.346574),
        (8192, 8, {"beta_fast": 128, "beta_slow": 2}, 16, 46, None),
        (8192, 8, {}, 25, 50, None),
    ],
)
def test_yarn_gives_the_vectors_that_its_authors_code_prints(length, factor, betas, low, high, scale):
    table = rope_method("yarn", factor, **betas).table(large_rope(length), length)
    plain = torch.tensor([10000 ** (-2 * pair / 128) for pair in range(64)])
    ratio = table.inv_freq / plain
    assert torch.allclose(ratio[: low + 1], torch.ones(low + 1), rtol=1e-5)
    assert torch.allclose(ratio[high:], torch.full((64 - high,), 1 / factor), rtol=1e-5)
    assert bool((ratio[low + 1 : high] < 1 - 1e-4).all())
    assert bool((ratio[low + 1 : high] > 1 / factor + 1e-4).all())
    if scale is not None:
        assert table.attention_factor == pytest.approx(scale, abs=1e-6)


def test_transformers_still_has_functions_by_these_names():
    assert {"linear", "dynamic", "yarn", "longrope", "llama3"} <= set(ROPE_INIT_FUNCTIONS)
