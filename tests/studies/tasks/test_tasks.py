"""Questions are what they say: exact lengths, known needles, the same filler far and near, scores of Hugging Face's."""

import math
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.studies.tasks.evaluate import TASKS, make_task
from positional_heads.studies.tasks.task import AnswerTask, Example
from positional_heads.zoo.bundled import MODEL_FOLDER

RECALL = ["passkey", "needle", "kv", "copy", "latest"]
SMALL = {"length": 256, "depths": 3, "examples": 2}
EXAM = {"length": 480, "keys": 3, "passage": 12, "cue": 4, "near": 16, "examples": 2}
SETTINGS = dict.fromkeys(RECALL, SMALL) | {"perplexity": {"length": 256, "examples": 2}, "exam": EXAM}


@pytest.fixture(scope="module")
def reference():
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", RECALL)
def test_a_unit_is_a_long_range_example_and_a_short_range_one_of_the_same_pieces(name, bundled):
    examples = TASKS[name](bundled, **SMALL).examples
    assert len(examples) == 2 * 3 * 2
    for long, short in zip(examples[::2], examples[1::2], strict=True):
        assert (long.reach, short.reach) == ("long", "short")
        assert long.unit == short.unit
        assert len(long.tokens) == len(short.tokens) == 256
        assert sorted(long.tokens.tolist()) == sorted(short.tokens.tolist())
        assert long.distance > short.distance


@pytest.mark.parametrize("name", RECALL)
def test_the_answer_ends_the_sequence_and_is_in_the_needle(name, bundled):
    for example in TASKS[name](bundled, **SMALL).examples:
        ((start, stop),) = example.answers
        assert stop == 256
        assert torch.equal(example.tokens[slice(*example.needle)], example.tokens[start:stop])


@pytest.mark.parametrize("name", RECALL)
def test_needles_lie_at_every_depth_and_in_the_control_next_to_the_question(name, bundled):
    rows = TASKS[name](bundled, **SMALL).rows
    assert {row["depth"] for row in rows} == {0, 1 / 3, 2 / 3, 1.0}
    distances = [row["distance"] for row in rows if row["reach"] == "short"]
    assert max(distances) < 110  # the needle itself, and the question


@pytest.mark.parametrize("name", RECALL)
def test_depth_is_the_position_of_the_needle(name, bundled):
    task = TASKS[name](bundled, length=400, depths=[0.0, 0.5], examples=3)
    for row, example in zip(task.rows, task.examples, strict=True):
        hidden_at = example.needle[0] / 400
        if row["depth"] == 0:
            assert hidden_at < 0.2
        elif row["reach"] == "long":
            assert 0.25 < hidden_at < 0.65
        else:
            assert hidden_at > 0.6


@pytest.mark.parametrize("name", sorted(TASKS.keys() & SETTINGS.keys()))
def test_a_seed_makes_the_same_questions_and_held_out_ones_are_others(name, bundled):
    def tokens(examples):
        return [tuple(example.tokens.tolist()) for example in examples]

    first, again = (TASKS[name](bundled, **SETTINGS[name]) for _ in range(2))
    other = TASKS[name](bundled, **SETTINGS[name], seed=1)
    assert tokens(first.examples) == tokens(again.examples)
    assert not set(tokens(first.examples)) & set(tokens(other.examples))
    assert not set(tokens(first.examples)) & set(tokens(first.held_out))


@pytest.mark.parametrize("name", sorted(TASKS.keys() & SETTINGS.keys()))
@torch.no_grad()
def test_answers_are_judged_as_by_hugging_faces_forward_pass(name, bundled, reference):
    task = TASKS[name](bundled, **SETTINGS[name])
    found = task.measure(bundled)
    row = 0
    for example in task.examples:
        log_probs = torch.log_softmax(reference(example.tokens[None]).logits[0].double(), dim=-1)
        for start, stop in example.answers:
            steps = [float(log_probs[place - 1, example.tokens[place]]) for place in range(start, stop)]
            assert float(found["log_prob"][row]) == pytest.approx(sum(steps) / len(steps), abs=1e-4)
            row += 1
    assert row == len(found["log_prob"]) == len(task.rows)


@torch.no_grad()
def test_an_exact_match_is_what_greedy_decoding_says(bundled, reference):
    task = TASKS["kv"](bundled, length=320, depths=3, examples=5, keys=8)
    found = task.measure(bundled)["exact"]
    for example, exact in zip(task.examples, found, strict=True):
        ((start, stop),) = example.answers
        said = reference.generate(
            example.tokens[None, :start],
            attention_mask=torch.ones(1, start, dtype=torch.long),
            max_new_tokens=stop - start,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert bool(exact) == torch.equal(said[0], example.tokens)
    assert 0 < float(found.mean()) < 1  # both outcomes were compared


def test_the_batch_size_changes_no_score(bundled):
    task = TASKS["passkey"](bundled, **SMALL)
    one, four = (task.measure(bundled, size)["log_prob"] for size in (1, 4))
    assert torch.allclose(one, four, atol=1e-5)


def test_perplexity_measures_the_same_tokens_with_all_and_with_little_context(bundled):
    task = TASKS["perplexity"](bundled, length=200, near=16, examples=2)
    pieces = {}
    for example in task.examples:
        for start, stop in example.answers:
            pieces.setdefault((example.unit, example.reach), []).append(tuple(example.tokens[start:stop].tolist()))
            if example.reach == "short":
                assert len(example.tokens) == 1 + 2 * 16
    for unit in (0, 1):
        assert pieces[unit, "long"] == pieces[unit, "short"]
        assert len(pieces[unit, "long"]) == (200 - 1 - 32) // 16
    whole = next(example for example in task.examples if example.reach == "long")
    alone = task.examples[1]
    assert torch.equal(alone.tokens[1:], whole.tokens[1 + 16 : 1 + 48])  # its own 16 tokens before it
    result = ph.evaluate(bundled, task)
    assert list(result.mean(["reach", "position"]).loc["long"].index) == list(range(33, 200 - 16 + 1, 16))


def test_chance_is_that_of_a_guess(bundled):
    assert TASKS["passkey"](bundled, **SMALL).chance["exact"] == 1e-5
    passkey_tokens = 6  # a blank and five digits
    assert TASKS["passkey"](bundled, **SMALL).chance["log_prob"] == pytest.approx(-5 * math.log(10) / passkey_tokens)
    assert TASKS["kv"](bundled, **SMALL, keys=4).chance["exact"] == 0.25
    assert TASKS["latest"](bundled, **SMALL, updates=4).chance["exact"] == 0.25
    assert TASKS["perplexity"](bundled, **SETTINGS["perplexity"]).chance["log_prob"] == -math.log(bundled.cfg.d_vocab)


def test_the_latest_value_is_stated_last_and_under_the_same_name_as_all_others(bundled):
    """Read back as text: one name, distinct values, and the last one is the answer, at long and at short range."""
    task = TASKS["latest"](bundled, length=300, depths=[0.0, 0.7], examples=3, updates=5)
    for example in task.examples:
        text = bytes(example.tokens[1:].tolist()).decode()
        facts, cue = re.findall(r" ([a-z]{3}) = (\d{4}); ", text), re.search(r" ([a-z]{3}) = (\d{4})$", text)
        assert [name for name, _ in facts] == [cue[1]] * 5
        assert len({value for _, value in facts}) == 5
        assert facts[-1][1] == cue[2]
        asked = text.rindex(f"{cue[1]} = {facts[-1][1]}; ")
        assert (asked > 250) == (example.reach == "short")


def test_haystack_and_needle_can_be_given(bundled):
    settings = {"statement": "The vault opens to {answer} only.", "answer": "Ada", "question": "The vault opens to"}
    task = TASKS["needle"](bundled, **settings, haystack="grass is green. " * 40, length=200, depths=2, examples=1)
    text = bytes(task.examples[0].tokens[1:].tolist()).decode()
    assert text.startswith(" The vault opens to Ada only. ")
    assert text.endswith(" The vault opens to Ada")
    assert "grass is green" in text


BAD = {
    "long": ("passkey", {"length": 513}, "length 513 must be between 2 and the model's context of 512"),
    "needle longer than context": ("needle", {"length": 100}, "more than the context of 100"),
    "short haystack": ("passkey", {"haystack": "too short"}, "haystack has 9 tokens, 4.. are needed"),
    "depth": ("kv", {"depths": [1.0]}, r"depth 1.0 must be at least 0"),
    "depths": ("kv", {"depths": 0}, "depths 0 must be at least 1"),
    "no examples": ("copy", {"examples": 0}, "examples 0 must be at least 1"),
    "no key": ("kv", {"keys": 0}, "keys 0 must be at least 1"),
    "no update": ("latest", {"updates": 1}, "updates 1 must be at least 2"),
    "cue": ("copy", {"cue": 24}, "cue 24 must be at least 1 and less than the passage of 24"),
    "no place": ("needle", {"statement": "no place"}, r"must hold \{answer\} once"),
    "no answer": ("needle", {"answer": " "}, "must not be empty"),
    "near": ("perplexity", {"near": 200}, "near 200: must be at least 1, and a window of 512"),
    "unknown": ("pass-key", {}, "task 'pass-key' is unknown: choose one of passkey, needle"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_tasks_are_refused(case, bundled):
    name, settings, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make_task(bundled, name, **settings)


def test_settings_for_a_finished_task_are_refused(bundled):
    with pytest.raises(ValueError, match="length: settings go with the name of a task"):
        make_task(bundled, lambda model: [1.0], length=3)


def test_heads_are_ablated_while_a_task_is_measured(bundled):
    heads = [ph.Head(2, 4), ph.Head(2, 0)]
    plain = ph.evaluate(bundled, "passkey", **SMALL)
    without = ph.evaluate(bundled, "passkey", heads=heads, **SMALL)
    with ph.ablated_heads(bundled, heads):
        expected = TASKS["passkey"](bundled, **SMALL).measure(bundled)
    assert torch.equal(without.measures["log_prob"], expected["log_prob"])
    assert (without.measures["log_prob"] - plain.measures["log_prob"]).mean() < -0.1
    assert torch.equal(ph.evaluate(bundled, "passkey", **SMALL).measures["log_prob"], plain.measures["log_prob"])


@pytest.mark.parametrize("mode", ["mean", "resample"])
def test_a_reference_is_taken_from_held_out_examples(mode, bundled):
    heads = [ph.Head(2, 4)]
    task = TASKS["passkey"](bundled, **SMALL)
    found = ph.evaluate(bundled, task, heads=heads, mode=mode)
    reference = torch.stack([example.tokens for example in task.held_out])
    given = ph.evaluate(bundled, task, heads=heads, mode=mode, reference=reference)
    assert torch.allclose(found.measures["log_prob"], given.measures["log_prob"], atol=1e-6)
    with pytest.raises(ValueError, match="needs reference=: the task score has no held-out examples"):
        ph.evaluate(bundled, function_named("score"), heads=heads, mode=mode)


def function_named(name):
    def function(model):
        return [0.0]

    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "foo"}, "'zero' or 'mean' .*got 'foo'"),
        ({"mode": "far", "distance": -4}, "distance -4 must be at least 1"),
        ({"mode": "far"}, "mode 'far' needs distance="),
    ],
)
def test_an_impossible_mode_is_refused_without_heads_too(given, said, bundled):
    with pytest.raises(ValueError, match=said):
        ph.evaluate(bundled, "passkey", length=64, depths=1, examples=1, **given)


def test_a_user_function_that_returns_no_numbers_is_refused_in_a_sentence(bundled):
    def mine(model):
        return next(returned)

    returned = iter(("x", None, [1, "x"], [1.0], "x"))
    for said in ("'x'", "None", r"\[1, 'x'\]"):
        with pytest.raises(TypeError, match=f"mine must return one number per example, .*it returned {said}"):
            ph.evaluate(bundled, mine)
    with pytest.raises(TypeError, match=r"mine must return one number per example, .*it returned 'x'"):
        ph.evaluate(bundled, mine)


def test_a_function_of_the_model_is_a_task(bundled):
    tokens = TASKS["passkey"](bundled, **SMALL).examples[0].tokens[None]
    result = ph.evaluate(bundled, lambda model: model(tokens)[0, :3].amax(-1), heads=[ph.Head(0, 0)])
    with ph.ablated_heads(bundled, [ph.Head(0, 0)]), torch.no_grad():
        assert torch.allclose(result.measures["score"].float(), bundled(tokens)[0, :3].amax(-1))
    assert len(result.to_frame()) == 3


def test_a_function_must_return_as_many_finite_scores_each_time(bundled):
    counter = iter(([1.0, 2.0], [1.0], [1.0, math.nan]))
    with pytest.raises(ValueError, match="returned 1 scores, 2 the first time"):
        ph.evaluate(bundled, lambda model: next(counter))
    with pytest.raises(ValueError, match="row 1 is not a finite number"):
        ph.evaluate(bundled, lambda model: [1.0, math.nan])
    with pytest.raises(ValueError, match="returned no score"):
        ph.evaluate(bundled, lambda model: [])


def test_not_a_number_is_refused_with_its_row(bundled):
    task = AnswerTask("own", (Example(torch.tensor([256, 3, 4]), ((2, 3),), 0),), (), {})
    with (
        bundled.hooks(fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z * math.nan)]),
        pytest.raises(ValueError, match="own: row 0 is not a finite number"),
    ):
        task.measure(bundled)


def runs(examples, size):
    """Every `size` tokens in a row, but for special tokens."""
    rows = [tuple(example.tokens[1:].tolist()) for example in examples]
    return {row[first : first + size] for row in rows for first in range(len(row) - size + 1)}


def numbered(model, words):
    """A text in which no 20 tokens occur twice."""
    return " ".join(f"{number * 7919 % 100000:05d}" for number in range(words))


@pytest.mark.parametrize("name", sorted(TASKS.keys() & SETTINGS.keys()))
def test_held_out_examples_share_no_text_and_no_answer_with_measured_ones(name, bundled):
    """Also where measured windows, left to themselves, would lie everywhere."""
    text = numbered(bundled, 150)  # 899 tokens
    own = {"perplexity": {}, "exam": EXAM}.get(name, {"depths": 2})
    task = TASKS[name](bundled, **{"length": 256, **own, "examples": 30, "haystack": text})
    assert task.held_out, "no new answer was drawn: answers need far more possible values than examples"
    plain = runs([Example(torch.tensor([0, *text.encode()]), (), 0)], 20)
    assert not runs(task.examples, 20) & runs(task.held_out, 20) & plain
    answers = {
        tuple(example.tokens[start:stop].tolist()) for example in task.examples for start, stop in example.answers
    }
    others = {tuple(one.tokens[start:stop].tolist()) for one in task.held_out for start, stop in one.answers}
    assert not answers & others


def test_without_room_for_held_out_text_a_reference_is_asked_for(bundled):
    for name in ("passkey", "perplexity"):
        task = TASKS[name](bundled, length=256, examples=9, haystack=numbered(bundled, 60))  # 359 tokens
        assert not task.held_out
        with pytest.raises(ValueError, match=f"needs reference=: the task {name} has no held-out examples"):
            ph.evaluate(bundled, task, heads=[ph.Head(0, 0)], mode="mean")
    every_digit = TASKS["passkey"](bundled, length=128, depths=4, examples=30, digits=1)
    assert len({int(one.tokens[-1]) for one in every_digit.examples}) == 10
    assert not every_digit.held_out


@pytest.mark.parametrize(("words", "units"), [(2000, 12), (150, 2), (60, 1)])
def test_units_of_perplexity_share_no_token(words, units, bundled, caplog):
    """Twelve windows each of 100 and 256 tokens: as many units as the text has distinct places, and it is said."""
    text = numbered(bundled, words)
    task = TASKS["perplexity"](bundled, length=[100, 256], near=16, examples=12, haystack=text)
    found = {}
    for example in task.examples:
        first = text.encode().find(bytes(example.tokens[1:].tolist()))
        assert first >= 0
        found.setdefault(example.unit, set()).update(range(first, first + len(example.tokens) - 1))
    assert sum(map(len, found.values())) == len(set().union(*found.values()))
    assert len(found) == task.settings["units"] == units
    assert ("resampled as" in caplog.text) == (units < 12)
    assert len(task.examples) == len(TASKS["perplexity"](bundled, length=[100, 256], near=16, examples=12).examples)


def test_a_result_comes_back_from_disk_with_what_was_run(bundled, tmp_path):
    result = ph.evaluate(bundled, "latest", **SMALL, heads="L2H4", mode="far", distance=9)
    assert type(result).load(result.save(tmp_path)).to_frame().equals(result.to_frame())
    back = type(result).load(tmp_path)
    assert repr(back) == repr(result)
    assert back.provenance["heads"] == ["L2H4"]
    assert back.provenance["task"].items() >= {"name": "latest", "lengths": [256], "examples": 2, "updates": 4}.items()
    assert back.provenance["ablation"] == {"mode": "far", "distance": 9, "reference": None}
    assert "\n" not in repr(result)


def test_means_by_an_unknown_column_are_refused(bundled):
    with pytest.raises(ValueError, match="passkey has no column 'topic': choose among example, unit"):
        ph.evaluate(bundled, "passkey", **SMALL).mean("topic")


def test_a_needle_at_the_position_of_its_control_is_refused(bundled):
    """At depth 0.999 of a short context the far needle is where the near one is: nothing is compared."""
    with pytest.raises(ValueError, match=r"depth 0.999 of 128 tokens is right before the question"):
        TASKS["passkey"](bundled, length=128, depths=[0.999], examples=1)
    far, near = TASKS["passkey"](bundled, length=128, depths=[0.5], examples=1).examples
    assert far.needle != near.needle
    assert not torch.equal(far.tokens, near.tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"digits": 0}, "digits 0 must be at least 1"),
        ({"batch_size": -1}, "batch_size -1 must be at least 1"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"seed": -1}, "seed -1 must be at least 0"),
        ({"lenght": 64}, "no setting lenght.*did you mean length"),
    ],
)
def test_impossible_settings_of_passkey_are_refused(settings, message, bundled):
    with pytest.raises((ValueError, TypeError), match=message):
        ph.evaluate(bundled, "passkey", **{"length": 128, "depths": 2, "examples": 1, **settings})
