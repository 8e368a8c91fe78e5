"""Every family is resolved and proven, or refused by name."""

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
    save_tiny_model,
)

SCALE = {"qwen3": 24**-0.5, "gemma2": 24**-0.5, "gemma3": 24**-0.5, "granite": 0.2}


@pytest.mark.parametrize(("family", "compatible"), BOOTED)
@pytest.mark.filterwarnings("ignore:.*")  # compatibility mode warns about what it cannot fold; not ours to judge
def test_every_family_is_resolved(family, compatible, tiny):
    resolved = ph.resolve_layers(tiny(family, compatible=compatible))
    assert sorted([*resolved.layers, *resolved.unscored]) == [0, 1]
    for rotary in resolved.layers.values():
        assert rotary.layout == ("adjacent" if family in ADJACENT else "half")
        assert rotary.source == ("rebuilt" if family in DEAD_HOOKS else "hook")
        assert rotary.rotary_dim == ROTARY_DIM.get(family, 16)
        assert rotary.scale == pytest.approx(SCALE.get(family, 0.25))
        assert rotary.soft_cap == (2.0 if family == "gemma2" else None)
        assert rotary.holds == ("pattern" if family == "gptj" else "scores")
        assert rotary.error < 1e-6
    assert ("NoPE" in str(resolved.unscored)) == (family == "smollm3")


@pytest.mark.parametrize(
    ("dtype", "scores", "hidden"),
    [
        (torch.float32, [-1e5, 0.0, torch.finfo(torch.float32).min], [False, False, True]),
        (torch.float32, [-1e5, 0.0, -torch.inf], [False, False, True]),
        (torch.float32, [5.0, 0.0, torch.finfo(torch.float16).min], [False, False, True]),  # OLMo-2 in float16
        (torch.bfloat16, [-1e5, 0.0, torch.finfo(torch.bfloat16).min], [False, False, True]),
        (torch.float16, [-3e4, 0.0, torch.finfo(torch.float16).min], [False, False, True]),
        (torch.float32, [], []),
    ],
)
def test_low_scores_are_not_taken_for_hidden_ones(dtype, scores, hidden, tiny):
    rotary = ph.resolve_layers(tiny("llama")).layers[0]
    assert rotary.masked_entries(torch.tensor(scores, dtype=dtype)).tolist() == hidden


@pytest.mark.skipif(not WRONG_BRIDGES, reason="this TransformerLens has no bridge known to rotate wrongly")
def test_bridges_that_rotate_wrongly_are_refused(tiny):
    with pytest.raises(ph.UnsupportedModelError, match="do not give the model's own attention scores"):
        ph.resolve_layers(tiny("cohere"))


@pytest.mark.parametrize("family", NOT_ROTARY)
def test_models_without_rotation_are_refused(family, tiny):
    with pytest.raises(ph.UnsupportedModelError, match=r"positional embedding is '(standard|alibi)', not rotary"):
        ph.resolve_layers(tiny(family))


@pytest.mark.parametrize(
    ("family", "reason"),
    [("deepseek_v2", "multi-head latent"), ("deepseek_v3", "multi-head latent"), ("hunyuan", "HunYuan normalises")],
)
def test_rotation_that_does_not_come_apart_is_refused_by_name(family, reason, tiny):
    with pytest.raises(ph.UnsupportedModelError, match=reason):
        ph.resolve_layers(tiny(family))


@pytest.mark.parametrize("name", ["RemoteBridge", "HookedTransformer"])
def test_other_classes_are_refused(name):
    surface = dict.fromkeys(("cfg", "run_with_cache", "run_with_hooks", "to_tokens"), lambda *_: None)
    with pytest.raises(ph.UnsupportedModelError, match=f"a {name} cannot be scored.*boot_transformers"):
        ph.resolve_layers(type(name, (), surface)())


def test_native_bridges_are_refused():
    from transformer_lens.model_bridge import TransformerBridge

    config = {"n_layers": 1, "d_model": 16, "n_ctx": 32, "d_head": 8, "n_heads": 2, "d_vocab": 50, "act_fn": "gelu"}
    native = TransformerBridge.boot_native({**config, "positional_embedding_type": "rotary", "rotary_dim": 8})
    with pytest.raises(ph.UnsupportedModelError, match="boot_native"):
        ph.resolve_layers(native)


def test_training_mode_is_refused(tiny_folder):
    model = boot(tiny_folder("llama")).train()
    with pytest.raises(ph.UnsupportedModelError, match=r"call model.eval\(\) first"):
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
    with pytest.raises(
        ph.UnsupportedModelError, match=r"layer 0: .*relative error by pair layout: half 0.04, adjacent"
    ):
        ph.resolve_layers(tiny("llama"))


@pytest.mark.parametrize("family", ["llama", "neox", "gptj", "gemma2", "olmo2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_proven_too(family, dtype, tiny_folder):
    model = boot(tiny_folder(family), dtype=dtype)
    resolved = ph.resolve_layers(model)
    assert {rotary.layout for rotary in resolved.layers.values()} == {"adjacent" if family == "gptj" else "half"}
    assert ph.score_heads(model, torch.arange(60)[None]).rho.isfinite().all()


def test_the_layout_is_found_where_tables_would_mislead(tiny):
    """GLM's cos and sin repeat like half layouts', but it turns adjacent channels."""
    rotary = ph.resolve_layers(tiny("glm")).layers[0]
    assert (rotary.table, rotary.layout) == ("half", "adjacent")


def test_missing_layers_are_refused(tiny):
    resolved = ph.resolve_layers(tiny("smollm3"))
    with pytest.raises(ValueError, match="layer 7 does not exist: the model has layers 0 to 1"):
        resolved.select([7])
    with pytest.raises(ValueError, match="layer -1 does not exist"):
        resolved.select([-1])
    with pytest.raises(ValueError, match="layer 1 cannot be scored: it has no rotary embedding"):
        resolved.select([1])


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    from positional_heads.bridge.loading import load_model

    with pytest.raises(FileNotFoundError, match="no such model folder"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no config\.json in it"):
        load_model(str(tmp_path))
    with pytest.raises(ValueError, match="dtype 'int3' is unknown"):
        load_model(str(save_tiny_model("llama", tmp_path / "model")), dtype="int3")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model("nobody/nothing")
