"""The measures of a head profile that need more than a text: retrieval by a task, and the kernel of the weights."""

import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.head_weights import query_key_weights
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.retrieval import retrieval_scores
from positional_heads.core.kernel_score import kernel_scores
from positional_heads.studies.resume import FinishedParts
from positional_heads.studies.retrieval_trials import RetrievalTrials

TOKENS = torch.randint(97, 105, (2, 40), generator=torch.Generator().manual_seed(7))


def test_the_retrieval_score_is_the_mean_over_the_examples_of_the_task(bundled, tmp_path):
    tokens = ph.cut_text(bundled, ph.bundled_text(), 128, sequences=2, seed=0)
    profile = ph.profile_heads(bundled, tokens, window=64, retrieval_examples=2, checkpoint=tmp_path)
    from positional_heads.studies.tasks.recall import passkey

    task = passkey(bundled, length=128)
    trials = RetrievalTrials(bundled, task).trials[:2]
    expected = torch.stack([retrieval_scores(bundled, [one.prompt], [one.needle], [one.answer]) for one in trials])
    answered = expected[~expected.isnan().all(-1).all(-1)]
    assert len(answered) == profile.provenance["retrieval"]["answered"] > 0
    torch.testing.assert_close(profile.values("retrieval"), answered.mean(0).double())
    again = ph.profile_heads(bundled, tokens, window=64, retrieval_examples=2, checkpoint=tmp_path)
    assert torch.equal(again.values("retrieval"), profile.values("retrieval"))


def test_without_an_answer_or_a_task_there_is_no_retrieval_score(tiny):
    untrained = ph.profile_heads(tiny("llama"), TOKENS, retrieval_examples=1)
    assert "retrieval" not in untrained.names
    assert untrained.provenance["retrieval"].startswith("No retrieval scores: ")
    assert "retrieval" not in ph.profile_heads(tiny("llama"), TOKENS, retrieval=None).provenance


@pytest.mark.parametrize("family", ["llama", "neox", "gptj", "phi3"])
def test_the_weights_are_those_that_make_queries_and_keys(family, tiny):
    model = tiny(family)
    rotary = resolve_layers(model).layers[1]
    _, run = model.run_with_cache(TOKENS)
    weights = query_key_weights(model, rotary)
    names = [name for name in run if name.startswith("blocks.1.attn.") and name.endswith("hook_in")]
    entering = run[next(name for name in names if ".q" in name)]
    for own, weight, head in zip("qk", weights, (3, 0), strict=True):
        hooked = run[own, 1, "attn"].reshape(2, 40, -1, 16)[:, :, head]
        made = entering @ weight[head]
        # a bias is the same at every position
        torch.testing.assert_close(made - made[:1, :1], hooked - hooked[:1, :1], atol=1e-5, rtol=1e-4)
    profile = ph.profile_heads(model, TOKENS, retrieval=None)
    slow = profile.pairs.turns(256)[1] < 1
    expected = kernel_scores(*weights, rotary.layout, rotary.rotary_dim, slow)
    assert profile.values("kernel")[1].tolist() == pytest.approx(expected.tolist())


def test_heads_whose_weights_are_not_shown_have_no_kernel_score(tiny):
    profile = ph.profile_heads(tiny("gemma4"), TOKENS, retrieval=None)
    assert bool(profile.values("kernel")[1:].isnan().all())  # of another width, or shared with another layer
    assert bool(profile.values("reach").isfinite().any())


def never(*_, **__):
    pytest.fail("something was run")


@pytest.mark.parametrize(
    ("retrieval", "message"),
    [
        ("nosuch", "retrieval 'nosuch' is unknown: choose one of passkey, "),
        ("perplexity", "retrieval 'perplexity' has no needle: choose one of passkey, "),
        (lambda _: [1.0, 2.0], "has no held-out example whose answer repeats tokens of its context"),
    ],
)
def test_a_task_without_a_needle_is_refused_before_anything_is_counted(retrieval, message, bundled, monkeypatch):
    monkeypatch.setattr("positional_heads.studies.head_profile.counted_profile", never)
    with pytest.raises(ValueError, match=message):
        ph.profile_heads(bundled, TOKENS, retrieval=retrieval)


def test_a_folder_with_parts_of_another_study_is_refused_before_anything_is_counted(bundled, tmp_path, monkeypatch):
    FinishedParts({"model": {}, "retrieval": {"name": "another"}}, tmp_path)
    monkeypatch.setattr("positional_heads.studies.head_profile.counted_profile", never)
    with pytest.raises(ValueError, match=r"holds finished parts of another study \(different: model, retrieval\)"):
        ph.profile_heads(bundled, TOKENS, checkpoint=tmp_path)
