"""Every family is resolved and proven, or refused with its reason."""

import pytest
import torch

import positional_heads as ph
from tests.support.tiny_models import (
    ADJACENT,
    BOOTED,
    DEAD_HOOKS,
    NOT_ROTARY,
    ROTARY_DIM,
    WRONG_BRIDGES,
    boot,
)

SCALE = {"qwen3": 24**-0.5, "gemma2": 24**-0.5, "gemma3": 24**-0.5, "granite": 0.2}


@pytest.mark.parametrize(("family", "compatible"), BOOTED)
@pytest.mark.filterwarnings("ignore:.*")  # compatibility mode warns about layers that it cannot fold
def test_every_family_is_resolved_as_its_code_rotates(family, compatible, tiny):
    resolved = ph.resolve_layers(tiny(family, compatible=compatible))
    assert sorted([*resolved.layers, *resolved.unscored]) == [0, 1]
    for rotary in resolved.layers.values():
        expected = {
            "layout": "adjacent" if family in ADJACENT else "half",
            "source": "rebuilt" if family in DEAD_HOOKS else "hook",
            "rotary_dim": ROTARY_DIM.get(family, 16),
            "scale": pytest.approx(SCALE.get(family, 0.25)),
            "soft_cap": 2.0 if family == "gemma2" else None,
            "holds": "pattern" if family == "gptj" else "scores",
        }
        assert {name: getattr(rotary, name) for name in expected} == expected
        assert rotary.error < 1e-6
    assert ("NoPE" in str(resolved.unscored)) == (family == "smollm3")


@pytest.mark.skipif(not WRONG_BRIDGES, reason="this TransformerLens has no bridge known to rotate wrongly")
def test_bridges_that_rotate_wrongly_are_refused(tiny):
    with pytest.raises(ph.UnsupportedModelError, match="own attention scores"):
        ph.resolve_layers(tiny("cohere"))


@pytest.mark.parametrize("family", NOT_ROTARY)
def test_models_without_rotation_are_refused(family, tiny):
    with pytest.raises(ph.UnsupportedModelError, match=r"'(standard|alibi)', not rotary"):
        ph.resolve_layers(tiny(family))


@pytest.mark.parametrize(
    ("family", "reason"),
    [("deepseek_v2", "multi-head latent"), ("deepseek_v3", "multi-head latent"), ("hunyuan", "HunYuan normalises")],
)
def test_attention_without_plain_rotations_is_refused(family, reason, tiny):
    with pytest.raises(ph.UnsupportedModelError, match=reason):
        ph.resolve_layers(tiny(family))


@pytest.mark.parametrize("name", ["RemoteBridge", "HookedTransformer"])
def test_other_classes_are_refused(name):
    surface = dict.fromkeys(("cfg", "run_with_cache", "run_with_hooks", "to_tokens"), lambda *_: None)
    with pytest.raises(ph.UnsupportedModelError, match=f"{name}.*boot_transformers"):
        ph.resolve_layers(type(name, (), surface)())


def test_native_bridges_are_refused():
    from transformer_lens.model_bridge import TransformerBridge

    config = {"n_layers": 1, "d_model": 16, "n_ctx": 32, "d_head": 8, "n_heads": 2, "d_vocab": 50, "act_fn": "gelu"}
    native = TransformerBridge.boot_native({**config, "positional_embedding_type": "rotary", "rotary_dim": 8})
    with pytest.raises(ph.UnsupportedModelError, match="boot_native"):
        ph.resolve_layers(native)


def test_training_mode_is_refused(tiny_folder):
    model = boot(tiny_folder("llama")).train()
    with pytest.raises(ph.UnsupportedModelError, match=r"model\.eval\(\)"):
        ph.resolve_layers(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("weight", "name"), [("q_proj", "queries of head 2"), ("k_proj", "keys of head 1")])
def test_weights_that_are_not_finite_are_located(tiny_folder, value, weight, name):
    model = boot(tiny_folder("llama"))
    rows = slice(32, 48) if weight == "q_proj" else slice(16, 32)
    with torch.no_grad():
        getattr(model.original_model.model.layers[1].self_attn, weight).original_component.weight[rows] = value
    with pytest.raises(ph.UnsupportedModelError, match=f"layer 1: the {name} are not finite"):
        ph.resolve_layers(model)


def test_scores_that_are_not_reproduced_are_refused(tiny, monkeypatch):
    monkeypatch.setattr("positional_heads.bridge.resolve._attention_scale", lambda *_: 0.26)
    with pytest.raises(ph.UnsupportedModelError, match=r"layer 0: .*half 0\.04, adjacent"):
        ph.resolve_layers(tiny("llama"))


@pytest.mark.parametrize("family", ["llama", "neox", "gptj", "gemma2", "olmo2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_proven_too(family, dtype, tiny_folder):
    model = boot(tiny_folder(family), dtype=dtype)
    resolved = ph.resolve_layers(model)
    assert {rotary.layout for rotary in resolved.layers.values()} == {"adjacent" if family == "gptj" else "half"}
    whole = ph.score_heads(boot(tiny_folder(family)), torch.arange(60)[None]).rho  # rounding in half moves rho a little
    torch.testing.assert_close(ph.score_heads(model, torch.arange(60)[None]).rho, whole, atol=0.05, rtol=0)


def test_the_layout_is_found_where_tables_would_mislead(tiny):
    """GLM's cos and sin repeat like half layouts', but it turns adjacent channels."""
    rotary = ph.resolve_layers(tiny("glm")).layers[0]
    assert (rotary.table, rotary.layout) == ("half", "adjacent")
