"""A layer's masked entries and soft-cap, and the choice of layers, whatever the model."""

import math

import pytest
import torch

import positional_heads as ph


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


def test_the_soft_cap_is_that_of_gemma_2(tiny):
    rotary = ph.resolve_layers(tiny("gemma2")).layers[0]
    scores = [-30.0, -1.5, 0.0, 0.1, 7.0]
    expected = [2 * math.tanh(score / 2) for score in scores]
    assert rotary.soft_capped(torch.tensor(scores)).tolist() == pytest.approx(expected)


def test_scores_without_a_cap_stay_as_they_are(tiny):
    scores = torch.tensor([-30.0, 7.0])
    assert ph.resolve_layers(tiny("llama")).layers[0].soft_capped(scores) is scores


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([7], "layer 7 does not exist.* 0 to 1"),
        ([-1], "layer -1 does not exist"),
        ([1], "layer 1 cannot be scored: .*no rotary embedding"),
        ([], "leave layers= out"),
    ],
)
def test_layers_that_do_not_rotate_cannot_be_selected(layers, reason, tiny):
    with pytest.raises(ValueError, match=reason):
        ph.resolve_layers(tiny("smollm3")).select(layers)


def test_layers_are_selected_once_and_in_order(tiny):
    resolved = ph.resolve_layers(tiny("llama"))
    assert [rotary.layer for rotary in resolved.select((1, 0, 1))] == [0, 1]
    assert resolved.select(None) == list(resolved.layers.values())
