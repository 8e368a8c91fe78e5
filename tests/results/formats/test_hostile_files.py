"""Files that would run something, unpack to much, are damaged, or are none: refused in a sentence, and nothing runs."""

import io
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import positional_heads as ph
from tests.support.synthetic_profile import synthetic_profile

READERS = {
    "ranks.pth": ph.formats.read_mha2mla_ranks,
    "stats.pt": ph.formats.read_triattention,
    "agreement.pt": lambda file: ph.formats.read_fasa_agreement(file, budget=256),
    "kvpress.json": ph.formats.read_kvpress,
}


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self):
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
def test_nothing_in_a_file_is_run(name, kind, tmp_path):
    made, file = tmp_path / "made", tmp_path / name
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Runs(made)))
    else:
        torch.save({"stats": Runs(made)}, file, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(ph.ResultFileError, match=name):
        READERS[name](file)
    assert not made.exists()
    if kind != "old torch":
        with file.open("rb") as stream:  # it is dangerous indeed
            torch.load(stream, weights_only=False) if kind == "torch" else pickle.load(stream)
        assert made.exists()


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused(name, tmp_path):
    file = tmp_path / name
    profile = synthetic_profile()
    norm = profile.pairs.query_center.norm(dim=-1) + 0.1  # no mean length is below the length of the mean
    profile = replace(profile, pairs=replace(profile.pairs, query_norm=norm))
    streaming = torch.tensor([[True, False]])
    good = {
        "ranks.pth": lambda: ph.formats.write_mha2mla_ranks(profile, file),
        "stats.pt": lambda: ph.formats.write_triattention(profile, file),
        "agreement.pt": lambda: torch.save(torch.rand(6, 2, 3, 4), file),
        "kvpress.json": lambda: ph.formats.write_kvpress(streaming, file, sinks=1, window=1),
    }
    good[name]()
    READERS[name](file)
    raw = file.read_bytes()
    for part in (raw[: len(raw) // 2], raw[:10], raw[20:], b"", b"\0" * 100):
        file.write_bytes(part)
        with pytest.raises(ph.ResultFileError, match=name):
            READERS[name](file)
    for position in range(3, len(raw), max(1, len(raw) // 60)):  # a flipped bit: refused, or another number
        file.write_bytes(raw[:position] + bytes([raw[position] ^ 16]) + raw[position + 1 :])
        try:
            READERS[name](file)
        except ph.ResultFileError:
            continue
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no such file, expected"):
        READERS[name](file)
    file.mkdir()
    with pytest.raises(FileNotFoundError, match="is a folder, expected"):
        READERS[name](file)


def test_a_small_file_does_not_become_a_large_one(tmp_path):
    stream, file = io.BytesIO(), tmp_path / "ranks.pth"
    torch.save(torch.zeros(1, 1, 2**20, dtype=torch.uint8), stream)
    with zipfile.ZipFile(stream) as plain, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert file.stat().st_size < 2**14
    with pytest.raises(ph.ResultFileError, match=r"it would unpack to 1.* bytes, more than the file has"):
        ph.formats.read_mha2mla_ranks(file)


TENSORS = {
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged),
    "sparse": lambda: torch.ones(2, 2, 4).to_sparse(),
    "empty": lambda: torch.ones(6, 2, 0, 3),
    "number": lambda: torch.tensor(1.0),
    "complex": lambda: torch.ones(6, 2, 3, 4, dtype=torch.complex64),
    "truth": lambda: torch.ones(2, 2, 4, dtype=torch.bool),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("name", ["ranks.pth", "stats.pt", "agreement.pt"])
def test_tensors_of_another_kind_are_refused_in_a_sentence(name, kind, tmp_path):
    made = TENSORS[kind]()
    parts = dict.fromkeys(("q_mean_real", "q_mean_imag", "q_abs_mean"), made)
    content = {"metadata": {}, "stats": {"layer00_head00": parts}} if name == "stats.pt" else made
    torch.save(content, tmp_path / name)
    with pytest.raises(ph.ResultFileError, match=name):
        READERS[name](tmp_path / name)


def test_a_folder_keeps_its_name(tmp_path):
    (tmp_path / "kvpress.json").mkdir()
    with pytest.raises(ph.ResultFileError, match="is a folder, and a plan for kvpress would get this name"):
        ph.formats.write_kvpress(torch.tensor([[True]]), tmp_path / "kvpress.json", sinks=1, window=1)
