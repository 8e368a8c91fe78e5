"""Causality, padding and one window explain a layer's mask, or it is refused, to the single entry of a single head."""

import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.capture import capture
from positional_heads.bridge.masks import visible_entries

TOKENS = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(3))


def found_windows(model, tokens):
    windows = []
    layers = list(ph.resolve_layers(model).layers.values())
    capture(model, tokens, layers, lambda vectors: windows.append(vectors.window))
    return windows


@pytest.mark.parametrize("window", [1, 3, 5, 9, None])
def test_a_query_sees_itself_and_the_keys_before_it_within_the_window(window):
    visible = visible_entries(5, window, torch.device("cpu"))
    for query in range(5):
        expected = [query - (window or 5) < key <= query for key in range(5)]
        assert visible[query].tolist() == expected


@pytest.mark.parametrize(
    ("family", "windows"),
    [("mistral", [12, 12]), ("gemma2", [12, None]), ("gpt_oss", [12, None]), ("llama", [None] * 2)],
)
def test_the_window_of_a_mask_is_found(family, windows, tiny):
    assert found_windows(tiny(family), TOKENS) == windows
    assert found_windows(tiny(family), TOKENS[:, :12]) == [None, None]  # no longer than the window


def test_a_mask_between_documents_is_refused(tiny):
    def hide_documents(scores, hook):
        scores = scores.clone()
        scores[:, :, 12:, :12] = torch.finfo(scores.dtype).min
        return scores

    model = tiny("llama")
    with (
        model.hooks(fwd_hooks=[("blocks.1.attn.hook_attn_scores", hide_documents)]),
        pytest.raises(ph.UnsupportedModelError, match=r"layer 1 masks query-key pairs.*a document mask"),
    ):
        ph.score_heads(model, TOKENS)


def test_a_mask_of_one_head_alone_is_refused(tiny):
    def hide_far(scores, hook):
        scores = scores.clone()
        scores[:, 2, 12:, :12] = torch.finfo(scores.dtype).min
        return scores

    model = tiny("llama")
    with (
        model.hooks(fwd_hooks=[("blocks.1.attn.hook_attn_scores", hide_far)]),
        pytest.raises(ph.UnsupportedModelError, match=r"layer 1 masks query-key pairs .*a mask of one head"),
    ):
        ph.score_heads(model, TOKENS)


@pytest.mark.parametrize(
    ("family", "query", "key", "score"),
    [
        ("llama", -2, 1, torch.finfo().min),
        ("llama", 1, -2, 0.0),
        ("llama", 1, -2, torch.nan),
        ("gptj", 1, -2, 0.1),  # where the pattern is held
    ],
)
@pytest.mark.parametrize("head", range(4))
def test_one_wrong_entry_of_one_head_is_refused(head, family, query, key, score, tiny):
    def edit(scores, hook):
        scores = scores.clone()
        scores[:, head, query, key] = score
        return scores

    model, tokens = tiny(family), torch.arange(60)[None]  # more queries than scores are rebuilt at
    layers = list(ph.resolve_layers(model).layers.values())
    with (
        model.hooks(fwd_hooks=[("blocks.1.attn.hook_attn_scores", edit)]),
        pytest.raises(ph.UnsupportedModelError, match="layer 1 masks query-key pairs"),
    ):
        capture(model, tokens, layers, lambda vectors: None)
