"""Pairs moved head by head, against Hugging Face's own forward with its rotation replaced.

The oracle turns queries and keys by angles of its own, `position * frequency` in float64 from the base of the
configuration; it repeats key heads for the query heads, so that each query head has its own.
"""

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, DynamicCache

import positional_heads as ph
from positional_heads.bridge.active_extension import extension_provenance
from positional_heads.bridge.answer_run import answer_run, runs_plainly
from tests.support.extended import contributions_by_distance, dominant_dimension
from tests.support.tiny_models import ADJACENT

TOKENS = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(3))
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "gemma3": ("gemma3", {}),
    "neox": ("neox", {}),
    "gptj": ("gptj", {}),
    "codegen": ("codegen", {}),
    "yarn": ("llama", {"rope_parameters": YARN}),
}
FEW = ("codegen", "yarn")
"""Families that the ways of moving do not tell from others."""
SCORES = [f"blocks.{layer}.attn.hook_attn_scores" for layer in (0, 1)]


def ways(pairs):
    """Arguments of every way of moving, for heads with so many pairs, and what the oracle makes of a phase of them."""
    last, half = pairs - 1, pairs // 2
    return {
        "freeze": {"pairs": [0, last]},
        "zero": {"pairs": [0, last]},
        "scale": {"pairs": [0, last], "factor": -0.7},
        "remap": {"pairs": [0, last], "to": [last, last]},
        "drop_slowest": {"n": half},
        "drop_fastest": {"n": 1},
        "swap_bands": {"n": half},
    }


def turned(angles, how, pairs=(), factor=None, to=(), n=0):
    """Cos and sin [pos pair] of the moved pairs, from the angle of every position and pair."""
    angles, size, last = angles.copy(), np.ones(angles.shape[1]), angles.shape[1] - 1
    own = angles.copy()
    if how == "zero":
        size[list(pairs)] = 0
    for pair, other in zip(pairs, to, strict=False):
        angles[:, pair] = own[:, other]
    for pair in pairs if how in ("freeze", "scale") else ():
        angles[:, pair] = 0 if how == "freeze" else factor * own[:, pair]
    for one in range(n):
        fast, slow = one, last - one
        if how == "drop_slowest":
            angles[:, slow] = 0
        elif how == "drop_fastest":
            angles[:, fast] = 0
        else:
            angles[:, fast], angles[:, slow] = own[:, slow], own[:, fast]
    return size * np.cos(angles), size * np.sin(angles)


def turned_channels(x, cos, sin, adjacent, width):
    """One head's vectors [batch pos d] turned, pair by pair."""
    new = x.clone()
    for pair in range(width // 2):
        first, second = (2 * pair, 2 * pair + 1) if adjacent else (pair, pair + width // 2)
        c, s = (torch.tensor(part[:, pair], dtype=x.dtype) for part in (cos, sin))
        new[..., first] = x[..., first] * c - x[..., second] * s
        new[..., second] = x[..., second] * c + x[..., first] * s
    return new


def expected_logits(name, folder, rotary, heads, move, monkeypatch):
    """Logits of Hugging Face's model, whose attention gets the moved queries and keys of these heads."""
    family, _ = FAMILIES[name]
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    module, layer_of = sys.modules[type(model).__module__], []
    config = model.config
    position, pairs = np.arange(TOKENS.shape[1]), np.arange(rotary.n_pairs)

    def moved(layer, q, k, factor):
        """Scores' queries and keys [batch head pos d], before rotation in, after it out; the given heads' only."""
        base = 1e4
        if family == "gemma3":
            kind = config.layer_types[layer]
            base = config.rope_parameters[kind]["rope_theta"]
        frequency = base ** (-2 * pairs / rotary.rotary_dim)
        if name == "yarn":
            frequency = model.model.rotary_emb.inv_freq.double().numpy()
        cos, sin = turned(position[:, None] * frequency, **move)
        new = {}
        for head in [head for of, head in heads if of == layer]:
            own = [
                turned_channels(x[:, head], factor * cos, factor * sin, family in ADJACENT, rotary.rotary_dim)
                for x in (q, k)
            ]
            new[head] = own
        return new

    if family in ("gptj", "codegen"):
        # rotation is inside the attention: it is undone by its inverse, on what `_attn` is given
        component = type(model.transformer.h[0].attn)
        original = component._attn

        def by_head(self, query, key, *rest, **more):
            layer = [block.attn for block in model.transformer.h].index(self)
            frequency = 1e4 ** (-2 * pairs / rotary.rotary_dim)
            back = [np.cos(-position[:, None] * frequency), np.sin(-position[:, None] * frequency)]
            q, k = (
                torch.stack([turned_channels(x[:, head], *back, True, rotary.rotary_dim) for head in range(4)], dim=1)
                for x in (query, key)
            )
            query, key = query.clone(), key.clone()
            for head, (new_q, new_k) in moved(layer, q, k, 1.0).items():
                query[:, head], key[:, head] = new_q, new_k
            return original(self, query, key, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr(component, "_attn", by_head)
            return model(TOKENS).logits

    rotate, attend = module.apply_rotary_pos_emb, module.eager_attention_forward
    kept = {}

    def remember(q, k, cos, sin, *rest, **more):
        layer = len(layer_of)
        layer_of.append(layer)
        group = q.shape[1] // k.shape[1]
        kept[layer] = moved(layer, q, k.repeat_interleave(group, 1), float(cos[0, 0, 0]))
        return rotate(q, k, cos, sin, *rest, **more)

    def attend_by_head(attention, query, key, value, mask, **settings):
        # every query head its own key head, so that they can differ
        group = query.shape[1] // key.shape[1]
        query, key, value = query.clone(), key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        for head, (new_q, new_k) in kept[layer_of[-1]].items():
            query[:, head], key[:, head] = new_q, new_k
        monkeypatch.setattr(attention, "num_key_value_groups", 1, raising=False)
        return attend(attention, query, key, value, mask, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(module, "apply_rotary_pos_emb", remember)
        patch.setattr(module, "eager_attention_forward", attend_by_head)
        return model(TOKENS).logits


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in FAMILIES for how in ways(2) if name not in FEW or how in ("scale", "remap")],
)
@torch.no_grad()
def test_logits_are_those_of_a_model_that_turns_so(name, how, tiny, tiny_folder, monkeypatch):
    family, overrides = FAMILIES[name]
    model = tiny(family, **overrides)
    rotary = ph.resolve_layers(model).layers[0]
    heads, arguments = [(0, 1), (1, 0), (1, 3)], ways(rotary.n_pairs)[how]
    before = model(TOKENS)
    _, plain = model.run_with_cache(TOKENS, names_filter=SCORES)
    expected = expected_logits(
        name, tiny_folder(family, **overrides), rotary, heads, {"how": how, **arguments}, monkeypatch
    )
    with ph.manipulated_pairs(model, heads, how=how, **arguments, shared="split"):
        found = model(TOKENS)
        _, cache = model.run_with_cache(TOKENS, names_filter=SCORES)
        with answer_run(model) as run:
            answers = run(TOKENS, [7, 28])
        assert runs_plainly(model) == (family not in ("gptj", "codegen"))
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)
    torch.testing.assert_close(answers, expected[:, [7, 28]], atol=3e-5, rtol=0)
    assert float((found - before).abs().max()) > 1e-2
    assert torch.equal(cache[SCORES[0]][:, [0, 2, 3]], plain[SCORES[0]][:, [0, 2, 3]])
    assert not torch.equal(cache[SCORES[0]][:, 1], plain[SCORES[0]][:, 1])
    assert torch.equal(model(TOKENS), before)


@torch.no_grad()
def test_all_readers_of_a_key_head_move_together_where_one_is_named(tiny):
    model = tiny("llama")  # key head 1 is read by heads 2 and 3
    with ph.manipulated_pairs(model, "L0H2", [0, 1], shared="together"):
        together = model(TOKENS)
    with ph.manipulated_pairs(model, ["L0H2", "L0H3"], [0, 1]):
        both = model(TOKENS)
    with ph.manipulated_pairs(model, "L0H2", [0, 1], shared="split"):
        one = model(TOKENS)
    with ph.extended_rope(model, "kept_pairs", kept=[["1" * 8, "00" + "1" * 6], []]):
        kept = model(TOKENS)
    assert torch.equal(together, both)
    assert not torch.allclose(one, both, atol=1e-3)
    torch.testing.assert_close(both, kept, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "n"), [("llama", 2), ("neox", 1), ("gemma3", 4)])
@torch.no_grad()
def test_dropping_the_slowest_everywhere_is_p_rope(family, n, tiny):
    model = tiny(family)
    rotary = ph.resolve_layers(model).layers[0]
    every = [(layer, head) for layer in (0, 1) for head in range(4)]
    with ph.manipulated_pairs(model, every, how="drop_slowest", n=n):
        dropped = model(TOKENS)
    with ph.extended_rope(model, "p_rope", keep=1 - n / rotary.n_pairs):
        torch.testing.assert_close(dropped, model(TOKENS), atol=2e-5, rtol=0)


IDENTITIES = [
    {"pairs": []},
    {"pairs": [], "how": "zero"},
    {"pairs": [2, 5], "how": "scale", "factor": 1.0},
    {"pairs": [5, 2], "how": "remap", "to": [5, 2]},
    {"how": "drop_slowest", "n": 0},
    {"how": "drop_fastest", "n": 0},
    {"how": "swap_bands", "n": 0},
]


@torch.no_grad()
def test_settings_that_move_nothing_change_no_bit(tiny):
    model, head = tiny("llama"), "L0H1"
    plain = model(TOKENS)
    for arguments in IDENTITIES:
        with ph.manipulated_pairs(model, head, **arguments, shared="split") as same:
            assert same is model
            assert torch.equal(model(TOKENS), plain)
            assert extension_provenance(model) == {}
    with ph.manipulated_pairs(model, [], [0]):
        assert torch.equal(model(TOKENS), plain)
    with ph.manipulated_pairs(model, head, how="swap_bands", n=3, shared="split"):
        moved = model(TOKENS)
        for arguments in IDENTITIES:
            with ph.manipulated_pairs(model, head, **arguments, shared="split"):
                assert torch.equal(model(TOKENS), moved)
        with ph.manipulated_pairs(model, head, how="swap_bands", n=3, shared="split"):  # and back
            assert torch.equal(model(TOKENS), plain)
            assert extension_provenance(model)["extension"]["heads"] == {}
            assert "edits" not in ph.score_heads(model, TOKENS, null_repeats=0).provenance["model"]
        assert torch.equal(model(TOKENS), moved)
    assert torch.equal(model(TOKENS), plain)
    # docs/manipulation.md: factors undo each other to the bit where their product is 1 in float64, and else by rounding
    for factor, exact in ((2.0, True), (49.0, False)):
        assert (factor * (1 / factor) == 1) is exact
        with (
            ph.manipulated_pairs(model, head, [0], "scale", factor=factor, shared="split"),
            ph.manipulated_pairs(model, head, [0], "scale", factor=1 / factor, shared="split"),
        ):
            undone = model(TOKENS)
            assert (extension_provenance(model)["extension"]["heads"] == {}) is exact
        assert torch.equal(undone, plain) or not exact
        torch.testing.assert_close(undone, plain, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_inner_block_acts_on_what_the_outer_one_left(tiny):
    model, head = tiny("llama"), "L1H2"

    def logits(*blocks):
        """Under blocks of one head, outer first."""
        if not blocks:
            return model(TOKENS)
        (pairs, how, more), *inner = blocks
        with ph.manipulated_pairs(model, head, pairs, how, shared="split", **more):
            return logits(*inner)

    scaled, frozen, remapped = ([0], "scale", {"factor": 3.0}), ([0], "freeze", {}), ([4], "remap", {"to": [0]})
    same = [
        ([scaled, frozen], [frozen]),
        ([frozen, scaled], [frozen]),
        ([scaled, ([0], "scale", {"factor": -0.25})], [([0], "scale", {"factor": -0.75})]),
        ([scaled, remapped], [([0, 4], "remap", {"to": [0, 0]}), ([0, 4], "scale", {"factor": 3.0})]),
        ([remapped, scaled], [([4], "remap", {"to": [0]}), ([0], "scale", {"factor": 3.0})]),
        ([([0], "zero", {}), remapped, scaled], [remapped, ([0], "zero", {})]),
        ([([1, 2], "zero", {}), ([2, 3], "zero", {})], [([1, 2, 3], "zero", {})]),
    ]
    for one, other in same:
        torch.testing.assert_close(logits(*one), logits(*other), atol=1e-5, rtol=0)
    assert not torch.allclose(logits(scaled, remapped), logits(remapped, scaled), atol=1e-3)
    with ph.manipulated_pairs(model, head, [0], shared="split"):
        with ph.manipulated_pairs(model, "L0H0", [1], "zero", shared="split"):
            nested = model(TOKENS)
            assert ph.score_heads(model, TOKENS, null_repeats=0).provenance["extension"]["heads"] == {
                "0": [0],
                "1": [2],
            }
        outer = model(TOKENS)
    first, second = (("L0H0", [1], "zero"), (head, [0], "freeze"))
    with ph.manipulated_pairs(model, *first, shared="split"), ph.manipulated_pairs(model, *second, shared="split"):
        assert torch.equal(model(TOKENS), nested)
    assert torch.equal(outer, logits(frozen))


@pytest.mark.parametrize("family", ["llama", "gptj", "codegen"])
@torch.no_grad()
def test_after_a_block_the_model_is_as_it_was(family, tiny):
    model = tiny(family)

    def state():
        """Every attribute and hook of every module, without the hook point's counters."""
        modules = [*model.modules(), *model.original_model.modules()]
        hooks = ("_forward_hooks", "_forward_pre_hooks", "fwd_hooks")
        return [(set(vars(one)), [list(vars(one).get(name, {})) for name in hooks]) for one in modules]

    plain, before = model(TOKENS), state()
    for error in (ZeroDivisionError, None):
        try:
            with (
                ph.manipulated_pairs(model, "L0H1", [0], shared="split"),
                ph.manipulated_pairs(model, "L1H1", [1], "zero", shared="split"),
                ph.live_rotary_hooks(model),
            ):
                model(TOKENS)
                if error:
                    raise error
        except ZeroDivisionError:
            pass
        assert state() == before
        assert torch.equal(model(TOKENS), plain)
        assert "edits" not in ph.score_heads(model, TOKENS, null_repeats=0).provenance["model"]


ABLATIONS = {
    "zero": {},
    "mean": {"reference": "abcdefgh"},
    "uniform": {},
    "far": {"distance": 6},
    "near": {"distance": 6},
}


@pytest.mark.parametrize("mode", ABLATIONS)
@torch.no_grad()
def test_ablations_act_after_pairs_are_moved_in_either_order(mode, tiny):
    model, head, moved = tiny("llama"), "L0H1", {"pairs": [0, 3], "how": "zero", "shared": "split"}
    with ph.manipulated_pairs(model, head, **moved):
        alone = model(TOKENS)
        # the mean is that of the model that is ablated
        hooks = ph.ablation_hooks(model, head, mode, **ABLATIONS[mode])
        with model.hooks(fwd_hooks=hooks):
            inside = model(TOKENS)
            with answer_run(model) as run:
                answers = run(TOKENS, [28])
    with model.hooks(fwd_hooks=hooks), ph.manipulated_pairs(model, head, **moved):
        outside = model(TOKENS)
        with answer_run(model) as run:
            torch.testing.assert_close(run(TOKENS, [28]), answers, atol=1e-5, rtol=0)
    with ph.ablated_heads(model, head, mode, **ABLATIONS[mode]):
        ablated = model(TOKENS)
    assert torch.equal(inside, outside)
    torch.testing.assert_close(answers, inside[:, [28]], atol=1e-5, rtol=0)
    assert not torch.allclose(inside, alone, atol=1e-3)
    if mode != "mean":  # whose mean is that of the moved model
        # those that hide keys leave some of the scores, the others none
        assert torch.allclose(inside, ablated, atol=1e-3) == (mode not in ("far", "near"))


@pytest.mark.parametrize("how", ["zero", "scale", "swap_bands"])
@torch.no_grad()
def test_heads_are_scored_by_what_their_pairs_contribute(how, tiny):
    model, tokens, arguments = tiny("llama"), TOKENS[:1], ways(8)[how]
    own = contributions_by_distance(model, tokens, 0, np.subtract)
    rows, columns = np.tril_indices(30)
    with ph.manipulated_pairs(model, "L0H1", how=how, **arguments, shared="split"):
        cache = ph.dominant_dimension_cache(model, tokens, layers=[0])
        scores = ph.score_heads(model, tokens, layers=[0], null_repeats=2)
        profile = ph.profile_heads(model, tokens, retrieval=None)
        with ph.contribution_hooks(model, layers=[0], temperature=1.0):
            _, live = model.run_with_cache(tokens)
    found, expected = cache["dominant_dim", 0, "attn"][0].numpy(), dominant_dimension(own)
    others = [0, 2, 3]
    np.testing.assert_allclose(found[others][:, rows, columns], expected[others][:, rows, columns], atol=1e-4)
    if how == "zero":
        own[1][..., [0, 7]] = 0
        np.testing.assert_allclose(found[1, rows, columns], dominant_dimension(own)[1, rows, columns], atol=1e-4)
    else:
        assert np.abs(found[1, rows, columns] - expected[1, rows, columns]).max() > 1e-2
    for head in range(4):
        rho = spearmanr(rows - columns, found[head, rows, columns]).statistic
        assert float(scores.rho[0, head]) == pytest.approx(rho, abs=2e-3)
    np.testing.assert_allclose(
        live["blocks.0.attn.hook_dominant_dim"][0].numpy()[:, rows, columns], found[:, rows, columns], atol=1e-4
    )
    for result in (scores, profile):
        assert result.provenance["extension"]["moves"] == [{"how": how, "heads": ["L0H1"], **arguments}]


@pytest.mark.parametrize("family", ["llama", "neox", "gptj", "codegen", "gemma3", "mistral"])
@torch.no_grad()
def test_generation_with_a_cache_is_that_without_one(family, tiny):
    settings = {"max_new_tokens": 16, "do_sample": False, "return_type": "tokens", "verbose": False}
    model = tiny(family)
    with ph.manipulated_pairs(model, ["L0H1", "L1H0"], [0, 1], "scale", factor=-2.0, shared="split"):
        cached = model.generate(TOKENS, **settings)
        whole = model.generate(TOKENS, **settings, use_past_kv_cache=False)
        logits, cache, parts = model(TOKENS), None, []
        for start, stop in pairwise([0, 3, 4, 18, 19, 30]):
            cache = DynamicCache(config=model.original_model.config) if cache is None else cache
            part, cache = model(
                TOKENS[:, start:stop], past_key_values=cache, return_type="logits_and_cache", use_cache=True
            )
            parts.append(part)
    assert torch.equal(cached, whole)
    torch.testing.assert_close(torch.cat(parts, dim=1), logits, atol=2e-5, rtol=0)
    assert not torch.allclose(logits, model(TOKENS), atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "gptj", "mistral"])
@torch.no_grad()
def test_padding_on_the_left_is_no_token(family, tiny):
    model, padded = tiny(family), torch.ones_like(TOKENS)
    padded[0, :5] = 0
    positions = (padded.cumsum(-1) - 1).clamp(min=0)
    with ph.manipulated_pairs(model, ["L0H1", "L1H0"], [0, 1], "scale", factor=-2.0, shared="split"):
        alone = model(TOKENS[:1, 5:])
        rho = ph.score_heads(model, TOKENS[:1, 5:], null_repeats=0).rho
        for given in ({}, {"position_ids": positions}):
            torch.testing.assert_close(model(TOKENS, attention_mask=padded, **given)[:1, 5:], alone, atol=2e-5, rtol=0)
        row = ph.score_heads(model, TOKENS[:1], attention_mask=padded[:1], null_repeats=0).rho
        if family != "gptj":
            settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 257, "eos_token_id": 999}
            found = [
                model.original_model.generate(
                    TOKENS[:, 5:] if mask is None else TOKENS, attention_mask=mask, **settings
                )
                for mask in (None, padded)
            ]
            assert torch.equal(found[0][0, 25:], found[1][0, 30:])
    torch.testing.assert_close(row, rho, atol=1e-4, rtol=0, equal_nan=True)


@torch.no_grad()
def test_a_patched_activation_reaches_the_moved_scores(tiny):
    """Queries and keys of layer 0 come from another text, before or after rotation: so do its scores."""
    model, other = tiny("llama"), TOKENS.flip(0)
    names = [f"blocks.0.attn.hook_{name}" for name in ("rot_q", "rot_k", "q", "k")]
    with ph.manipulated_pairs(model, "L0H1", how="swap_bands", n=4, shared="split"):
        _, source = model.run_with_cache(other)
        for pair in (names[:2], names[2:]):
            hooks = [(name, lambda value, hook: source[hook.name]) for name in pair]
            with model.hooks(fwd_hooks=hooks):
                _, patched = model.run_with_cache(TOKENS)
            torch.testing.assert_close(patched[SCORES[0]], source[SCORES[0]], atol=1e-5, rtol=0)


BAD = {
    "shared": ({"heads": "L0H2"}, 'key head 1 of layer 0 is read by L0H2, L0H3.*"split".*"together"'),
    "no pairs": ({"pairs": None}, "^how='freeze' needs pairs=, e.g. pairs="),
    "no factor": ({"how": "scale"}, "^how='scale' needs factor=, e.g. factor=0.5$"),
    "no to": ({"how": "remap"}, "how='remap' needs to="),
    "no n": ({"pairs": None, "how": "drop_slowest"}, "how='drop_slowest' needs n="),
    "factor": ({"factor": 2.0}, "factor= goes with how='scale', not with how='freeze'"),
    "n": ({"n": 1}, "n= goes with how='drop_slowest' or 'drop_fastest' or 'swap_bands', not with how='freeze'"),
    "n alone": ({"pairs": None, "n": 4}, "n= goes with how='drop_slowest' or 'drop_fastest' .* not with how='freeze'"),
    "pairs": ({"how": "swap_bands", "n": 1}, "pairs= goes with how='freeze' or .*'remap', not with how='swap_bands'"),
    "beyond": ({"pairs": [3, 8]}, r"pairs=\[3, 8\]: L0H1 has 8 pairs from 0, the fastest, and no pair 8"),
    "below": ({"pairs": [-1]}, r"pairs=\[-1\]: L0H1 has 8 pairs"),
    "to beyond": ({"how": "remap", "to": [9, 1]}, r"to=\[9, 1\]: L0H1 has 8 pairs"),
    "to length": ({"how": "remap", "to": [1]}, r"to=\[1\] has 1 pairs, pairs= has 2"),
    "twice": ({"pairs": [3, 4, 3]}, "pair 3 is named twice"),
    "n beyond": ({"pairs": None, "how": "drop_fastest", "n": 9}, "n=9: L0H1 has 8 pairs: give 0 to 8"),
    "n below": ({"pairs": None, "how": "drop_fastest", "n": -1}, "n=-1: L0H1 has 8 pairs: give 0 to 8"),
    "half": ({"pairs": None, "how": "swap_bands", "n": 5}, "n=5: L0H1 has 8 pairs, and .* overlap: give 0 to 4"),
    "how": ({"how": "drop"}, "how"),
    "infinite": ({"how": "scale", "factor": float("inf")}, "factor"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_makes_no_sense_is_refused_at_the_door(case, tiny):
    given, message = BAD[case]
    arguments = {"heads": "L0H1", "pairs": [0, 1], "shared": None if case == "shared" else "split", **given}
    with pytest.raises(ValueError, match=message), ph.manipulated_pairs(tiny("llama"), **arguments):
        pass


def test_layers_that_cannot_be_moved_are_refused(tiny):
    for family, head, error, message in (
        ("smollm3", "L1H0", ValueError, "layer 1 cannot be scored: it has no rotary embedding"),
        ("gemma4", "L0H0", ph.UnsupportedModelError, "layer 0: its attention scores cannot be edited"),
        ("gpt2", "L0H0", ph.UnsupportedModelError, "."),
    ):
        with pytest.raises(error, match=message), ph.manipulated_pairs(tiny(family), head, [0], shared="split"):
            pass
    model = tiny("llama")
    refused = pytest.raises(RuntimeError, match=r"extended by yarn.*leave the extended_rope block first")
    with ph.extended_rope(model, "yarn", 2), refused, ph.manipulated_pairs(model, "L0H0", [0], shared="split"):
        pass
    refused = pytest.raises(RuntimeError, match="by manipulated_pairs: leave the other manipulated_pairs block first")
    with ph.manipulated_pairs(model, "L0H0", [0], shared="split"), refused, ph.extended_rope(model, "yarn", 2):
        pass


@pytest.mark.parametrize("family", ["llama", "gptj"])
@torch.no_grad()
def test_blocks_left_in_another_order_than_entered_are_undone_and_refused(family, tiny):
    model = tiny(family)
    plain = model(TOKENS)

    def moved(head):
        with ph.manipulated_pairs(model, head, [0], shared="split"):
            yield model(TOKENS)

    with pytest.raises(RuntimeError, match=r"left before 1 block within it.*leave the inner block first"):
        list(zip(moved("L0H1"), moved("L0H2"), strict=True))  # the first generator is exhausted first
    assert torch.equal(model(TOKENS), plain)
    with ph.manipulated_pairs(model, "L0H3", [0], shared="split"):  # nothing is left of the others
        moves = ph.score_heads(model, TOKENS, null_repeats=0).provenance["extension"]["moves"]
        assert [move["heads"] for move in moves] == [["L0H3"]]
    outer, inner = (ph.manipulated_pairs(model, head, [0], shared="split") for head in ("L0H1", "L0H2"))
    outer.__enter__(), inner.__enter__()
    with pytest.raises(RuntimeError, match="left before"):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    assert torch.equal(model(TOKENS), plain)


@torch.no_grad()
def test_a_run_without_the_hooks_of_its_block_is_refused(tiny):
    model = tiny("llama")
    plain = model(TOKENS)
    for block in (
        ph.manipulated_pairs(model, "L0H2", [0], shared="split"),
        ph.extended_rope(model, "yarn", 2),
    ):
        with block:
            model.reset_hooks()
            with pytest.raises(RuntimeError, match=r"hooks of this block .* were removed .*enter it again"):
                model(TOKENS)
        assert torch.equal(model(TOKENS), plain)
