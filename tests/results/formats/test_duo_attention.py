"""DuoAttention's patterns: read as NumPy reads them, streaming heads at a share, names that other files have."""

import json

import numpy as np
import pytest
import torch

import positional_heads as ph

VALUES = torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_pattern_is_what_their_loader_reads(tmp_path):
    values = VALUES.clone()
    values[2] = torch.nan  # a layer without rotation keeps every key
    folder = ph.formats.write_duo_attention(values, tmp_path / "pattern", sinks=4, window=256)
    loaded = np.loadtxt(folder / "full_attention_heads.tsv", dtype=float, delimiter="\t")
    np.testing.assert_array_equal(loaded, values.nan_to_num(1).numpy())
    assert json.loads((folder / "config.json").read_text()) == {"sink_size": 4, "recent_size": 256}
    read = ph.formats.read_duo_attention(folder)
    assert torch.equal(read.values, values.nan_to_num(1))
    assert (read.sinks, read.window) == (4, 256)
    ph.formats.write_duo_attention(VALUES.float(), folder, sinks=0, window=1)  # its own kind may be replaced
    torch.testing.assert_close(ph.formats.read_duo_attention(folder).values, VALUES, atol=1e-7, rtol=0)


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_the_heads_with_the_lowest_values_stream(share):
    found = ph.formats.HeadPattern(VALUES, 4, 256).streaming(share)
    flat = VALUES.flatten().tolist()
    lowest = sorted(range(12), key=flat.__getitem__)[: round(12 * share)]
    assert found.shape == VALUES.shape
    assert found.flatten().nonzero().flatten().tolist() == sorted(lowest)


def test_trained_values_are_clipped_and_other_tables_refused(tmp_path):
    ph.formats.write_duo_attention(VALUES, tmp_path, sinks=1, window=2)
    table = tmp_path / "full_attention_heads.tsv"
    table.write_text("-1.2e-03\t1.0\r\n0.5\t1.001\r\n")
    assert ph.formats.read_duo_attention(tmp_path).values.tolist() == [[0.0, 1.0], [0.5, 1.0]]
    for wrong in ("", "1 2\n", "0.5\t\n", "nan\t0.5\n", "0.5\t7\n", "0\t1\n0\n", "é\n", "0_1\tinf\n"):
        table.write_text(wrong, encoding="utf-8")
        with pytest.raises(ph.ResultFileError, match="is not a table of DuoAttention's heads"):
            ph.formats.read_duo_attention(tmp_path)
    table.unlink()
    with pytest.raises(FileNotFoundError, match="no such file, expected a table"):
        ph.formats.read_duo_attention(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"sink_size": 4, "recent_size": 2.5}',
        '{"sink_size": -1, "recent_size": 2}',
        '{"sink_size": 1, "recent_size": 0}',
        '{"sink_size": 1}',
    ],
)
def test_the_configuration_of_a_model_is_neither_read_nor_replaced(content, tmp_path):
    ph.formats.write_duo_attention(VALUES, tmp_path, sinks=1, window=2)
    (tmp_path / "config.json").write_text(content)
    before = (tmp_path / "full_attention_heads.tsv").read_bytes()
    with pytest.raises(ph.ResultFileError, match=r"config\.json: is not a configuration of DuoAttention"):
        ph.formats.read_duo_attention(tmp_path)
    with pytest.raises(ph.ResultFileError, match=r"config\.json: exists already"):
        ph.formats.write_duo_attention(1 - VALUES, tmp_path, sinks=1, window=2)
    assert (tmp_path / "config.json").read_text() == content
    assert (tmp_path / "full_attention_heads.tsv").read_bytes() == before


def test_values_and_sizes_that_make_no_sense_are_refused(tmp_path):
    for wrong in (VALUES * 3, -VALUES, VALUES + torch.inf, VALUES[:0]):
        with pytest.raises(ValueError, match="values must be between 0"):
            ph.formats.write_duo_attention(wrong, tmp_path / "new", sinks=1, window=2)
    with pytest.raises(ValueError, match="sinks -1 must be at least 0"):
        ph.formats.write_duo_attention(VALUES, tmp_path / "new", sinks=-1, window=2)
    with pytest.raises(ValueError, match="window 0 must be at least 1"):
        ph.formats.write_duo_attention(VALUES, tmp_path / "new", sinks=1, window=0)
    with pytest.raises(ValueError, match=r"share 1.5 must be at most 1"):
        ph.formats.HeadPattern(VALUES, 1, 2).streaming(1.5)
    assert not (tmp_path / "new").exists()
