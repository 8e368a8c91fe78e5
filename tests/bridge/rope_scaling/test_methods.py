"""Methods go by the names that papers give them, and settings that they do not take are refused."""

import pytest

import positional_heads as ph
from positional_heads.bridge.rope_scaling.methods import rope_method

NAMES = {
    "YaRN": "yarn",
    "PI": "linear",
    "pi": "linear",
    "Position Interpolation": "linear",
    "NTK": "ntk",
    "NTK-aware": "ntk",
    "Dynamic NTK": "dynamic",
    "Llama-3": "llama3",
    " linear ": "linear",
    "default": "none",
}


@pytest.mark.parametrize("name", NAMES)
def test_methods_go_by_the_names_that_papers_give_them(name):
    assert rope_method(name, 4) == rope_method(NAMES[name], 4)


def test_our_own_methods_go_by_other_spellings_too():
    assert rope_method("Self-Extend", group=4, window=16) == rope_method("self_extend", group=4, window=16)
    assert rope_method("SelfExtend", 4, training_length=64) == rope_method("self_extend", 4, training_length=64)
    assert rope_method("p-RoPE", keep=0.5) == rope_method("p_rope", keep=0.5)
    factors = {"short_factor": [1.0], "long_factor": [2.0]}  # the name in Phi-3's first checkpoints
    assert rope_method("su", 4, **factors) == rope_method("longrope", 4, **factors)


REFUSED = {
    "dpe": (("dpe",), {}, "method 'dpe' needs pair_groups= and window="),
    "clex": (("clex",), {}, "method 'clex' needs checkpoint="),
    "p_rope swallows a factor": (("p_rope", 4), {}, "method 'p_rope' takes no factor"),
    "self_extend swallows a factor": (("self_extend", 4), {"group": 4, "window": 16}, "'self_extend' takes no factor"),
    "dpe swallows a factor": (("dpe", 4), {"pair_groups": [1], "window": 4}, "method 'dpe' takes no factor"),
    "one number": (
        ("longrope", 4),
        {"short_factor": 1.0, "long_factor": 2.0},
        "short_factor must be a list of positive",
    ),
    "order": (("yarn", 4), {"beta_fast": 1, "beta_slow": 32}, "beta_slow 32 must be below beta_fast 1"),
    "order with a default": (("yarn", 4), {"beta_fast": 0.5}, "beta_slow 1.0 must be below beta_fast 0.5"),
    "llama3's order": (
        ("llama3", 4),
        {"low_freq_factor": 8.0},
        "low_freq_factor 8.0 must be below high_freq_factor 4.0",
    ),
    "a word": (("yarn", 4), {"beta_fast": "x"}, "beta_fast must be a positive number, got 'x'"),
    "misspelt": (("yarn", 4), {"beta_fats": 32}, "method 'yarn' has no setting beta_fats; it has attention_factor"),
    "unknown": (("yam", 4), {}, "method 'yam' is unknown: did you mean .*yarn"),
    "true": (("linear", True), {}, "factor must be a finite number or None, got True"),
    "a word for keep": (("p_rope",), {"keep": "x"}, "keep must be a finite number, got 'x'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_a_method_does_not_take_are_refused(case):
    arguments, settings, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        rope_method(*arguments, **settings)


def test_longrope_needs_one_number_for_each_pair(tiny):
    one = {"short_factor": [1.0], "long_factor": [2.0]}  # which torch would spread over all pairs
    refused = pytest.raises(ValueError, match="short_factor has 1 numbers, the model has 8 rotary pairs")
    with refused, ph.extended_rope(tiny("llama"), "longrope", 2, **one):
        pass


@pytest.mark.parametrize("where", [{"layers": []}, {"heads": []}])
def test_nothing_to_extend_is_refused(where, tiny):
    refused = pytest.raises(ValueError, match=r"no (layer|head) given")
    with refused, ph.extended_rope(tiny("llama"), "linear", 2, **where):
        pass
