"""CLEX solves its equation as scipy does, from checkpoints in its format."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.integrate import solve_ivp

from positional_heads.bridge.rope_scaling.clex import TENSORS, Clex, load_clex
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.bridge.rope_scaling.methods import rope_method
from positional_heads.bridge.rope_scaling.plain_rope import plain_rope

TOKENS = torch.randint(256, (2, 150), generator=torch.Generator().manual_seed(0))


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
    scaling = {"type": "clex", "max_factor": 4, "param_factor": 1, "act": "tanh", "factor": 1, "time_dt": 0.02}
    (folder / "config.json").write_text(json.dumps(config or {"rope_scaling": scaling, "log_scale": True}))
    tensors = {TENSORS[key]: getattr(method, key).contiguous() for key in TENSORS if key not in drop}
    save_file(tensors, folder / "model-00001-of-00001.safetensors")
    return folder


def test_a_checkpoint_loads_with_its_settings(tmp_path, bundled):
    method = clex()
    loaded = load_clex(save_clex(tmp_path, method))
    assert (loaded.act, loaded.max_factor, loaded.time_dt, loaded.log_scale) == ("tanh", 4, 0.02, True)
    assert torch.equal(loaded.down, method.down)
    with extended_rope(bundled, "clex", checkpoint=str(tmp_path)) as extension:
        assert extension.method.settings["hidden"] == 32


def test_a_run_beyond_its_training_is_refused(tiny):
    model = tiny("llama")
    with extended_rope(model, clex(pairs=8), training_length=30), pytest.raises(ValueError, match="at most 120"):
        model(TOKENS)


def test_a_missing_tensor_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"ode_up_proj are missing"):
        load_clex(save_clex(tmp_path, clex(), drop=["up"]))


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    narrow = clex()
    object.__setattr__(narrow, "down", narrow.down[:, :9])
    with pytest.raises(ValueError, match=r"ode_down_proj has shape \(32, 9\).*\(32, 16\)"):
        load_clex(save_clex(tmp_path, narrow))


def test_another_type_of_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not of type 'clex'"):
        load_clex(save_clex(tmp_path, clex(), config={"rope_scaling": {"type": "yarn"}}))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a folder"):
        load_clex(tmp_path / "nowhere")


def test_a_checkpoint_for_another_number_of_pairs_is_refused(bundled):
    with (
        pytest.raises(ValueError, match="64 frequencies, layer 0 has 16 pairs"),
        extended_rope(bundled, clex(pairs=64)),
    ):
        pass
