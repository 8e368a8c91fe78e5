"""What a report prints to repeat a score loads the same weights in the same state, or says what it leaves out."""

import inspect
from dataclasses import fields

import pytest
import torch

import positional_heads as ph
from positional_heads.cli.score import score
from positional_heads.results.edits import measured_under
from positional_heads.scoring.settings import ScoringSettings
from positional_heads.views.report.caveats import caveats
from positional_heads.views.report.commands import OPTIONS, WITHOUT_OPTION, score_command
from positional_heads.views.report.lines import score_lines
from tests.support.synthetic import synthetic_scores


def provenance(name="planted", **model):
    found = synthetic_scores(name=name).provenance
    return {**found, "model": {**found["model"], **model}}


def comments(command):
    return "\n".join(command.splitlines()[1:])


def test_every_setting_is_an_option_or_said_to_have_none():
    assert {*OPTIONS, *WITHOUT_OPTION} == {field.name for field in fields(ScoringSettings)}
    defaults = {field.name: field.default for field in fields(ScoringSettings)}
    assert {name: defaults[name] for name in WITHOUT_OPTION} == WITHOUT_OPTION
    of_command = {name: one.default for name, one in inspect.signature(score).parameters.items()}
    for name, (option, default) in OPTIONS.items():
        assert option == "--" + name.replace("_", "-")
        assert default == (float(of_command[name]) if name == "temperature" else of_command[name])


EXTENDED = {
    "heads": (
        ("self_extend",),
        {"group": 2, "window": 8, "heads": ["L0H1", "L2H4"]},
        "group=2, window=8, training_length=32, heads=['L0H1', 'L2H4'])",
    ),
    "layers": (
        ("yarn", 4),
        {"beta_fast": 16, "layers": [1, 3]},
        "ph.extended_rope(model, 'yarn', factor=4, beta_fast=16, training_length=32, layers=[1, 3])",
    ),
}


@pytest.mark.parametrize("case", EXTENDED)
def test_the_lines_repeat_an_extended_context(case, bundled, monkeypatch):
    method, settings, said = EXTENDED[case]
    tokens = ph.cut_text(bundled, ph.bundled_text("code"), 40, sequences=2)
    with ph.extended_rope(bundled, *method, training_length=32, **settings):
        scores = ph.score_heads(bundled, tokens, bins=64, resamples=5)
    lines = score_lines(scores.provenance)
    assert said in lines
    assert "an extended context" in comments(score_command(scores.provenance))
    monkeypatch.setattr(ph, "load_bundled_model", lambda: bundled)
    namespace: dict[str, object] = {}
    exec(lines, namespace)
    assert torch.equal(namespace["scores"].rho, scores.rho)
    assert namespace["scores"].provenance == scores.provenance


def test_the_lines_repeat_moved_pairs_and_every_text_names_them(bundled, monkeypatch):
    tokens = ph.cut_text(bundled, ph.bundled_text("code"), 40, sequences=2)
    plain = ph.score_heads(bundled, tokens, bins=64, resamples=5)
    with (
        ph.manipulated_pairs(bundled, ["L0H1", "L2H4"], [3], "scale", factor=0.5, shared="split"),
        ph.manipulated_pairs(bundled, "L2H4", [4, 5], "remap", to=[5, 4], shared="split"),
        ph.manipulated_pairs(bundled, "L0H1", how="swap_bands", n=2, shared="split"),
    ):
        scores = ph.score_heads(bundled, tokens, bins=64, resamples=5)
    words = (
        "pair 3 of L0H1, L2H4 turned 0.5 times as fast and pairs 4, 5 of L2H4 turned as pairs 5, 4 and "
        "the 2 fastest and the 2 slowest pairs of L0H1 swapped"
    )
    lines = score_lines(scores.provenance)
    assert f"the model was run with {words}: no option does that" in comments(score_command(scores.provenance))
    assert f"The model was scored with {words}, not as it was trained." in caveats(scores, [], [])
    assert f"(none against {words[:20]}" in str([str(one) for one in ph.compare(plain, scores).differing])
    monkeypatch.setattr(ph, "load_bundled_model", lambda: bundled)
    namespace: dict[str, object] = {}
    exec(lines, namespace)
    assert torch.equal(namespace["scores"].rho, scores.rho)
    assert namespace["scores"].provenance == scores.provenance


@pytest.mark.parametrize(
    ("how", "given", "words"),
    [
        ("freeze", {"pairs": [3, 4]}, "pairs 3, 4 of L1H2 frozen"),
        ("zero", {"pairs": [3]}, "pair 3 of L1H2 left out"),
        ("drop_slowest", {"n": 4}, "the 4 slowest pairs of L1H2 frozen"),
        ("drop_fastest", {"n": 4}, "the 4 fastest pairs of L1H2 frozen"),
    ],
)
def test_each_way_of_moving_pairs_has_its_words(how, given, words):
    extension = {
        "method": "manipulated_pairs",
        "moves": [{"how": how, "heads": ["L1H2"], **given}],
        "heads": {"1": [2]},
    }
    assert measured_under(provenance() | {"extension": extension}) == words


def test_the_lines_fail_on_other_weights():
    """The assertions alone, with the scores that they are about."""
    scores = synthetic_scores()
    lines = score_lines(scores.provenance)
    asserted = lines[lines.index("assert ") :]
    exec(asserted, {"scores": scores})
    scores.provenance["model"]["weights"] = "abd"
    with pytest.raises(AssertionError):
        exec(asserted, {"scores": scores})


def test_an_extension_without_a_name_is_described():
    extension = {"method": "base", "factor": 1.0, "base": 9.0, "training_length": 8, "heads": {"0": None}}
    lines = score_lines(provenance() | {"extension": extension})
    assert "# in the block of ph.extended_rope that gives {'method': 'base', " in lines
    assert "with ph" not in lines


def test_sequences_beyond_the_context_are_cut_so():
    found = provenance(context=8)
    assert "ph.cut_text(model, Path('TEXT.txt'), 9, beyond_context=True)" in score_lines(found)
    assert "    beyond_context=True,\n)" in score_lines(found)
    assert "sequences of 9 tokens are beyond the model's context" in score_command(found)
    assert "beyond" not in score_lines(provenance(context=9)) + score_command(provenance(context=9))


@pytest.mark.parametrize(
    ("name", "model", "line", "comment"),
    [
        ("bundled at step 250", {}, "model = ph.load_bundled_model(250)\n", "ph.load_bundled_model(250): no command"),
        (
            *("base with adapter default", {}),
            "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('base', dtype='float32'), 'ADAPTER')",
            "the adapter was in the layers of a model that was loaded already",
        ),
        ("m", {"compatibility_mode": True}, "\nmodel.enable_compatibility_mode()\n", "was in compatibility mode"),
        (
            *("m", {"quantization_config": {"quant_method": "quanto", "weights": "int8"}}),
            "AutoQuantizationConfig.from_dict({'quant_method': 'quanto', 'weights': 'int8'}))\n",
            "no option for quantising weights while they are loaded, quantization_config {'quant_method'",
        ),
        ("m", {"quantization_config": "Own()"}, "# give quantization_config to load_model: Own()\n", "Own()"),
        ("m", {}, "[\"weights\"] == 'abc'  # the same weights", "# the same weights have the fingerprint abc"),
    ],
)
def test_how_a_model_was_loaded_is_repeated_or_told(name, model, line, comment):
    found = provenance(name, **model)
    assert line in score_lines(found)
    compile(score_lines(found), "lines", "exec")
    assert comment in comments(score_command(found))


def test_the_command_of_a_model_names_one_that_can_be_loaded():
    assert score_command(provenance("bundled at step 250")).startswith("positional-heads score bundled --text")
    assert score_command(provenance("base with adapter default")).startswith("positional-heads score base --text")
