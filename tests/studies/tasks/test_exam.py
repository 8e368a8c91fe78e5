"""An exam asks what it says: answers found again by search, text outside all facts, ranges in balance, parts apart."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import positional_heads as ph
from positional_heads.studies.retrieval_trials import RetrievalTrials
from positional_heads.studies.tasks.evaluate import make_task
from positional_heads.studies.tasks.task import Asked, Example
from tests.support.synthetic_studies import HEADS, LAYERS, all_heads, planted_study

SMALL = {"length": 480, "keys": 3, "passage": 12, "cue": 4, "near": 16, "examples": 12}
WORDS = ("The pass key is", "The secret number is")


@pytest.fixture(scope="module")
def text():
    """A text without digits in which no 20 characters occur twice."""
    numbers = (str(number * 7919 % 100000).zfill(5) for number in range(2000))
    return " ".join(number.translate(str.maketrans("0123456789", "abcdefghij")) for number in numbers)


@pytest.fixture(scope="module")
def task(bundled, text):
    return make_task(bundled, "exam", haystack=text, **SMALL)


def read(tokens):
    """The characters; the bundled model's tokens are bytes."""
    return bytes(tokens.tolist()).decode()


def answers(task):
    for example in task.examples:
        yield from (
            (example, start, stop, asked) for (start, stop), asked in zip(example.answers, example.asked, strict=True)
        )


def test_an_example_has_every_question_at_both_ranges(task):
    for example in task.examples:
        assert len(example.tokens) == 480
        found = Counter((one.part, one.reach) for one in example.asked)
        assert found == {
            (part, reach): 2 if part == "text" else 1
            for part in ("passkey", "kv", "copy", "text")
            for reach in ("long", "short")
        }
        assert example.answers[-1][1] == 480
    assert len({tuple(one.part + one.reach for one in example.asked) for example in task.examples}) > 6


def test_an_answer_is_what_follows_the_same_words_before_and_nowhere_else(task):
    """By search in the text, without the spans that the task gives: cue, answer and distance."""
    cues = {"passkey": 12, "kv": 6, "copy": 4}  # characters at the end of a cue that tell facts apart
    rows = iter(task.rows)
    for example, start, stop, asked in answers(task):
        row = next(rows)
        whole = read(example.tokens[1:])
        if asked.part == "text":
            continue
        cue, answer = whole[start - 1 - cues[asked.part] : start - 1], whole[start - 1 : stop - 1]
        before = whole[: start - 1 - len(cue)]
        assert before.count(cue + answer) == before.count(answer) == 1
        assert before.count(cue) == 1 or asked.part == "copy"  # a few characters that may occur by chance
        place = before.index(cue + answer) + len(cue) + 1
        assert asked.needle == (place, place + stop - start)
        assert row["distance"] == start - place
        assert row["part"] == asked.part
        assert row["reach"] == asked.reach


def test_distances_are_those_of_the_ranges(task):
    rows = [row for row in task.rows if row["part"] != "text"]
    near = [row["distance"] for row in rows if row["reach"] == "short"]
    far = [row["distance"] for row in rows if row["reach"] == "long"]
    assert max(near) <= 31  # the answer, its end and the cue
    assert min(far) > 40 + 8
    assert {row["depth"] for row in rows if row["reach"] == "short"} == {1.0}


def test_both_ranges_ask_alike(task):
    """Both nouns, and every depth, as often as any other; numbers of as many digits."""
    nouns, depths, sizes = Counter(), Counter(), {}
    for example, start, stop, asked in answers(task):
        before = read(example.tokens[1:start])
        nouns[asked.reach] += asked.part == "passkey" and before.endswith(WORDS[0])
        assert asked.part != "passkey" or before.endswith(WORDS)
        depths[asked.part, asked.depth] += asked.reach == "long" and asked.part != "text"
        sizes.setdefault(asked.part, set()).add(stop - start)
    assert nouns == {"long": 6, "short": 6}
    asked_at = {key: number for key, number in depths.items() if number}
    assert set(asked_at.values()) == {2}
    assert len(asked_at) == 3 * 6
    assert sizes == {"passkey": {6}, "kv": {5}, "copy": {8}, "text": {16}}


def test_measured_text_is_untouched_and_begins_after_the_facts(task, text):
    """A block, with 8 characters before it, stands in the text word for word; no fact does."""
    for example, start, stop, asked in answers(task):
        passage = read(example.tokens[start - 8 : stop])
        assert (passage in text) == (asked.part == "text")
        if asked.part == "text":
            assert (start, stop) in ((9, 25), (25, 41)) if asked.reach == "short" else start > 200


def test_a_unit_has_text_of_its_own_and_held_out_examples_have_other_text_and_answers(task, bundled, text):
    def places(example):
        blocks = zip(example.answers, example.asked, strict=True)
        spans = [text.index(read(example.tokens[slice(*span)])) for span, one in blocks if one.part == "text"]
        return set(range(min(spans), max(spans) + 16))

    measured = [places(example) for example in task.examples]
    assert len(set().union(*measured)) == sum(map(len, measured))
    assert len({example.unit for example in task.examples}) == 12
    assert len(task.held_out) == 10
    used = set().union(*measured)
    answered = {read(example.tokens[start:stop]) for example, start, stop, _ in answers(task)}
    for example in task.held_out:
        assert not places(example) & used
        assert not answered & {read(example.tokens[slice(*span)]) for span in example.answers}
    few = make_task(bundled, "exam", haystack=text[:1500], **SMALL)
    assert len({example.unit for example in few.examples}) == few.settings["units"] < 12


def test_held_out_numbers_are_new_where_few_exist(bundled, text):
    task = make_task(bundled, "exam", haystack=text, **{**SMALL, "examples": 2, "digits": 1})
    found = {}
    for name, examples in (("measured", task.examples), ("held out", task.held_out)):
        spans = [
            (one, span)
            for one in examples
            for span, asked in zip(one.answers, one.asked, strict=True)
            if asked.part == "passkey"
        ]
        found[name] = {read(one.tokens[slice(*span)]) for one, span in spans}
    assert len(found["held out"]) > 1
    assert not found["measured"] & found["held out"]


def test_retrieval_heads_are_found_on_held_out_pass_keys(task, bundled):
    trials = RetrievalTrials(bundled, task).trials
    assert len(trials) == len(task.held_out)
    for trial in trials:
        assert read(trial.prompt[1:]).endswith(WORDS)
        assert torch.equal(trial.prompt[slice(*trial.needle)], trial.answer)
        assert len(trial.answer) == 6


def test_a_length_that_is_too_short_is_refused_with_the_one_needed(bundled):
    with pytest.raises(ValueError, match="give a length of at least") as refused:
        make_task(bundled, "exam", **{**SMALL, "length": 200, "examples": 1})
    assert "(keys 3, digits 5, passage 12, cue 4)" in str(refused.value)
    assert "(near 16)" in str(refused.value)
    needed = int(str(refused.value).split("at least ")[1].split(",")[0])
    assert len(make_task(bundled, "exam", **{**SMALL, "length": needed, "examples": 1}).examples[0].tokens) == needed
    with pytest.raises(ValueError, match=f"length {needed - 1}:"):
        make_task(bundled, "exam", **{**SMALL, "length": needed - 1, "examples": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cue": 12}, "cue 12 must be at least 1 and less than the passage of 12"),
        ({"near": 1}, "near 1 must be at least 2"),
        ({"keys": 0}, "keys 0 must be at least 1"),
        ({"held_out": 0}, "held_out 0 must be at least 1"),
        ({"updates": 3}, "no setting updates"),
    ],
)
def test_impossible_exams_are_refused(settings, message, bundled):
    with pytest.raises((ValueError, TypeError), match=message):
        make_task(bundled, "exam", **{**SMALL, **settings})


def test_fewer_held_out_exams_can_be_asked_for(bundled):
    few = make_task(bundled, "exam", **{**SMALL, "examples": 1, "held_out": 3})
    usual = make_task(bundled, "exam", **{**SMALL, "examples": 1})
    assert (len(few.held_out), len(usual.held_out)) == (3, 10)
    assert all(torch.equal(some.tokens, same.tokens) for some, same in zip(few.examples, usual.examples, strict=True))
    assert few.settings["held_out"] == 3
    assert "held_out" not in usual.settings  # so that studies begun without this setting resume


def test_an_example_has_as_many_properties_as_answers():
    with pytest.raises(ValueError, match="asked has 1 entries for 2 answers"):
        Example(torch.arange(9), ((3, 4), (6, 7)), 0, asked=(Asked("kv"),))


def test_a_result_gives_every_part_apart(task, bundled):
    result = ph.evaluate(bundled, replace(task, examples=task.examples[:1]))
    rows = result.to_frame()
    kv = rows[(rows["part"] == "kv") & (rows["reach"] == "long")]
    assert f"kv, long range: log_prob {kv['log_prob'].item():.3f}" in repr(result)
    assert task.chance["exact of kv"] == 1 / 3
    assert task.chance["log_prob of kv"] == pytest.approx(np.log(1 / 3) / 5)


@pytest.fixture(scope="module")
def parts():
    """Two planted studies of the same sets of heads, and one study with the answers of both."""
    heads, nothing = all_heads(), np.zeros((LAYERS, HEADS))
    harm = nothing.copy()
    for head in heads[:4]:
        harm[head] = -0.5
    kv = planted_study(harm, nothing, heads, retrieval=heads[4:8], singles=8)
    copy = planted_study(nothing, nothing, heads, retrieval=heads[4:8], singles=8, seed=0, noise=0.3)
    rows = [{**row, "part": part} for part, one in (("kv", kv), ("copy", copy)) for row in one.rows]
    mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    values = torch.cat([kv.values["log_prob"], copy.values["log_prob"]], 1)[:, mixed]
    chance = {"log_prob of kv": -2.0, "log_prob of copy": -3.0}
    together = replace(
        kv, task="exam", rows=[rows[index] for index in mixed], values={"log_prob": values}, chance=chance
    )
    return {"kv": kv, "copy": copy}, together


def test_a_part_of_a_study_is_the_study_of_that_part(parts, tmp_path):
    alone, together = parts
    for part, study in alone.items():
        chosen = together.where(part=part)
        for table in ("contrasts", "effects", "by_set", "by_head"):
            pd.testing.assert_frame_equal(getattr(chosen, table)(), getattr(study, table)())
        assert chosen.task == f"exam (part {part})"
        assert chosen.chance == {"log_prob": {"kv": -2.0, "copy": -3.0}[part]}
        assert chosen.provenance["selected"] == {"part": [part]}
        back = ph.AblationStudy.load(chosen.save(tmp_path / part))
        assert back.contrasts().equals(chosen.contrasts())
        assert back.verdict == chosen.verdict
    assert "selected" not in together.provenance
    narrower = together.where(part="kv").where(reach="long", unit=range(8))
    assert {(row["part"], row["reach"]) for row in narrower.rows} == {("kv", "long")}
    assert narrower.provenance["selected"] == {"part": ["kv"], "reach": ["long"], "unit": list(range(8))}
    assert narrower.reaches == ["long"]
    assert narrower.chance == {"log_prob": -2.0}


def test_each_part_of_a_study_is_judged_apart(parts):
    _, together = parts
    verdict = together.verdict
    assert verdict.startswith("2 parts, each a test of its own")
    assert "No effect: ablating these heads hurts exam (part copy) no more" in verdict
    assert "Ablating the top heads hurts exam (part kv) at long range more" in verdict


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "no property given: choose among unit, reach, part"),
        ({"topic": "kv"}, "the answers of exam have no 'topic': choose among unit, reach, part"),
        ({"part": "passkey"}, r"no answer of exam has part 'passkey': choose among \['"),
        ({"part": ["kv", "text"]}, "no answer of exam has part 'text'"),
    ],
)
def test_a_selection_of_nothing_is_refused(properties, message, parts):
    with pytest.raises(ValueError, match=message):
        parts[1].where(**properties)


def test_properties_that_no_answer_has_at_once_are_refused(parts):
    some = parts[1].where(part="kv", unit=[1, 2])
    mixed = replace(some, rows=[{**row, "reach": "long" if row["unit"] == 1 else "short"} for row in some.rows])
    with pytest.raises(ValueError, match="has unit 1, reach short at once"):
        mixed.where(unit=1, reach="short")
