"""Bad input gets one clear line: what was wrong, what was expected, what to do."""

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.sequences import batches
from tests.support import hugging_face, oracles

TOKENS = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))
HOLE = torch.tensor([[1] * 12, [1] * 5 + [0] * 2 + [1] * 5])

BAD = {
    "empty text": (("",), {}, "text 0 is empty: there is nothing to score"),
    "blank text": ((["In the beginning", " \n"],), {}, "text 1 is empty"),
    "no text": (([],), {}, "the list is empty"),
    "one token": ((torch.tensor([[5]]),), {}, "sequence 0 has 1 real token: a query and a key"),
    "no token": ((torch.zeros(2, 0, dtype=torch.long),), {}, "tokens must be integers of shape"),
    "vocabulary": ((torch.tensor([[5, 258]]),), {}, "sequence 0 holds token id 258, the vocabulary is 0 to 257"),
    "negative": ((torch.tensor([[5, -1]]),), {}, "token id -1"),
    "too long": ((torch.zeros(1, 257, dtype=torch.long),), {}, "257 tokens, the model's context is 256: cut the text"),
    "long text": (("word " * 100,), {}, "sequence 0 has 501 tokens.*ph.cut_text"),
    "unmarked padding": ((torch.tensor([[5, 6, 257, 257]]),), {}, "begins or ends with 2 padding tokens"),
    "holes": ((TOKENS,), {"attention_mask": HOLE}, "attention_mask of sequence 1 must be one unbroken run of ones"),
    "mask values": ((TOKENS,), {"attention_mask": HOLE * 3}, "must hold ones for real tokens and zeros"),
    "all padding": ((TOKENS,), {"attention_mask": HOLE * 0}, "sequence 0 has 0 real token"),
    "mask with text": (("In the beginning",), {"attention_mask": HOLE}, "attention_mask goes with a tensor"),
    "layer": ((TOKENS,), {"layers": [2]}, "layer 2 does not exist: the model has layers 0 to 1"),
    "repeats": ((TOKENS,), {"null_repeats": 1}, "null_repeats 1.*at least 2"),
    "temperature": ((TOKENS,), {"temperature": -1.0}, "temperature -1.0 must be positive"),
    "resamples": ((TOKENS,), {"resamples": 1}, "resamples 1: an interval needs at least 2"),
    "bins": ((TOKENS,), {"bins": 100}, "100 bins must be a multiple of 64"),
    "distances": ((TOKENS,), {"min_distance": 5, "max_distance": 2}, "max_distance 2 must be at least min_distance 5"),
    "no pair left": ((TOKENS,), {"min_distance": 12}, "no query-key pair counts"),
    "skip": ((TOKENS,), {"skip_keys": -1}, "skip_keys -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(case, tiny):
    arguments, settings, message = BAD[case]
    with pytest.raises(ValueError, match=message) as raised:
        ph.score_heads(tiny("llama"), *arguments, **settings)
    assert "\n" not in str(raised.value)


def test_a_mask_of_another_shape_is_refused(tiny):
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 9\), tokens have \(2, 12\)"):
        batches(tiny("llama"), TOKENS, HOLE[:, :9], 1)


def test_token_ids_that_are_no_integers_are_refused(tiny):
    with pytest.raises(ValueError, match=r"tokens must be integers of shape \[batch pos\], got torch.float32"):
        batches(tiny("llama"), TOKENS.float(), None, 1)


def test_a_misspelt_setting_is_refused(tiny):
    with pytest.raises(TypeError, match="null_repeat"):
        ph.score_heads(tiny("llama"), TOKENS, null_repeat=5)
    with pytest.raises(TypeError, match=r"no setting batchsize; it has .*layers.*skip_keys.*mean batch_size\?$"):
        ph.score_heads(tiny("llama"), TOKENS, batchsize=2)
    with pytest.raises(TypeError, match=r"^score_shard has no setting layer; .*did you mean layers\?$"):
        ph.score_shard(tiny("llama"), TOKENS, "1/1", "nowhere", layer=[0])


def test_a_special_token_that_the_model_lacks_is_named_with_the_way_out():
    """Bundled tokenizers get <|endoftext|> from the host, behind the last row of the embedding."""
    bundled = ph.load_bundled_model()
    text = "In the beginning<|endoftext|>God created"
    with pytest.raises(ValueError, match=r"id 258, .*'<\|endoftext\|>'; plain_text=True reads it"):
        ph.score_heads(bundled, text)
    assert ph.score_heads(bundled, text, plain_text=True).provenance["data"]["tokens"] == 1 + len(text)
    with pytest.raises(ValueError, match=r"the vocabulary is 0 to 257$"):
        ph.score_heads(bundled, torch.tensor([[5, 259]]))


def test_past_the_context_a_score_is_that_of_hugging_faces_model(tiny, tiny_folder):
    tokens = torch.randint(256, (1, 300), generator=torch.Generator().manual_seed(0))
    scores = ph.score_heads(tiny("llama"), tokens, beyond_context=True)
    for layer, attended in hugging_face.read(tiny_folder("llama"), tokens[0].numpy()).items():
        rho, curve = oracles.attended_score([attended], "half", 8)
        np.testing.assert_allclose(scores.rho[layer], rho, atol=1e-3)
        np.testing.assert_allclose(scores.curve[layer], curve, atol=1e-3)


def test_texts_and_their_tokens_score_the_same(tiny):
    texts = ["In the beginning God created the heaven and the earth.", "And the earth was without form, and void"]
    model = tiny("llama")
    rows = [torch.tensor([256, *text.encode()]) for text in texts]
    assert torch.equal(ph.score_heads(model, texts).rho, ph.score_heads(model, rows).rho)
    assert torch.equal(ph.score_heads(model, texts[0]).rho, ph.score_heads(model, rows[0]).rho)


@pytest.mark.parametrize("length", [16, 100, None])
def test_cutting_drops_nothing(length, tiny):
    texts = ["In the beginning God created the heaven and the earth. " * 9, "Amen."]
    pieces = ph.cut_text(tiny("llama"), texts, length)
    assert all(piece[0] == 256 and 2 <= len(piece) <= (length or 256) for piece in pieces)
    assert bytes(int(token) for piece in pieces for token in piece[1:]).decode() == "".join(texts)


def test_a_length_that_does_not_fit_the_model_is_refused(tiny):
    with pytest.raises(ValueError, match="length 300 must be between 2 and the model's context of 256 tokens"):
        ph.cut_text(tiny("llama"), "text", 300)
    with pytest.raises(ValueError, match="text 0 is empty"):
        ph.cut_text(tiny("llama"), "")


def test_a_misspelled_keyword_is_compared_with_the_functions_own(bundled):
    with pytest.raises(
        TypeError, match=r"^score_heads has no setting chekpoint; .*did you mean checkpoint\?$"
    ) as error:
        ph.score_heads(bundled, "a text", chekpoint="folder")
    listed = str(error.value).split("it has ")[1].split("; ")[0].split(", ")
    assert len(listed) == len(set(listed))
    assert {"checkpoint", "executor", "progress", "skip_keys"} <= set(listed)
    with pytest.raises(TypeError, match=r"^evaluate has no hedas; did you mean heads\?$"):
        ph.evaluate(bundled, "passkey", hedas="L0H1")
    with pytest.raises(TypeError, match=r"^extrapolation_study has no factor; did you mean factors\?$"):
        ph.extrapolation_study(bundled, "a text", factor=[2])
