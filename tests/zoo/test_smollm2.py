"""The real model: its scores are those of a plain count in float64, from Hugging Face's own queries and keys.

Whatever needs this model is tested here, because tests of one file share it: it takes seconds to load.
"""

import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.bridge.provenance import weights_fingerprint
from positional_heads.zoo.real import WHEEL_FILE_SHA256
from tests.support import oracles

pytestmark = pytest.mark.real_model
LAYERS, HEADS, KEY_HEADS, WIDTH, BASE = 30, 9, 3, 64, 100000.0
LENGTH = 96
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sequences(smollm2):
    return ph.cut_text(smollm2, ph.bundled_text(), LENGTH)[3:5]


@pytest.fixture(scope="module")
def vectors(smollm2_folder, sequences):
    """What `q_proj` and `k_proj` of Hugging Face's own model give, [layer] -> [sequence] -> ([pos d], [pos d])."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, attn_implementation="eager").eval()
    seen = [{"q_proj": [], "k_proj": []} for _ in range(LAYERS)]
    for layer, block in enumerate(model.model.layers):
        for name, kept in seen[layer].items():
            getattr(block.self_attn, name).register_forward_hook(
                lambda module, inputs, output, kept=kept: kept.append(output[0].double().numpy())
            )
    with torch.no_grad():
        for tokens in sequences:
            model.model(tokens[None])
    return [list(zip(one["q_proj"], one["k_proj"], strict=True)) for one in seen]


def turned(projected, heads):
    """[pos, head * d] -> [head pos pair], complex: channel i and channel i + 32 of a head, turned by its angle."""
    pos, half = len(projected), WIDTH // 2
    by_head = projected.reshape(pos, heads, 2, half).transpose(1, 0, 2, 3)
    angles = np.arange(pos)[:, None] * BASE ** (-np.arange(half) / half)
    return (by_head[:, :, 0] + 1j * by_head[:, :, 1]) * np.exp(1j * angles)


def counted(layer_vectors):
    """Distances and D of all causal query-key pairs of a layer, [head entry], in float64."""
    distances, found = [], []
    for q, k in layer_vectors:
        queries, keys = turned(q, HEADS), turned(k, KEY_HEADS).repeat(HEADS // KEY_HEADS, axis=0)
        m, n = np.tril_indices(len(q))
        contributions = (queries[:, m] * keys[:, n].conj()).real
        found.append(oracles.dominants(contributions)[0])
        distances.append(m - n)
    return np.concatenate(distances), np.concatenate(found, axis=1)


def test_rho_of_all_270_heads_is_a_plain_count_in_float64(smollm2, sequences, vectors):
    scores = ph.score_heads(smollm2, sequences)
    assert scores.rho.shape == (LAYERS, HEADS)
    assert scores.rho.isfinite().all()
    expected = np.empty((LAYERS, HEADS))
    for layer in range(LAYERS):
        distances, dominants = counted(vectors[layer])
        expected[layer] = [oracles.rho(distances, head, 1 / 256) for head in dominants]
        curve = np.stack([dominants[:, distances == t].mean(1) for t in range(LENGTH)], axis=1)
        assert np.abs(scores.curve[layer].numpy() - curve).max() < 2e-3
    errors, bounds = np.abs(scores.rho.numpy() - expected), scores.bound.numpy()
    assert (errors <= bounds + 1e-9).all(), (errors / bounds).max()
    assert errors.max() < 2e-3
    assert bounds.max() < 0.05
    assert np.abs(expected).max() > 0.15  # and not because nothing is there to be found
    wrong = np.stack([oracles.rho(distances, head, 1 / 256) for head in dominants[::-1]])  # heads in another order
    assert np.abs(scores.rho[-1].numpy() - wrong).max() > 0.02


def test_the_wheels_file_gives_the_weights_that_a_folder_of_them_gives(smollm2, smollm2_folder):
    scores = ph.score_heads(smollm2, ph.cut_text(smollm2, ph.bundled_text(), 64)[:1], layers=[0])
    model = scores.provenance["model"]
    assert (model["name"], model["context"]) == ("smollm2", 8192)
    assert model["origin"] == {
        "storage": "dequantised from Q4_1 and Q8_0",
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "sha256": WHEEL_FILE_SHA256,
    }
    plain = ph.load_model(smollm2_folder)
    assert weights_fingerprint(plain) == weights_fingerprint(smollm2) == model["weights"]
    ours, theirs = (dict(one.original_model.named_parameters()) for one in (smollm2, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.usefixtures("no_retrieval")
def test_code_blocks_of_the_readme_run_and_print_what_it_shows(smollm2, capsys, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.setattr(ph, "load_model", {"smollm2": smollm2}.get)
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(blocks) == 5
    assert "of 270 heads beat their null" in capsys.readouterr().out
    assert namespace["run"]["blocks.2.attn.hook_contributions"].shape == (1, 8, 512, 512, 16)


def test_a_score_kept_in_the_repository_is_what_the_command_gives(smollm2, tmp_path):
    """One head's layer of one text, anew: the kept numbers to their rounding."""
    shutil.copy(ROOT / "experiments" / "run.py", tmp_path)
    run = runpy.run_path(str(tmp_path / "run.py"))
    kept = ph.HeadScores.load(ROOT / "experiments" / "scores" / "code-512")
    again = ph.score_heads(smollm2, run["sequences"](smollm2, "code", 512, 16), layers=[0], null_repeats=0)
    assert (again.rho[0].float() - kept.rho[0].float()).abs().max() < 1e-4
