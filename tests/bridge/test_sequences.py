"""Texts and token ids come in many forms that mean the same; special tokens and invisible characters give warnings."""

import copy
import logging
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, BatchEncoding, PreTrainedTokenizerFast

import positional_heads as ph
from positional_heads.bridge.sequences import as_sequences
from positional_heads.core.logs import warn_once

TEXTS = ["In the beginning God created", "And the earth was void"]
ROWS = [[256, *text.encode()] for text in TEXTS]
EVEN = torch.randint(256, (3, 20), generator=torch.Generator().manual_seed(0))
FORMS = {
    "lists": (ROWS, {}),
    "tuples": (tuple(map(tuple, ROWS)), {}),
    "arrays": ([np.array(row, dtype=np.int32) for row in ROWS], {}),
    "series of ids": (pd.Series(ROWS), {}),
    "series of texts": (pd.Series(TEXTS, index=[7, 9]), {}),
    "array of texts": (np.array(TEXTS), {}),
    "column of texts": (datasets.Dataset.from_dict({"text": TEXTS})["text"], {}),
    "column of ids": (datasets.Dataset.from_dict({"ids": ROWS})["ids"], {}),
    "ragged encoding": (BatchEncoding({"input_ids": ROWS, "attention_mask": [[1] * len(row) for row in ROWS]}), {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_as_the_same_sequences(form, tiny):
    given, settings = FORMS[form]
    found = as_sequences(tiny("llama"), given, **settings)
    assert [tokens.tolist() for tokens, _ in found] == ROWS
    assert all(mask is None for _, mask in found)


def test_one_sequence_may_come_without_a_list(tiny):
    for one in (ROWS[0], np.array(ROWS[0]), torch.tensor(ROWS[0]), {"input_ids": ROWS[0]}, TEXTS[0]):
        ((tokens, mask),) = as_sequences(tiny("llama"), one)
        assert tokens.tolist() == ROWS[0]
        assert mask is None


def test_what_a_tokenizer_returns_is_scored_with_its_mask(tiny):
    """Left and right padding of the same rows, as lists, arrays and tensors: the oracle is each row alone."""
    model = tiny("llama")
    alone = ph.score_heads(model, [torch.tensor(row) for row in ROWS])
    tokenizer = copy.deepcopy(model.tokenizer)
    for tokenizer.padding_side in ("left", "right"):
        for kind in ("pt", "np", None):
            encoded = tokenizer(TEXTS, padding=True, return_tensors=kind)
            assert encoded["input_ids"][1][0 if tokenizer.padding_side == "left" else -1] == 257
            torch.testing.assert_close(ph.score_heads(model, encoded).rho, alone.rho, atol=1e-3, rtol=0)


def test_arrays_and_lists_of_one_length_are_checked_for_padding(tiny):
    for padded in (np.array([[5, 6, 257, 257]]), [[5, 6, 7, 8], [5, 6, 257, 257]]):
        with pytest.raises(ValueError, match="ends with 2 padding tokens"):
            as_sequences(tiny("llama"), padded)


REFUSED = {
    "bool tensor": (
        torch.ones(2, 8, dtype=torch.bool),
        "these are booleans, not token ids: an attention mask goes",
    ),
    "bool list": ([True, False, True], "these are booleans"),
    "bool rows": ([[True, False], [True, True]], "these are booleans"),
    "floats": ([0.5, 1.5], "sequence 0 is 0.5, a float"),
    "float array": (np.ones((2, 8)), "tokens must be integers"),
    "nothing": (None, "cannot read None as text or tokens"),
    "bytes": (b"text", "cannot read a bytes as text"),
    "a table": (pd.DataFrame({"text": TEXTS}), "cannot read a DataFrame as text"),
    "rows of a dataset": (datasets.Dataset.from_dict({"text": TEXTS}), "cannot read a Dataset|sequence 0 is"),
    "generator": (iter(TEXTS), "as text or tokens"),
    "hidden in ragged": (
        {"input_ids": ROWS, "attention_mask": [[0] * len(row) for row in ROWS]},
        "attention_mask hides",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_input_that_is_neither_text_nor_tokens_is_refused(case, tiny):
    given, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        as_sequences(tiny("llama"), given)


def test_examples_are_of_one_sequence(tiny):
    with pytest.raises(ValueError, match="3 sequences given, examples are of one"):
        ph.head_examples(tiny("llama"), EVEN, "L0H1")
    padded = {"input_ids": [ROWS[0] + [257] * 3], "attention_mask": [[1] * len(ROWS[0]) + [0] * 3]}
    found = ph.head_examples(tiny("llama"), padded, "L0H1")
    alone = ph.head_examples(tiny("llama"), TEXTS[0], "L0H1")
    assert found.tokens == alone.tokens
    assert torch.equal(found.pattern, alone.pattern)


def test_a_cache_needs_sequences_of_one_length(tiny):
    lists = ph.dominant_dimension_cache(tiny("llama"), EVEN.tolist())
    whole = ph.dominant_dimension_cache(tiny("llama"), EVEN)
    for name, tensor in whole.cache_dict.items():
        torch.testing.assert_close(lists.cache_dict[name], tensor, equal_nan=True)
    with pytest.raises(ValueError, match="the 2 sequences differ in length"):
        ph.dominant_dimension_cache(tiny("llama"), TEXTS)


def test_a_hugging_face_model_is_refused_with_the_call_that_wraps_it(tiny_folder):
    theirs = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    calls = {
        "score_heads": (TEXTS,),
        "score_shard": (TEXTS, "1/2", "folder"),
        "cut_text": (TEXTS,),
        "head_examples": (TEXTS[0], "L0H1"),
        "contribution_profile": (TEXTS, "L0H1"),
        "dominant_dimension_cache": (TEXTS[0],),
        "evaluate": ("passkey",),
        "ablated_heads": ("L0H1",),
        "ablation_hooks": ("L0H1",),
        "extended_rope": ("linear", 2),
        "contribution_hooks": (),
        "live_rotary_hooks": (),
        "resolve_layers": (),
        "plain_rope": (),
        "ablation_study": (None,),
        "extrapolation_study": (TEXTS,),
        "base_sweep": (TEXTS, [500.0]),
    }
    for name, arguments in calls.items():
        with pytest.raises(TypeError, match=r"Hugging Face's LlamaForCausalLM: wrap it first, .*load_model"):
            getattr(ph, name)(theirs, *arguments)


def bpe_tokenizer():
    """A byte-level BPE as Qwen and Llama 3 have one, trained here."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<|im_start|>"]
    )


@pytest.fixture(params=["bytes", "bpe"])
def speaker(request, tiny):
    """A stand-in with the tokenizer and configuration that `cut_text` needs, and its beginning-of-sequence token."""
    tokenizer = tiny("llama").tokenizer if request.param == "bytes" else bpe_tokenizer()
    warn_once.cache_clear()
    return SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(n_ctx=256, d_vocab=400)), tokenizer.bos_token


def test_special_tokens_in_a_text_give_one_warning_and_plain_text_reads_them_as_text(speaker, caplog):
    model, start = speaker
    text = f"God {start} created"
    with caplog.at_level(logging.WARNING):
        control = [ph.cut_text(model, text)[0], ph.cut_text(model, [text, text])[1]]
    assert all(int((tokens == model.tokenizer.bos_token_id).sum()) == 2 for tokens in control)
    assert len(caplog.records) == 1
    assert f"special tokens written in the text become control tokens: {start}" in caplog.text
    assert "plain_text=True" in caplog.text
    caplog.clear()
    (plain,) = ph.cut_text(model, text, plain_text=True)
    assert not caplog.records
    assert int((plain == model.tokenizer.bos_token_id).sum()) == 1
    assert model.tokenizer.decode(plain[1:]) == text
    (again,) = ph.cut_text(model, text)  # the plain reading leaves the tokenizer as it was
    assert torch.equal(again, control[0])


def test_a_second_start_a_byte_order_mark_and_carriage_returns_give_warnings(speaker, caplog):
    model, start = speaker
    with caplog.at_level(logging.WARNING):
        (twice,) = ph.cut_text(model, f"{start}In the beginning")
        assert f"begins with {start}" in caplog.text
        caplog.clear()
        warn_once.cache_clear()
        ph.cut_text(model, "\ufeffIn the\r\nbeginning")
    assert twice[:2].tolist() == [model.tokenizer.bos_token_id] * 2
    assert [said in caplog.text for said in ("byte-order mark", "carriage returns", "begins with")] == [
        True,
        True,
        False,
    ]
    (plain,) = ph.cut_text(model, "\ufeffIn the\r\nbegin\rning", plain_text=True)
    assert model.tokenizer.decode(plain[1:]) == "In the\nbegin\nning"


def test_plain_text_is_an_option_of_scoring(tiny):
    model, text = tiny("llama"), f"{TEXTS[0]}{tiny('llama').tokenizer.bos_token} and"
    plain = torch.tensor([256, *text.encode()])
    assert torch.equal(ph.score_heads(model, text, plain_text=True).rho, ph.score_heads(model, plain).rho)
    assert not torch.equal(ph.score_heads(model, text).rho, ph.score_heads(model, plain).rho)
