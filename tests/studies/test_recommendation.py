"""A recommendation's numbers are those of its parts run alone, it resumes, and it refuses impossible questions."""

import json

import pytest
import torch
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.bridge.model_size import windows_by_layer
from positional_heads.cli import app
from positional_heads.results.files import FINISHED_FILE_NAME
from positional_heads.studies import recommendation, resume
from positional_heads.studies.candidates import candidates, smaller_plans
from positional_heads.studies.recommendation import recommend_extension
from positional_heads.studies.tasks.recall import passkey
from positional_heads.studies.tasks.task import AnswerTask

SMALL = {"training_length": 64, "sequences": 4, "depths": 2, "examples": 1}
HEADS = ["L0H1", "L2H4"]


@pytest.fixture(scope="module")
def made(bundled):
    chosen = ["linear", "dynamic", "self_extend"]
    return recommend_extension(bundled, ph.bundled_text(), 128, methods=chosen, factors=[2], heads=HEADS, **SMALL)


def losses_of(bundled, rows, start):
    with torch.no_grad():
        logits = bundled(rows)[:, start - 1 : -1]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, start:], reduction="none")
    return each.mean(-1).double()


def test_losses_and_answers_are_those_of_each_part_run_alone(made, bundled):
    assert made.labels == ["none", "linear 2", "dynamic 2", "self_extend 2"]
    text = torch.cat(ph.cut_text(bundled, ph.bundled_text()))
    ids = text[text != bundled.tokenizer.bos_token_id][: 4 * 127].view(4, 127)
    rows = torch.cat([torch.full((4, 1), bundled.tokenizer.bos_token_id), ids], dim=1)
    for place, (name, factor) in enumerate([("none", 1.0), ("linear", 2.0), ("dynamic", 2.0), ("self_extend", 2.0)]):
        with ph.extended_rope(bundled, name, factor, training_length=64):
            assert torch.allclose(made.losses[place], losses_of(bundled, rows, 64), atol=1e-4), name
            assert torch.allclose(made.losses_within[place], losses_of(bundled, rows[:, :64], 1), atol=1e-4), name
            task = passkey(bundled, length=128, depths=[0.0, 0.25], examples=1)
            answers = task.measure(bundled)["log_prob"]
        kept = [index for index, row in enumerate(task.rows) if row["reach"] == "long" and row["distance"] >= 64]
        assert kept
        assert torch.allclose(made.answers["log_prob"][place], answers[kept], atol=1e-4), name
    assert torch.equal(made.losses_within[2], made.losses_within[0])  # dynamic NTK leaves short texts alone


def test_blocks_are_given_where_a_configuration_can_say_it(made):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    lengths = {"max_position_embeddings": 128, "original_max_position_embeddings": 64}
    assert made.blocks[1] == {**lengths, "rope_theta": 10_000.0, "rope_scaling": rope}
    assert [block is None for block in made.blocks] == [True, False, False, True]
    assert made.reasons == [None, None, None, "needs code, not a config: it rewrites attention scores"]


def test_a_model_that_can_do_without_is_left_as_it_is(made):
    """The bundled model was trained on 512 tokens, not on 64: no extension can help it to 128."""
    assert made.taken is None
    assert made.verdict.startswith("Keep the model as it is: of 2 candidates")
    assert made.config is None


def test_curves_and_pairs_are_those_of_the_model_as_it_is(made, bundled):
    rows = torch.stack(ph.cut_text(bundled, ph.bundled_text(), 128)[:2])
    study = ph.extrapolation_study(
        bundled, rows, ["none"], [2], heads=HEADS, training_length=64, depths=[0.0], examples=1
    )
    found = made.head_frame().set_index("name")
    for row in study.by_head().to_dict("records"):
        assert found.loc[row["head"], "jump"] == pytest.approx(row["jump"], abs=0.05), row
        assert found.loc[row["head"], "rho"] == pytest.approx(row["rho_within"], abs=1e-3), row
    expected = [10_000.0 ** (-2 * pair / 32) for pair in range(16)]
    assert made.frequencies[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert made.kinds[0].layers == [0, 1, 2, 3]


def test_nothing_is_run_where_there_is_nothing_to_do(bundled, tiny, monkeypatch):
    monkeypatch.setattr(recommendation, "long_rows", None)
    within = recommend_extension(bundled, "a", 512)
    assert within.verdict == "Nothing to do: 512 tokens are within the 512 that the model was trained on."
    assert (within.taken, within.config, len(within.to_frame())) == (None, None, 0)
    assert "nothing to try" in within.description
    windowed = recommend_extension(tiny("mistral"), "a", 1000)
    assert "every layer sees at most 12 tokens back, within the 256" in windowed.verdict
    assert "window of 12 tokens is within the training length" in windowed.diagnosis


def test_layers_with_a_window_are_not_extended(tiny):
    model = tiny("gemma3")
    text = torch.randint(256, (4, 300), generator=torch.Generator().manual_seed(0))
    found = recommend_extension(model, text, 300, methods=["linear"], factors=[2], task=None)
    with ph.extended_rope(model, "linear", 2.0, layers=[1]):
        expected = losses_of(model, text, 256)
    assert torch.allclose(found.losses[1], expected, atol=1e-4)
    assert found.blocks[1]["rope_scaling"]["rope_theta"] == 1_000_000.0
    assert windows_by_layer(model.original_model.config) == {0: 12, 1: None}
    assert "No task was asked for" in " ".join(found.notes)
    assert found.answers == {}


def test_a_model_that_recalls_nothing_is_not_asked_to(tiny):
    text = torch.randint(256, (4, 340), generator=torch.Generator().manual_seed(0))
    found = recommend_extension(tiny("llama"), text, 340, methods=["ntk"], factors=[2], heads="L0H1", depths=2)
    assert "recalls 0% of the answers of passkey within its 256 training tokens" in " ".join(found.notes)
    assert found.notes[0] == "4 sequences are used, 8 were asked for."
    assert [str(head) for head in found.heads] == ["L0H1"]


BAD = {
    "target": ({"target_length": 1}, "target_length 1 must be at least 2"),
    "text": ({"text": "too few"}, "the text has 7 tokens, a sequence at the target length needs 128"),
    "tokens": ({"text": torch.zeros(1, 100, dtype=torch.long)}, "sequences of 100 tokens.*target length needs 128"),
    "method": ({"methods": ["ntkk"]}, "method 'ntkk' is unknown: did you mean ntk"),
    "method with settings": ({"methods": ["longrope"]}, "method 'longrope' needs short_factor and long_factor"),
    "no method": ({"methods": []}, "no method or no factor given"),
    "factor": ({"factors": [0.5]}, "factor 0.5 must be above 1"),
    "factor twice": ({"factors": [2, 2.0]}, "factors names 2 twice"),
    "reach": (
        {"methods": [ph.rope_method("self_extend", group=2, window=60)]},
        "self_extend .* reaches .* tokens from 64, not 128: give larger factors",
    ),
    "task": ({"task": "perplexity"}, "task 'perplexity' has no answers at known distances"),
    "head": ({"heads": "L9H0"}, "L9H0 does not exist"),
    "depth": ({"depths": [0.1, 1.0]}, "depth 1.0 must be at least 0 .* and below 1"),
    "depths": ({"depths": [0.9]}, "no answer of passkey lies 64 tokens back or more in 128 tokens: give smaller"),
    "examples": ({"examples": 0}, "examples 0 must be at least 1"),
    "digits": ({"digits": 0}, "digits 0 must be at least 1"),
    "haystack": ({"haystack": "short"}, "the haystack has .* tokens, .* are needed"),
    "sequences": ({"sequences": 0}, "sequences 0 must be at least 1"),
    "budget": ({"budget": 0.0}, "budget 0.0 must be a number of minutes above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_questions_are_refused_before_anything_is_run(case, bundled, monkeypatch):
    monkeypatch.setattr("positional_heads.studies.extrapolation.score_heads", None)
    monkeypatch.setattr(AnswerTask, "measure", lambda *_: pytest.fail("something was run"))
    settings, message = BAD[case]
    given = {"text": ph.bundled_text(), "target_length": 128, "methods": ["linear"], **SMALL, **settings}
    with pytest.raises(ValueError, match=message):
        recommend_extension(bundled, given.pop("text"), given.pop("target_length"), **given)


def test_models_that_cannot_be_extended_are_refused(bundled, tiny, monkeypatch):
    with pytest.raises(ph.UnsupportedModelError, match="not rotary"):
        recommend_extension(tiny("gpt2"), "a text", 400)
    own = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10_000.0}
    with pytest.raises(
        ph.UnsupportedModelError, match=r"extended already: layer 0 .* type yarn, by a factor of 4 from 64"
    ):
        recommend_extension(tiny("llama", rope_parameters=own), "a text", 400)
    with (
        ph.extended_rope(bundled, "yarn", 2.0),
        pytest.raises(RuntimeError, match="extended already: leave the extended_rope block"),
    ):
        recommend_extension(bundled, ph.bundled_text(), 1024)
    rope = ph.plain_rope(tiny("llama"))
    monkeypatch.setitem(vars(rope.config), "max_position_embeddings", None)
    with pytest.raises(ValueError, match="states no max_position_embeddings: give training_length="):
        recommend_extension(tiny("llama"), "a text", 400)


def test_a_budget_leaves_out_the_larger_factors_and_then_the_last_methods():
    trials = candidates(["yarn", "none", "ntk"], None, 64, 256)
    assert [trial.label for trial in trials] == ["none", "yarn 4", "yarn 8", "ntk 4", "ntk 8"]
    labels = [plan.labels for plan in smaller_plans(trials)]
    assert labels == [
        ["none", "yarn 4", "yarn 8", "ntk 4", "ntk 8"],
        ["none", "yarn 4", "ntk 4"],
        ["none", "yarn 4"],
    ]


def test_a_budget_is_said_to_be_too_small_or_kept(bundled, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(resume, "clock", lambda: now[0])

    def losses(model, rows, *_):
        now[0] += 30.0  # a minute for each candidate
        return torch.ones(len(rows), dtype=torch.float64)

    monkeypatch.setattr(recommendation, "text_losses", losses)
    given = {"methods": ["yarn", "ntk"], "heads": "L0H1", "task": None, "training_length": 64, "sequences": 4}
    found = recommend_extension(bundled, ph.bundled_text(), 128, budget=3.5, **given)
    assert found.labels == ["none", "yarn 2", "ntk 2"]
    assert found.provenance["budget"]["left_out"] == ["the methods yarn 4, ntk 4"]
    assert "Left out for a budget of 3.5 minutes" in found.notes[0]
    assert found.description.endswith("left out for a budget of 3.5 minutes: the methods yarn 4, ntk 4")
    with pytest.raises(ValueError, match=r"budget 1\.5 is too small: none and yarn 2 would take about 2 minutes"):
        recommend_extension(bundled, ph.bundled_text(), 128, budget=1.5, **given)
    capsys.readouterr()
    recommend_extension(bundled, ph.bundled_text(), 128, progress=True, **given)
    assert "4 candidates besides no extension: about 4 minutes left to run; a budget leaves" in capsys.readouterr().err


def test_from_the_command_line_and_resumed(tmp_path, monkeypatch, made):
    out = tmp_path / "out"
    arguments = ["recommend", "bundled", "--target-length", "128", "--methods", "linear,dynamic", "--factors", "2"]
    arguments += ["--training-length", "64", "--depths", "2", "--examples", "1", "--sequences", "4", "--in-order"]
    arguments += ["--out", str(out)]
    real, measured = recommendation.text_losses, []

    def dying(*given):
        measured.append(given)
        if len(measured) > 4:  # two runs of each of two candidates
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(recommendation, "text_losses", dying)
    stopped = CliRunner().invoke(app, arguments)
    assert stopped.exit_code == 130, stopped.output
    assert "positional-heads recommend command" in CliRunner().invoke(app, ["show", str(out)]).output
    monkeypatch.setattr(recommendation, "text_losses", lambda *given: measured.append(given) or real(*given))
    measured.clear()
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert len(measured) == 2  # only the candidate that was interrupted
    found = ph.Recommendation.load(out)
    assert torch.equal(found.losses[:3], made.losses[:3])
    assert {file.name for file in out.iterdir()} == {
        *(
            "recommendation.safetensors",
            "recommendation.csv",
            "loss_by_factor.png",
            "pairs.csv",
            "heads.csv",
            "recommendation.md",
        ),
    }
    assert not (out / FINISHED_FILE_NAME).exists()
    shown = CliRunner().invoke(app, ["show", str(out)])
    assert found.verdict in shown.output
    assert found.diagnosis in shown.output
    as_json = json.loads(CliRunner().invoke(app, ["show", str(out), "--json"]).output)
    assert as_json["config"] is None
    assert [row["candidate"] for row in as_json["table"]] == found.labels
    refused = CliRunner().invoke(app, [*arguments, "--methods", "yarm", "--overwrite"])
    assert refused.exit_code == 1
    assert "did you mean yarn" in refused.output


def test_the_block_is_printed_as_json_that_can_be_pasted(tmp_path):
    from tests.support.synthetic_recommendation import planted_recommendation

    made = planted_recommendation()
    written = ph.views.write_report(made, tmp_path)
    assert tmp_path / "rope_scaling.json" in written
    assert json.loads((tmp_path / "rope_scaling.json").read_text()) == made.config
    shown = CliRunner().invoke(app, ["show", str(tmp_path)]).output
    block = shown.split("in place of what is there:\n")[1].split("\n\n")[0]
    assert json.loads(block) == made.config
    assert "rope_parameters (transformers 5), if the file has it, may stay" in shown
    assert (
        "rope_parameters (transformers 5), if the file has it, may stay" in (tmp_path / "recommendation.md").read_text()
    )
