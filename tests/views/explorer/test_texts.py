"""Texts of the explorer: what its numbers decode to is what the record holds, and they stay small."""

import base64
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from positional_heads.results.text import readable_tokens
from positional_heads.views.explorer.texts import text_parts
from tests.support.synthetic_examples import HOSTILE, synthetic_examples


def decoded(text, numbers):
    """(key, attention, dominant) of every query, by the words of the encoding, in plain Python."""
    flat = {}
    for name, code in numbers.items():
        assert text["encoding"][name]["dtype"] == "<u2"
        raw = base64.b64decode(code)
        flat[name] = [value for (value,) in struct.iter_unpack("<H", raw)]
    assert len(flat["counts"]) == len(text["tokens"])
    rows, at = [], 0
    for count in flat["counts"]:
        part = slice(at, at + count)
        dominant = [None if c == 65535 else c / 65534 * (text["pairs"] - 1) for c in flat["dominant"][part]]
        rows.append(list(zip(flat["keys"][part], [c / 65535 for c in flat["attention"][part]], dominant, strict=True)))
        at += count
    assert at == len(flat["keys"]) == len(flat["attention"]) == len(flat["dominant"])
    return rows


@pytest.mark.parametrize("older", [False, True])
def test_every_pair_of_a_short_text_is_there(older):
    record = synthetic_examples(HOSTILE, heads=3)
    record.dominant[1, 4, 2] = torch.nan
    if older:
        record = replace(record, kept_keys=None, kept_pattern=None, kept_dominant=None)
    (text,), by_head = text_parts(record, "run-7")
    assert json.loads(json.dumps(text, allow_nan=False)) == text
    assert (text["id"], text["run"], text["tokens"]) == ("text-7", "run-7", readable_tokens(HOSTILE))
    assert (text["heads"], text["pairs"], text["notes"]) == (["L0H0", "L0H1", "L0H2"], 4, [])
    assert list(by_head) == text["heads"]
    for number, head in enumerate(text["heads"]):
        for query, row in enumerate(decoded(text, by_head[head]["text-7"])):
            assert sorted(key for key, *_ in row) == list(range(query + 1))
            attention = [one[1] for one in row]
            assert attention == sorted(attention, reverse=True)
            for key, share, dimension in row:
                assert share == pytest.approx(float(record.pattern[number, query, key]), abs=1e-3)
                own = float(record.dominant[number, query, key])
                if older and (number, query, key) == (1, 4, 2):
                    assert dimension is None
                elif (number, query, key) != (1, 4, 2):
                    assert dimension == pytest.approx(own, abs=3e-3)


def test_an_older_record_of_a_long_text_shows_its_first_tokens_and_says_so():
    record = synthetic_examples(["t"] * 60, detailed=12)
    record = replace(record, kept_keys=None, kept_pattern=None, kept_dominant=None)
    (text,), by_head = text_parts(record, "run-1")
    rows = decoded(text, by_head["L0H1"]["text-1"])
    assert [len(row) for row in rows] == [*range(1, 13), *[0] * 48]
    assert "The keys of the first 12 tokens only: the file is of an older version." in text["notes"][0]


def test_a_text_of_8192_tokens_and_5_heads_stays_below_5_mb_and_keeps_what_has_most_attention():
    record = synthetic_examples(["word"] * 8192, heads=5, pairs=32, detailed=48, kept=32)
    (text,), by_head = text_parts(record, "run-1")
    size = len(json.dumps(text)) + len(json.dumps(by_head))
    assert 3e6 < size < 5e6
    rows = decoded(text, by_head["L1H0"]["text-1"])
    assert text["kept"] == max(map(len, rows)) < 32
    for query in (0, 3, 500, 8191):
        keys = record.kept_keys[4, query, : len(rows[query])].tolist()
        assert [key for key, *_ in rows[query]] == keys
        np.testing.assert_allclose(
            [share for _, share, _ in rows[query]], record.kept_pattern[4, query, : len(keys)], atol=1e-5
        )


def test_keys_beyond_99_5_percent_of_the_attention_and_the_first_16_are_left_out():
    share = 0.9 * 0.5 ** torch.arange(60.0)
    record = synthetic_examples(["t"] * 60)
    record.kept_pattern[0] = torch.where(record.kept_keys[0] < 0, 0, 1 / 60)
    record.kept_pattern[1] = torch.where(record.kept_keys[1] < 0, 0, share)
    (text,), by_head = text_parts(record, "run-1")
    flat, steep = (decoded(text, by_head[head]["text-1"]) for head in ("L0H0", "L0H1"))
    assert [len(row) for row in flat] == list(range(1, 61))  # of 60 equal shares 59 are 98.3 %
    assert [len(row) for row in steep[:16]] == list(range(1, 17))
    assert {len(row) for row in steep[16:]} == {16}


def test_keys_without_attention_take_no_room():
    record = synthetic_examples(["t"] * 40, pairs=1)
    record.kept_pattern[:, :, 1:] = 1e-6
    (text,), by_head = text_parts(record, "run-1")
    rows = decoded(text, by_head["L0H0"]["text-1"])
    assert [len(row) for row in rows] == [1] * 40
    assert all(row[0][2] == 0 for row in rows)  # the only pair there is
