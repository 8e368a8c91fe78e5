"""What is done to a model is described: our ablations by what they do, hooks of others by where they are."""

import hashlib

import pytest
import torch
from torch import nn

import positional_heads as ph
from positional_heads.bridge.active_edits import model_edits
from tests.support.tiny_models import boot

TOKENS = torch.randint(97, 122, (2, 24), generator=torch.Generator().manual_seed(5))
HEADS = ["L1H2", "L0H1", "L0H3"]
MODES = {
    "zero": {},
    "mean": {"reference": TOKENS},
    "resample": {"reference": TOKENS},
    "uniform": {},
    "far": {"distance": 3, "sinks": 2},
    "near": {"distance": 3},
}


def idle(*_, **__):
    return None


@pytest.mark.parametrize("mode", MODES)
def test_an_ablation_is_described_by_what_it_does(mode, tiny):
    model = tiny("llama")
    assert model_edits(model) == {}
    with ph.ablated_heads(model, HEADS, mode, **MODES[mode]):
        edits = model_edits(model)
        model(TOKENS)
        assert model_edits(model) == edits  # also after hooks ran that place others
    assert model_edits(model) == {}
    (first, second) = edits.pop("ablated")
    assert not edits
    settings = {name: value for name, value in MODES[mode].items() if name != "reference"}
    for one, heads in ((first, ["L0H1", "L0H3"]), (second, ["L1H2"])):
        assert {name: value for name, value in one.items() if name != "sha256"} == {
            "mode": mode,
            "heads": heads,
            **settings,
        }
    z = model.run_with_cache(TOKENS)[1]["z", 0, "attn"][:, :, [1, 3]]
    if mode == "resample":
        assert first["sha256"] == hashlib.sha256(b"(2, 24, 2, 16)" + z.numpy().tobytes()).hexdigest()
    elif mode == "mean":
        with ph.ablated_heads(model, HEADS, mode, reference=TOKENS[:1]):
            assert model_edits(model)["ablated"][0]["sha256"] != first["sha256"]
    else:
        assert "sha256" not in first


def test_ablations_add_up_and_an_extension_is_none(tiny):
    model = tiny("llama")
    with (
        ph.extended_rope(model, "yarn", 2),
        ph.ablated_heads(model, "L0H1"),
        ph.ablated_heads(model, "L0H2", "far", distance=4),
    ):
        edits = model_edits(model)
    assert sorted(one["mode"] for one in edits["ablated"]) == ["far", "zero"]
    with ph.extended_rope(model, "self_extend", group=4, window=8):
        assert model_edits(model) == {}
    with ph.live_rotary_hooks(tiny("neox")):
        assert model_edits(tiny("neox")) == {}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (lambda model: model.hook_dict["blocks.1.attn.hook_z"].register_forward_hook(idle), "blocks.1.attn.hook_z"),
        (lambda model: model.blocks[1].mlp.register_forward_hook(idle), "blocks.1.mlp"),
        (lambda model: model.blocks[1].register_forward_pre_hook(idle), "blocks.1"),
        (lambda model: model.original_model.register_forward_pre_hook(idle), "LlamaForCausalLM"),
        (lambda _: nn.modules.module.register_module_forward_hook(idle), "all modules"),
        (lambda model: model.hook_dict["blocks.0.hook_resid_pre"].register_full_backward_hook(idle), None),
    ],
)
def test_hooks_of_others_are_named_by_their_place(place, name, tiny):
    model = tiny("llama")
    handle = place(model)
    try:
        assert model_edits(model) == ({} if name is None else {"hooks": [name]})
        with ph.ablated_heads(model, "L0H1"):  # which stays known
            assert len(model_edits(model)["ablated"]) == 1
    finally:
        handle.remove()


def test_a_hook_of_another_on_the_point_of_an_ablation_makes_it_unknown(tiny):
    model, point = tiny("llama"), "blocks.0.attn.hook_z"
    with ph.ablated_heads(model, "L0H1"), model.hooks(fwd_hooks=[(point, lambda z, hook: z * 2)]):
        assert model_edits(model) == {"hooks": [point]}
    with ph.ablated_heads(model, "L0H1"):
        handle = model.hook_dict[point].register_forward_hook(idle)
        assert model_edits(model) == {"hooks": [point]}
        handle.remove()


def test_a_replaced_forward_is_named_but_not_one_that_the_bridge_replaced(tiny, tiny_folder):
    assert any("forward" in vars(module) for module in tiny("falcon").original_model.modules())
    assert model_edits(tiny("falcon")) == {}
    model = boot(tiny_folder("llama"))
    module = model.blocks[0].mlp.original_component
    forward = module.forward
    module.forward = lambda *args, **kwargs: 2 * forward(*args, **kwargs)
    assert model_edits(model)["hooks"] == ["blocks.0.mlp._original_component"]


@pytest.mark.parametrize(
    ("point", "family"),
    [("hook_rot_q", "llama"), ("hook_attn_scores", "llama"), ("hook_attn_scores", "neox")],
)
def test_edits_that_scores_show_are_refused_by_name(point, family, tiny):
    model = tiny(family)
    with (
        model.hooks(fwd_hooks=[(f"blocks.0.attn.{point}", lambda x, hook: 2 * x)]),
        pytest.raises(ph.UnsupportedModelError, match=rf"run under hooks on blocks\.0\.attn\.{point}, which may be"),
    ):
        ph.score_heads(model, TOKENS)


def test_a_refusal_under_an_ablation_names_it(tiny):
    with (
        ph.ablated_heads(tiny("llama"), "L0H1", "far", distance=3),
        pytest.raises(ph.UnsupportedModelError, match="run under far ablation of L0H1, which may be the reason"),
    ):
        ph.score_heads(tiny("llama"), TOKENS)


@pytest.mark.parametrize("family", ["llama", "neox", "gemma2"])
def test_a_profile_refuses_hooks_on_the_pattern_that_its_scores_do_not_show(family, tiny):
    """An edit after the softmax moves attention, and every score stays the same."""
    model = tiny(family)
    plain = ph.score_heads(model, TOKENS)

    def first_key(pattern, hook):
        return torch.zeros_like(pattern).index_fill(-1, torch.tensor([0]), 1)

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", first_key)]):
        assert torch.allclose(ph.score_heads(model, TOKENS).rho, plain.rho, atol=1e-4)
        with pytest.raises(ph.UnsupportedModelError, match=r"a hook acts on blocks\.1\.attn\.hook_pattern"):
            ph.profile_heads(model, TOKENS, retrieval=None)
        ph.profile_heads(model, TOKENS, retrieval=None, layers=[0])


def test_a_profile_under_an_ablation_is_that_of_the_ablated_model(tiny):
    model = tiny("llama")
    with ph.ablated_heads(model, ["L0H0", "L0H1", "L0H2", "L0H3"]):
        profile = ph.profile_heads(model, TOKENS, retrieval=None)
        pattern = model.run_with_cache(TOKENS)[1]["pattern", 1, "attn"].double()
    t = (torch.arange(24)[:, None] - torch.arange(24)).double()
    expected = (pattern * t).sum(-1).mean((0, 2))
    torch.testing.assert_close(profile.values("mean_distance")[1], expected, atol=1e-6, rtol=1e-5)
    assert profile.provenance["model"]["edits"]["ablated"][0]["mode"] == "zero"
