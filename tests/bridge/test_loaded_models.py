"""A model that is loaded already becomes a bridge that computes what it computed, and shares its weights."""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import positional_heads as ph
from positional_heads.bridge.loaded_models import probe_logits, refuse_other_logits
from positional_heads.zoo.architecture import byte_tokenizer
from tests.support import hugging_face, oracles
from tests.support.tiny_models import WRONG_BRIDGES, boot

TOKENS = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(0))
TEXT = "In the beginning God created the heaven and the earth."


def hugging_faces(folder, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def agrees(model, own, n_pairs=8, limit=1e-3):
    """Whether scores are those of the queries and keys of Hugging Face's model itself, counted in float64."""
    scores = ph.score_heads(model, TOKENS)
    read = [hugging_face.read_loaded(own, row.numpy()) for row in TOKENS]
    for layer in read[0]:
        rho, curve = oracles.attended_score([row[layer] for row in read], "half", n_pairs)
        np.testing.assert_allclose(scores.rho[layer], rho, atol=limit)
        np.testing.assert_allclose(scores.curve[layer], curve, atol=limit)
    return scores


def test_a_loaded_model_scores_as_its_folder_does(tiny_folder):
    folder = tiny_folder("llama")
    model = ph.load_model(hugging_faces(folder))
    scores, expected = agrees(model, hugging_faces(folder)), ph.score_heads(ph.load_model(folder), TOKENS)
    assert torch.equal(scores.rho, expected.rho)
    assert scores.provenance["model"] == expected.provenance["model"]
    assert all(rotary.plain for rotary in ph.resolve_layers(model).layers.values())


def test_the_tokenizer_is_the_one_given_or_that_of_the_folder(tiny_folder, caplog):
    folder = tiny_folder("llama")
    own = AutoTokenizer.from_pretrained(folder)
    assert torch.equal(ph.load_model(hugging_faces(folder)).to_tokens(TEXT), ph.load_model(folder).to_tokens(TEXT))
    nameless = hugging_faces(folder)
    nameless.config._name_or_path = nameless.name_or_path = ""
    given = ph.load_model(nameless, tokenizer=own)
    assert given.cfg.model_name == "LlamaForCausalLM"
    assert torch.equal(given.to_tokens(TEXT), ph.load_model(folder).to_tokens(TEXT))
    nameless = hugging_faces(folder)
    nameless.config._name_or_path = nameless.name_or_path = ""
    with caplog.at_level(logging.WARNING):
        assert ph.load_model(nameless).tokenizer is None
    assert "takes token ids and no text" in caplog.text


def test_a_tokenizer_that_was_made_in_memory_is_taken_as_it_is(tiny_folder):
    made = byte_tokenizer()
    model = ph.load_model(hugging_faces(tiny_folder("llama")), tokenizer=made)
    assert model.to_tokens("A b", prepend_bos=True).tolist() == [[256, *b"A b"]]
    assert model.to_tokens("A b", prepend_bos=False).tolist() == [[*b"A b"]]
    assert "name_or_path" not in made.init_kwargs
    assert made.eos_token is None  # the caller's own is left alone


def test_weights_are_shared_with_the_callers_model_and_what_changes_is_as_documented(tiny_folder):
    own = hugging_faces(tiny_folder("llama")).train()
    with torch.no_grad():
        expected = own.eval()(TOKENS).logits
        model = ph.load_model(own.train())
        assert model.original_model is own
        assert not own.training
        assert own.config._attn_implementation == "eager" or WRONG_BRIDGES  # TransformerLens 3.9 leaves it
        assert torch.allclose(own(TOKENS).logits, expected, atol=1e-5)
        next(own.lm_head.parameters()).mul_(2)
        assert torch.allclose(model(TOKENS), 2 * expected, atol=1e-5)


def test_a_bridge_is_checked_and_returned_as_it_is(tiny_folder):
    bridge = boot(tiny_folder("llama")).eval()
    assert ph.load_model(bridge) is bridge
    bridge.train()
    with pytest.raises(ph.UnsupportedModelError, match="training mode"):
        ph.load_model(bridge)
    with pytest.raises(ph.UnsupportedModelError, match="not rotary"):
        ph.load_model(boot(tiny_folder("gpt2")).eval())
    with pytest.raises(ValueError, match="a bridge has its tokenizer"):
        ph.load_model(bridge, tokenizer=bridge.tokenizer)
    with pytest.raises(ValueError, match="under a TransformerBridge already"):
        ph.load_model(bridge.original_model)


def test_a_bridge_that_computes_something_else_is_refused(tiny_folder):
    bridge = boot(tiny_folder("llama")).eval()
    logits = probe_logits(hugging_faces(tiny_folder("llama")).eval(), "cpu")
    refuse_other_logits(bridge, logits)
    with pytest.raises(ph.UnsupportedModelError, match=r"logits differ by 0\.\d+ of the largest"):
        refuse_other_logits(bridge, logits + 0.01 * logits.abs().max())


@pytest.mark.parametrize(
    ("name", "options", "error", "told"),
    [
        (3, {}, TypeError, "got a int|got an int"),
        (nn.Linear(2, 2), {}, TypeError, "Linear is neither a TransformerBridge nor a model of transformers"),
        ("bundled", {"tokenizer": 3}, ValueError, "tokenizer goes with a Hugging Face model"),
        (nn.Linear(2, 2), {"device": "cpu", "dtype": "float32"}, ValueError, "device, dtype: .* loaded already"),
    ],
)
def test_what_makes_no_sense_is_refused(name, options, error, told):
    with pytest.raises(error, match=told):
        ph.load_model(name, **options)


@pytest.mark.skipif(bool(WRONG_BRIDGES), reason="this TransformerLens refuses weights on disk itself")
def test_a_loaded_model_may_be_offloaded_by_accelerate(tiny_folder):
    from accelerate import cpu_offload

    folder = tiny_folder("llama")
    own = hugging_faces(folder)
    cpu_offload(own, execution_device="cpu")
    model, expected = ph.load_model(own), ph.score_heads(ph.load_model(folder), TOKENS)
    assert {str(weight.device) for weight in model.original_model.parameters()} == {"meta"}
    scores = ph.score_heads(model, TOKENS)
    assert torch.equal(scores.rho, expected.rho)
    assert scores.provenance["model"] == expected.provenance["model"]
