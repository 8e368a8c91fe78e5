"""Tokens are shown as what they are, views hold the record's own numbers, and nothing in a page can act."""

import base64
import gzip
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import unicodedata
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from positional_heads.core.heads import Head
from positional_heads.results.text import LONGEST, printable, readable_tokens
from positional_heads.views import attention_view, contribution_view, token_view
from positional_heads.views import page as safe_page
from positional_heads.views.tokens import MEANINGS
from tests.support.synthetic_examples import HOSTILE, synthetic_examples


class Page(HTMLParser):
    """What a browser would find: elements with attributes, and the text of each script."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.scripts, self._open = [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)

    @property
    def props(self):
        return [json.loads(text) for attributes, text in self.scripts if attributes.get("type") == "application/json"]

    @property
    def policy(self):
        return next(a["content"] for tag, a in self.elements if a.get("http-equiv") == "Content-Security-Policy")


def every_view(record):
    views = [token_view(record, measure) for measure in MEANINGS]
    return [attention_view(record), *views, contribution_view(record, record.heads[0], record.n_detailed - 1)]


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        ("Ġthe", "·the"),
        ("Ċ", "↵"),
        ("<0x0A>", "↵"),
        ("<0xE2>", r"\xe2"),
        ("▁the", "·the"),
        (" the ", "·the·"),
        ("a b", "a b"),
        ("   ", "···"),
        ("\t", "⇥"),
        ("\0", r"\x00"),
        ("\x7f", r"\x7f"),
        ("\x85", r"\x85"),
        ("\xa0", r"\xa0"),
        ("\ud800", r"\ud800"),
        ("\u202e", r"\u202e"),
        ("\U000e0001", r"\U000e0001"),
        ("", "∅"),
        ("<|bos|>", "<|bos|>"),
        ("</script>", "</script>"),
        ("é", "é"),
    ],
)
def test_a_piece_is_shown_as_what_it_stands_for(piece, shown):
    assert readable_tokens([piece]) == [shown]
    assert readable_tokens([shown], byte_level=False) == [shown]


def test_bytes_that_make_no_character_alone_are_shown_as_bytes():
    assert readable_tokens(["Ġ", "âĢ", "Ķ"]) == ["·", r"\xe2\x80", r"\x94"]
    assert readable_tokens(["Ġ caf", "é"]) == ["Ġ caf", "é"]  # a space is no byte-level character: this is text


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=[])), min_size=1, max_size=4))
def test_any_token_is_visible_and_can_be_written(tokens):
    for shown in readable_tokens(tokens):
        assert 1 <= len(shown) <= 10 * LONGEST
        assert shown.encode()
        assert not any(unicodedata.category(character)[0] == "C" for character in shown)
    said = printable(tokens[0])
    assert said.encode().decode() == said
    assert all(character in "\n\t" or unicodedata.category(character)[0] != "C" for character in said)


def test_attention_is_drawn_from_the_records_numbers_with_masked_cells_at_zero():
    record = synthetic_examples(heads=3)
    view = attention_view(record, [Head(0, 2), Head(0, 0)])
    pattern, dominant, *_ = Page(view.html).props
    np.testing.assert_allclose(pattern["attention"], record.pattern[2], atol=5e-5)
    np.testing.assert_allclose(dominant["attention"], record.dominant[2].nan_to_num(), atol=5e-5)
    assert dominant["maxValue"] == record.n_pairs - 1
    assert pattern["tokens"] == ["In", "·the", "·beginning", "↵", "God", "·created"]
    assert [group.summary for group in view.groups] == ["L0H2", "L0H0"]
    assert [group.open for group in view.groups] == [True, False]


@pytest.mark.parametrize("measure", [name for name in MEANINGS if name != "contribution"])
def test_tokens_are_coloured_by_the_measure_asked_for_on_one_scale(measure):
    record = synthetic_examples(heads=3)
    view = token_view(record, measure, heads=[Head(0, 2), Head(0, 1)])
    (props,) = Page(view.html).props
    expected = getattr(record, MEANINGS[measure].field)[[2, 1]].T
    np.testing.assert_allclose(props["values"], expected, atol=5e-5)
    assert props["labels"] == ["L0H2", "L0H1"]
    assert len(set(props["positiveBounds"])) == 1  # circuitsvis keeps the first label's scale for all
    assert MEANINGS[measure].unit in view.html


def test_contributions_are_offered_by_pair_the_strongest_first():
    record = synthetic_examples(pairs=20)
    view = token_view(record, "contribution", heads=[Head(0, 1)])
    (props,) = Page(view.html).props
    strength = record.mean_contributions[1].abs().mean(0)
    pairs = [int(label.removeprefix("pair ")) for label in props["labels"]]
    assert pairs == sorted(range(20), key=lambda pair: -float(strength[pair]))[:16]
    np.testing.assert_allclose(props["values"], record.mean_contributions[1][:, pairs], atol=5e-5)
    assert props["negativeBounds"] == [-bound for bound in props["positiveBounds"]]
    assert view.notes == ("The 16 of 20 pairs with the largest contributions are offered.",)
    (chosen,) = Page(token_view(record, "contribution", pairs=[3, 0]).html).props
    assert chosen["labels"] == ["pair 3", "pair 0"]


def test_one_query_is_shown_with_every_pair_and_key():
    record = synthetic_examples()
    view = contribution_view(record, Head(0, 1), 4)
    (props,) = Page(view.html).props
    added = record.contributions[1, 4, :5]
    np.testing.assert_allclose(props["values"], torch.cat([added.sum(-1, keepdim=True), added], -1), atol=5e-5)
    assert props["labels"] == ["all pairs", "pair 0", "pair 1", "pair 2", "pair 3"]
    cells = [attributes for tag, attributes in Page(view.html).elements if tag == "td" and "title" in attributes]
    assert len(cells) == 5 * 4
    assert cells[7]["title"] == f"·beginning (2), pair 1: {float(added[2, 1]):+.3f}"
    largest = float(added.abs().max())
    for cell, value in zip(cells, added.T.flatten().tolist(), strict=True):
        step = int(cell["class"][1:])
        assert abs(step - 8 * abs(value) / largest) <= 0.5 + 1e-6
        assert not step or cell["class"][0] == ("n" if value < 0 else "p")


def test_what_is_not_in_a_record_is_refused():
    record = synthetic_examples()
    for refused, message in (
        (lambda: attention_view(record, [Head(9, 9)]), "L9H9 is not in these examples, they hold L0H0, L0H1"),
        (lambda: attention_view(record, []), "no heads asked for"),
        (lambda: token_view(record, heads=[Head(1, 0)]), "L1H0 is not in these examples"),
        (lambda: token_view(record, "contribution", pairs=[4]), "pair 4 does not exist: pairs go from 0 to 3"),
        (lambda: token_view(record, "contribution", pairs=[]), "no pairs asked for"),
        (lambda: token_view(record, "distance", pairs=[1]), "pairs go with measure 'contribution'"),
        (lambda: contribution_view(record, Head(0, 0), 6), "query 6 is not in these examples"),
        (lambda: contribution_view(record, Head(0, 0), -1), "query -1 is not in these examples"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_huge_records_are_cropped_with_a_note():
    long = synthetic_examples(["token"] * 100_000, detailed=128)
    for measure in MEANINGS:
        view = token_view(long, measure)
        assert view.notes[0] == "The first 2000 of 100,000 tokens are shown."
        assert len(Page(view.html).props[0]["tokens"]) == 2000
    view = attention_view(long)
    assert view.notes == ("The first 128 of 100,000 tokens are shown.",)
    assert len(Page(view.html).props[0]["attention"]) == 128
    many = synthetic_examples(heads=1000)
    for view in (attention_view(many), token_view(many)):
        assert view.notes == ("The first 8 of 1,000 heads are shown.",)
        assert view.notes[0] in unescape(view.html)
        assert len(view.html) < 3_000_000
    wide = contribution_view(synthetic_examples(["t"] * 200, detailed=200, pairs=100), Head(0, 0), 199)
    assert wide.notes == (
        "The last 128 of 200 keys are shown.",
        "The 64 of 100 pairs with the largest contributions are shown.",
    )
    assert wide.html.count("<td class=") == 128 * 64


def test_only_our_scripts_may_run_and_they_are_allowed_by_hash():
    for view in every_view(synthetic_examples(HOSTILE, name=HOSTILE[0])):
        page = Page(view.html)
        running = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
        allowed = page.policy.split("script-src ")[1].split(";")[0]
        assert allowed == " ".join(f"'sha256-{digest}'" for digest in digests)
        assert len(running) == 2
        assert page.policy.startswith("default-src 'none'; ")
        assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
        assert not any("src" in attributes or "href" in attributes for _, attributes in page.elements)
        assert "pwned" not in "".join(running)


def test_in_jupyter_a_view_is_a_sandboxed_frame_that_holds_its_page():
    view = attention_view(synthetic_examples(HOSTILE, name='" onload="window.pwned=1'))
    elements = Page(view._repr_html_()).elements
    assert [tag for tag, _ in elements] == ["style", "div", "p", "iframe"]
    attributes = elements[-1][1]
    assert attributes["sandbox"] == "allow-scripts"
    (packed,) = re.findall(r'id="page">([^<]*)<', attributes["srcdoc"])
    assert gzip.decompress(base64.b64decode(packed)).decode() == view.html
    assert len(attributes["srcdoc"]) < len(view.html) / 2
    assert "onload" not in attributes
    assert attributes["title"].endswith('" onload="window.pwned=1')


def test_a_view_is_saved_completely_or_not_at_all(tmp_path):
    view = token_view(synthetic_examples(HOSTILE))
    assert view.save(tmp_path / "view.html").read_text(encoding="utf-8") == view.html
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        view.save(tmp_path / "file" / "view.html")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "view.html"]


def test_views_neither_probe_a_network_nor_load_circuitsvis_own_python():
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise AssertionError('a network was asked for')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from tests.support.synthetic_examples import synthetic_examples\n"
        "from positional_heads.views import attention_view\n"
        "view = attention_view(synthetic_examples())\n"
        "assert 'CircuitsVis' in view.html and view._repr_html_()\n"
        "print({'circuitsvis', 'transformer_lens'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_missing_bundle_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"pip install 'circuitsvis>=1\.43,<2'"):
        safe_page.bundle.__wrapped__()
