"""The public functions share one vocabulary: an argument has one name, type and default wherever it is taken."""

import inspect
import math
from collections import defaultdict

import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.model import TransformerLensModel

VERBS = {name: getattr(ph, name) for name in ph.__all__ if inspect.isfunction(getattr(ph, name))}
ON_A_MODEL = {name: verb for name, verb in VERBS.items() if "model" in inspect.signature(verb).parameters}
TEXT = ("score_heads", "score_shard", "profile_heads", "contribution_profile", "head_examples", "distance_profile")
TEXT += ("dominant_dimension_cache",)
STUDIES = ("extrapolation_study", "base_sweep", "jump_study")
MAY_DIFFER = {
    "heads": "what acts on heads needs some; what may act on all of them takes None, and `evaluate` none",
    "task": "a study has a default; a study of lengths makes the task at each length and takes its name only",
    "how": "a plan freezes or drops the pairs that it does not keep; any pair may be moved in more ways",
    "sequences": "a text is cut as a whole unless some are asked for; a study needs a number",
    "window": "a profile needs one; a plan takes that of its profile unless another is given",
    "sinks": "a mask hides all far keys unless asked; a profile leaves out four, and a plan takes those of its profile",
    "pairs": "rotary pairs by number; where query-key pairs are sampled how many, as in `score_heads`",
    "methods": "a recommendation tries those that a configuration can express",
    "n_random": "sets of pairs are drawn for each head, so a few are many over all heads",
    "factors": "of frequencies in a sweep of bases, of lengths in a study of methods",
}
"""Arguments that are not the same everywhere, and why."""


def shared_arguments(verbs):
    """(verb, parameter) of each argument that several take, by its name."""
    found = defaultdict(list)
    for name, verb in verbs.items():
        for parameter in inspect.signature(verb).parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD:
                found[parameter.name].append((name, parameter))
    return {argument: uses for argument, uses in found.items() if len(uses) > 1}


SHARED = shared_arguments(ON_A_MODEL)


@pytest.mark.parametrize("argument", sorted(SHARED))
def test_an_argument_has_one_type_and_one_default(argument):
    kinds, defaults = defaultdict(list), defaultdict(list)
    for verb, parameter in SHARED[argument]:
        kinds[inspect.formatannotation(parameter.annotation)].append(verb)
        defaults[repr(parameter.default)].append(verb)
    if argument not in MAY_DIFFER:
        assert len(kinds) == 1, dict(kinds)
        assert len(defaults) == 1, dict(defaults)


def test_a_model_comes_first_and_has_our_own_type():
    for name, verb in ON_A_MODEL.items():
        first = next(iter(inspect.signature(verb).parameters.values()))
        assert (first.name, first.annotation) == ("model", TransformerLensModel), name


def test_text_is_called_tokens_and_comes_second():
    for name in (*TEXT, *STUDIES):
        assert list(inspect.signature(VERBS[name]).parameters)[1] == "tokens", name


def test_heads_are_called_heads():
    taking = {name for name, verb in ON_A_MODEL.items() if "heads" in inspect.signature(verb).parameters}
    assert {"evaluate", "evaluate_harness", "ablated_heads", "ablation_hooks", "extended_rope"} <= taking
    assert {"contribution_profile", "head_examples", "extrapolation_study"} <= taking
    assert not {"ablate", "head"} & {*SHARED}


TOKENS = torch.randint(256, (1, 24), generator=torch.Generator().manual_seed(0))
PROMPTS = {"task": "passkey", "length": 64, "depths": 1, "examples": 1}


def entered(block):
    with block as value:
        return value


@torch.no_grad()
def ablated(model, heads):
    with ph.ablated_heads(model, heads):
        return model(TOKENS).tolist()


@torch.no_grad()
def moved(model, heads):
    with ph.manipulated_pairs(model, heads, [0], shared="split"):
        return model(TOKENS).tolist()


def cache(model):
    _, run = model.run_with_cache(TOKENS)
    run.cache_dict.update(ph.dominant_dimension_cache(model, TOKENS, contributions=True).cache_dict)
    return run


BY_HEADS = {
    "ablated_heads": ablated,
    "manipulated_pairs": moved,
    "ablation_hooks": lambda model, heads: [name for name, _ in ph.ablation_hooks(model, heads)],
    "contribution_profile": lambda model, heads: ph.contribution_profile(model, TOKENS, heads).heads,
    "head_examples": lambda model, heads: ph.head_examples(model, TOKENS[0], heads).heads,
    "examples_from_cache": lambda model, heads: ph.examples_from_cache(cache(model), heads, ["a"] * 24).heads,
    "extended_rope": lambda model, heads: entered(ph.extended_rope(model, "yarn", 2, heads=heads)).provenance["heads"],
    "evaluate": lambda model, heads: ph.evaluate(model, heads=heads, **PROMPTS).measures["log_prob"].tolist(),
}


@pytest.mark.parametrize("verb", BY_HEADS)
def test_heads_are_given_in_one_of_four_forms(verb, tiny):
    model = tiny("llama")
    expected = BY_HEADS[verb](model, [ph.Head(1, 2)])
    for form in (ph.Head(1, 2), (1, 2), "L1H2", ["L1H2"]):
        assert BY_HEADS[verb](model, form) == expected, form
    with pytest.raises(ValueError, match=r"'head 2'.*L3H7"):
        BY_HEADS[verb](model, "head 2")


WITH_TEMPERATURE = {
    "score_heads": lambda model, value: ph.score_heads(model, TOKENS, temperature=value),
    "contribution_hooks": lambda model, value: entered(ph.contribution_hooks(model, temperature=value)),
    "dominant_dimension_cache": lambda model, value: ph.dominant_dimension_cache(model, TOKENS, temperature=value),
    "head_examples": lambda model, value: ph.head_examples(model, TOKENS[0], "L0H1", temperature=value),
}


def test_every_verb_with_a_temperature_is_known():
    scoring = {"score_heads", "score_shard"}  # by `ScoringSettings`, the same for both
    own = {name for name, parameter in SHARED["temperature"]}
    assert own | scoring == {*WITH_TEMPERATURE, "score_shard"}
    assert "temperature" in ph.ScoringSettings.__dataclass_fields__


@pytest.mark.parametrize("verb", WITH_TEMPERATURE)
@pytest.mark.parametrize("value", [1, 2.5, "attention"])
def test_a_temperature_is_a_positive_number_or_the_word_attention(verb, value, tiny):
    WITH_TEMPERATURE[verb](tiny("llama"), value)


@pytest.mark.parametrize("verb", WITH_TEMPERATURE)
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "attn", None])
def test_values_that_are_not_temperatures_are_refused_before_anything_runs(verb, value, tiny, monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises((TypeError, ValueError), match="temperature"):
        WITH_TEMPERATURE[verb](model, value)
