"""Plans written for other tools: exactly the windowed key heads stream there; what no file can hold is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.results.key_cache import KeyCache
from tests.support.synthetic_profile import synthetic_profile

PLAN = ph.window_plan(synthetic_profile(), 0.25, window=16, sinks=3)
STREAMING = {tuple(place) for place in PLAN.windowed.nonzero().tolist()}


def test_duo_attention_streams_exactly_the_windowed_key_heads(tmp_path):
    folder = ph.formats.write_duo_attention(PLAN, tmp_path)
    table = np.loadtxt(folder / "full_attention_heads.tsv", dtype=float, delimiter="\t")
    sparsity = len(STREAMING) / table.size  # as their sparsify_attention_heads: the lowest by quantile stream
    noise = np.random.default_rng(0).uniform(0, 1e-6, table.shape)
    streams = (table + noise) < np.quantile(table + noise, sparsity)
    assert {tuple(place) for place in np.argwhere(streams).tolist()} == STREAMING
    assert json.loads((folder / "config.json").read_text()) == {"sink_size": 3, "recent_size": 16}
    assert sparsity == float(PLAN.windowed.double().mean())


def test_kvpress_streams_exactly_the_windowed_key_heads(tmp_path):
    content = json.loads(ph.formats.write_kvpress(PLAN, tmp_path / "kvpress.json").read_text())
    heads = np.array(content["full_attention_heads"])
    lowest = np.argsort(heads, axis=None)[: round(heads.size * content["head_compression_ratio"])]  # as their press
    assert {(place // 2, place % 2) for place in lowest.tolist()} == STREAMING
    assert (content["sink_size"], content["recent_size"]) == (3, 16)
    by_table = ph.formats.write_kvpress(PLAN.windowed, tmp_path / "table.json", sinks=3, window=16)
    assert json.loads(by_table.read_text()) == content


@pytest.mark.parametrize("write", [ph.formats.write_kvpress, ph.formats.write_duo_attention])
def test_what_a_file_cannot_hold_is_refused_and_nothing_written(write, tmp_path):
    table = PLAN.windowed if write is ph.formats.write_kvpress else PLAN.full_attention
    with pytest.raises(ValueError, match="window 8: the plan has 16; leave it out, or plan with window=8"):
        write(PLAN, tmp_path / "new", window=8)
    with pytest.raises(ValueError, match="sinks and window missing: a tensor has none; give sinks= and window="):
        write(table, tmp_path / "new")
    cache = PLAN.cache
    fewer = replace(PLAN, cache=KeyCache(cache.keys_of, torch.tensor([2, 2, 1]), cache.windows))
    with pytest.raises(ValueError, match="as many key heads in every layer, and layers of this model hold 1, 2"):
        write(fewer, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    unknown = replace(PLAN, cache=KeyCache(cache.keys_of, torch.tensor([2, 2, -1]), cache.windows))
    assert write(unknown, tmp_path / "new").exists()  # what nobody knows keeps all keys


@pytest.mark.parametrize("by", ["band_norm", "low", "chance", "uniform"])
def test_mha2mla_keeps_the_pairs_of_a_plan(by, tmp_path):
    profile = synthetic_profile()
    plan = ph.pair_plan(profile, 0.5, by)
    file = ph.formats.write_mha2mla_ranks(plan, tmp_path / "ranks.pth")
    keeps = torch.load(file, weights_only=True) < 2  # select_2norm_frequency, of 4 pairs
    assert torch.equal(keeps[:2], torch.cat([plan.kept, plan.kept], -1)[:2])
    assert not keeps[2].any()
    if by == "band_norm":
        assert torch.equal(ph.formats.mha2mla_ranks(plan), ph.formats.mha2mla_ranks(profile))
    partial = replace(plan, provenance={"rotary": [{"layout": "half", "rotary_dim": 4, "d_head": 8}]})
    with pytest.raises(ValueError, match="MHA2MLA rotates every channel"):
        ph.formats.write_mha2mla_ranks(partial, tmp_path / "new.pth")
    assert not (tmp_path / "new.pth").exists()


def test_a_plan_that_drops_pairs_is_no_file_of_mha2mla(tmp_path):
    with pytest.raises(ValueError, match="drops pairs, and MHA2MLA leaves them unturned"):
        ph.formats.write_mha2mla_ranks(ph.pair_plan(synthetic_profile(), how="drop"), tmp_path / "ranks.pth")
    assert not [*tmp_path.iterdir()]


def test_a_table_with_a_field_too_long_is_not_ours(tmp_path):
    (tmp_path / "heads.csv").write_bytes(b"x" * 200_000)
    with pytest.raises(ph.ResultFileError, match=r"heads\.csv: exists already and is not a table"):
        ph.formats.write_tables(synthetic_profile(), tmp_path)
