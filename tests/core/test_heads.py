"""Heads are asked for in every way that people write them, and print as the field writes them."""

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads import views
from positional_heads.core.heads import Head, as_heads

TOKENS = torch.randint(256, (1, 24), generator=torch.Generator().manual_seed(0))
WAYS = {
    "text": "L1H2",
    "small letters": "l1h2",
    "pair": (1, 2),
    "head": Head(1, 2),
    "texts": ["L1H2"],
    "pairs": [(1, 2)],
    "lists": [[1, 2]],
    "array": np.array([[1, 2]]),
    "tensor": torch.tensor([[1, 2]]),
}


def test_heads_print_as_the_field_writes_them_also_in_lists():
    assert repr([Head(3, 7), Head(0, 11)]) == "[L3H7, L0H11]"
    assert f"{Head(3, 7)}" == "L3H7"
    assert Head(3, 7) == (3, 7)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_means_the_same_head(way):
    assert as_heads(WAYS[way], 2, 4) == [Head(1, 2)]
    assert all(type(part) is int for part in as_heads(WAYS[way])[0])


def test_several_keep_their_order():
    assert as_heads(["L1H2", (0, 3), Head(0, 1)], 2, 4) == [(1, 2), (0, 3), (0, 1)]
    assert as_heads(("L1H2", "L0H3")) == [(1, 2), (0, 3)]
    assert as_heads([]) == []


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ("L2H0", "L2H0 does not exist: layers go from 0 to 1, heads to 3"),
        ([(0, 4)], "L0H4 does not exist"),
        ([(0, -1)], "L0H-1 does not exist: layers go from 0 to 1, heads to 3"),
        ([(0, 1, 2)], r"heads must be .*Head\(3, 7\), one or several, and \(0, 1, 2\) is not a head"),
        ([(0, True)], "is not a head"),
        ([3, 7], "3 is not a head"),
        ("3.7", "'3.7' is not a head: write layer and head as in L3H7"),
        (None, r"heads must be like 'L3H7' or \(3, 7\), or a list of such, got None"),
        ({"L0H1": 1}, "heads must be like"),
    ],
)
def test_values_that_are_not_heads_are_refused(heads, message):
    with pytest.raises((ValueError, TypeError), match=message):
        as_heads(heads, 2, 4)


@pytest.mark.parametrize("way", ["text", "pair", "texts"])
def test_every_form_of_a_head_works_in_every_public_function(way, tiny):
    model, asked, plain = tiny("llama"), WAYS[way], [Head(1, 2)]

    def logits(heads, method=None):
        block = ph.ablated_heads(model, heads) if method is None else ph.extended_rope(model, method, 4, heads=heads)
        with block:
            return model(TOKENS)

    assert torch.equal(logits(asked), logits(plain))
    assert not torch.equal(logits(asked), model(TOKENS))
    assert torch.equal(logits(asked, "linear"), logits(plain, "linear"))
    examples = ph.head_examples(model, TOKENS, asked)
    assert examples.heads == plain
    assert examples.indices(asked) == [0]
    assert ph.contribution_profile(model, TOKENS, asked).heads == plain
    scores = ph.score_heads(model, TOKENS)
    assert views.allocation_curves(scores, asked).axes[0].get_title().startswith("L1H2")
    task = {"length": 64, "depths": 1, "examples": 1}
    whole, less = (ph.evaluate(model, "passkey", heads=heads, **task).measures["log_prob"] for heads in ((), asked))
    assert not torch.equal(whole, less)


def test_heads_are_written_as_the_field_writes_them():
    assert str(Head(3, 7)) == "L3H7"
    assert Head.parse(" L3H7") == (3, 7)


@pytest.mark.parametrize("text", ["3.7", "L3H7x", "3H7", "xL3H7", "L3", "L-1H2", ""])
def test_other_ways_to_write_a_head_are_refused(text):
    with pytest.raises(ValueError, match=f"^{text!r} is not a head: write layer and head as in L3H7$"):
        Head.parse(text)
