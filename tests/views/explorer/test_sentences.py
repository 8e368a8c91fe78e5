"""The sentence on a head says what the results say of it, number by number, and claims nothing more."""

import math
import re
from dataclasses import replace

import pytest
import torch

import positional_heads as ph
from tests.support.explored_results import named, several_results, studied_results
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_comparison import planted_nulls
from tests.support.synthetic_examples import HOSTILE, synthetic_examples
from tests.support.synthetic_profile import synthetic_profile
from tests.support.synthetic_studies import all_heads, planted_study


@pytest.fixture(scope="module")
def several():
    return several_results()


def sentences(results):
    document = ph.explore(results).document
    return dict(zip(document["heads"], document["sentences"], strict=True))


def said(number, places=3):
    """A number as a sentence writes it."""
    text = f"{number:.{places}f}"
    return text if float(text) else f"{0:.{places}f}"


def test_scores_are_told_with_their_interval_and_judgement(several):
    frame = several["scores"].to_frame()
    told = sentences(several["scores"])
    for row in frame.to_dict("records"):
        text = told[row["name"]]
        if math.isnan(row["rho"]):
            assert text == f"{row['name']}: it has no score, because it has no rotary embedding."
            continue
        assert text.startswith(f"{row['name']}: its rho is {said(row['rho'])} (95 % interval {said(row['low'])} to ")
        side = "above" if row["excess"] >= 0 else "below"
        q = "q < 0.001" if row["q_value"] < 0.001 else f"q = {said(row['q_value'])}"
        assert f", {said(abs(row['excess']))} {side} that of shuffled positions ({q}): " in text
        beats = row["q_value"] <= 0.05 and row["excess"] > 0 and row["rho"] > 0
        assert ("it beats its null" in text) == beats
        assert ("is not shown to do so without the first 64 keys" in text) == beats
    assert sum("it beats its null" in text for text in told.values()) == 1
    assert not any("still does so" in text for text in told.values())


def test_a_head_that_stays_is_said_to(several):
    scores = several["scores"]
    told = sentences(replace(scores, control=replace(scores, control=None)))
    assert [head for head, text in told.items() if "and still does so without the first 64 keys" in text] == ["L0H3"]


def test_a_significant_excess_below_zero_is_no_positional_head():
    scores = synthetic_scores()
    lowered = replace(scores, rho=scores.rho - 0.45, null=replace(scores.null, rho=scores.null.rho - 0.45))
    assert bool(lowered.significant()[0, 3])
    text = sentences(lowered)["L0H3"]
    assert "above its null, but not positive, so it is no Positional Head" in text
    assert "beats" not in text


def test_without_a_null_nothing_is_claimed_and_without_groups_no_interval_is_given():
    told = sentences(synthetic_scores(null=False, bootstrap=False))
    assert told["L0H3"] == "L0H3: its rho is 0.400: no null was computed to judge it by."


def test_a_profile_names_a_head_and_says_how_far_it_looks():
    profile = synthetic_profile()
    told, frame = sentences(profile), profile.to_frame().set_index("name")
    for head in frame.index[:8]:
        row, text = frame.loc[head], told[head]
        names = row["names"].split(", ")
        words = "a head without a name of its own" if names == ["mixed"] else "head: its attention past the first key"
        assert words in text
        opening = text.split(" head")[0]
        assert names == ["mixed"] or all(name in opening for name in names)
        reach, low, high = (said(row[name], 1) for name in ("reach", "reach_low", "reach_high"))
        assert f"reaches {reach} tokens back on average (95 % interval {low} to {high})" in text
        far = f"queries that have such keys 4 or more tokens back, {said(100 * row['distant_mass'], 0)} % goes there"
        assert far in text
        assert f"{said(100 * row['sink_mass'], 0)} % of all its attention rests on the first key." in text
    assert told["L2H0"] == "L2H0: it has no score, because it has no rotary embedding."


def test_with_several_texts_it_is_said_which_one_and_what_another_says_otherwise(several):
    scores = several["scores"]  # L0H3 beats its null, and is not shown to without the first keys

    def other(text, shift=0.001, **changed):
        return named(replace(scores, rho=scores.rho + shift, **changed), text)

    stays = other("code", control=replace(scores, control=None))
    never = [other(f"text {number}", -2 - number) for number in range(4)]
    assert [str(head) for head in stays.positional_heads(alpha=0.05, stays=True)] == ["L0H3"]
    for others, said_of_it in (
        ([stays], " On code it beats its null, also without the first 64 keys."),
        (never[:1], " On text 0 it is not shown to beat its null."),
        (never[:2], " On text 0 and on text 1 it is not shown to beat its null."),
        ([*never[:1], stays], " On text 0 it is not shown to beat its null; on code it beats its null, also without t"),
        (never, " In 4 other results it is not shown to beat its null."),
        ([other("alike")], ""),
        ([other("without a control", control=None)], ""),
        ([other("without a null", null=None, control=None)], ""),
    ):
        told = sentences([scores, *others])
        assert all("prose it" in text for text in told.values())
        before, after = told["L0H3"].split("is not shown to do so without the first 64 keys.")
        assert before.startswith("L0H3: on prose its rho is 0.")
        assert after.startswith(said_of_it)
        assert bool(after) == bool(said_of_it)
        assert [head for head, text in told.items() if "it beats its null" not in text and ". On text" in text] == []
    told = sentences([stays, scores])["L0H3"]
    assert told.endswith("On prose it beats its null, but is not shown to without the first 64 keys.")
    assert "On code it beats" in sentences({"a": scores, "b": stays})["L0H3"]
    again = other("prose", control=stays.control)
    told = sentences({"base": scores, "tuned": again})["L0H3"]
    assert told.startswith("L0H3: in base its rho is ")
    assert told.endswith(" In tuned it beats its null, also without the first 64 keys.")


def test_attention_on_another_text_is_said_to_be_of_it(several):
    elsewhere = named(several["profile"], "elsewhere")
    elsewhere = replace(elsewhere, scores=several["scores"])
    assert ": on elsewhere its attention past" in sentences([several["scores"], elsewhere])["L0H3"]
    assert " on prose " not in sentences([several["scores"], several["profile"]])["L0H3"]


def test_compared_runs_are_called_by_their_texts_if_only_these_differ(several):
    told = sentences(several["compared"])["L0H3"]
    assert "rom prose to code its rho " in told
    tuned = named(several["other"], "code", weights="tuned")
    told = sentences(ph.compare(several["scores"], tuned, names=["base", "tuned"]))["L0H3"]
    assert "rom base to tuned its rho " in told
    alike = [named(several[name], f"/{name}/one.txt") for name in ("scores", "other")]
    assert "rom a to b its rho " in sentences(ph.compare(*alike))["L0H3"]


def test_articles_and_lists_of_names_are_english():
    profile = synthetic_profile()
    values = {name: torch.zeros(5, 3, 4, dtype=torch.float64) for name in profile.sums}
    values["induction"][:, 0, 0] = 1
    values["sink_mass"][:, 0, 1] = values["previous_token"][:, 0, 1] = values["retrieval"][:, 0, 1] = 1
    told = sentences(replace(profile, sums=values))
    assert told["L0H0"].startswith("L0H0 is an induction and local head: ")
    assert told["L0H1"].startswith("L0H1 is a retrieval, previous token and sink head: ")


def test_an_effect_is_told_with_its_interval_and_no_effect_as_none():
    study = studied_results()["ablation"]
    told, frame = sentences(study), study.by_head()
    for row in frame.to_dict("records"):
        text = told[row["name"]]
        sign = "+" if row["long"] > 0 else ""
        assert f"ablating it alone changes log_prob of planted (long) by {sign}{said(row['long'])} (95 % int" in text
        assert ("no effect is shown" in text) == (row["long low"] <= 0 <= row["long high"])
    assert [head for head, text in told.items() if not text] == [str(head) for head in all_heads()[16:]]


def test_too_few_answers_have_no_interval():
    study = planted_study(*torch.ones(2, 4, 8).numpy(), all_heads(), singles=2, units=2, sizes=(2,))
    text = sentences(study)["L0H0"]
    assert text.endswith(", of too few answers for an interval.")
    assert "nan" not in text


def test_a_change_is_told_and_one_that_is_not_shown_is_not_claimed():
    comparison = ph.compare(*planted_nulls(), names=["base", "tuned"])
    told, frame = sentences(comparison), comparison.to_frame()
    for row in frame.to_dict("records"):
        text = told[row["name"]]
        changed = row["change_q"] <= 0.05
        assert ("from base to tuned its rho changes" in text) == changed
        assert ("from base to tuned its rho is not shown to change" in text) == (not changed)
        assert f"{said(abs(row['change']))}" in text
    assert {True, False} == {value <= 0.05 for value in frame["change_q"]}


def test_all_that_is_known_is_three_sentences(several):
    told = sentences([several["scores"], several["profile"], several["compared"]])
    for head, text in told.items():
        assert text.startswith(head)
        assert len(re.findall(r"\.(?: |$)", text)) <= 3
        assert "nan" not in text
        assert "None" not in text


def test_names_of_tasks_and_runs_stay_text(several):
    for name in HOSTILE:
        study = replace(planted_study(*torch.ones(2, 4, 8).numpy(), all_heads(), singles=2, sizes=(2,)), task=name)
        told = [*sentences(study).values()]
        told += sentences(ph.compare(several["scores"], several["other"], names=["a", name])).values()
        assert all(text.isprintable() for text in told)


def test_texts_alone_say_nothing_of_heads():
    assert {*sentences(named(synthetic_examples(), layers=1, heads=2)).values()} == {""}
