"""Plain tables: read back by pandas and by the json module, exactly; what is unknown; names that other files have."""

import csv
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import positional_heads as ph
from tests.support.synthetic_profile import synthetic_profile


def test_both_tables_are_read_back_as_they_were(tmp_path):
    profile = synthetic_profile()
    files = ph.formats.write_tables(profile, tmp_path / "new")
    assert sorted(file.name for file in files) == ["heads.csv", "heads.json", "pairs.csv", "pairs.json"]
    for name, frame in (("heads", profile.to_frame()), ("pairs", profile.pair_frame())):
        read = pd.read_csv(tmp_path / "new" / f"{name}.csv")
        pd.testing.assert_frame_equal(read, frame, rtol=1e-12, atol=0, check_dtype=False)
        rows = json.loads((tmp_path / "new" / f"{name}.json").read_text(), parse_constant=pytest.fail)
        assert list(rows[0]) == list(frame.columns)
        for column in frame:
            found = [np.nan if row[column] is None else row[column] for row in rows]
            np.testing.assert_array_equal(found, frame[column].tolist(), column)


def test_csv_has_crlf_and_empty_cells_and_infinity_has_no_json(tmp_path):
    profile = synthetic_profile()
    frequencies = profile.pairs.frequencies.clone()
    frequencies[0, 3] = 0
    ph.formats.write_tables(replace(profile, pairs=replace(profile.pairs, frequencies=frequencies)), tmp_path)
    raw = (tmp_path / "heads.csv").read_bytes()
    assert raw.count(b"\r\n") == raw.count(b"\n") == 13
    with (tmp_path / "heads.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[8]["name"] == "L2H0"
    assert rows[8]["reach"] == ""
    assert (rows[8]["key_head"], rows[0]["is"]) == ("-1", profile.name(ph.Head(0, 0)))
    pair = json.loads((tmp_path / "pairs.json").read_text())[3]
    assert (pair["frequency"], pair["wavelength"]) == (0, None)
    assert pd.read_csv(tmp_path / "pairs.csv")["wavelength"][3] == np.inf
    assert np.isnan(json.loads((tmp_path / "heads.json").read_text())[8]["reach"] or np.nan)


@pytest.mark.parametrize("name", ["heads.csv", "heads.json", "pairs.csv", "pairs.json"])
@pytest.mark.parametrize("content", [b"a,b\r\n1,2\r\n", b'[{"name": 1}]', b"\xff\xfe", b"name;layer;head"])
def test_other_tables_keep_their_files(name, content, tmp_path):
    profile = synthetic_profile()
    ph.formats.write_tables(profile, tmp_path)
    ph.formats.write_tables(replace(profile, mass=torch.zeros_like(profile.mass)), tmp_path)  # its own may be replaced
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ph.ResultFileError, match=f"{name}: exists already and is not a table of heads"):
        ph.formats.write_tables(profile, tmp_path)
    assert (tmp_path / name).read_bytes() == content
