"""Live contributions are the model's own: they sum to its scores, and editing one does exactly what it says."""

import pandas as pd
import pytest
import torch

import positional_heads as ph
from tests.support.oracles import channels
from tests.support.tiny_models import SCORED

TOKENS = torch.randint(256, (2, 18), generator=torch.Generator().manual_seed(3))
LIVE = tuple(family for family in SCORED if family != "gptj")
SCORES = "blocks.0.attn.hook_attn_scores"
CONTRIBUTIONS = "blocks.0.attn.hook_contributions"


def zero_pair(rotary, pair):
    def hook_fn(q, hook):
        q = q.clone()
        q[..., list(channels(rotary.layout, pair, rotary.n_pairs))] = 0
        return q

    return hook_fn


def cached(model, *names, hooks=()):
    with model.hooks(fwd_hooks=list(hooks)):
        logits, cache = model.run_with_cache(TOKENS, names_filter=list(names))
    return logits, [cache[name] for name in names]


@pytest.mark.parametrize("family", LIVE)
def test_contributions_and_remainder_are_the_models_scores(family, tiny):
    model = tiny(family)
    rotary = ph.resolve_layers(model).layers[0]
    with ph.live_rotary_hooks(model), ph.contribution_hooks(model, layers=[0]):
        names = ("blocks.0.attn.hook_rot_q", "blocks.0.attn.hook_rot_k")
        _, (contributions, scores, q, k) = cached(model, CONTRIBUTIONS, SCORES, *names)
    total = contributions.sum(-1) + ph.unrotated_remainder(q, k, rotary.rotary_dim) * rotary.scale
    total = total if rotary.soft_cap is None else rotary.soft_cap * torch.tanh(total / rotary.soft_cap)
    visible = scores > -1e30
    assert contributions.shape == (2, 4, 18, 18, rotary.n_pairs)
    assert torch.allclose(total[visible], scores[visible], atol=1e-5)


@pytest.mark.parametrize("family", LIVE)
def test_zeroing_a_contribution_is_zeroing_the_pair_in_rot_q(family, tiny):
    model = tiny(family)
    rotary = ph.resolve_layers(model).layers[0]
    plain = model(TOKENS)
    for pair in (0, rotary.n_pairs - 1):

        def drop(contributions, hook, pair=pair):
            contributions = contributions.clone()
            contributions[..., pair] = 0
            return contributions

        with ph.contribution_hooks(model, layers=[0]):
            by_contribution = model.run_with_hooks(TOKENS, fwd_hooks=[(CONTRIBUTIONS, drop)])
        with ph.live_rotary_hooks(model):
            rotated = ("blocks.0.attn.hook_rot_q", zero_pair(rotary, pair))
            by_rotation = model.run_with_hooks(TOKENS, fwd_hooks=[rotated])
        # float32 roundings of two sums, through two layers
        assert torch.allclose(by_contribution, by_rotation, atol=1e-5 * max(1.0, plain.abs().max().item()))
        assert (by_contribution - plain).abs().max() > 1e-3


@pytest.mark.parametrize("family", [family for family in LIVE if family not in ("mixtral", "granite", "gemma2")])
def test_zeroing_a_pair_moves_the_scores_by_its_contribution(family, tiny):
    model = tiny(family)
    rotary = ph.resolve_layers(model).layers[0]
    with ph.contribution_hooks(model, layers=[0]):
        _, (contributions, before) = cached(model, CONTRIBUTIONS, SCORES)
    visible = before > -1e30
    with ph.live_rotary_hooks(model):
        for pair in range(rotary.n_pairs):
            _, (after,) = cached(model, SCORES, hooks=[("blocks.0.attn.hook_rot_q", zero_pair(rotary, pair))])
            moved = (before - after)[visible]
            assert torch.allclose(moved, contributions[..., pair][visible], atol=1e-5), pair


@pytest.mark.parametrize("family", ["llama", "neox", "codegen", "mistral"])
@pytest.mark.filterwarnings("ignore:.*")  # compatibility mode warns about what it cannot fold; not ours to judge
def test_contributions_are_live_in_compatibility_mode(family, tiny):
    model = tiny(family, compatible=True)
    rotary, plain = ph.resolve_layers(model).layers[0], model(TOKENS)
    with ph.live_rotary_hooks(model), ph.contribution_hooks(model, layers=[0]):
        names = ("blocks.0.attn.hook_rot_q", "blocks.0.attn.hook_rot_k")
        logits, (contributions, scores, q, k) = cached(model, CONTRIBUTIONS, SCORES, *names)
        edited = model.run_with_hooks(TOKENS, fwd_hooks=[(CONTRIBUTIONS, lambda c, hook: c.roll(1, dims=3))])
    total = contributions.sum(-1) + ph.unrotated_remainder(q, k, rotary.rotary_dim) * rotary.scale
    visible = scores > -1e30
    assert not visible.all()
    assert torch.allclose(total[visible], scores[visible], atol=1e-5)
    assert torch.equal(logits, plain)
    assert edited.isfinite().all()
    assert (edited - plain).abs().max() > 1e-3


def test_edits_that_others_make_to_rotated_queries_are_seen(tiny):
    model = tiny("llama")
    rotary = ph.resolve_layers(model).layers[0]
    with ph.contribution_hooks(model, layers=[0]):
        edit = [("blocks.0.attn.hook_rot_q", zero_pair(rotary, 2))]
        _, (contributions, scores) = cached(model, CONTRIBUTIONS, SCORES, hooks=edit)
    assert (contributions[..., 2] == 0).all()
    visible = scores > -1e30
    assert torch.allclose(contributions.sum(-1)[visible], scores[visible], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "neox", "gemma2"])
def test_the_model_is_given_back_as_it_was(family, tiny):
    model = tiny(family)
    plain, names = model(TOKENS), set(model.hook_dict)
    with ph.contribution_hooks(model):
        assert torch.equal(model(TOKENS), plain)
        assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=[(CONTRIBUTIONS, lambda c, hook: c)]), plain)
        assert {CONTRIBUTIONS, "blocks.1.attn.hook_dominant_dim"} <= set(model.hook_dict)
    with pytest.raises(KeyError, match="broken"), ph.contribution_hooks(model):
        raise KeyError("broken")
    assert set(model.hook_dict) == names
    assert torch.equal(model(TOKENS), plain)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_a_run_that_fails_half_way_leaves_no_hook(tiny):
    model = tiny("llama")

    def fail(tensor, hook):
        raise ArithmeticError("half way")

    plain = model(TOKENS)
    with ph.contribution_hooks(model, layers=[0]):
        with pytest.raises(ArithmeticError, match="half way"):
            model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.attn.hook_rot_q", fail)])
        assert torch.equal(model(TOKENS), plain)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_patching_from_another_run(tiny):
    """Restoring every contribution of a corrupted run's layer 0 restores its attention scores."""
    model = tiny("llama")
    corrupted = TOKENS.roll(1, dims=0)
    with ph.contribution_hooks(model, layers=[0]):
        _, clean = model.run_with_cache(TOKENS, names_filter=[CONTRIBUTIONS, SCORES])
        seen = {}
        model.run_with_hooks(
            corrupted,
            fwd_hooks=[
                (CONTRIBUTIONS, lambda contributions, hook: clean[CONTRIBUTIONS]),
                ("blocks.0.attn.hook_pattern", lambda pattern, hook: seen.update(pattern=pattern)),
            ],
        )
    assert torch.allclose(seen["pattern"], clean[SCORES].softmax(-1), atol=1e-5)


def test_patching_by_transformer_lens_finds_the_pairs(tiny):
    """`generic_activation_patch` takes a layer at a time, by the name `contributions0attn`: it can guess no other."""
    from transformer_lens.patching import generic_activation_patch

    model = tiny("llama")
    corrupted, index = TOKENS.roll(1, dims=0), pd.DataFrame({"layer": [0, 0, 0], "pair": [0, 5, 7]})

    def setter(corrupted_activation, row, clean_activation):
        patched = corrupted_activation.clone()
        patched[..., row[1]] = clean_activation[..., row[1]]
        return patched

    def metric(logits):
        return logits[0, -1, 5]

    with ph.contribution_hooks(model):
        _, clean = model.run_with_cache(TOKENS)
        found = generic_activation_patch(model, corrupted, clean, metric, setter, "contributions0attn", index_df=index)
        for value, row in zip(found, index.itertuples(index=False), strict=True):
            by_hand = [(CONTRIBUTIONS, lambda c, hook, row=row: setter(c, row, clean[CONTRIBUTIONS]))]
            assert torch.equal(value, metric(model.run_with_hooks(corrupted, fwd_hooks=by_hand)))
    assert len(set(found.tolist())) == 3


def set_zero(contributions, hook):
    contributions[:, 2, :, :, 5] = 0


def set_zero_and_return(contributions, hook):
    set_zero(contributions, hook)
    return contributions


def return_another(contributions, hook):
    contributions = contributions.clone()
    set_zero(contributions, hook)
    return contributions


def spoil_and_return_another(contributions, hook):
    edited = return_another(contributions, hook)
    contributions.fill_(7)
    return edited


def set_zero_in_a_view(contributions, hook):
    contributions.detach()[:, 2].unbind(-1)[5].zero_()


EDITS = (set_zero, set_zero_and_return, return_another, spoil_and_return_another, set_zero_in_a_view)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_edits_in_place_by_return_value_and_by_both_do_the_same(family, mode, tiny):
    """The oracle is the query of that head with the pair's two channels at 0."""
    model = tiny(family)
    two = list(channels("half", 5, 8))

    def zero_in_query(q, hook):
        q[:, :, 2, two] = 0

    with mode():
        plain = model(TOKENS)
        with ph.contribution_hooks(model, layers=[0]):
            found = [model.run_with_hooks(TOKENS, fwd_hooks=[(CONTRIBUTIONS, edit)]) for edit in EDITS]
        found.append(model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.attn.hook_rot_q", zero_in_query)]))
    assert (found[0] - plain).abs().max() > 1e-3
    for other in found[1:]:
        assert torch.allclose(other, found[0], atol=1e-5 * max(1.0, plain.abs().max().item()))


@torch.no_grad()
def test_setters_of_transformer_lens_which_write_in_place_patch_contributions(tiny):
    """`layer_pos_patch_setter` writes into the activation; here the position is a head, the axis behind the batch."""
    from transformer_lens.patching import generic_activation_patch, layer_pos_patch_setter

    model = tiny("llama")
    corrupted, index = TOKENS.roll(1, dims=0), pd.DataFrame({"layer": [0, 0, 0], "pos": [0, 2, 3]})
    with ph.contribution_hooks(model):
        _, clean = model.run_with_cache(TOKENS)
        found = generic_activation_patch(
            model, corrupted, clean, lambda logits: logits[0, -1, 5], layer_pos_patch_setter, "contributions0attn",
            index_df=index,
        )  # fmt: skip
        for value, head in zip(found, index["pos"], strict=True):

            def by_hand(contributions, hook, head=head):
                keep = torch.arange(4)[None, :, None, None, None] != head
                return torch.where(keep, contributions, clean[CONTRIBUTIONS])

            expected = model.run_with_hooks(corrupted, fwd_hooks=[(CONTRIBUTIONS, by_hand)])[0, -1, 5]
            assert float(value) == pytest.approx(float(expected), abs=1e-5)
            assert abs(float(value - model(corrupted)[0, -1, 5])) > 1e-3


def test_gradients_flow_through_edits_in_place(tiny):
    model, found = tiny("llama"), []
    weight = model.blocks[0].attn.q.weight
    for edit in (set_zero, return_another):
        with ph.contribution_hooks(model, layers=[0]):
            logits = model.run_with_hooks(TOKENS, fwd_hooks=[(CONTRIBUTIONS, edit)])
        found.append(torch.autograd.grad(logits[0, -1, 5], weight)[0])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("edit", [lambda c, hook: c[..., :1], lambda c, hook: c[:, :, -1:]])
def test_edits_that_change_the_shape_are_refused(edit, tiny):
    model = tiny("llama")
    with (
        ph.contribution_hooks(model, layers=[0]),
        pytest.raises(ValueError, match=r"hook_contributions has shape \(2, 4, 18, 18, 8\), a hook returned"),
    ):
        model.run_with_hooks(TOKENS, fwd_hooks=[(CONTRIBUTIONS, edit)])


@pytest.mark.parametrize("family", ["llama", "codegen"])
def test_contributions_behind_left_padding_are_the_models_scores(family, tiny):
    """CodeGen turns by a table of positions, of which contributions see differences only."""
    model = tiny(family)
    rotary = ph.resolve_layers(model).layers[0]
    mask = torch.ones_like(TOKENS)
    mask[0, :5] = 0
    names = [CONTRIBUTIONS, SCORES, "blocks.0.attn.hook_q", "blocks.0.attn.hook_k"]
    with ph.contribution_hooks(model, layers=[0]):
        _, cache = model.run_with_cache(TOKENS, attention_mask=mask, names_filter=names)
    contributions, scores, q, k = (cache[name] for name in names)
    q, k = (x.unflatten(-1, (-1, rotary.d_head)) if x.ndim == 3 else x for x in (q, k))
    rest = ph.unrotated_remainder(q, k, rotary.rotary_dim) * rotary.scale  # channels that nothing turns
    visible = scores > -1e30
    visible[0, :, :5] = False  # what padding attends to is nobody's
    assert torch.allclose((contributions.sum(-1) + rest)[visible], scores[visible], atol=1e-5)


def test_gradients_of_contributions_are_those_of_the_scores(tiny):
    """d score / d contribution = 1 for every pair: what attribution patching by contribution rests on."""
    model, gradients = tiny("llama"), {}

    def keep(gradient, hook):
        gradients[hook.name] = gradient

    with (
        ph.contribution_hooks(model, layers=[0]),
        model.hooks(bwd_hooks=[(CONTRIBUTIONS, keep), (SCORES, keep)]),
    ):
        model(TOKENS)[0, -1, 5].backward()
    model.zero_grad()
    assert gradients[SCORES].abs().max() > 0
    assert torch.allclose(gradients[CONTRIBUTIONS], gradients[SCORES][..., None].expand(-1, -1, -1, -1, 8))


def test_masked_keys_have_no_dominant_dimension(tiny):
    with ph.contribution_hooks(tiny("mistral"), layers=[0]):
        _, (dominant, scores) = cached(tiny("mistral"), "blocks.0.attn.hook_dominant_dim", SCORES)
    assert torch.equal(dominant.isnan(), scores < -1e30)


def add_in_place(dominant, hook):
    dominant += 1


@pytest.mark.parametrize("function", [lambda d, hook: d + 1, add_in_place, lambda d, hook: d.fill_(0)])
def test_the_readout_cannot_be_edited(function, tiny):
    model = tiny("llama")
    edit = ("blocks.0.attn.hook_dominant_dim", function)
    with (
        ph.contribution_hooks(model, layers=[0]),
        pytest.raises(RuntimeError, match=r"edit hook_contributions instead"),
    ):
        model.run_with_hooks(TOKENS, fwd_hooks=[edit])


def test_a_key_value_cache_is_refused(tiny):
    model = tiny("llama")
    with (
        ph.contribution_hooks(model, layers=[0]),
        pytest.raises(RuntimeError, match="contribution hooks need a run without a key-value cache"),
    ):
        model.generate(TOKENS[:1], max_new_tokens=3, use_past_kv_cache=True, verbose=False)


def test_blocks_do_not_nest(tiny):
    model = tiny("llama")
    names = set(model.hook_dict)
    with (
        ph.contribution_hooks(model, layers=[0]),
        pytest.raises(RuntimeError, match="leave the other contribution_hooks block first"),
        ph.contribution_hooks(model, layers=[0]),
    ):
        pass
    assert set(model.hook_dict) == names


def test_scores_that_ignore_edits_are_refused(tiny):
    with (
        pytest.raises(ph.UnsupportedModelError, match="holds the attention pattern and ignores edits"),
        ph.contribution_hooks(tiny("gptj")),
    ):
        pass


def test_the_gradient_of_a_contribution_is_that_of_the_score_it_adds_to(tiny):
    model, kept = tiny("llama"), {}

    def keep(tensor, hook):
        tensor.retain_grad()
        kept[hook.name] = tensor

    def loss(names):
        return model.run_with_hooks(TOKENS, fwd_hooks=[(name, keep) for name in names])[0, -1, 65]

    loss([SCORES]).backward()
    expected = kept[SCORES].grad
    with ph.contribution_hooks(model, layers=[0]):
        loss([CONTRIBUTIONS]).backward()
    found = kept[CONTRIBUTIONS].grad
    assert expected.abs().max() > 1e-4
    visible = expected != 0
    assert torch.allclose(found[visible], expected[visible, None].expand_as(found[visible]), atol=1e-7)


def test_the_readout_follows_edits_of_the_contributions(tiny):
    model = tiny("llama")

    def only_fast(contributions, hook):
        contributions[..., 4:] = -1e4

    with ph.contribution_hooks(model, layers=[0]):
        names = "blocks.0.attn.hook_dominant_dim"
        _, (plain,) = cached(model, names)
        _, (edited,) = cached(model, names, hooks=[(CONTRIBUTIONS, only_fast)])
    assert plain.nan_to_num().max() > 4
    assert edited.nan_to_num().max() < 3 + 1e-6
