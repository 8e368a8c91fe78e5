"""Every family in every way of running, as the page in the docs says; and attention that can be read but not edited."""

import logging

import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.capture import capture
from positional_heads.core.rotary import rotate
from tests.support import family_table
from tests.support.tiny_models import ADJACENT, DELEGATED, FAMILIES, WRONG_BRIDGES, boot, rotary_dim

WITHOUT_ROTATION = {"llama4": [1], "afmoe": [1], "olmo_hybrid": [0]}
TOKENS = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*")  # compatibility mode warns about what it cannot fold; not ours to judge
def test_the_table_of_the_docs_is_what_is_found(family, tiny, tiny_folder, caplog):
    caplog.set_level(logging.ERROR)
    found = family_table.cells(family_table.Family(family, tiny_folder(family), tiny))
    if family in WRONG_BRIDGES:  # the page is of the newest TransformerLens
        assert all("do not give the model's own attention scores" in cell for cell in found)
    else:
        assert found == family_table.committed()[family]


def test_the_table_holds_every_family_and_nothing_but_equal_and_refused():
    rows = family_table.committed()
    assert list(rows) == list(FAMILIES)
    for row in rows.values():
        assert len(row) == len(family_table.MODES)
        assert row[0] == family_table.PLAIN or row[0].startswith((family_table.HOOKS, family_table.REFUSED))
        assert all(cell == family_table.EQUAL or cell.startswith(family_table.REFUSED) for cell in row[1:])


@pytest.mark.parametrize("family", DELEGATED)
def test_attention_left_to_hugging_face_is_resolved(family, tiny):
    resolved = ph.resolve_layers(tiny(family))
    assert list(resolved.unscored) == WITHOUT_ROTATION.get(family, [])
    for layer, rotary in resolved.layers.items():
        assert (rotary.source, rotary.holds) == ("interface", "pattern")
        assert rotary.layout == ("adjacent" if family in ADJACENT else "half")
        assert rotary.rotary_dim == rotary_dim(family, layer)
        assert rotary.scale == (1 if family == "gemma4" else 0.25)
        assert rotary.error < 1e-5


@pytest.mark.parametrize("family", [family for family in DELEGATED if family != "olmo_hybrid"])
def test_undoing_the_rotation_makes_keys_of_one_repeated_token_equal(family, tiny):
    """Their content is the same at all positions of the first layer: what differs is the rotation, and its sense."""
    model, found = tiny(family), {}
    layers = list(ph.resolve_layers(model).layers.values())
    capture(model, torch.full((1, 24), 65), layers, lambda vectors: found.update({vectors.rotary.layer: vectors}))
    first = found[0]
    content = rotate(first.rot_k, 1 / first.phases, first.rotary.layout)
    assert torch.allclose(content, content[:, :1].expand_as(content), atol=1e-5)
    assert not torch.allclose(first.rot_k[:, 5], first.rot_k[:, 0], atol=0.1)


@pytest.mark.parametrize("family", DELEGATED)
def test_reading_leaves_the_model_as_it_was(family, tiny):
    model = tiny(family)
    modules = [block.attn.original_component for block in model.blocks if hasattr(block, "attn")]
    layers = list(ph.resolve_layers(model).layers.values())
    with torch.no_grad():
        before = model(TOKENS)

    def fail(vectors):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(model, TOKENS, layers, fail)
    assert {module.config._attn_implementation for module in modules} == {"eager"}
    assert not any(module._forward_pre_hooks for module in modules)
    with torch.no_grad():
        assert torch.equal(model(TOKENS), before)


@pytest.mark.parametrize("family", DELEGATED)
def test_a_head_without_output_is_one_without_its_columns_of_the_output_projection(family, tiny, tiny_folder):
    model = tiny(family)
    layer = min(ph.resolve_layers(model).layers)
    with torch.no_grad():
        with ph.ablated_heads(model, [ph.Head(layer, 2)], "zero"):
            ablated = model(TOKENS)
        other = boot(tiny_folder(family))
        module = other.blocks[layer].attn.original_component
        out = next(getattr(module, name) for name in ("o_proj", "Wo") if hasattr(module, name))
        width = module.head_dim
        out.weight[:, 2 * width : 3 * width] = 0
        assert torch.allclose(other(TOKENS), ablated, atol=1e-5)
        assert not torch.allclose(model(TOKENS), ablated, atol=1e-2)


@pytest.mark.parametrize("family", DELEGATED)
def test_what_would_have_to_edit_is_refused(family, tiny):
    model = tiny(family)
    layer = min(ph.resolve_layers(model).layers)
    with pytest.raises(ph.UnsupportedModelError, match="can be read but not edited"), ph.extended_rope(model, "yarn"):
        pass
    with pytest.raises(ph.UnsupportedModelError, match="ignores edits"), ph.contribution_hooks(model):
        pass
    with pytest.raises(ph.UnsupportedModelError, match="never fires"), ph.live_rotary_hooks(model):
        pass
    with pytest.raises(ph.UnsupportedModelError, match="which mode 'far' needs"):
        ph.ablation_hooks(model, [ph.Head(layer, 0)], "far", distance=3)


def test_attention_with_something_else_in_it_is_refused(tiny_folder, monkeypatch):
    """The proof is against the pattern of the model's own eager function, not against ours."""
    from transformers.models.nanochat import modeling_nanochat

    own = modeling_nanochat.eager_attention_forward

    def biased(module, query, key, value, mask, **settings):
        return own(module, query, key, value, mask + 0.3 * torch.arange(key.shape[2]), **settings)

    model = boot(tiny_folder("nanochat"))
    monkeypatch.setattr(modeling_nanochat, "eager_attention_forward", biased)
    with pytest.raises(ph.UnsupportedModelError, match=r"is not the softmax of q \. k"):
        ph.resolve_layers(model)


def test_reading_that_would_change_the_output_is_refused(tiny_folder, monkeypatch):
    from transformers.models.nanochat import modeling_nanochat

    model = boot(tiny_folder("nanochat"))
    module = model.blocks[1].attn.original_component
    module.config._attn_implementation = "sdpa"  # runs without our reading do not call the eager function
    assert ph.resolve_layers(model).layers[1].error < 1e-5
    assert module.config._attn_implementation == "sdpa"
    own = modeling_nanochat.eager_attention_forward
    monkeypatch.setattr(
        modeling_nanochat,
        "eager_attention_forward",
        lambda module, query, key, value, *rest, **settings: own(module, query, key, 2 * value, *rest, **settings),
    )
    with pytest.raises(ph.UnsupportedModelError, match="changes this model's output"):
        ph.resolve_layers(model)


def test_keys_that_are_weighted_after_the_rotation_are_refused(tiny_folder):
    """As HunYuan does: pairs are no longer turned by the model's angles."""
    model = boot(tiny_folder("nanochat"))
    weight = torch.linspace(0.5, 2, 16)
    norm = model.blocks[0].attn.k_norm.original_component
    norm.register_forward_hook(lambda module, inputs, output: output * weight)
    with pytest.raises(ph.UnsupportedModelError, match="does not rotate queries and keys by the model's own angles"):
        ph.resolve_layers(model)


def test_frequencies_of_attention_that_is_only_read_are_checked_too(tiny_folder):
    model = boot(tiny_folder("nanochat"))
    (module,) = (one for one in model.original_model.modules() if type(one).__name__ == "NanoChatRotaryEmbedding")
    module.inv_freq[1:3] = module.inv_freq[1:3].flip(0).clone()
    with pytest.raises(ph.UnsupportedModelError, match=r"layer 0: pair 1 turns by 0\.1"):
        ph.resolve_layers(model)


@pytest.mark.parametrize("value", [7e-18, 1e-5])
@pytest.mark.parametrize(("family", "buffer"), [("gemma4", "full"), ("gemma4", "sliding"), ("modernbert_decoder", "")])
def test_layers_whose_table_does_not_rotate_are_not_taken_for_nope(family, buffer, value, tiny_folder):
    model = boot(tiny_folder(family))
    tables = [table for name, table in model.original_model.named_buffers() if name.endswith("inv_freq")]
    if buffer:
        tables = [table for name, table in model.original_model.named_buffers() if f"{buffer}_attention_inv_f" in name]
    assert tables
    for table in tables:
        table.fill_(value)
    with pytest.raises(ph.UnsupportedModelError, match=rf"layer {int(buffer == 'full')}: pair 0 turns by"):
        ph.resolve_layers(model)


def test_attention_without_cos_and_sin_is_refused(tiny_folder):
    model = boot(tiny_folder("nanochat"))
    module = model.blocks[0].attn.original_component
    forward = module.forward
    module.forward = lambda hidden_states, **settings: forward(hidden_states=hidden_states, **settings)
    with pytest.raises(ph.UnsupportedModelError, match="not given cos and sin"):
        ph.resolve_layers(model)


def test_layers_with_other_numbers_of_heads_are_refused(tiny_folder):
    model = boot(tiny_folder("laguna", num_attention_heads_per_layer=[4, 2]))
    with pytest.raises(ph.UnsupportedModelError, match="layer 1 has 2 heads and the model's configuration 4"):
        ph.resolve_layers(model)


def test_chunked_attention_is_refused_where_it_hides_something(tiny_folder):
    model = boot(tiny_folder("llama4", attention_chunk_size=16))
    assert ph.score_heads(model, TOKENS[:, :16]).rho[0].isfinite().all()
    with pytest.raises(ph.UnsupportedModelError, match="layer 0 masks query-key pairs in a way"):
        ph.score_heads(model, TOKENS)


def test_layers_with_fewer_pairs_have_no_frequency_behind_the_last(tiny):
    scores = ph.score_heads(tiny("gemma4"), TOKENS)
    assert scores.frequencies.isnan().sum(-1).tolist() == [8, 0, 8, 0]
    expected = 10000.0 ** (-torch.arange(8) / 8)
    assert torch.allclose(scores.frequencies[0, :8].float(), expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"have \[8, 16\] pairs"):
        ph.head_examples(tiny("gemma4"), TOKENS[0], [ph.Head(0, 0), ph.Head(1, 0)])


def test_pairs_that_turn_backwards_have_the_frequencies_of_others(tiny):
    forwards, backwards = (ph.score_heads(tiny(family), TOKENS).frequencies for family in ("llama", "nanochat"))
    assert torch.allclose(backwards, forwards, rtol=1e-4)
    profile = ph.contribution_profile(tiny("nanochat"), TOKENS, [ph.Head(1, 0)])
    assert torch.allclose(profile.frequencies[0], forwards[1], rtol=1e-4)


def test_codegen_in_half_precision_is_refused_as_long_as_its_bridge_cannot_run(tiny_folder):
    model = boot(tiny_folder("codegen"), dtype=torch.bfloat16)
    with pytest.raises(ph.UnsupportedModelError, match="load it in float32"):
        ph.resolve_layers(model)
    with pytest.raises(RuntimeError, match="dtype"):  # once it does run, drop the refusal
        model(TOKENS)


def test_weight_processing_that_changes_the_output_is_refused(tiny, tiny_folder):
    with pytest.raises(ph.UnsupportedModelError, match="no_processing=True"):
        ph.resolve_layers(tiny("gpt_oss", compatible=True))
    model = boot(tiny_folder("gpt_oss"))
    model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert ph.score_heads(model, TOKENS).rho.isfinite().all()
