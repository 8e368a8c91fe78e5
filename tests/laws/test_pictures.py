"""The pictures of docs/architecture.md are those of the code as it is, and of a run as it goes."""

import sys
from xml.etree import ElementTree

import pytest

import positional_heads as ph
from tests.laws.test_rooms import ROOT
from tests.support.pictures import DOCS, PICTURES, STEPS


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_shows_the_code_as_it_is(name):
    drawn = PICTURES[name]()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert (DOCS / name).read_text() == drawn, "run python -m tests.support.pictures"


def test_a_run_enters_the_steps_of_the_pipeline_in_the_order_drawn(tiny, monkeypatch):
    monkeypatch.setenv("POSITIONAL_HEADS_KERNEL", "eager")  # the others do all steps of a tile in one
    model = tiny("llama")
    entered: dict[tuple[str, str], int] = {}

    def note(frame, event, _):
        if event == "call":
            code = frame.f_code
            entered.setdefault((code.co_filename, code.co_name), len(entered))

    sys.setprofile(note)
    try:
        ph.score_heads(model, model.to_tokens("In the beginning was the Word. " * 3), null_repeats=2).verdict  # noqa: B018
    finally:
        sys.setprofile(None)
    steps = [(str(ROOT / file), name.split(".")[-1]) for _, file, name in STEPS]
    assert [step for step in steps if step not in entered] == []
    assert [entered[step] for step in steps] == sorted(entered[step] for step in steps)
