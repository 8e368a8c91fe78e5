"""The report and the explorer of a folder put the same scores first; the report shows the examples beside them."""

from dataclasses import replace

import pytest

import positional_heads as ph
from positional_heads.views.report.page import read_results
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_examples import synthetic_examples
from tests.support.synthetic_profile import synthetic_profile


def of_text(result, text, weights="abc"):
    """A result as if it were of this text, and of a model of these weights."""
    data = {**result.provenance.get("data", {}), "sha256": text, "texts": [text]}
    return replace(result, provenance={**result.provenance, "data": data, "model": {**MODEL, "weights": weights}})


MODEL = {"name": "made up", "layers": 3, "heads": 4}


def first_scores(folder):
    """The text of the scores that the report shows, and of those that the explorer shows first."""
    shown = read_results(folder).scores.provenance["data"]["texts"][0]
    runs = [run for run in ph.explore(folder).document["runs"] if run["kind"] == "HeadScores"]
    return shown, runs[0]["text"]


@pytest.mark.parametrize(
    ("texts", "profiled", "first"),
    [
        ({"a_code": "code", "scores": "prose"}, None, "prose"),
        ({"a_code": "code", "scores": "prose"}, "prose", "prose"),
        ({"a_code": "code", "scores": "prose"}, "code", "code"),
        ({"a_code": "code", "scores": "prose"}, "verse", "prose"),
        ({"b": "prose", "a": "code"}, None, "code"),
        ({"b": "prose", "a": "code"}, "prose", "prose"),
        ({".": "verse", "scores": "prose"}, None, "verse"),
        ({".": "verse", "scores": "prose"}, "prose", "prose"),
    ],
)
def test_report_and_explorer_headline_the_scores_of_what_was_profiled(tmp_path, texts, profiled, first):
    for name, text in texts.items():
        of_text(synthetic_scores(), text).save(tmp_path / name / "scores.safetensors")
    if profiled is not None:
        of_text(synthetic_profile(), profiled).save(tmp_path / "profile" / "heads.safetensors")
    assert first_scores(tmp_path) == (first, first)


def test_the_same_text_read_by_another_model_is_not_what_was_profiled(tmp_path):
    of_text(synthetic_scores(), "prose", weights="other").save(tmp_path / "scores" / "scores.safetensors")
    of_text(synthetic_scores(), "prose").save(tmp_path / "z" / "scores.safetensors")
    of_text(synthetic_profile(), "prose").save(tmp_path / "profile" / "heads.safetensors")
    assert read_results(tmp_path).files[0] == "z/scores.safetensors"
    assert ph.explore(tmp_path).document["runs"][0]["file"] == "z/scores.safetensors"


def test_examples_are_those_beside_the_headlined_scores(tmp_path):
    for name, text in {"a_code": "code", "scores": "prose"}.items():
        of_text(synthetic_scores(), text).save(tmp_path / name / "scores.safetensors")
        of_text(synthetic_examples(), text).save(tmp_path / name / "examples.safetensors")
    of_text(synthetic_profile(), "prose").save(tmp_path / "profile" / "heads.safetensors")
    of_text(synthetic_examples(), "more prose").save(tmp_path / "profile" / "examples.safetensors")
    assert read_results(tmp_path).examples.provenance["data"]["texts"] == ["prose"]
    assert ph.explore(tmp_path).document["texts"][0]["run"] == next(
        run["id"] for run in ph.explore(tmp_path).document["runs"] if run["file"] == "scores/examples.safetensors"
    )
    (tmp_path / "scores" / "examples.safetensors").unlink()
    assert read_results(tmp_path).examples.provenance["data"]["texts"] == ["more prose"]  # those beside no scores
    (tmp_path / "profile" / "examples.safetensors").unlink()
    found = read_results(tmp_path)
    assert found.examples is None
    assert "examples.safetensors is left out: it lies beside other scores than those shown here." in found.notes
