"""Plain runs are rotated by an extension as the bridge's are, by cos and sin or by attention of their own."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import softmax

import positional_heads as ph
from positional_heads.bridge import plain_capture
from positional_heads.bridge.plain_capture import plain_capture_refusal
from positional_heads.bridge.plain_run import plain_attention, plain_model, plain_run_refusal
from positional_heads.bridge.replayed_hooks import tables_refusal
from positional_heads.bridge.rope_scaling import rewriting
from positional_heads.bridge.run_lengths import run_lengths
from positional_heads.core.bands import banded_attention
from positional_heads.studies.extrapolation import _allocation
from tests.bridge.rope_scaling.test_clex import clex
from tests.bridge.rope_scaling.test_self_extend import grouped
from tests.bridge.test_plain_capture import MASKS, captured
from tests.support import hugging_face as own
from tests.support import oracles
from tests.support.extended import PAIRS, SCALED, TRAINED, hugging_face, scores_by_distance, settings_for
from tests.support.family_table import hooked

TOKENS = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(5))
LONG = torch.randint(256, (2, 90), generator=torch.Generator().manual_seed(6))
METHODS = {
    "none": {},
    "linear": {"factor": 4},
    "ntk": {"factor": 4},
    "dynamic": {"factor": 4},
    "yarn": {"factor": 4},
    "p_rope": {"keep": 0.5},
}


@pytest.fixture
def read_plainly(monkeypatch):
    """Tokens of each plain run so far."""
    runs, capture_plainly = [], plain_capture.capture_plainly

    def counted(model, tokens, *rest):
        runs.append(tokens.shape[1])
        return capture_plainly(model, tokens, *rest)

    monkeypatch.setattr("positional_heads.bridge.capture.capture_plainly", counted)
    return runs


def compared(model, read_plainly, mask=None):
    """What a plain run shows of each layer, which is what the hooks show."""
    layers = list(ph.resolve_layers(model).layers.values())
    assert all(rotary.plain for rotary in layers)
    assert plain_capture_refusal(model, layers) is None
    read_plainly.clear()
    plain = captured(model, TOKENS, mask, layers)
    with hooked(model):
        expected = captured(model, TOKENS, mask)
    assert read_plainly == [30]
    real = slice(None) if mask is None else mask.bool()
    for layer, vectors in expected.items():
        assert plain[layer].window == vectors.window
        assert torch.allclose(plain[layer].rot_q[real], vectors.rot_q[real], atol=1e-4)
        assert torch.allclose(plain[layer].rot_k[real], vectors.rot_k[real], atol=1e-4)
        assert torch.equal(plain[layer].phases.expand(2, -1, -1)[real], vectors.phases.expand(2, -1, -1)[real])
    return plain


@pytest.mark.parametrize("method", METHODS)
def test_plain_runs_show_what_the_hooks_show_under_every_method_of_frequencies(method, tiny, read_plainly):
    """Beyond the training length, with padding, and by each row's own length where frequencies follow it."""
    model, mask = tiny("llama"), MASKS["left"]
    before = captured(model, TOKENS, mask)
    with ph.extended_rope(model, method, training_length=12, **METHODS[method]):
        extended = compared(model, read_plainly, mask)
    changed = {layer: not torch.equal(extended[layer].phases[-1], before[layer].phases[-1]) for layer in before}
    assert changed == dict.fromkeys(before, method != "none")
    assert all(torch.equal(after.rot_q, before[layer].rot_q) for layer, after in captured(model, TOKENS, mask).items())


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
REWRITING = {
    "self_extend": {"group": 8, "window": 8},
    "rerope": {"window": 5, "leak": 0.2},
    "yarn": {"factor": 4, "heads": ["L0H1", "L1H0"]},
}


@pytest.mark.parametrize("method", REWRITING)
def test_methods_that_rewrite_scores_are_read_plainly(method, tiny, read_plainly):
    model = tiny("llama")
    with ph.extended_rope(model, method, training_length=12, **REWRITING[method]):
        for vectors in compared(model, read_plainly).values():
            assert vectors.bands is not None
        if "heads" not in REWRITING[method]:  # frequencies that follow each row's length are refused
            compared(model, read_plainly, MASKS["right"])


@pytest.mark.parametrize("hides", [None, 12])
@torch.no_grad()
def test_attention_of_a_plain_run_is_a_softmax_in_float64(hides, tiny, monkeypatch):
    """Of scores at SelfExtend's own distances, in blocks of 7 queries; with a mask that hides one key, too."""
    monkeypatch.setattr("positional_heads.core.bands.QUERY_BLOCK", 7)
    model, tokens = tiny("neox"), TOKENS[:1]
    hidden = torch.ones(30, 30).triu(1)
    if hides is not None:
        hidden[hides + 1 :, hides] = 1
    hidden = torch.zeros(1, 1, 30, 30).masked_fill(hidden.bool(), -1e38)
    weights = softmax(scores_by_distance(model, tokens, 0, grouped) + hidden[0, 0].numpy(), axis=-1)
    outputs, values = [], []
    with ph.extended_rope(model, "self_extend", group=4, window=8):
        attention = plain_attention(model)

        def attend(module, query, key, value, mask, **settings):
            output, _ = attention(module, query, key, value, mask if hides is None else hidden, **settings)
            outputs.append(output[0].numpy())
            values.append(value[0].double().numpy())
            return output, None

        with run_lengths(model, [30]), plain_model(model, attend) as plain:
            plain(tokens)
    expected = np.einsum("hmn,hnd->mhd", weights, values[0])
    np.testing.assert_allclose(outputs[0], expected, atol=1e-5)


def test_attention_that_is_not_that_of_the_bands_is_refused(tiny, monkeypatch):
    model = tiny("llama")

    def off_by_one(chosen, *parts, **rest):
        near, far = chosen
        moved = [replace(near, furthest=near.furthest - 1), replace(far, nearest=far.nearest - 1)]
        return banded_attention(moved, *parts, **rest)

    monkeypatch.setattr(rewriting, "banded_attention", off_by_one)
    refused = pytest.raises(ph.UnsupportedModelError, match=r"layer 0: the softmax of q \. k")
    with ph.extended_rope(model, "self_extend", group=4, window=8), refused:
        captured(model)


@pytest.mark.parametrize("family", ["neox", "glm", "gemma3", "smollm3", "mistral"])
def test_plain_runs_show_what_the_hooks_show_in_other_families(family, tiny, read_plainly):
    """Of partial and adjacent pairs, windows, layers of two bases or without rotation; one layer extended, or all."""
    model = tiny(family)
    for layers in (None, [max(ph.resolve_layers(model).layers)]):
        with ph.extended_rope(model, "yarn", factor=4, training_length=12, layers=layers):
            compared(model, read_plainly, MASKS["left"])


def test_learned_frequencies_and_their_scale_of_scores_are_in_plain_runs(tiny, read_plainly):
    model = tiny("llama")
    with ph.extended_rope(model, clex(8, log_scale=True), training_length=12):
        vectors = compared(model, read_plainly)[0]
    assert float(vectors.phases.abs().mean()) == pytest.approx(math.sqrt(math.log(30) / math.log(12)), rel=1e-4)


@pytest.mark.parametrize(("family", "method"), [*(("llama", method) for method in SCALED), ("neox", "yarn")])
def test_scores_are_those_of_what_hugging_faces_extended_model_attends_with(
    family, method, tiny, tiny_folder, tmp_path, read_plainly
):
    ours, theirs = settings_for(family, method)
    hugging_face(tiny_folder(family), theirs).save_pretrained(tmp_path)
    read = [own.read(tmp_path, row.numpy()) for row in LONG]
    model = tiny(family)
    with ph.extended_rope(model, method, training_length=TRAINED, **ours) as extension:
        vectors = captured(model, LONG)
        scores = ph.score_heads(model, LONG, beyond_context=True, null_repeats=0)
        factor = extension.table(0, LONG.shape[1]).attention_factor
    assert set(read_plainly) == {90}
    for layer, found in vectors.items():
        for row, attended in enumerate(read):
            q, k, _ = attended[layer]
            groups = len(q) // found.rot_k.shape[2]
            assert torch.allclose(found.rot_q[row].transpose(0, 1).double(), torch.tensor(q), atol=1e-4)
            assert torch.allclose(found.rot_k[row].transpose(0, 1).double(), torch.tensor(k)[::groups], atol=1e-4)
        rows = [(q / factor, k / factor, visible) for q, k, visible in (attended[layer] for attended in read)]
        rho, curve = oracles.attended_score(rows, "half", PAIRS[family])
        assert torch.allclose(scores.rho[layer].double(), torch.tensor(rho), atol=1e-3)  # bins move ranks
        assert torch.allclose(scores.curve[layer].double(), torch.tensor(curve), atol=1e-3)


def test_layers_resolved_before_an_extension_are_read_with_its_tables(tiny, read_plainly):
    model = tiny("llama")
    layers = list(ph.resolve_layers(model).layers.values())
    with ph.extended_rope(model, "linear", factor=4):
        found = captured(model, TOKENS, None, layers)
        assert read_plainly == [30]
        with hooked(model):
            expected = captured(model, TOKENS, None, layers)
    assert torch.equal(found[1].phases, expected[1].phases)


def test_a_hook_of_the_users_on_cos_is_read_from_hooks(tiny, read_plainly):
    model = tiny("llama")
    layers = list(ph.resolve_layers(model).layers.values())
    users = [("blocks.1.attn.hook_cos", lambda table, hook: None)]
    with ph.extended_rope(model, "linear", factor=4), model.hooks(fwd_hooks=users):
        assert "blocks.1.attn" in plain_capture_refusal(model, layers)
        captured(model, TOKENS, None, layers)
    assert read_plainly == []


def test_a_hook_that_cannot_be_hashed_is_a_reason(tiny):
    model = tiny("llama")

    class Doubling:
        __hash__ = None

        def __call__(self, scores, hook):
            return scores * 2

    users = [("blocks.1.attn.hook_attn_scores", Doubling())]
    with ph.extended_rope(model, "self_extend", group=4, window=8), model.hooks(fwd_hooks=users):
        assert "blocks.1.attn.hook_attn_scores" in plain_run_refusal(model)


def test_rows_of_other_lengths_are_refused_where_other_heads_follow_their_length(tiny):
    """Heads that are not extended are rotated again by the model's own frequencies, which differ between rows."""
    model = tiny("llama", max_position_embeddings=24, rope_parameters=DYNAMIC)
    right, settings = MASKS["right"], {"group": 4, "window": 8, "training_length": 24}
    with ph.extended_rope(model, "self_extend", heads=["L1H3"], **settings):
        with pytest.raises(ValueError, match="give sequences of one length"):
            captured(model, TOKENS, right)
        assert captured(model, TOKENS)
    with ph.extended_rope(model, "self_extend", layers=[1], **settings):
        assert captured(model, TOKENS, right)


def test_tables_that_attention_is_not_given_are_a_reason(tiny, monkeypatch):
    model = tiny("llama")
    with ph.extended_rope(model, "linear", factor=4):
        assert plain_run_refusal(model) is None
        module = SimpleNamespace(forward=lambda hidden_states: None)
        monkeypatch.setattr("positional_heads.bridge.replayed_hooks.attention_module", lambda *_: module)
        assert "attention of layer 0 is not given the cos and sin" in tables_refusal(model)
        assert plain_run_refusal(model) == tables_refusal(model)


def test_hugging_faces_modules_are_given_back(tiny):
    model = tiny("llama")
    module = model.blocks[0].attn.original_component
    with ph.extended_rope(model, "linear", factor=4):
        with plain_model(model):
            assert len(module._forward_pre_hooks) == 1
        assert not module._forward_pre_hooks


def test_a_studys_allocation_is_the_same_read_either_way(tiny, read_plainly):
    model = tiny("llama")
    with ph.extended_rope(model, "yarn", factor=2, training_length=45) as extension:
        plain = _allocation(model, extension, LONG, [ph.Head(0, 1)], 45)
        assert read_plainly == [90, 90]  # within and beyond the training length
        with hooked(model):
            expected = _allocation(model, extension, LONG, [ph.Head(0, 1)], 45)
    assert len(read_plainly) == 2
    assert plain["method"] == expected["method"]
    for number in ("curves", "rho_within", "rho_beyond"):
        assert np.allclose(plain[number], expected[number], atol=1e-4)
