"""A plain run is Hugging Face's own forward pass to the last bit, and leaves a bridge as it was."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.bridge.attention_interface import scaled_dot_product
from positional_heads.bridge.plain_run import plain_model, plain_run_refusal, without_logits
from tests.support import family_table
from tests.support.tiny_models import boot

TOKENS = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(3))
PLAIN = [name for name, row in family_table.committed().items() if row[0] == family_table.PLAIN]


@pytest.mark.parametrize("family", PLAIN)
@torch.no_grad()
def test_a_plain_run_is_hugging_faces_own_to_the_last_bit(family, tiny, tiny_folder):
    model, reference = tiny(family), AutoModelForCausalLM.from_pretrained(tiny_folder(family)).eval()
    assert reference.config._attn_implementation == "sdpa"
    expected = reference(TOKENS, use_cache=False, output_hidden_states=True)
    before, tree = model(TOKENS), [id(module) for module in model.original_model.modules()]
    called = []

    def attend(module, *args, **settings):
        called.append(module.layer_idx)
        return scaled_dot_product(module, *args, **settings)

    with plain_model(model, attend) as own:
        assert not any("Bridge" in type(module).__name__ for module in own.modules())
        assert hasattr(model.blocks[0], "hook_in")  # the bridge's own tree stays
        found = own(TOKENS, use_cache=False, output_hidden_states=True)
        last = own(TOKENS, use_cache=False, **without_logits(model)).logits
    assert torch.equal(found.logits, expected.logits)
    assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
    assert last.shape[1] == 1
    assert torch.allclose(last[:, 0], expected.logits[:, -1], atol=1e-6)  # a product of another shape rounds otherwise
    assert called == sorted(set(called)) * 2
    assert [id(module) for module in model.original_model.modules()] == tree
    assert torch.equal(model(TOKENS), before)


@torch.no_grad()
def test_the_attention_that_is_given_is_what_the_model_computes_with(tiny):
    model = tiny("llama")

    def without_layer_1(module, *args, **settings):
        output, pattern = scaled_dot_product(module, *args, **settings)
        return (output * 0 if module.layer_idx == 1 else output), pattern

    with plain_model(model, without_layer_1) as own:
        found = own(TOKENS).logits
    with ph.ablated_heads(model, [ph.Head(1, head) for head in range(4)], "zero"):
        assert torch.allclose(found, model(TOKENS), atol=1e-5)


@torch.no_grad()
def test_an_error_inside_leaves_the_bridge_as_it_was(tiny):
    model = tiny("gemma3")
    before, tree = model(TOKENS), [id(module) for module in model.original_model.modules()]
    configs = [model.original_model.config, *[block.attn.original_component.config for block in model.blocks]]
    named = [config._attn_implementation for config in configs]

    def fail(*args, **settings):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), plain_model(model, fail) as own:
        own(TOKENS)
    assert [config._attn_implementation for config in configs] == named
    assert [id(module) for module in model.original_model.modules()] == tree
    assert torch.equal(model(TOKENS), before)


def test_modules_of_others_call_the_usual_function(tiny):
    """Two models of one class, inside each other's blocks: each keeps its own attention."""
    outer, inner, called = tiny("llama"), tiny("llama", hidden_size=32), []

    def attend(module, *args, **settings):
        called.append(module)
        return scaled_dot_product(module, *args, **settings)

    with plain_model(outer, attend), plain_model(inner):
        inner(TOKENS)
        assert not called
        outer(TOKENS)
    assert [module.layer_idx for module in called] == [0, 1]


def idle(*_, **__):
    return None


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (lambda model: model.hook_dict["blocks.1.attn.hook_z"].register_forward_hook(idle), "blocks.1.attn.hook_z"),
        (
            lambda model: model.hook_dict["blocks.0.hook_resid_pre"].register_full_backward_hook(idle),
            "blocks.0.hook_in",
        ),
        (lambda model: model.blocks[1].mlp.register_forward_hook(idle), "blocks.1.mlp"),
        (lambda model: model.blocks[1].register_forward_pre_hook(idle), "blocks.1"),
        (lambda model: model.register_forward_hook(idle), "a hook on TransformerBridge"),
        (lambda model: model.blocks[0].ln1.original_component.register_forward_hook(idle), "blocks.0.ln1"),
        (lambda model: model.original_model.register_forward_pre_hook(idle), "a hook on LlamaForCausalLM"),
        (lambda model: nn.modules.module.register_module_forward_hook(idle), "hooks on all modules"),
        (lambda model: nn.modules.module.register_module_forward_pre_hook(idle), "hooks on all modules"),
    ],
)
def test_hooks_on_what_is_passed_by_are_a_reason_against_it(place, name, tiny):
    model = tiny("llama")
    model(TOKENS)  # a bridge hooks itself in its first run: those do not count
    assert plain_run_refusal(model) is None
    handle = place(model)
    try:
        reason = plain_run_refusal(model)
    finally:
        handle.remove()
    assert reason is not None
    assert name in reason
    assert plain_run_refusal(model) is None


def test_hooks_that_a_caller_takes_care_of_are_no_reason(tiny):
    model = tiny("llama")
    hooks = [("blocks.0.attn.hook_z", idle), ("blocks.1.attn.hook_z", idle)]
    with model.hooks(fwd_hooks=hooks):
        assert plain_run_refusal(model, {"hook_z": lambda hook: hook is idle}) is None
        assert "attn.hook_z" in plain_run_refusal(model, {"hook_rot_q": lambda hook: hook is idle})
        with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z)]):
            assert "blocks.0.attn.hook_z" in plain_run_refusal(model, {"hook_z": lambda hook: hook is idle})


@torch.no_grad()
def test_hooks_that_transformers_leaves_on_its_modules_are_no_reason(tiny):
    model = tiny("llama")
    with plain_model(model) as own:
        own(TOKENS, output_hidden_states=True)
    assert any(module._forward_hooks for module in model.original_model.modules())
    assert plain_run_refusal(model) is None


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gptj", "layer 0 does not use transformers' attention interface"),
        ("falcon", "layer 0 does not use transformers' attention interface"),
        ("gemma2", "soft-cap or a sink"),
        ("gpt_oss", "soft-cap or a sink"),
    ],
)
def test_attention_that_pytorchs_kernels_do_not_compute_is_a_reason(family, reason, tiny):
    assert reason in plain_run_refusal(tiny(family))


@pytest.mark.filterwarnings("ignore:.*")  # compatibility mode warns about what it cannot fold
def test_other_states_of_a_bridge_are_reasons(tiny, tiny_folder):
    assert "processed" in plain_run_refusal(tiny("llama", compatible=True))
    model = boot(tiny_folder("llama"))
    assert "training" in plain_run_refusal(model.train())
    model.eval()
    with ph.extended_rope(model, "self_extend", group=4, window=8):
        assert plain_run_refusal(model) is None
        with model.hooks(fwd_hooks=[("blocks.1.attn.hook_attn_scores", lambda scores, hook: scores)]):
            assert "blocks.1.attn" in plain_run_refusal(model)
    with ph.extended_rope(model, "yarn", factor=2):
        assert plain_run_refusal(model) is None
        with model.hooks(fwd_hooks=[("blocks.1.attn.hook_sin", lambda table, hook: table)]):
            assert "blocks.1.attn" in plain_run_refusal(model)
    forward = model.blocks[0].mlp.forward
    object.__setattr__(model.blocks[0].mlp, "forward", lambda *args, **kwargs: 2 * forward(*args, **kwargs))
    assert "the forward method of blocks.0.mlp is replaced" in plain_run_refusal(model)
    object.__delattr__(model.blocks[0].mlp, "forward")
    assert plain_run_refusal(model) is None
