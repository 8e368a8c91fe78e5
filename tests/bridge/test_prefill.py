"""A sequence in chunks gives what it gives in one run, in every family; memory does not grow with its square."""

import pytest
import torch

import positional_heads as ph
from positional_heads.bridge import capture as capturing
from positional_heads.bridge import prefill
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.studies.tasks.recall import passkey
from tests.support.family_table import hooked
from tests.support.tiny_models import SCORED

TOKENS = torch.randint(256, (2, 60), generator=torch.Generator().manual_seed(5))


def captured(model, chunk):
    found = {}

    def visit(vectors):
        found[vectors.rotary.layer] = vectors

    capturing.capture(model, TOKENS, list(ph.resolve_layers(model).layers.values()), visit, None, chunk)
    return found


@pytest.mark.parametrize("family", SCORED)
def test_vectors_and_windows_are_the_same_in_chunks(family, tiny):
    model = tiny(family)
    whole, parts = captured(model, None), captured(model, 17)
    assert whole.keys() == parts.keys()
    for layer, vectors in whole.items():
        assert parts[layer].window == vectors.window
        assert torch.allclose(parts[layer].rot_q, vectors.rot_q, atol=1e-5)
        assert torch.allclose(parts[layer].rot_k, vectors.rot_k, atol=1e-5)
        assert torch.allclose(parts[layer].phases, vectors.phases.expand_as(parts[layer].phases), atol=1e-6)


@pytest.mark.parametrize("method", [None, "yarn", "self_extend"])
def test_scores_and_answers_are_the_same_in_chunks(method, bundled, monkeypatch):
    settings = {"self_extend": {"group": 8, "window": 64}, "yarn": {"factor": 2}}.get(method, {})

    def measured():
        with hooked(bundled), extended_rope(bundled, method or "none", **settings):
            scores = ph.score_heads(bundled, tokens, beyond_context=True, layers=[0, 2], max_distance=900)
            task = passkey(bundled, length=600, depths=1, examples=1, beyond_context=True)
            return scores, task.measure(bundled)["log_prob"]

    tokens = ph.cut_text(bundled, ph.bundled_text())
    tokens = torch.cat([tokens[0], tokens[1][1:]])[None, :600]
    whole, answers = measured()
    seen = []

    def noted(model, rows, length):
        seen.append(length)
        return 128

    for module in ("positional_heads.scoring.batches", "positional_heads.bridge.prefill"):
        monkeypatch.setattr(f"{module}.chunk_length", noted)
    parts, other_answers = measured()
    assert set(seen) == {600}
    assert torch.allclose(whole.rho, parts.rho, atol=1e-4, equal_nan=True)
    assert torch.allclose(whole.curve, parts.curve, atol=1e-3, equal_nan=True)
    assert torch.allclose(answers, other_answers, atol=1e-4)


def test_no_more_scores_than_agreed_are_held(bundled, monkeypatch):
    monkeypatch.setattr(prefill, "CHUNK_SCORES", 8 * 600 * 64)
    assert prefill.chunk_length(bundled, 1, 600) == 256  # shorter ones cost more than they save
    assert prefill.chunk_length(bundled, 1, 200) == 200
    monkeypatch.setattr(prefill, "SHORTEST_CHUNK", 64)
    largest = []

    def note(scores, hook):
        largest.append(scores[0].numel())

    tokens = torch.randint(256, (1, 600), generator=torch.Generator().manual_seed(6))
    with bundled.hooks(fwd_hooks=[("blocks.0.attn.hook_attn_scores", note)]):
        prefill.prefilled_logits(bundled, tokens)
    assert max(largest) <= 8 * 600 * 64 < 8 * 600 * 600
    assert len(largest) > 5


def test_padding_cannot_be_run_in_chunks(bundled):
    mask = torch.ones_like(TOKENS)
    mask[0, :5] = 0
    with pytest.raises(ValueError, match="padded sequences cannot be run in chunks"):
        capturing.capture(bundled, TOKENS, list(ph.resolve_layers(bundled).layers.values()), print, mask, 16)


def test_a_table_that_ends_with_the_context_is_refused_beyond_it(tiny):
    model = tiny("gptj")
    tokens = torch.randint(256, (1, model.cfg.n_ctx + 1))
    with pytest.raises(ph.UnsupportedModelError, match="this architecture cannot run past its context"):
        ph.score_heads(model, tokens, beyond_context=True)
