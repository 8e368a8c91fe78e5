"""rho is that of float64 D, equal within a stated resolution: on every kernel, tile, batch size and temperature."""

import functools
import itertools
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save

import positional_heads as ph
from positional_heads.core.logs import warn_once
from positional_heads.results.files import PARTIAL, read_result, write_result
from positional_heads.results.tables import heads_table
from positional_heads.results.unfinished import unfinished
from tests.support import oracles
from tests.support.family_table import hooked

TEMPERATURES = (1e-3, 1.0, 32**0.5, 1e3, 1e6)
LAYERS, HEADS = (1, 3), 8


@functools.cache
def rows(lengths=(61, 61, 61, 47), seed=0):
    model = ph.load_bundled_model()
    text = torch.cat(list(ph.cut_text(model, ph.bundled_text())))
    starts = np.random.default_rng(seed).integers(0, len(text) - max(lengths), len(lengths))
    return [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def contributed(model, sequences, layers=LAYERS):
    """Distances, and contributions of every causal pair from the model's own hooks, in float64, by layer and head."""
    runs = [model.run_with_cache(tokens[None], names_filter=lambda name: "hook_rot" in name)[1] for tokens in sequences]
    found = {}
    for layer, head in itertools.product(layers, range(HEADS)):
        distances, contributions = [], []
        for run in runs:
            query, key = run["rot_q", layer][0].double().numpy(), run["rot_k", layer][0].double().numpy()
            m, n = np.tril_indices(len(query))
            products = query[m, head] * key[n, head * key.shape[1] // HEADS]
            first, second = np.split(products, 2, axis=1)  # layout "half"
            distances.append(m - n)
            contributions.append(first + second)
        found[layer, head] = np.concatenate(distances), np.concatenate(contributions)
    return found


@pytest.fixture(scope="module")
def model():
    return ph.load_bundled_model()


@pytest.fixture(scope="module")
def pairs(model):
    return contributed(model, rows())


def refuse_unlike_the_oracle(scores, pairs, temperature, resolution):
    for (layer, head), (distance, contributions) in pairs.items():
        dominant, share = oracles.dominants(contributions, temperature)
        expected, found = oracles.rho(distance, dominant, resolution), float(scores.rho[layer, head])
        assert np.isnan(found) == np.isnan(expected), (layer, head, found, expected)
        if np.isnan(found):
            assert "the same for every query-key pair" in scores.reasons[ph.Head(layer, head)]
        else:
            error, bound = abs(found - expected), float(scores.bound[layer, head])
            assert error <= bound + 1e-9, (layer, head, error, bound)  # ranks of distances are in steps of 2^-31
            assert bound < 0.05
        close = (abs(share - 0.999) < 1e-4).sum()  # float32 contributions at a temperature of 1e-3
        counted = float(scores.saturation[layer, head]) * len(share)
        assert abs(round(counted) - (share > 0.999).sum()) <= close
        assert counted == pytest.approx(round(counted), abs=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("kernel", "batch_size"), [("eager", 1), ("eager in small tiles", 3), ("native", 3)])
def test_the_bound_holds_on_every_kernel_tile_batch_and_temperature(
    temperature, kernel, batch_size, model, pairs, monkeypatch
):
    monkeypatch.setenv("POSITIONAL_HEADS_KERNEL", kernel.split()[0])
    monkeypatch.setenv("POSITIONAL_HEADS_TILE_MB", "0.1" if kernel.endswith("tiles") else "")
    scores = ph.score_heads(model, rows(), layers=LAYERS, temperature=temperature, batch_size=batch_size)
    assert scores.provenance["kernels"] == [kernel.split()[0]]
    refuse_unlike_the_oracle(scores, pairs, temperature, 1 / 256)


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("resolution", [0.0, 1e-4, 1e-2, 0.25])
def test_the_bound_holds_at_every_resolution(resolution, temperature, model, pairs, monkeypatch):
    monkeypatch.setenv("POSITIONAL_HEADS_KERNEL", "native")
    scores = ph.score_heads(model, rows(), layers=LAYERS, temperature=temperature, resolution=resolution)
    assert scores.provenance["kernels"] == ["native" if resolution >= 1e-3 else "eager"]  # finer: in float64
    refuse_unlike_the_oracle(scores, pairs, temperature, resolution)


def test_fewer_bins_and_sampled_pairs_keep_to_a_bound(model, pairs):
    scores = ph.score_heads(model, rows(), layers=LAYERS, bins=64)
    refuse_unlike_the_oracle(scores, pairs, 1.0, 1 / 256)
    sampled = ph.score_heads(model, rows(), layers=LAYERS, pairs=1024)
    assert ((sampled.saturation - scores.saturation)[list(LAYERS)].abs() < 0.05).all()


@pytest.mark.parametrize("resolution", [1 / 256, 0.0])
@pytest.mark.parametrize("length", range(2, 13))
def test_short_sequences_have_scipys_rho_exactly(length, resolution, model):
    sequences = rows((length,), seed=length)
    with hooked(
        model
    ):  # the oracle reads hooks: a plain run rounds vectors elsewhere, and few entries show one that moves
        scores = ph.score_heads(model, sequences, resolution=resolution)
    for head, (distance, contributions) in contributed(model, sequences, range(4)).items():
        expected = oracles.rho(distance, oracles.dominants(contributions)[0], resolution)
        assert float(scores.rho[head]) == pytest.approx(expected, abs=1e-7, nan_ok=True)
        assert not float(scores.bound[head]) > 1e-7  # NaN where rho is


def test_d_keeps_the_deviation_from_the_largest_pair_to_full_precision():
    contributions = torch.tensor([46.0517018598809, 0.0, 0.0], dtype=torch.float64)  # weights 1, 1e-20, 1e-20
    assert float(ph.dominant_dimension(contributions)) == pytest.approx(3e-20, rel=1e-12)
    assert float(ph.dominant_dimension(contributions.flip(0))) == 2.0  # 3e-20 below two, as float64 has it
    assert float(ph.dominant_dimension(contributions.float())) == pytest.approx(3e-20, rel=1e-5)
    top = torch.zeros(64)
    top[41] = 30.0  # softmax of the others: 1e-13 each, and 41 times their sum is nothing in float32
    assert float(ph.dominant_dimension(top)) == 41.0


def test_a_resolution_that_is_no_width_is_refused():
    for wrong in (-0.1, 2, 0.4, 2 / 3, float("nan")):
        with pytest.raises(ValueError, match=r"resolution (.* give (pair indices|one over)|must be a finite number)"):
            ph.ScoringSettings(resolution=wrong)


def test_saturation_is_kept_in_files_and_shown(model, tmp_path):
    scores = ph.score_heads(model, rows(), layers=LAYERS)
    assert torch.equal(
        ph.HeadScores.load(scores.save(tmp_path)).saturation.nan_to_num(), scores.saturation.nan_to_num()
    )
    assert scores.to_frame()["saturation"].tolist()[8] == float(scores.saturation[1, 0])
    assert "saturated" in scores._repr_html_()
    rows_of_table = heads_table([{"name": "L1H0", "rho": 0.5, "bound": 0.25, "saturation": 0.75}], 1).cells
    assert dict(zip(*rows_of_table, strict=True))["saturated"] == "0.750"


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (torch.full((2, 100), 97), 2),
        (torch.tensor([97, 98]).repeat(2, 50), 2),
        (torch.stack([torch.full((100,), 97), rows((100,))[0]]), 1),
        (rows((100, 100)), 0),
        (rows((2,)), 0),
    ],
)
def test_text_of_one_repeated_token_gives_a_warning(tokens, said, model, caplog):
    warn_once.cache_clear()
    scores = ph.score_heads(model, tokens, layers=[1], null_repeats=2)
    assert scores.provenance["data"]["monotonous"] == said
    warning = f"in {said} of {len(tokens)} sequences one token fills half or more: content hardly varies there"
    assert (warning in caplog.text) == bool(said)
    assert (warning[3:] in scores.verdict) == bool(said)


def test_sums_of_an_earlier_version_are_refused_in_a_sentence(model, tmp_path):
    file = ph.score_shard(model, rows((30, 30)), "1/1", tmp_path, layers=[1])
    content, _ = read_result(file, PARTIAL)
    del content["null"]  # the earlier version had the number of repeats instead
    write_result(file, save({"1.0.entries": torch.zeros(1)}), content | {"repeats": 1}, PARTIAL)
    said = r"{}: these sums are of an earlier version .* delete the file and count again"
    for read in (
        lambda: ph.merge_shards(tmp_path),
        lambda: ph.score_shard(model, rows((30, 30)), "1/1", tmp_path, layers=[1]),
        lambda: ph.score_heads(model, rows((30, 30)), checkpoint=file.rename(tmp_path / PARTIAL.file_name).parent),
    ):
        with pytest.raises(ph.ResultFileError, match=said.format(r"\S*\.safetensors")):
            read()
    assert re.fullmatch(said.format(re.escape(str(tmp_path / PARTIAL.file_name))) + r"\.", unfinished(tmp_path))
