"""Vectors of plain runs are those of the hooks, and what plain runs do not prove is refused, or read from hooks."""

import functools
import logging
from itertools import product

import pytest
import torch
from transformers.integrations import sdpa_attention

import positional_heads as ph
from positional_heads.bridge import prefill
from positional_heads.bridge.attention_interface import scaled_dot_product
from positional_heads.bridge.capture import capture
from positional_heads.bridge.masks import MaskProof
from positional_heads.bridge.plain_capture import plain_capture_refusal
from positional_heads.bridge.plain_run import plain_model
from positional_heads.core.heads import Head
from tests.bridge.test_plain_run import PLAIN
from tests.support.family_table import hooked
from tests.support.tiny_models import HYBRID, WRONG_BRIDGES, boot
from tests.support.watching import watch

TOKENS = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(5))
MASKS = {"none": None, "left": torch.ones(2, 30).long(), "right": torch.ones(2, 30).long()}
MASKS["left"][0, :7] = 0
MASKS["right"][0, 23:] = 0
SDPA = sdpa_attention.sdpa_attention_forward


def captured(model, tokens=TOKENS, mask=None, layers=None):
    found = {}
    chosen = layers or list(ph.resolve_layers(model).layers.values())
    capture(model, tokens, chosen, lambda vectors: found.update({vectors.rotary.layer: vectors}), mask)
    return found


@pytest.mark.parametrize("family", [family for family in PLAIN if family not in WRONG_BRIDGES])
def test_plain_runs_show_what_the_hooks_show(family, tiny):
    model = tiny(family)
    layers = list(ph.resolve_layers(model).layers.values())
    assert plain_capture_refusal(model, layers) is None
    for mask in MASKS.values():
        plain = captured(model, TOKENS, mask, layers)
        with hooked(model):
            assert plain_capture_refusal(model, layers) is not None
            expected = captured(model, TOKENS, mask, layers)
        assert list(plain) == list(expected) == [rotary.layer for rotary in layers]
        real = slice(None) if mask is None else mask.bool()
        for layer, vectors in expected.items():
            assert plain[layer].window == vectors.window
            assert torch.allclose(plain[layer].rot_q[real], vectors.rot_q[real], atol=1e-4)
            assert torch.allclose(plain[layer].rot_k[real], vectors.rot_k[real], atol=1e-4)
            assert torch.equal(plain[layer].phases.expand(2, -1, -1)[real], vectors.phases.expand(2, -1, -1)[real])


def test_what_a_hook_edits_is_read_from_hooks(tiny):
    model = tiny("llama")
    plain = captured(model)
    with ph.ablated_heads(model, [Head(0, 1)], "zero"):
        ablated = captured(model)
        with hooked(model):
            expected = captured(model)
    assert torch.equal(ablated[1].rot_q, expected[1].rot_q)
    assert torch.allclose(ablated[0].rot_q, plain[0].rot_q, atol=1e-5)
    assert not torch.allclose(ablated[1].rot_q, plain[1].rot_q, atol=1e-2)


@pytest.mark.parametrize("place", ["hook", "forward"])
def test_what_is_added_to_hugging_faces_own_modules_is_read_from_hooks(place, tiny_folder):
    """A bridge computes attention itself, so what changes the output of Hugging Face's own module does not count."""
    model = boot(tiny_folder("llama"))
    expected = ph.score_heads(model, TOKENS)
    module = model.blocks[0].attn.original_component

    def change_late(output):
        return (output[0] * (torch.arange(30) < 20)[:, None], *output[1:])

    if place == "hook":
        module.register_forward_hook(lambda module, inputs, output: change_late(output))
    else:
        forward = module.forward
        module.forward = lambda *args, **kwargs: change_late(forward(*args, **kwargs))
    assert plain_capture_refusal(model, list(ph.resolve_layers(model).layers.values())) is not None
    assert torch.allclose(ph.score_heads(model, TOKENS).rho, expected.rho, atol=1e-4)


def test_scores_are_the_same_read_either_way(tiny):
    model = tiny("llama")
    found = ph.score_heads(model, TOKENS, null_repeats=2)
    with hooked(model):
        expected = ph.score_heads(model, TOKENS, null_repeats=2)
    assert torch.allclose(found.rho, expected.rho, atol=1e-4)
    assert torch.allclose(found.curve, expected.curve, atol=1e-4, equal_nan=True)
    assert expected.provenance["model"].pop("edits")["hooks"]  # what a hook does is unknown, so it is named
    assert found.provenance == expected.provenance


def test_the_run_ends_after_the_last_layer_that_was_asked_for(tiny):
    model, run = tiny("llama"), []
    handles = [
        watch(block.original_component, lambda *_, layer=layer: run.append(layer))
        for layer, block in enumerate(model.blocks)
    ]
    try:
        first = ph.resolve_layers(model).layers[0]
        run.clear()
        assert list(captured(model, layers=[first])) == [0]
        assert run == []  # inside the attention of layer 0
    finally:
        for handle in handles:
            handle.remove()


def test_long_runs_hold_no_scores(tiny, monkeypatch):
    """Also of models that a bridge could not run in chunks, at a length that it would refuse."""
    monkeypatch.setattr(prefill, "WHOLE_RUN_SCORES", 1000)
    monkeypatch.setattr(prefill, "LONGEST_CHUNK", 8)
    monkeypatch.setattr(prefill, "SHORTEST_CHUNK", 8)
    for family in HYBRID:
        assert ph.score_heads(tiny(family), TOKENS).rho.isfinite().any()
        with hooked(tiny(family)), pytest.raises(ph.UnsupportedModelError, match=r"need .* attention scores per layer"):
            ph.score_heads(tiny(family), TOKENS)


def changed(**other):
    """transformers' attention function with other settings than the model's."""

    def attend(module, query, key, value, mask, **settings):
        return SDPA(module, query, key, value, mask, **{**settings, **{name: f(settings) for name, f in other.items()}})

    return attend


def biased(module, query, key, value, mask, **settings):
    distance = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])
    bias = (-0.05 * distance).masked_fill(distance < 0, -torch.inf)
    return SDPA(module, query, key, value, bias[None, None], **settings)


def blind(module, query, key, value, mask, **settings):
    """Hides what is more than 20 tokens away, which no probe of 16 tokens sees."""
    distance = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])
    return SDPA(module, query, key, value, ((distance >= 0) & (distance <= 20))[None, None], **settings)


@pytest.mark.parametrize(
    "attend",
    [
        changed(scaling=lambda settings: 1.3 * settings["scaling"]),
        changed(is_causal=lambda settings: False),
        biased,
        blind,
    ],
)
def test_attention_that_the_vectors_do_not_explain_is_refused_in_every_run(attend, tiny, monkeypatch):
    model = tiny("llama")
    layers = list(ph.resolve_layers(model).layers.values())
    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", attend)
    with pytest.raises(ph.UnsupportedModelError, match=r"layer 0: the softmax of q \. k.* misses .*another term"):
        captured(model, layers=layers)


@pytest.mark.parametrize("row", [0, 1])
def test_every_sequence_is_proven(row, tiny, monkeypatch):
    def wrong(module, query, key, value, mask, **settings):
        output, pattern = SDPA(module, query, key, value, mask, **settings)
        output[row, -1, 3] *= 1.01
        return output, pattern

    model = tiny("llama")
    layers = list(ph.resolve_layers(model).layers.values())
    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", wrong)
    with pytest.raises(ph.UnsupportedModelError, match="layer 0: the softmax"):
        captured(model, layers=layers)


def test_what_a_probe_shows_otherwise_is_read_from_hooks(tiny, monkeypatch, caplog):
    model = tiny("llama")
    expected = captured(model)
    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", changed(scaling=lambda settings: 0.3))
    with caplog.at_level(logging.INFO, "positional_heads"):
        layers = list(ph.resolve_layers(model).layers.values())
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "reading the bridge's hooks" in caplog.text
    assert not any(rotary.plain for rotary in layers)
    for layer, vectors in captured(model, layers=layers).items():
        assert torch.allclose(vectors.rot_q, expected[layer].rot_q, atol=1e-5)


def test_weights_that_only_the_bridge_computes_with_are_read_from_hooks(tiny_folder, caplog):
    """GPT-NeoX: a bridge keeps the queries' weights apart from the model's own, which hold queries, keys and values."""
    model = boot(tiny_folder("neox"))
    with torch.no_grad():
        model.blocks[1].attn.q.original_component.weight.mul_(1.1)
    with caplog.at_level(logging.INFO, "positional_heads"):
        layers = ph.resolve_layers(model).layers
    assert "layer 1 differs by 0.0" in caplog.text
    assert not layers[1].plain


@pytest.mark.parametrize("setting", ["s_aux", "position_bias", "softcap"])
def test_attention_that_is_given_more_than_a_scale_is_refused(setting, tiny, monkeypatch):
    model = tiny("llama")
    layers = list(ph.resolve_layers(model).layers.values())
    kind = type(model.blocks[1].attn.original_component)  # a module's own forward would count as replaced by others
    own = kind.forward

    @functools.wraps(own)
    def forward(self, *args, **kwargs):
        more = {setting: torch.ones(4)} if self.layer_idx == 1 else {}
        return own(self, *args, **kwargs, **more)

    monkeypatch.setattr(kind, "forward", forward)
    with pytest.raises(ph.UnsupportedModelError, match=rf"layer 1: attention is called with .*'{setting}'"):
        captured(model, layers=layers)


def test_a_layer_whose_attention_is_not_called_is_refused(tiny, monkeypatch):
    model = tiny("llama")
    layers = list(ph.resolve_layers(model).layers.values())
    kind = type(model.blocks[1].attn.original_component)
    own = kind.forward

    @functools.wraps(own)
    def forward(self, hidden_states, **kwargs):
        return (hidden_states, None) if self.layer_idx == 1 else own(self, hidden_states, **kwargs)

    monkeypatch.setattr(kind, "forward", forward)
    with pytest.raises(ph.UnsupportedModelError, match="layer 1: its attention does not call"):
        captured(model, layers=layers)


CAUSAL = torch.ones(8, 8).tril().bool()


def additive(visible):
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("kind", [lambda visible: visible, additive])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("spans", [[(0, 8), (0, 8)], [(2, 8), (0, 8)], [(0, 5), (0, 8)], [(3, 8), (0, 6)]])
def test_masks_of_plain_runs_are_proven_to_the_single_entry(kind, window, spans, monkeypatch):
    monkeypatch.setattr("positional_heads.bridge.masks.BLOCK", 3)
    visible = CAUSAL & (CAUSAL.triu(1 - (window or 8)))
    rows = torch.stack([visible] * 2)[:, None].clone()
    for row, (start, stop) in enumerate(spans):
        rows[row, :, :, :start] = False
        rows[row, :, :, stop:] = False
    assert MaskProof(spans).window(0, kind(rows), 8) == window
    for row, query, key in product(range(2), range(8), range(8)):
        wrong = rows.clone()
        wrong[row, :, query, key] ^= True
        explained = [other for other in range(1, 9) if explains(other, wrong, spans)]
        if explained:  # another window, or an entry of padding
            longest = max(stop - start for start, stop in spans)
            assert (MaskProof(spans).window(4, kind(wrong), 8) or longest) == min(explained[0], longest)
        else:
            with pytest.raises(ph.UnsupportedModelError, match="layer 4 masks query-key pairs"):
                MaskProof(spans).window(4, kind(wrong), 8)


def explains(window, rows, spans):
    return all(
        bool(rows[row, 0, query, key]) == (start <= key <= query < key + window)
        for row, (start, stop) in enumerate(spans)
        for query in range(start, stop)
        for key in range(8)
    )


def test_other_masks_of_plain_runs_are_refused():
    spans = [(0, 8)] * 2
    by_head = CAUSAL.expand(2, 4, 8, 8).clone()
    assert MaskProof(spans).window(0, by_head, 8) is None
    by_head[1, 3, 5, 2] = False
    bias = additive(CAUSAL)[None, None].clone()
    bias[..., 6, 2] = -0.1
    for mask in (by_head, bias):
        with pytest.raises(ph.UnsupportedModelError, match="a mask of one head"):
            MaskProof(spans).window(0, mask, 8)
    assert MaskProof(spans).window(0, None, 8) is None
    with pytest.raises(ph.UnsupportedModelError, match="an ignored attention_mask"):
        MaskProof([(0, 8), (1, 8)]).window(0, None, 8)
    shared = CAUSAL[None, None].expand(2, 1, 8, 8)
    assert MaskProof(spans).window(0, shared, 8) is None
    with pytest.raises(ph.UnsupportedModelError, match="an ignored attention_mask"):
        MaskProof([(0, 8), (1, 8)]).window(0, shared, 8)


def test_a_mask_is_proven_once_for_all_layers_that_share_it(monkeypatch):
    proof, mask = MaskProof([(0, 8)]), CAUSAL[None, None]
    assert proof.window(0, mask, 8) is None
    monkeypatch.setattr("positional_heads.bridge.masks._window", None)
    assert proof.window(1, mask, 8) is None
    with pytest.raises(TypeError):
        proof.window(2, mask.clone(), 8)


def test_plain_runs_of_a_bridge_are_those_of_its_attention(tiny):
    """The attention function sees keys that are not repeated for each query head, as `capture` says."""
    model, shapes = tiny("llama"), set()

    def attend(module, query, key, value, mask, **settings):
        shapes.add((tuple(query.shape), tuple(key.shape)))
        return scaled_dot_product(module, query, key, value, mask, **settings)

    with plain_model(model, attend) as own, torch.no_grad():
        own(TOKENS)
    assert shapes == {((2, 4, 30, 16), (2, 2, 30, 16))}
