"""Every method does what its source's own code does: Hugging Face's models, printed vectors, scipy, loops."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import positional_heads as ph
from positional_heads.bridge.rope_scaling.clex import TENSORS, Clex, load_clex
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.bridge.rope_scaling.methods import rope_method
from positional_heads.bridge.rope_scaling.plain_rope import PlainRope, plain_rope
from positional_heads.bridge.rope_scaling.self_extend import Dpe, self_extend_advice
from tests.support import oracles

TOKENS = torch.randint(256, (2, 150), generator=torch.Generator().manual_seed(0))
TRAINED = 64  # tokens that the tiny models are said to be trained on
PAIRS = {"llama": 8, "neox": 2}
SCALED = {
    "linear": ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "dynamic": ({"factor": 4.0}, {"rope_type": "dynamic", "factor": 4.0}),
    "yarn": ({"factor": 4.0}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED}),
    "llama3": (
        {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": TRAINED,
        },
    ),
    "longrope": (
        {"factor": 4.0},
        {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": TRAINED},
    ),
}


def settings_for(family, method):
    ours, theirs = (dict(one) for one in SCALED[method])
    if method == "longrope":
        pairs = pair_count(family)
        lists = {"short_factor": [1.0] * pairs, "long_factor": [1.0 + 0.5 * pair for pair in range(pairs)]}
        ours, theirs = ours | lists, theirs | lists
    return ours, theirs


def pair_count(family):
    return PAIRS[family]


def hugging_face(folder, theirs, length=TRAINED):
    """The same weights in Hugging Face's model, extended by its configuration."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    config = model.config
    plain = {
        key: config.rope_parameters[key]
        for key in ("rope_theta", "partial_rotary_factor")
        if key in config.rope_parameters
    }
    config.rope_parameters = plain | theirs
    config.max_position_embeddings = 4 * length if theirs["rope_type"] == "longrope" else length
    if theirs["rope_type"] == "longrope":
        config.original_max_position_embeddings = length
    extended = type(model)(config).eval()
    extended.load_state_dict(model.state_dict())
    return extended


@pytest.mark.parametrize("method", SCALED)
@pytest.mark.parametrize("family", PAIRS)
@torch.no_grad()
def test_logits_are_those_of_hugging_faces_extended_model(family, method, tiny, tiny_folder):
    ours, theirs = settings_for(family, method)
    expected = hugging_face(tiny_folder(family), theirs)(TOKENS).logits
    model = tiny(family)
    plain = model(TOKENS)
    with extended_rope(model, method, training_length=TRAINED, **ours):
        found = model(TOKENS)
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - plain).abs().max() > 1e-4
    assert torch.equal(model(TOKENS), plain)


@pytest.mark.parametrize("family", PAIRS)
def test_frequencies_are_those_of_hugging_face_to_the_bit(family, tiny, tiny_folder):
    model = tiny(family)
    rope = plain_rope(model, training_length=TRAINED)
    for method in SCALED:
        ours, theirs = settings_for(family, method)
        reference = hugging_face(tiny_folder(family), theirs)
        rotary = next(module for module in reference.modules() if type(module).__name__.endswith("RotaryEmbedding"))
        length = 150
        rotary(torch.zeros(1, 1, 8), torch.arange(length)[None])  # dynamic and longrope settle when run
        table = rope_method(method, ours.pop("factor"), **ours).table(rope, length)
        assert torch.equal(table.inv_freq, rotary.inv_freq), method
        assert table.attention_factor == pytest.approx(rotary.attention_scaling), method


def test_the_static_ntk_has_the_base_it_is_defined_by(bundled):
    rope = plain_rope(bundled)
    assert (rope.base, rope.rotary_dim, rope.training_length) == (10000, 32, 512)
    base = 10000 * 4 ** (32 / 30)
    expected = torch.tensor([base ** (-2 * pair / 32) for pair in range(16)])
    assert torch.allclose(rope_method("ntk", 4).table(rope, 100).inv_freq, expected, rtol=1e-6)
    # and the dynamic one reaches it at its own factor and length
    dynamic = rope_method("dynamic", 2).table(rope, 1024).inv_freq
    assert torch.allclose(dynamic, rope_method("ntk", 3).table(rope, 1).inv_freq, rtol=1e-6)
    assert torch.equal(rope_method("dynamic", 2).table(rope, 512).inv_freq, rope_method("none").table(rope, 1).inv_freq)


def large_rope(length, width=128, base=10000.0):
    """A configuration as large models have it."""
    config = LlamaConfig(hidden_size=width, num_attention_heads=1, head_dim=width, max_position_embeddings=length)
    return PlainRope(base, width, length, {"rope_theta": base, "rope_type": "default"}, config)


@pytest.mark.parametrize(
    ("length", "factor", "betas", "low", "high", "scale"),
    [
        (4096, 16, {}, 20, 46, 1.277259),
        (4096, 32, {}, 20, 46, 1.346574),
        (8192, 8, {"beta_fast": 128, "beta_slow": 2}, 16, 46, None),
        (8192, 8, {}, 25, 50, None),
    ],
)
def test_yarns_printed_vectors(length, factor, betas, low, high, scale):
    table = rope_method("yarn", factor, **betas).table(large_rope(length), length)
    plain = torch.tensor([10000 ** (-2 * pair / 128) for pair in range(64)])
    ratio = table.inv_freq / plain
    assert torch.allclose(ratio[: low + 1], torch.ones(low + 1), rtol=1e-5)
    assert torch.allclose(ratio[high:], torch.full((64 - high,), 1 / factor), rtol=1e-5)
    assert bool((ratio[low + 1 : high] < 1 - 1e-4).all())
    assert bool((ratio[low + 1 : high] > 1 / factor + 1e-4).all())
    if scale is not None:
        assert table.attention_factor == pytest.approx(scale, abs=1e-6)


def clex(pairs=16, param_factor=1, seed=0, down=1.0, **settings):
    generator = torch.Generator().manual_seed(seed)
    inv_freq = torch.tensor([10000 ** (-2 * pair / (2 * pairs)) for pair in range(pairs)])
    up = torch.randn(pairs, 2 * pairs * param_factor, generator=generator) / pairs
    weights = down * torch.randn(2 * pairs * param_factor, pairs, generator=generator) / pairs
    return Clex(inv_freq, up, weights, **({"max_factor": 4} | settings))


def test_clex_without_a_learned_part_is_the_dynamic_ntk_at_factor_2(bundled):
    rope, method = plain_rope(bundled), clex(down=0.0)
    for t in (1, 2, 3, 4):
        expected = rope_method("dynamic", 2).table(rope, 512 * t).inv_freq
        assert torch.allclose(method.table(rope, 512 * t - 5).inv_freq.log(), expected.log(), atol=1e-6)
    # pair 63 of 64 at t = 4, as published
    large = clex(pairs=64, down=0.0)
    assert float(large.solved[3, 63].log()) == pytest.approx(-11.012339, abs=1e-5)


@pytest.mark.parametrize("act", ["silu", "tanh"])
def test_clex_solves_its_equation_as_scipy_does(act):
    method = clex(act=act, seed=3)
    up, down = method.up.double().numpy(), method.down.double().numpy()
    index = np.arange(16)

    def slope(t, z):
        alpha = 2 * t - 1
        scaled = np.log((10000 * alpha ** (32 / 30)) ** (-2 * index / 32))
        hidden = (z + scaled) @ up
        hidden = hidden / (1 + np.exp(-hidden)) if act == "silu" else np.tanh(hidden)
        return hidden @ down - 4 * index / (30 * alpha)

    start = np.log(method.inv_freq.double().numpy())
    solved = solve_ivp(slope, (1, 4), start, t_eval=[1, 2, 3, 4], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(method.solved.log().numpy(), solved.y.T, atol=1e-5)
    assert np.abs(solved.y.T[3] - clex(act=act, down=0.0).solved[3].log().numpy()).max() > 0.01


def test_clex_scales_scores_by_the_logarithm_of_the_length(bundled):
    rope = plain_rope(bundled)
    assert clex(log_scale=True).table(rope, 1024).score_factor == pytest.approx(math.log(1024) / math.log(512))
    assert clex(log_scale=True).table(rope, 100).score_factor < 1  # not clipped
    tokens = TOKENS[:1, :40]

    def scores():
        _, cache = bundled.run_with_cache(tokens, names_filter="blocks.0.attn.hook_attn_scores")
        return cache["blocks.0.attn.hook_attn_scores"][0].tril()

    plain = scores()
    with extended_rope(bundled, clex(log_scale=True)):
        assert torch.allclose(scores(), plain * math.log(40) / math.log(512), atol=1e-4)


def save_clex(folder, method, drop=(), config=None):
    import json

    from safetensors.torch import save_file

    scaling = {"type": "clex", "max_factor": 4, "param_factor": 1, "act": "tanh", "factor": 1, "time_dt": 0.02}
    (folder / "config.json").write_text(json.dumps(config or {"rope_scaling": scaling, "log_scale": True}))
    tensors = {TENSORS[key]: getattr(method, key).contiguous() for key in TENSORS if key not in drop}
    save_file(tensors, folder / "model-00001-of-00001.safetensors")
    return folder


def test_a_clex_checkpoint_loads_and_bad_ones_are_refused_by_name(tmp_path, bundled):
    method = clex()
    found = load_clex(save_clex(tmp_path, method))
    assert (found.act, found.max_factor, found.time_dt, found.log_scale) == ("tanh", 4, 0.02, True)
    assert torch.equal(found.down, method.down)
    with extended_rope(bundled, "clex", checkpoint=str(tmp_path)) as extension:
        assert extension.method.settings["hidden"] == 32
    with pytest.raises(ValueError, match=r"tensors model.clex_layer.proj_func.ode_up_proj are missing"):
        load_clex(save_clex(tmp_path, method, drop=["up"]))
    narrow = clex()
    object.__setattr__(narrow, "down", method.down[:, :9])
    with pytest.raises(ValueError, match=r"ode_down_proj has shape \(32, 9\), the format prescribes \(32, 16\)"):
        load_clex(save_clex(tmp_path, narrow))
    with pytest.raises(ValueError, match="rope_scaling is not of type 'clex'"):
        load_clex(save_clex(tmp_path, method, config={"rope_scaling": {"type": "yarn"}}))
    with pytest.raises(FileNotFoundError, match="no CLEX checkpoint there"):
        load_clex(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="for 64 pairs, the model has 16"), extended_rope(bundled, clex(pairs=64)):
        pass


def by_hand(model, tokens, layer, group, window):
    """SelfExtend's scores of one layer, [head query key], pair by pair in loops, from the model's queries and keys."""
    with ph.live_rotary_hooks(model):
        _, cache = model.run_with_cache(tokens)
    rotary = ph.resolve_layers(model).layers[layer]
    q, k = (cache[f"blocks.{layer}.attn.hook_rot_{name}"][0].double().numpy() for name in "qk")
    pairs, channels = rotary.n_pairs, rotary.rotary_dim
    rope = plain_rope(model, layer)
    scores = np.full((q.shape[1], len(q), len(q)), -np.inf)
    for head in range(q.shape[1]):
        key_head = head * k.shape[1] // q.shape[1]
        for m in range(len(q)):
            for n in range(m + 1):
                near = m - n < window
                distance = m - n if near else m // group + window - window // group - n // group
                total = q[m, head, channels:] @ k[n, key_head, channels:]
                for pair in range(pairs):
                    turn = rope.base ** (-2 * pair / channels)
                    query = complex(q[m, head, pair], q[m, head, pair + pairs]) * np.exp(-1j * turn * m)
                    key = complex(k[n, key_head, pair], k[n, key_head, pair + pairs]) * np.exp(-1j * turn * n)
                    total += (query * np.exp(1j * turn * distance) * key.conjugate()).real
                scores[head, m, n] = total * rotary.scale
    return scores


@pytest.mark.parametrize("family", PAIRS)
@torch.no_grad()
def test_self_extend_is_what_its_definition_says(family, tiny):
    model, tokens = tiny(family), TOKENS[:1, :30]
    expected = by_hand(model, tokens, 0, 4, 8)
    with extended_rope(model, "self_extend", group=4, window=8):
        _, cache = model.run_with_cache(tokens)
    found = cache["blocks.0.attn.hook_attn_scores"][0].numpy()
    visible = np.isfinite(expected)
    np.testing.assert_allclose(found[visible], expected[visible], atol=1e-4)
    assert (found[~visible] < -1e30).all()


@pytest.mark.parametrize(("group", "window"), [(1, 8), (4, 152), (8, 160)])
@pytest.mark.parametrize("family", PAIRS)
@torch.no_grad()
def test_self_extend_that_groups_nothing_is_plain(family, group, window, tiny):
    model = tiny(family)
    plain = model(TOKENS)
    with extended_rope(model, "self_extend", group=group, window=window):
        found = model(TOKENS)
    assert torch.allclose(found, plain, atol=1e-5)
    if window > TOKENS.shape[1]:
        assert torch.equal(found, plain)


@torch.no_grad()
def test_dpe_with_one_group_for_all_pairs_is_self_extend_and_key_pairs_limit_it(tiny):
    model = tiny("llama")
    plain = model(TOKENS)
    with extended_rope(model, "self_extend", group=4, window=8):
        expected = model(TOKENS)
    with extended_rope(model, "dpe", pair_groups=[4] * 8, window=8):
        assert torch.allclose(model(TOKENS), expected, atol=1e-5)
    none = {layer: torch.zeros(4, 8, dtype=torch.bool) for layer in range(2)}
    with extended_rope(model, Dpe((4,) * 8, 8, key_pairs=none)):
        assert torch.allclose(model(TOKENS), plain, atol=1e-5)


@pytest.mark.parametrize(
    ("key_pairs", "found"),
    [
        ({0: torch.ones(4, 8, dtype=torch.bool)}, "for layer 1, .* got None"),
        ({0: torch.ones(4, 8)}, r"got torch\.float32 of shape \(4, 8\)"),
        ({0: torch.ones(1, 8, dtype=torch.bool)}, r"of 4 heads x 8 pairs, got torch\.bool of shape \(1, 8\)"),
    ],
)
def test_key_pairs_that_are_not_every_layers_heads_and_pairs_are_refused(key_pairs, found, tiny):
    refused = pytest.raises(ValueError, match=rf"dpe: key_pairs must hold, .*{found}")
    with refused, extended_rope(tiny("llama"), "dpe", pair_groups=[4] * 8, window=8, key_pairs=key_pairs):
        pass


@pytest.mark.parametrize("key_pairs", [[99], 3])
def test_key_pairs_that_are_no_table_are_refused(key_pairs, tiny):
    refused = pytest.raises(TypeError, match=f"^key_pairs must be a dict or None, got {re.escape(str(key_pairs))}$")
    with refused, extended_rope(tiny("llama"), "dpe", pair_groups=[4] * 8, window=8, key_pairs=key_pairs):
        pass


@pytest.mark.parametrize("method", ["linear", "yarn", "self_extend"])
@torch.no_grad()
def test_a_key_value_cache_changes_nothing(method, tiny):
    model = tiny("llama")
    settings = {"group": 4, "window": 8} if method == "self_extend" else {"factor": 4.0}
    with extended_rope(model, method, training_length=TRAINED, **settings):
        whole = model(TOKENS[:1, :40])
        first, cache = model(TOKENS[:1, :25], return_type="logits_and_cache", use_cache=True)
        parts = [first]
        for start, stop in ((25, 33), (33, 40)):
            logits, cache = model(
                TOKENS[:1, start:stop], past_key_values=cache, return_type="logits_and_cache", use_cache=True
            )
            parts.append(logits)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "yarn", "ntk"])
@torch.no_grad()
def test_extending_every_head_by_itself_is_extending_the_layer(method, tiny):
    for family in PAIRS:
        model = tiny(family)
        with extended_rope(model, method, 4.0, layers=[1], training_length=TRAINED):
            expected = model(TOKENS)
        heads = [ph.Head(1, head) for head in range(4)]
        with extended_rope(model, method, 4.0, heads=heads, training_length=TRAINED):
            assert torch.allclose(model(TOKENS), expected, atol=2e-5)
        with extended_rope(model, method, 4.0, heads=heads[:1], training_length=TRAINED):
            _, cache = model.run_with_cache(TOKENS)
        _, plain = model.run_with_cache(TOKENS)
        one, other = (run["blocks.1.attn.hook_attn_scores"] for run in (cache, plain))
        assert torch.equal(one[:, 1:], other[:, 1:])
        assert not torch.equal(one[:, :1], other[:, :1])


def test_p_rope_stops_the_slowest_pairs(bundled):
    table = rope_method("p_rope", keep=0.75).table(plain_rope(bundled), 512)
    plain = rope_method("none").table(plain_rope(bundled), 512)
    assert torch.equal(table.inv_freq[:12], plain.inv_freq[:12])
    assert torch.equal(table.inv_freq[12:], torch.zeros(4))


def test_advice_on_group_and_window():
    advice = self_extend_advice(4096, 16384, window=1024)
    assert advice.smallest == 8  # (4096 - 1024) * 8 + 1024 = 25600; group 4 reaches 13312
    assert advice.recommended == 16  # 1024 + 15360 / 16 = 1984 < 2731; at 8 it is 2944
    with pytest.raises(ValueError, match=r"target length 999999 is beyond the reach of SelfExtend with a window of 8"):
        self_extend_advice(64, 999_999, window=8)


def test_a_block_that_fails_gives_the_model_back(tiny):
    model = tiny("llama")
    plain = model(TOKENS)
    with pytest.raises(RuntimeError, match="stop"), extended_rope(model, "yarn", 4.0):
        raise RuntimeError("stop")
    assert torch.equal(model(TOKENS), plain)
    for method, settings in (("self_extend", {"group": 2, "window": 4}), ("linear", {"factor": 1.0})):
        with extended_rope(model, method, **settings):
            pass
        assert torch.equal(model(TOKENS), plain)


BAD = {
    "unknown": ({"method": "yarm", "factor": 2}, ValueError, "method 'yarm' is unknown: did you mean yarn"),
    "below 1": ({"method": "linear", "factor": 0.5}, ValueError, "factor 0.5 must be at least 1"),
    "no factor": ({"method": "ntk"}, ValueError, "method 'ntk' needs factor="),
    "setting": ({"method": "linear", "factor": 2, "beta": 1}, ValueError, "method 'linear' has no setting beta"),
    "group": ({"method": "self_extend", "group": 3, "window": 8}, ValueError, "group 3 must divide window 8"),
    "no group": ({"method": "self_extend", "window": 8}, ValueError, "needs group= and window="),
    "lists": ({"method": "longrope", "factor": 2}, ValueError, "needs short_factor= and long_factor="),
    "keep": ({"method": "p_rope", "keep": 0}, ValueError, "keep 0 must be above 0"),
    "both": ({"method": "none", "layers": [0], "heads": [ph.Head(0, 0)]}, ValueError, "layers or heads, not both"),
    "head": ({"method": "none", "heads": [ph.Head(0, 9)]}, ValueError, "L0H9 does not exist"),
    "layer": ({"method": "none", "layers": [7]}, ValueError, "layer 7 does not exist"),
    "dpe": ({"method": "dpe", "pair_groups": [2, 2], "window": 4}, ValueError, "2 pair_groups given, layer 0 has 8"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_extensions_are_refused(case, tiny):
    arguments, error, message = BAD[case]
    with pytest.raises(error, match=message), extended_rope(tiny("llama"), **arguments):
        pass


def test_beyond_the_reach_and_twice_at_once_are_refused(tiny):
    model = tiny("llama")
    with extended_rope(model, "self_extend", group=2, window=8, training_length=16):
        with pytest.raises(ValueError, match=r"150 tokens are beyond the reach .* at most 24"):
            model(TOKENS)
        with pytest.raises(RuntimeError, match="extended already"), extended_rope(model, "none"):
            pass
    with pytest.raises(ph.UnsupportedModelError, match="cannot be extended"), extended_rope(tiny("gptj"), "linear", 2):
        pass


def test_their_functions_still_have_the_names_we_use():
    assert {"linear", "dynamic", "yarn", "longrope", "llama3"} <= set(ROPE_INIT_FUNCTIONS)


def oracle_dominant(scores_of_pairs):
    """D of every query-key pair from contributions [..., pair], in numpy."""
    weights = np.exp(scores_of_pairs - scores_of_pairs.max(-1, keepdims=True))
    return (weights * np.arange(weights.shape[-1])).sum(-1) / weights.sum(-1)


def contributions_by_hand(model, tokens, layer, distance_of, factor=1.0):
    """Contributions [head query key pair] with each pair turned by the distance that a method gives it."""
    with ph.live_rotary_hooks(model):
        _, cache = model.run_with_cache(tokens)
    q, k = (cache[f"blocks.{layer}.attn.hook_rot_{name}"][0].double().numpy() for name in "qk")
    rope = plain_rope(model, layer)
    pairs = rope.rotary_dim // 2
    turn = rope.base ** (-2 * np.arange(pairs) / rope.rotary_dim)
    position = np.arange(len(q))[:, None, None]
    query, key = ((x[..., :pairs] + 1j * x[..., pairs : 2 * pairs]) * np.exp(-1j * turn * position) for x in (q, k))
    key = np.repeat(key, q.shape[1] // k.shape[1], axis=1)
    distance = np.array([[distance_of(m, n) for n in range(len(q))] for m in range(len(q))])
    turned = np.exp(1j * turn * distance[..., None])
    return np.einsum("mhp,nhp,mnp->hmnp", query, key.conj(), turned).real * factor


@pytest.mark.parametrize("family", PAIRS)
@torch.no_grad()
def test_scores_under_self_extend_use_the_distance_really_used(family, tiny):
    model, tokens = tiny(family), TOKENS[:1, :60]

    def distance_of(m, n):
        return m - n if m - n < 8 else m // 4 + 8 - 8 // 4 - n // 4

    dominant = oracle_dominant(contributions_by_hand(model, tokens, 0, distance_of))
    rows, columns = np.tril_indices(60)
    with extended_rope(model, "self_extend", group=4, window=8):
        scores = ph.score_heads(model, tokens, null_repeats=2, layers=[0])
        cache = ph.dominant_dimension_cache(model, tokens, layers=[0])
    found = cache["dominant_dim", 0, "attn"][0].numpy()
    np.testing.assert_allclose(found[:, rows, columns], dominant[:, rows, columns], atol=1e-4)
    for head in range(4):
        expected = oracles.rho(rows - columns, dominant[head, rows, columns], 1 / 256)
        assert float(scores.rho[0, head]) == pytest.approx(expected, abs=1e-3)
    assert scores.provenance["extension"]["method"] == "self_extend"
    assert scores.provenance["extension"]["group"] == 4


@torch.no_grad()
def test_the_attention_factor_is_taken_out_of_the_dominant_dimension(tiny):
    model, tokens = tiny("llama"), TOKENS[:1, :60]
    table = rope_method("yarn", 4).table(plain_rope(model, training_length=TRAINED), 60)
    assert table.attention_factor > 1.1
    contributions = contributions_at(model, tokens, table.inv_freq)
    rows, columns = np.tril_indices(60)
    for divide, factor in ((True, 1.0), (False, table.attention_factor**2)):
        dominant = oracle_dominant(contributions * factor)
        with extended_rope(model, "yarn", 4.0, training_length=TRAINED):
            scores = ph.score_heads(model, tokens, layers=[0], divide_attention_factor=divide)
        for head in range(4):
            expected = oracles.rho(rows - columns, dominant[head, rows, columns], 1 / 256)
            assert float(scores.rho[0, head]) == pytest.approx(expected, abs=1e-3)


def contributions_at(model, tokens, inv_freq):
    """Contributions of layer 0 with given frequencies, from unrotated queries and keys, in numpy."""
    _, cache = model.run_with_cache(tokens)
    q, k = (cache[f"blocks.0.attn.hook_{name}"][0].double().numpy() for name in "qk")
    turn, position = inv_freq.double().numpy(), np.arange(len(q))[:, None, None]
    pairs = len(turn)
    query, key = ((x[..., :pairs] + 1j * x[..., pairs:]) * np.exp(1j * turn * position) for x in (q, k))
    key = np.repeat(key, q.shape[1] // k.shape[1], axis=1)
    return np.einsum("mhp,nhp->hmnp", query, key.conj()).real


@torch.no_grad()
def test_ablation_and_contribution_hooks_inside_an_extension(tiny):
    model = tiny("llama")
    with extended_rope(model, "yarn", 4.0, training_length=TRAINED):
        with ph.contribution_hooks(model, [0]):
            _, cache = model.run_with_cache(TOKENS[:, :20])
        total = cache["blocks.0.attn.hook_contributions"].sum(-1)
        rows, columns = np.tril_indices(20)
        scores = cache["blocks.0.attn.hook_attn_scores"]
        assert torch.allclose(total[..., rows, columns], scores[..., rows, columns], atol=1e-5)
        with ph.ablated_heads(model, [ph.Head(0, 1)]):
            assert not torch.equal(model(TOKENS[:, :20]), cache["unembed.hook_out"])
    with extended_rope(model, "self_extend", group=4, window=8):
        with ph.ablated_heads(model, [ph.Head(0, 1)], "far", distance=8):
            _, cache = model.run_with_cache(TOKENS[:, :30])
        assert (cache["blocks.0.attn.hook_pattern"][:, 1, 20, :12] == 0).all()
        refused = pytest.raises(ph.UnsupportedModelError, match="do not work while self_extend rewrites scores")
        with refused, ph.contribution_hooks(model, [0]):
            pass
