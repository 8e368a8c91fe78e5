"""Sequences drawn from texts: where they lie, what they hold, and how little is read for them."""

import logging
import re
from collections import Counter
from random import Random
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare

import positional_heads as ph
from positional_heads.bridge import text_sources
from positional_heads.zoo.architecture import byte_tokenizer
from tests.bridge.test_sequences import bpe_tokenizer

TOKENIZERS = {"bytes": byte_tokenizer, "bpe": bpe_tokenizer}
LETTERS = "abcdefghijklmnopqrstuvwxyzéß—語"


def reader(kind="bytes", context=64):
    """A stand-in with what `cut_text` needs of a model."""
    return SimpleNamespace(tokenizer=TOKENIZERS[kind](), cfg=SimpleNamespace(n_ctx=context))


def words(size, seed=0, letters=LETTERS):
    """Random words, about `size` characters of them, a line break now and then."""
    random = Random(seed)
    made = ("".join(random.choices(letters, k=random.randint(1, 9))) for _ in range(size // 6))
    return "".join(word + random.choice(["  ", "\n", *[" "] * 8]) for word in made)


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("count", [1, 7])
def test_a_drawn_sequence_is_the_text_from_a_word_on(kind, count, tmp_path):
    """Compared with tokenising the whole rest of the text; no two overlap."""
    model, text = reader(kind), words(6000)
    content = text.encode()
    (tmp_path / "text.txt").write_bytes(content)
    for seed in range(5):
        pieces = ph.cut_text(model, text, sequences=count, seed=seed)
        assert same(pieces, ph.cut_text(model, [tmp_path / "text.txt"], sequences=count, seed=seed))
        assert len(pieces) == count == len(pieces.drawn["places"])
        end = 0
        for piece, (index, start, stop) in zip(pieces, pieces.drawn["places"], strict=True):
            assert index == 0
            assert end <= start < stop
            assert start == 0 or re.fullmatch(rb"\s", content[start - 1 : start])
            assert not content[start : start + 1].isspace()
            rest = model.tokenizer(content[start:].decode(), add_special_tokens=False)["input_ids"]
            assert piece.tolist() == [model.tokenizer.bos_token_id, *rest[:63]]
            if kind == "bytes":
                assert bytes(piece[1:].tolist()) == content[start : start + 63]
                assert start + 63 <= stop < start + 63 + 4  # a character that the last token divides is nobody else's
            end = stop


def test_from_the_second_word_on_its_tokens_are_those_of_the_whole_text():
    model = reader("bpe")
    text = " ".join(["In the beginning God created the heaven and the earth. And the earth was"] * 90)
    whole = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for piece, (_, start, _) in zip(
        (pieces := ph.cut_text(model, text, sequences=6)), pieces.drawn["places"], strict=True
    ):
        second = text.index(" ", start)
        at = next(number for number, (begin, _) in enumerate(whole["offset_mapping"]) if begin >= second)
        ours = len(model.tokenizer(text[start:second], add_special_tokens=False)["input_ids"])
        assert ours < 20
        expected = whole["input_ids"][at : at + 63 - ours]
        assert piece[1 + ours :].tolist() == expected


def test_the_same_seed_draws_the_same_and_another_does_not():
    model, text = reader(), words(5000)
    drawn = [ph.cut_text(model, text, 40, sequences=5, seed=seed) for seed in (0, 0, 1)]
    assert same(drawn[0], drawn[1])
    assert not same(drawn[0], drawn[2])
    assert drawn[0].drawn == drawn[1].drawn
    assert {key: drawn[2].drawn[key] for key in ("sequences", "length", "seed")} == {
        "sequences": 5,
        "length": 40,
        "seed": 1,
    }


@pytest.mark.parametrize("count", [1, 5, 20])
def test_every_place_is_equally_likely(count):
    """Without the sequences before it, where each begins in what is left is uniform."""
    model, text, size, seeds = reader(), "ab " * 1000, 33, 1000 // count
    shares = []
    for seed in range(seeds):
        pieces = ph.cut_text(model, text, size, sequences=count, seed=seed)
        starts = [start for _, start, _ in pieces.drawn["places"]]
        taken = size + 1  # 32 bytes and what is skipped of the word before
        shares += [(start - number * taken) / (3000 - count * taken) for number, start in enumerate(starts)]
    counts = Counter(min(int(share * 8), 7) for share in shares)
    assert sum(counts.values()) == seeds * count
    assert chisquare([counts[part] for part in range(8)]).pvalue > 0.001


def test_texts_get_sequences_in_proportion_to_their_sizes():
    model, texts = reader(), ["ab " * 400, "cd " * 1200]
    assert all(
        [index for index, *_ in ph.cut_text(model, texts, 20, sequences=8, seed=seed).drawn["places"]]
        == [0, 0, *[1] * 6]
        for seed in range(9)
    )
    single = [ph.cut_text(model, texts, 20, sequences=1, seed=seed)[0] for seed in range(200)]
    spoken = Counter(frozenset(bytes(piece[1:].tolist()).decode()) - {" "} for piece in single)
    assert spoken.keys() == {frozenset("ab"), frozenset("cd")}  # none spans both
    assert 30 < spoken[frozenset("ab")] < 70


def test_a_text_shorter_than_a_sequence_is_drawn_whole():
    model, texts = reader(), [f"text {number}" for number in range(50)]
    pieces = ph.cut_text(model, texts, sequences=6)
    assert all(bytes(piece[1:].tolist()).decode() in texts for piece in pieces)
    assert len({tuple(piece.tolist()) for piece in pieces}) == 6


def test_of_a_text_that_hardly_suffices_some_of_all_sequences_are_drawn(caplog):
    model, text = reader(), ("x" * 40 + " ") * 60  # 30 sequences that begin with a word, 39 that need not
    every = ph.cut_text(model, text)
    assert [len(piece) for piece in every] == [64] * 39 + [4]
    chosen = [ph.cut_text(model, text, sequences=35, seed=seed) for seed in range(6)]
    assert all(same(pieces, [every[number] for number in pieces.drawn["numbers"]]) for pieces in chosen)
    assert all(pieces.drawn["numbers"] == sorted({*pieces.drawn["numbers"]}) for pieces in chosen)
    assert {len(piece) for pieces in chosen for piece in pieces} == {64}
    assert len({tuple(pieces.drawn["numbers"]) for pieces in chosen}) > 1
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert same(ph.cut_text(model, text, sequences=len(every) + 3), every)
    assert f"{len(every) + 3} sequences were asked for, the text holds {len(every)} of up to 64 tokens" in caplog.text


def test_a_large_file_costs_what_its_sample_costs(tmp_path, monkeypatch):
    """Bytes read and characters tokenised, not seconds, which depend on the machine."""
    block = words(2**20, letters=LETTERS[:26]).encode()
    with (tmp_path / "large.txt").open("wb") as file:
        for _ in range(30):
            file.write(block)
    model, read, tokenised = reader("bpe", 512), [], []
    plain_read, plain_call = text_sources.TextFile.read, type(model.tokenizer).__call__

    def reading(self, start, stop):
        content = plain_read(self, start, stop)
        read.append(len(content))
        return content

    def tokenising(self, text, **settings):
        tokenised.append(len(text))
        return plain_call(self, text, **settings)

    monkeypatch.setattr(text_sources.TextFile, "read", reading)
    monkeypatch.setattr(type(model.tokenizer), "__call__", tokenising)
    pieces = ph.cut_text(model, tmp_path / "large.txt", sequences=16)
    sample = sum(stop - start for _, start, stop in pieces.drawn["places"])
    assert {len(piece) for piece in pieces} == {512}
    assert len(block) * 25 < sum(start for _, start, _ in pieces.drawn["places"][-2:])  # all over the file
    assert sum(read) < 2 * sample + 16 * 1024
    assert sum(tokenised) < 1.5 * sample + 8 * 1024


def test_plain_text_reads_special_tokens_and_line_ends_as_in_a_whole_cut():
    model = reader("bpe")
    text = " ".join(["In the beginning<s>God created\r\nthe heaven and"] * 60)
    pieces = ph.cut_text(model, text, 50, sequences=4, plain_text=True)
    plain = text.replace("\r\n", "\n")
    for piece in pieces:
        assert piece[0] == model.tokenizer.bos_token_id
        assert model.tokenizer.bos_token_id not in piece[1:]
        assert model.tokenizer.decode(piece[1:]) in plain
    assert all(
        one[2] <= other[1] for one, other in zip(pieces.drawn["places"], pieces.drawn["places"][1:], strict=False)
    )


def test_a_text_without_spaces_begins_with_a_whole_character():
    model, text = reader(), "天地玄黃宇宙洪荒" * 200
    for seed in range(8):
        for _, start, _ in ph.cut_text(model, text, sequences=3, seed=seed).drawn["places"]:
            assert start % 3 == 0


@pytest.mark.parametrize(
    ("content", "message"),
    {
        b"\xff\xfe" * 300: r"t.txt: not UTF-8 text \(byte \d+\): is it a binary file",
        b"In the\0beginning " * 90: "t.txt: a binary file, it holds null bytes",
        b" \n" * 400: "t.txt: the text is empty",
        b"": "t.txt: the text is empty",
    }.items(),
)
def test_what_is_read_must_be_text(content, message, tmp_path):
    (tmp_path / "t.txt").write_bytes(content)
    for count in (2, None):
        with pytest.raises(ValueError, match=message):
            ph.cut_text(reader(), tmp_path / "t.txt", 20, sequences=count)


@pytest.mark.parametrize("count", [2, None])
def test_the_name_of_a_file_is_no_text(count, tmp_path):
    """Its letters would be scored; the path itself is read."""
    file = tmp_path / "a book"
    file.write_text(words(900))
    for name in (str(file), "Moby-Dick.txt", "../data/text.JSONL"):
        with pytest.raises(ValueError, match=r"text 1 is .*, the name of a file, not what is in it: give cut_text"):
            ph.cut_text(reader(), ["a text of some length", name], 20, sequences=count)
    assert ph.cut_text(reader(), file, 20, sequences=count)
    for text in (f"{file}\n", "see Moby-Dick.txt", "Moby-Dick", "x" * 5000, "e.g.", "\0"):
        assert ph.cut_text(reader(), text, 20)


def test_sequences_may_be_longer_than_the_context_if_asked_for():
    text = words(3000)
    for count in (2, None):
        with pytest.raises(ValueError, match="length 100 must be between 2 and the model's context of 64 tokens"):
            ph.cut_text(reader(), text, 100, sequences=count)
        pieces = ph.cut_text(reader(), text, 100, sequences=count, beyond_context=True)
        assert len(pieces[0]) == 100
    with pytest.raises(ValueError, match="length 1 must be between"):
        ph.cut_text(reader(), text, 1, beyond_context=True)


def test_wrong_calls_of_a_draw_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such text file"):
        ph.cut_text(reader(), tmp_path / "nowhere", sequences=2)
    with pytest.raises(ValueError, match="sequences 0 must be at least 1"):
        ph.cut_text(reader(), "a text", sequences=0)
    with pytest.raises(ValueError, match="seed -1 must be at least 0"):
        ph.cut_text(reader(), "a text", sequences=1, seed=-1)
    with pytest.raises(ValueError, match="text 1 is empty"):
        ph.cut_text(reader(), ["a text", " "], sequences=1)
    with pytest.raises(ValueError, match=r"text 0 holds '\\ud800', half of a character, at 2"):
        ph.cut_text(reader(), "a \ud800", sequences=1)


def test_scores_state_how_their_sequences_were_drawn(tiny, tmp_path):
    model, text = tiny("llama"), words(3000)
    pieces = ph.cut_text(model, text, 30, sequences=3, seed=4)
    scores = ph.score_heads(model, pieces, null_repeats=0, resamples=2)
    assert scores.provenance["data"]["drawn"] == pieces.drawn
    scores.save(tmp_path)
    assert ph.HeadScores.load(tmp_path).provenance == scores.provenance
    assert "drawn" not in ph.score_heads(model, pieces[:2], null_repeats=0, resamples=2).provenance["data"]
