"""A result file is complete, ours and undamaged, or refused."""

import json
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import positional_heads as ph
from tests.support.synthetic import synthetic_scores


def test_a_path_without_a_suffix_is_a_folder(tmp_path):
    assert synthetic_scores().save(tmp_path / "runs" / "first") == tmp_path / "runs" / "first" / "scores.safetensors"
    assert ph.HeadScores.load(tmp_path / "runs" / "first").verdict == synthetic_scores().verdict


def test_the_file_is_a_plain_safetensors_file(tmp_path):
    scores = synthetic_scores()
    assert torch.equal(load_file(scores.save(tmp_path / "my.safetensors"))["rho"].nan_to_num(), scores.rho.nan_to_num())


def test_saving_twice_gives_the_same_bytes(tmp_path):
    first, second = (synthetic_scores().save(tmp_path / name).read_bytes() for name in ("a.st", "b.st"))
    assert first == second


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    old = synthetic_scores().save(tmp_path)
    before = old.read_bytes()

    def disk_full(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(step, disk_full)
        with pytest.raises(OSError, match="No space left"):
            synthetic_scores(seed=1).save(tmp_path)
    assert old.read_bytes() == before
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 3000, -1])
def test_truncated_files_are_refused(tmp_path, kept):
    file = synthetic_scores().save(tmp_path)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ph.ResultFileError, match="truncated"):
        ph.HeadScores.load(file)


def test_a_flipped_bit_in_the_numbers_is_refused(tmp_path):
    file = synthetic_scores().save(tmp_path)
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ph.ResultFileError, match="checksum"):
        ph.HeadScores.load(file)


@pytest.mark.parametrize("bit", [0, 4])
def test_a_flipped_bit_anywhere_in_the_header_is_refused(tmp_path, bit):
    """Names, shapes, the table, the verdict and where things came from: none may change unnoticed."""
    file = synthetic_scores().save(tmp_path)
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for place in range(0, 8 + length, 7):
        raw = bytearray(whole)
        raw[place] ^= 1 << bit
        file.write_bytes(raw)
        with pytest.raises(ph.ResultFileError):
            ph.HeadScores.load(file)


def test_foreign_files_are_refused(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ph.ResultFileError, match=r"not a positional_heads\.HeadScores; positional-heads score writes"):
        ph.HeadScores.load(tmp_path / "other.safetensors")
    (tmp_path / "notes.txt").write_text("In the beginning God created the heaven and the earth.")
    with pytest.raises(ph.ResultFileError, match="not a result file"):
        ph.HeadScores.load(tmp_path / "notes.txt")


def test_a_newer_format_is_refused(tmp_path):
    file = synthetic_scores().save(tmp_path)
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + length].replace(b'\\"version\\": 1', b'\\"version\\": 9')
    assert json.loads(header)
    file.write_bytes(raw[:8] + header + raw[8 + length :])
    with pytest.raises(ph.ResultFileError, match="format 9, this version reads up to 1: upgrade"):
        ph.HeadScores.load(file)


def test_a_missing_file_is_refused_with_the_command_that_writes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="positional-heads score writes one"):
        ph.HeadScores.load(tmp_path)


def test_results_are_read_without_torch(tmp_path):
    file = synthetic_scores().save(tmp_path)
    code = (
        "import sys; from positional_heads.results.files import SCORES, read_result; "
        "content, _ = read_result(sys.argv[1], SCORES); "
        "print(len(content['table']), 'torch' in sys.modules, 'transformer_lens' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["12", "False", "False"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        synthetic_scores().save(Path(tmp_path) / "file" / "scores.safetensors")
